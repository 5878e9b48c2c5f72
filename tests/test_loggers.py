"""One picture to whichever logger is there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import numpy as np
import pytest
import pytorch_lightning.loggers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cam_callbacks import records
from cam_callbacks.loggers import LogOut

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def log(loggers: list[Any], folder: Path, steps: tuple[int, ...] = (3,)) -> list[str]:
    """Log the picture; the warnings that were given."""
    image_log = LogOut()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in steps:
            image_log.log(loggers, folder, "cam/heatmaps", PICTURE, step)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("package", [lightning.pytorch.loggers, pytorch_lightning.loggers])
def test_tensorboard_gets_the_very_pixels(tmp_path: Path, package: Any) -> None:
    logger = package.TensorBoardLogger(tmp_path, name="", version="run")
    assert log([logger], tmp_path / "files") == []
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (event,) = events.Images("cam/heatmaps")
    (tmp_path / "read.png").write_bytes(event.encoded_image_string)
    assert event.step == 3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "read.png")), PICTURE)
    assert not (tmp_path / "files").exists()


class WithLogImage:
    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    def log_image(self, **arguments: Any) -> None:
        self.got.append(arguments)


def test_a_logger_with_log_image_gets_key_images_and_step(tmp_path: Path) -> None:
    logger = WithLogImage()
    assert log([logger], tmp_path) == []
    assert logger.got == [{"key": "cam/heatmaps", "images": [PICTURE], "step": 3}]


def test_without_a_logger_a_png_file_is_written_and_said_once(tmp_path: Path) -> None:
    said = log([], tmp_path, steps=(3, 12))
    assert len(said) == 1
    assert "the trainer has no logger" in said[0]
    assert str(tmp_path / "cam") in said[0]
    names = ["heatmaps_step=000003.png", "heatmaps_step=000012.png"]
    assert sorted(path.name for path in (tmp_path / "cam").iterdir()) == names
    assert np.array_equal(np.asarray(Image.open(tmp_path / "cam" / names[0])), PICTURE)


def test_a_logger_without_images_gets_a_file_beside_the_others_pictures(tmp_path: Path) -> None:
    tracker = WithLogImage()
    table = lightning.pytorch.loggers.CSVLogger(tmp_path)
    said = log([table, tracker], tmp_path, steps=(1, 2))
    assert len(said) == 1
    assert "CSVLogger takes no images" in said[0]
    assert len(tracker.got) == len(list(tmp_path.rglob("*.png"))) == 2


def test_two_loggers_without_images_share_one_file_and_are_both_named(tmp_path: Path) -> None:
    class Other:
        experiment = None

    said = log([lightning.pytorch.loggers.CSVLogger(tmp_path), Other()], tmp_path)
    assert len(said) == 2
    assert len(list(tmp_path.rglob("*.png"))) == 1


def test_tags_of_test_runs_stand_apart() -> None:
    assert records.tag("cam", records.HEATMAPS) == "cam/heatmaps"
    assert records.tag("cam", records.PASSES, testing=True) == "cam_test/passes"
