"""The script for ImageNet-9 counts what can be counted by hand, on a folder with the layout of the real data."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import ROOT
from PIL import Image
from torch import nn
from torchvision.models import squeezenet1_1

Run = Callable[..., list[dict[str, Any]]]

SIDE, OUTSIDE = 96, 5
CLASSES = ["dog", "bird", "wheeled vehicle", "reptile", "carnivore", "insect", "musical instrument", "primate", "fish"]
FOLDERS = [f"{index:02d}_{name}" for index, name in enumerate(CLASSES)]
HUES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0.5, 0), (0, 0.5, 1), (0, 1, 0.5)]
WHITE = (1, 1, 1)


def color_network() -> nn.Module:
    """Answers 10 k to the color of class k, and OUTSIDE, which is none of the nine classes, to white."""
    network = squeezenet1_1()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight) if "3x3" in name else nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
    heads = network.classifier[1].weight.data.zero_()
    for index, color in [(10 * label, hue) for label, hue in enumerate(HUES)] + [(OUTSIDE, WHITE)]:
        heads[index, :3, 0, 0] = nn.functional.normalize(seen(color), dim=0)
    return network


def seen(color: tuple[float, ...]) -> torch.Tensor:
    """What the first ReLU leaves of a normalized color."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.tensor(color) - mean) / std).relu()


def write(path: Path, color: tuple[float, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), tuple(round(255 * part) for part in color)).save(path, "JPEG")


def lay_out(folder: Path, is_paired: bool = True) -> None:
    """18 images in each set; wrong are none, one and three of them."""
    wrong = {"mixed_same": {(2, 1): WHITE}, "mixed_rand": {(0, 1): HUES[4], (1, 0): HUES[0], (1, 1): WHITE}}
    for label, name in enumerate(FOLDERS):
        for number in (0, 1):
            photo = f"n0000000{label}_{number}"
            write(folder / "original" / "val" / name / f"{photo}.JPEG", HUES[label])
            for mixed, colors in wrong.items():
                pasted = photo if is_paired or mixed == "mixed_same" else f"n0000001{label}_{number}"
                file = folder / mixed / "val" / name / f"fg_{pasted}_bg_n0000009{number}_{len(mixed)}.JPEG"
                write(file, colors.get((label, number), HUES[label]))
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[45:51, 45:51] = True
            (folder / "fg_mask" / "val" / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / "fg_mask" / "val" / name / f"{photo}.npy", mask)


def mapping() -> dict[str, int]:
    return {str(index): index // 10 if index % 10 == 0 and index < 90 else -1 for index in range(1000)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the script on `tmp_path`, and returns what it wrote."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "setting", raising=False)
    setting = importlib.import_module("setting")
    monkeypatch.setitem(sys.modules, "setting", setting)
    monkeypatch.setattr(setting, "RESULTS", tmp_path / "results")
    torch.save(color_network().state_dict(), tmp_path / "colors.pth")

    def call(*more: str, classes: dict[str, int] | None = None) -> list[dict[str, Any]]:
        (tmp_path / "in_to_in9.json").write_text(json.dumps(mapping() if classes is None else classes))
        arguments = [str(tmp_path), "--mapping", str(tmp_path / "in_to_in9.json"), "--models", "squeezenet1_1"]
        arguments += ["--weights", str(tmp_path / "colors.pth"), "--device", "cpu", *more]
        monkeypatch.setattr(sys, "argv", ["imagenet9.py", *arguments])
        runpy.run_path(str(ROOT / "benchmarks" / "imagenet9.py"), run_name="__main__")
        found: list[dict[str, Any]] = json.loads((tmp_path / "results" / "imagenet9.json").read_text())["results"]
        return found

    return call


def test_the_gap_is_the_one_that_was_counted(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path)
    (found,) = run("--batch", "7")
    assert (found["original"], found["mixed_same"], found["mixed_rand"]) == (1, 17 / 18, 15 / 18)
    # Three objects are lost on a random background and one is won: 3.5 and 1.5 of 20, Agresti & Min 2005.
    half = 1.959964 * (5 - 2**2 / 20) ** 0.5 / 20
    assert found["paired"]
    assert [found["gap"][key] for key in ("value", "low", "high")] == pytest.approx([2 / 18, 0.1 - half, 0.1 + half])
    # The object is small: this network answers with the background, which always is of one color.
    assert (found["bg_gap"]["value"], found["bg_gap"]["count"]) == (1, 18)
    printed = capsys.readouterr().out
    assert "| squeezenet1_1 | 100.0% | 94.4% | 83.3% | 11.1 [-11.5, 31.5] | paired |" in printed
    assert "| squeezenet1_1 | 18 | 100.0 [" in printed


def test_without_pairs_and_masks_the_interval_is_wider(tmp_path: Path, run: Run) -> None:
    lay_out(tmp_path, is_paired=False)
    (found,) = run("--audited", "0")
    gap = found["gap"]
    assert not found["paired"]
    assert "bg_gap" not in found
    # Wilson: 17 of 18 in [0.7424, 0.9901], 15 of 18 in [0.6078, 0.9416]; Newcombe 1998, method 10.
    assert (gap["value"], gap["low"], gap["high"]) == pytest.approx((0.1111, -0.1182, 0.3412), abs=2e-4)


@pytest.mark.parametrize("fault", ["a class is missing", "an index is missing", "no class is outside"])
def test_data_that_would_be_counted_wrong_is_refused(tmp_path: Path, run: Run, fault: str) -> None:
    lay_out(tmp_path)
    classes = mapping()
    if fault == "a class is missing":
        for mixed in ("original", "mixed_same", "mixed_rand"):
            (tmp_path / mixed / "val" / FOLDERS[3]).rename(tmp_path / f"{mixed} reptiles")
    elif fault == "an index is missing":
        del classes["999"]
    else:
        classes = {index: max(label, 0) for index, label in classes.items()}
    with pytest.raises(SystemExit, match="must hold the folders" if "class is missing" in fault else "must map each"):
        run(classes=classes)
