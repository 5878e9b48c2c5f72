"""Maps of a resumed run go on with those of the run before only if they are made in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning_runs import CountingCAM, fit, own_warnings
from torch import Tensor

from cam_callbacks import CAMMonitor, GradCAM, RegressionTarget, ScoreCAM


def resumed(folder: Path, monitor: CAMMonitor, checkpoint: Path) -> None:
    fit(folder, monitor, ckpt_path=str(checkpoint), max_epochs=2)


USUAL: dict[str, Any] = {"target_layer": "features.4", "num_probes": 6, "audit": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with the usual monitor, after one epoch."""
    folder = tmp_path_factory.mktemp("first")
    fit(folder, CAMMonitor(**USUAL)).save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_maps_made_in_the_same_way_go_on(tmp_path: Path, checkpoint: Path) -> None:
    same = CAMMonitor(**USUAL)
    resumed(tmp_path, same, checkpoint)
    assert [look.epoch for look in same.history] == [0, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"target_layer": "features.3"},
        {"method": GradCAM()},
        {"method": ScoreCAM("increase")},
        {"method": CountingCAM()},
        {"method": ScoreCAM(multi_label=True)},
        {"explain": "prediction"},
        {"explain": 1},
    ],
    ids=["layer", "method", "weighting", "class of method", "multi-label", "prediction", "class"],
)
def test_maps_made_in_another_way_are_no_continuation(tmp_path: Path, checkpoint: Path, other: dict[str, Any]) -> None:
    changed = CAMMonitor(**USUAL | other)
    with own_warnings() as said:
        resumed(tmp_path / "changed", changed, checkpoint)
    assert [look.epoch for look in changed.history] == [1]
    assert any("starting a new history" in text for text in said)


def by_reshape(output: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"method": ScoreCAM(batch_size=3)}, {"method": ScoreCAM(batch_size=5, upsampling="nearest")}),
        ({"explain": "label"}, {"explain": "both"}),
        ({"method": CountingCAM()}, {"method": CountingCAM()}),
        ({"method": ScoreCAM(reshape_transform=by_reshape)}, {"method": ScoreCAM(reshape_transform=by_reshape)}),
        ({"explain": RegressionTarget(1)}, {"explain": RegressionTarget(1)}),
    ],
    ids=["batch size", "both", "class of method", "reshape_transform", "target"],
)
def test_maps_that_would_be_the_same_go_on(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    fit(tmp_path / "first", CAMMonitor(num_probes=6, **before, audit=None)).save_checkpoint(tmp_path / "last.ckpt")
    monitor = CAMMonitor(num_probes=6, **after, audit=None)
    with own_warnings() as said:
        resumed(tmp_path / "second", monitor, tmp_path / "last.ckpt")
    assert said == []
    assert [look.epoch for look in monitor.history] == [0, 1]
