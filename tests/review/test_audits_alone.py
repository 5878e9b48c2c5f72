"""Audits without heatmaps: the tab and the report show what was found, and say why there are no heatmaps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium
from lightning_runs import fit, loader
from servers import Server, read_in, serving
from task_runs import Unchanged, monitored, rows_of
from torch import nn

from cam_callbacks import Audit, CAMMonitor
from cam_callbacks.review.command import main
from cam_callbacks.review.report import collect

WHY = {
    "detection": "No heatmaps: the audit of a detector asks for boxes, and has no score of a class to explain.",
    "embedding": "No heatmaps: an embedding has no score of a class to explain.",
}
STEPS = [9, 19]


class BecomesDense(Unchanged):
    """Its second epoch is that of a network without positions."""

    def __init__(self) -> None:
        features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Sequential(features, nn.Linear(8, 3)))
        self.loss = nn.CrossEntropyLoss()

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 3))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, an embedding, and a network that has heatmaps at its first look only; a report of each."""
    folder = tmp_path_factory.mktemp("logs")
    for task in WHY:
        monitored(folder / task, task, 1.0, report=True)
    monitor = CAMMonitor(num_probes=4, audit=Audit(num_images=64), report=True)
    data = loader(rows_of("embedding"), batch_size=16)
    fit(folder / "mixed", monitor, BecomesDense(), data, data, max_epochs=2)
    return folder


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[Server]:
    with serving(logs) as started:
        yield read_in(started, runs=3, last=STEPS[-1])


def reported(logs: Path, name: str) -> dict[str, Any]:
    """What the report that a run has written shows of it."""
    page = (logs / name / "run" / "cam_report.html").read_text(encoding="utf-8")
    (run,) = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["runs"]
    return run


@pytest.mark.parametrize("task", WHY)
def test_the_report_holds_verdict_gaps_swaps_and_the_reason(logs: Path, task: str) -> None:
    run = reported(logs, task)
    looks = run["timeline"]["looks"]
    assert [(look["step"], look["epoch"], look["heatmaps"]) for look in looks] == [(9, 0, False), (19, 1, False)]
    assert [look["audit"]["verdict"]["state"] for look in looks] == ["suspicion", "alarm"]
    assert all(look["audit"]["measures"]["bg_gap"]["overall"]["low"] > 0.5 for look in looks)
    assert [run["looks"][str(step)]["no_heatmaps"] for step in STEPS] == [WHY[task]] * 2
    assert all(picture.startswith("data:image/png") for picture in run["swaps"].values())
    assert run["timeline"]["settings"]["settings"]["num_probes"] == 4


def test_the_words_are_those_of_the_task(logs: Path) -> None:
    (audit, *_) = [look["audit"] for look in reported(logs, "detection")["timeline"]["looks"]]
    assert audit["words"]["lost"] == "share of objects that another class's background hides"


def test_what_the_data_gives_away_is_in_it(logs: Path) -> None:
    (audit, *_) = [look["audit"] for look in reported(logs, "detection")["timeline"]["looks"]]
    given_away = {(each["name"], each["where"]) for each in audit["data"] if each["gives_away"]}
    assert ("brightness", "background") in given_away
    assert audit["words"]["told_apart"] == "the classes apart"
    assert [(each["gap"], each["state"]) for each in audit["dependences"]] == [("bg_gap", "suspicion")]


def test_a_run_with_heatmaps_at_some_looks_shows_both(logs: Path) -> None:
    run = reported(logs, "mixed")
    assert [look["heatmaps"] for look in run["timeline"]["looks"]] == [True, False]
    assert all(look["audit"] for look in run["timeline"]["looks"])
    first, last = (run["looks"][str(step)] for step in STEPS)
    assert (len(first["maps"]), "no_heatmaps" in first) == (4, False)
    assert (last["maps"], last["probes"]) == ([], [])
    assert last["no_heatmaps"].startswith("CAMMonitor shows no heatmaps: no layer of BecomesDense")
    assert last["no_heatmaps"].endswith(".")


def test_the_command_writes_a_report_of_them_all(logs: Path, tmp_path: Path) -> None:
    assert main(["report", "--quiet", "-o", str(tmp_path / "report.html"), str(logs)]) == 0
    assert all(why in (tmp_path / "report.html").read_text(encoding="utf-8") for why in WHY.values())
    assert [run["timeline"]["run"] for run in collect([logs])["runs"]] == [
        "detection/run",
        "embedding/run",
        "mixed/run",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("task", WHY)
def test_the_tab_gets_the_same_from_tensorboard(server: Server, logs: Path, task: str) -> None:
    assert {"run": f"{task}/run", "monitors": ["cam"]} in server.ours("runs").json["runs"]
    place = {"run": f"{task}/run", "monitor": "cam"}
    run = reported(logs, task)
    found = server.ours("timeline", **place).json["looks"]
    without_time = [[{**look, "wall_time": 0} for look in looks] for looks in (found, run["timeline"]["looks"])]
    assert without_time[0] == without_time[1]
    for step in STEPS:
        assert server.ours("look", step=step, **place).json == run["looks"][str(step)]
        assert server.ours("swaps", step=step, **place).json == {"swaps": run["swaps"][str(step)]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as chrome:
        yield chrome


@pytest.mark.slow
def test_a_reader_sees_verdict_curve_and_why_there_are_no_heatmaps(browser: Any, logs: Path) -> None:
    page = Page(browser)
    browser.get((logs / "embedding" / "run" / "cam_report.html").as_uri())
    page.wait(lambda: page.texts(".pane .none") == [WHY["embedding"]])
    assert "ALARM" in page.one(".verdict").text
    assert "of 100 answers" in page.one(".verdict").text
    assert page.texts(".curve-row .term") == ["Gap of the audit"]
    assert page.all(".toolbar") == []
    assert page.wait(lambda: page.all(".swaps img"))
    assert "`" not in page.one(".appendix").text
    page.one("[data-title='What the data gives away'] summary").click()
    assert any("gives it away" in row for row in page.wait(lambda: page.texts("table.data tbody tr")))
    assert page.errors() == []


@pytest.mark.slow
def test_a_reader_sees_the_heatmaps_of_the_looks_that_have_them(browser: Any, logs: Path) -> None:
    page = Page(browser)
    browser.get((logs / "mixed" / "run" / "cam_report.html").as_uri())
    page.wait(lambda: page.texts(".pane .none"))
    assert "no layer of BecomesDense" in page.one(".pane .none").text
    assert page.all(".card") == []
    page.slide(".slider input", 0)
    page.wait(lambda: len(page.all(".card")) == 4)
    assert page.texts(".pane .none") in ([], [""])
    assert page.errors() == []
