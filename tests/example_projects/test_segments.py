"""The example of a segmentation: its images, and short trainings with and without the bias."""

from io import BytesIO

import numpy as np
import pytest
from examples import loaded, printed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EPOCHS = 2
OPTIONS = ("--epochs", EPOCHS, "--num-images", 384, "--batch-size", 4)


@pytest.fixture(scope="module")
def data():
    return loaded("segments/data.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    return folder, printed(folder, "segments/train.py", *OPTIONS, "--logs", folder / "logs")


@pytest.mark.parametrize(("is_clean", "agreeing"), [(False, 0.95), (True, 0.5)])
def test_so_many_trays_lie_on_stripes_that_run_down(data, is_clean, agreeing):
    scenes = data.Scenes(400, is_clean)
    is_tray = (scenes.masks == data.TRAY).flatten(1).any(dim=1)
    assert is_tray.float().mean() == 0.5
    assert (scenes.runs_down == is_tray).float().mean() == pytest.approx(agreeing, abs=0.07)


def test_stripes_run_as_they_are_said_to(data):
    scenes = data.Scenes(100)
    corners = scenes.images[:, :, :8, :8]
    down, across = (corners.mean(dim=dim).std(dim=2).mean(dim=1) for dim in (2, 3))
    assert ((down > across) == scenes.runs_down).float().mean() > 0.9


def test_the_class_of_each_pixel_is_that_of_the_one_object(data):
    scenes = data.Scenes(100)
    item = scenes[1]
    assert item["image"].shape == (3, 64, 64)
    assert item["mask"].unique().tolist() == [0, data.TRAY]
    assert scenes[0]["mask"].unique().tolist() == [0, data.PLATE]
    share = (scenes.masks > 0).float().mean(dim=(1, 2))
    assert share.min() > 0.04
    assert share.max() < 0.2
    assert item["image"][:, item["mask"] > 0].mean() > 0.8


def test_the_alarm_is_given_and_its_gap_is_in_iou(trained):
    (alarm,) = [line for line in trained[1].splitlines() if line.startswith("**ALARM")]
    assert "answers depend on the background" in alarm
    assert "`bg_gap`: IoU with backgrounds" in trained[1]


def test_each_look_leaves_iou_gaps_and_pictures(trained):
    log = EventAccumulator(str(trained[0] / "logs" / "cloth"), size_guidance={"images": 0})
    log.Reload()
    for scalar in ("val_iou", "cam/iou", "cam/bg_gap", "cam/bg_gap_by_class/plate", "cam/bg_gap_by_class/tray"):
        assert len(log.Scalars(scalar)) == EPOCHS
    for picture in ("swaps", "heatmaps"):
        images = log.Images(f"cam/{picture}")
        assert len(images) == EPOCHS
        assert all(np.asarray(Image.open(BytesIO(event.encoded_image_string))).std() > 10 for event in images)


def test_a_clean_run_gives_no_alarm(tmp_path):
    said = printed(tmp_path, "segments/train.py", *OPTIONS, "--clean", "--logs", tmp_path / "logs")
    assert "**No alarm.**" in said
    assert "ALARM" not in said
