"""The script about tools that look at the data alone counts what they say, and says which it could not ask."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pages import ROOT

NAMES = ("data_rivals", "bias_data", "bias_tables", "setting")
RULE = "red differs by 0.1"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("data_rivals")


@pytest.fixture
def ask(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Asks a rival that is installed, and one that is not, in the short form; returns the lines of the file."""

    def by_red(training: tuple[Any, Any, Any], _: tuple[Any, Any, Any]) -> dict[str, list[str]]:
        images, targets, _ = training
        red = torch.stack([torch.as_tensor(each).float()[..., 0].mean() / 255 for each in script.pixels(images)])
        return {RULE: ["red"] if abs(red[targets == 1].mean() - red[targets == 0].mean()) > 0.1 else []}

    def call() -> list[dict[str, Any]]:
        monkeypatch.setattr(script, "RIVALS", {"not-on-this-machine": by_red, "pytest": by_red})
        monkeypatch.setattr(sys, "argv", ["data_rivals.py", "--short", "--out", str(tmp_path / "said.jsonl")])
        script.main()
        return [json.loads(line) for line in (tmp_path / "said_short.jsonl").read_text().splitlines()]

    return call


def test_what_a_rival_finds_is_counted_once(
    ask: Callable[[], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    said = ask()
    printed = capsys.readouterr().out
    assert {(run["kind"], run["agreement"]) for run in said if run["said"][RULE]} == {("color", 1.0)}
    assert "not-on-this-machine is not asked" in printed
    assert "| color | 0/1 | 1/1 | red (1) |" in printed
    assert "| natural colors | 0/1 |  |  |" in printed
    assert f"| {RULE} | 1/1 [0.21, 1.00] | 0/1 [0.00, 0.79] | 0/4 [0.00, 0.49] |" in printed
    assert f"pytest: 6 data sets of [128] images, seeds [0], on {said[0]['date']}, with numpy " in printed
    assert ask() == said


def test_data_with_fewer_of_one_class_is_counted_apart(script: ModuleType) -> None:
    kinds = {"plain": [], "imbalance 4:1": ["dark", "light"], "tag": ["dark"], "blur": []}
    runs = [
        {"kind": kind, "agreement": 1.0 if kind in ("tag", "blur") else 0.5, "said": {"rule": names}}
        for kind, names in kinds.items()
        for _ in range(2)
    ]
    assert script.found_by_kind(runs, "rule").splitlines()[2:] == [
        "| plain | 0/2 |  |  |",
        "| imbalance 4:1 | 2/2 |  | dark (2), light (2) |",
        "| tag |  | 2/2 | dark (2) |",
        "| blur |  | 0/2 |  |",
    ]
    cells = [cell.split(" [")[0] for cell in script.summary(runs, ["rule"]).splitlines()[2].split(" | ")]
    assert cells == ["| rule", "2/2", "0/2", "2/4", "0/2"]


@pytest.mark.parametrize("kind", ["color", "disc, square on blotches"])
def test_a_rival_gets_the_colors_that_were_drawn(script: ModuleType, kind: str) -> None:
    images, _, _ = script.draw(kind, 1.0, 0, 4, "train")
    stored = torch.stack([torch.as_tensor(each) for each in script.pixels(images)])
    assert stored.dtype == torch.uint8
    shown = stored.permute(0, 3, 1, 2) / 255
    assert torch.allclose((shown - script.MEAN) / script.STD, images, atol=0.51 / 255 / script.STD)
