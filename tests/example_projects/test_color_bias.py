"""The demonstration, end to end: a small version of it is trained, and its event files and its picture are read
back."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from examples import printed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EPOCHS = 2


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    options = ["--epochs", EPOCHS, "--num-images", 240, "--batch-size", 6, "--seed", 0]
    files = ["--logs", folder / "logs", "--picture", folder / "picture.png"]
    return folder, printed(folder, "color_bias/demo.py", *options, *files)


def events(folder: Path, run: str) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "logs" / run), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def figures(table: str, label: str) -> list[float]:
    """The figures of the biased and of the balanced run in the line of the table that begins with `label`."""
    (line,) = [line for line in table.splitlines() if line.strip().startswith(label)]
    return [float(figure.rstrip("%")) for figure in line.split()[-2:]]


@pytest.mark.parametrize("run", ["biased", "balanced"])
def test_each_validation_leaves_three_pictures_and_four_numbers(demo, run):
    log = events(demo[0], run)
    scalar_steps = [event.step for event in log.Scalars("val_acc")]
    assert len(scalar_steps) == EPOCHS
    for tag in ("cam/heatmaps", "cam/history", "cam/class_mean"):
        images = log.Images(tag)
        assert [event.step for event in images] == scalar_steps
        for event in images:
            picture = np.asarray(Image.open(BytesIO(event.encoded_image_string)))
            assert picture.shape[2] == 3
            assert picture.std() > 10
            assert len(event.encoded_image_string) < 500_000
    for tag in ("cam/passes", "cam/seconds", "cam/blank", "cam/skipped"):
        assert [event.step for event in log.Scalars(tag)] == scalar_steps
    assert all(16 < event.value <= 16 * (2 * 256 + 2) for event in log.Scalars("cam/passes"))
    assert all(event.value == 0 for event in log.Scalars("cam/skipped"))


def test_only_the_balanced_network_looks_at_the_digit(demo):
    own = figures(demo[1], "accuracy on its own validation images")
    mixed = figures(demo[1], "accuracy on balanced test images")
    heat = figures(demo[1], "share of the heat on the digit")
    area = figures(demo[1], "share of the area that is digit")
    assert own[0] > 95
    assert own[1] > 85
    assert mixed[0] < 65
    assert mixed[1] > 85
    assert heat[0] <= area[0] + 2
    assert heat[1] > 2 * area[1]


def test_the_picture_shows_six_digits_through_two_networks(demo):
    picture = np.asarray(Image.open(demo[0] / "picture.png"))
    assert picture.shape[1] > 800
    assert picture.std() > 30


def test_it_says_how_to_open_tensorboard(demo):
    assert f"tensorboard --logdir {demo[0] / 'logs'}" in demo[1]
