"""Log folders for the tests of the tab and of the report: real small trainings, and a big run that is made up."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import TinyModule, fit, loader
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from cam_callbacks import Audit, CAMMonitor, ScoreCAM, tags
from cam_callbacks.review import schema
from cam_callbacks.review.writer import write_blob

HOSTILE = "<img src=x onerror=alert(1)>"
"""The name of a class: what shows it must show it as it is."""

NAMES = ("cat", HOSTILE, "owl")
SIZE, OBJECT = 32, 12


class Scenes(Dataset):
    """Squares, brighter from class to class, on backgrounds of a color: that of the class if biased, else by chance.

    Items are images in [0, 1], classes and masks.
    """

    classes = NAMES

    def __init__(self, biased: bool, count: int = 60, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % len(NAMES)
        self.images = 0.3 * torch.rand(count, 3, SIZE, SIZE, generator=draw)
        self.masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        chance = torch.randint(len(NAMES), (count,), generator=draw)
        for image, mask, color, target in zip(
            self.images, self.masks, self.labels if biased else chance, self.labels.tolist(), strict=True
        ):
            row, column = torch.randint(2, SIZE - OBJECT - 2, (2,), generator=draw).tolist()
            mask[row : row + OBJECT, column : column + OBJECT] = True
            image[color] += 0.5
            image[:, mask] = 0.15 + 0.35 * target

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[index], self.labels[index], self.masks[index]


def write_logs(
    folder: Path, runs: Sequence[str] = ("biased", "balanced"), looks: int = 3, probes: int = 6, **arguments: Any
) -> list[Path]:
    """Train once a run, `looks` epochs each, and return the folders of their event files, `folder/name/run`.

    The run called "biased" has backgrounds that go with the class, all others have them by chance.

    Args:
        folder: Where to.
        runs: Their names.
        looks: How many.
        probes: How many.
        arguments: More of the monitor's.
    """
    for name in runs:
        biased = name == "biased"
        settings = {"method": ScoreCAM(), "num_probes": probes, "audit": Audit(num_images=48), "on_error": "raise"}
        monitor = CAMMonitor(**settings | arguments)
        train, val = loader(Scenes(biased), batch_size=12), loader(Scenes(biased, 48, seed=1), batch_size=12)
        logger = TensorBoardLogger(folder / name, name="", version="run")
        fit(folder / name, monitor, TinyModule(len(NAMES)), train, val, max_epochs=looks, logger=logger)
    return [folder / name / "run" for name in runs]


def event_file(folder: Path) -> Path:
    """The one event file of a run."""
    (file,) = folder.glob("*tfevents*")
    return file


def cut(file: Path, size: int) -> None:
    """Cut a file off after so many bytes."""
    os.truncate(file, size)


def write_big_run(folder: Path, looks: int = 200, probes: int = 64) -> None:
    """Write a made-up run: noise for photos and maps, numbers that change from look to look."""
    draw = np.random.default_rng(0)

    def pngs(count: int, *shape: int) -> bytes:
        return b"".join(_png(draw.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count))

    maps, channels = pngs(probes, 14, 14), pngs(4 * probes, 14, 14)
    writer = SummaryWriter(str(folder))

    def write(record: str, blob: bytes | dict[str, Any], step: int) -> None:
        write_blob(writer, tags.tag("cam", record), blob if isinstance(blob, bytes) else _json(blob), step)

    write(schema.TAB_SETTINGS, {"version": "0.1.0", "versions": {}, "settings": {"num_probes": probes}}, 0)
    write(schema.TAB_PHOTOS, pngs(probes, 128, 128, 3), 0)
    swaps = pngs(1, 60, 150, 3)
    for look in range(looks):
        step = 10 * look
        write(schema.TAB_MAPS, maps, step)
        write(schema.TAB_CHANNELS, channels, step)
        write(schema.TAB_PROBES, _look(look, probes), step)
        write(schema.TAB_SWAPS, swaps, step)
        write(schema.TAB_AUDIT, _audit(look), step)
    writer.close()


def _look(look: int, probes: int) -> dict[str, Any]:
    def probe(index: int) -> dict[str, Any]:
        wrong = (index + look) % 9 == 0
        return {
            "label": index % 10,
            "explained": index % 10,
            "predicted": (index + wrong) % 10,
            "probability_label": 0.1 if wrong else 0.9,
            "probability_predicted": 0.9,
            "score": 0.1 if wrong else 0.9,
            "largest": 1 + 0.01 * look,
            "error": 0.001 * index,
            "passes": 45,
            "blank": False,
            "skipped": False,
            "heat_on_object": round(index / probes, 3),
            "heat_on_object_chance": 0.2,
            "channels": [[7 * index + place, round(0.5 - 0.1 * place, 3)] for place in range(4)],
        }

    return {
        "epoch": look,
        "layer": "features",
        "signals": False,
        "coarse": "",
        "method": "Score-CAM",
        "class_names": [f"class {index}" for index in range(10)],
        "seconds": 1.5,
        "passes": 45 * probes,
        "probes": [probe(index) for index in range(probes)],
    }


def _audit(look: int) -> dict[str, Any]:
    def measure(value: float, chance: float | None = None) -> dict[str, Any]:
        estimate = {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 128, "skipped": 0}
        estimate["chance"] = chance
        return {"overall": estimate, "per_class": {f"class {index}": estimate for index in range(10)}}

    gap = round(0.001 * look, 3)
    measures = {"bg_gap": measure(gap), "heat_on_object": measure(0.4, 0.3), "accuracy": measure(0.9)}
    measures |= {f"measure_{index}": measure(0.5) for index in range(12)}
    return {
        "verdict": {"state": "no alarm", "text": f"**No alarm.** The gap is {gap}.", "classes": [], "overall": False},
        "gap": "bg_gap",
        "threshold": 0.05,
        "masks": "given",
        "images": 128,
        "notes": [],
        "measures": measures,
    }


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
