"""CAMMonitor(report=True): a report is written when the fit has ended."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fsspec
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import fit, own_warnings

from cam_callbacks import Audit, CAMMonitor
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.review.report import write_report


def test_it_holds_all_looks_of_the_run(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4, audit=Audit(num_images=12), report=True), max_epochs=3)
    page = (tmp_path / "run" / "cam_report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    (run,) = data["runs"]
    assert [look["epoch"] for look in run["timeline"]["looks"]] == [0, 1, 2]
    assert data["skipped"] == []


def test_without_tensorboard_it_is_refused_before_training_starts(tmp_path: Path) -> None:
    with pytest.raises(Misconfiguration, match=r"report=True .* give it one"):
        fit(tmp_path, CAMMonitor(report=True), logger=False)


def test_fast_dev_run_writes_none(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4, report=True), fast_dev_run=True)
    assert list(tmp_path.rglob("*.html")) == []


def test_without_a_look_there_is_no_report(tmp_path: Path) -> None:
    monitor = CAMMonitor(report=True, on_error="raise")
    with own_warnings() as said:
        fit(tmp_path, monitor, limit_val_batches=0)
    (warning,) = said
    assert "it will show nothing" in warning
    assert list(tmp_path.rglob("*.html")) == []


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "cam_report.html").mkdir(parents=True)  # a folder stands where the file should be
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4, audit=Audit(num_images=12), report=True))
    (warning,) = [text for text in said if "could not write the report" in text]
    assert "Traceback" in warning


def test_on_error_raise_also_raises_errors_of_the_report(tmp_path: Path) -> None:
    (tmp_path / "run" / "cam_report.html").mkdir(parents=True)
    with pytest.raises(OSError, match=r"cam_report\.html"):
        fit(tmp_path, CAMMonitor(num_probes=4, audit=None, report=True, on_error="raise"))


def test_event_files_elsewhere_are_complete_and_no_report_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = TensorBoardLogger(f"memory://{tmp_path.name}", name="", version="run")
    with own_warnings() as said:
        fit(tmp_path / "local", CAMMonitor(num_probes=4, audit=None, report=True), logger=logger)
    (warning,) = said
    assert f"no report: the event files are in memory://{tmp_path.name}/run" in warning
    assert [path.name for path in tmp_path.iterdir() if path.name != "local"] == []
    fsspec.filesystem("memory").get(f"/{tmp_path.name}/run", str(tmp_path / "copied"), recursive=True)
    write_report([tmp_path / "copied"], tmp_path / "report.html")
    assert '"epoch":0' in (tmp_path / "report.html").read_text(encoding="utf-8").replace('": ', '":')
