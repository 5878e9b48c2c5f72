"""The example of several labels: its images, and short trainings with and without the bias."""

from io import BytesIO

import numpy as np
import pytest
import torch
from examples import loaded, printed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EPOCHS = 2
OPTIONS = ("--epochs", EPOCHS, "--num-images", 640, "--batch-size", 8)


@pytest.fixture(scope="module")
def data():
    return loaded("findings/data.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("findings")
    return folder, printed(folder, "findings/train.py", *OPTIONS, "--logs", folder / "logs")


def test_the_ruler_goes_with_nodules_only(data):
    chests = data.Chests(400)
    agree = (chests.labels == chests.has_ruler.unsqueeze(1)).float().mean(dim=0)
    assert agree[data.MEASURED] == pytest.approx(0.95, abs=0.03)
    others = [agree[index] for index in range(4) if index != data.MEASURED]
    assert others == pytest.approx([0.5] * 3, abs=0.1)


def test_in_clean_images_it_goes_with_nothing(data):
    chests = data.Chests(400, is_clean=True)
    agree = (chests.labels == chests.has_ruler.unsqueeze(1)).float().mean(dim=0)
    assert agree.tolist() == pytest.approx([0.5] * 4, abs=0.1)


def test_the_ruler_is_in_the_background(data):
    chests = data.Chests(200)
    assert not chests.masks[:, :, :6].any()
    border = chests.images[:, 0, :, :4].amax(dim=(1, 2))
    assert border[chests.has_ruler].min() > border[~chests.has_ruler].max()


def test_masks_lie_on_what_is_brighter_than_around_it(data):
    chests = data.Chests(100)
    is_empty = ~chests.labels.any(dim=1)
    assert torch.equal(~chests.masks.flatten(1).any(dim=1), is_empty)
    item = chests[int((~is_empty).nonzero()[0])]
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "image": (1, 64, 64),
        "labels": (4,),
        "mask": (64, 64),
    }
    for draw in data.DRAW:
        shape, brightness = draw(torch.Generator().manual_seed(0))
        assert 0 < (shape > 0.5).float().mean() < 0.1
        assert brightness > 0.05


def test_the_alarm_names_the_nodule_and_nothing_else(trained):
    (alarm,) = [line for line in trained[1].splitlines() if line.startswith("**ALARM")]
    assert "nodule" in alarm
    assert not any(other in alarm for other in ("effusion", "fracture", "device"))


def test_each_look_leaves_the_gap_of_each_finding_and_pictures(trained):
    log = EventAccumulator(str(trained[0] / "logs" / "ruler"), size_guidance={"images": 0})
    log.Reload()
    for finding in ("nodule", "effusion", "fracture", "device"):
        assert len(log.Scalars(f"cam/bg_gap_by_class/{finding}")) == EPOCHS
    for picture in ("swaps", "heatmaps"):
        images = log.Images(f"cam/{picture}")
        assert len(images) == EPOCHS
        assert all(np.asarray(Image.open(BytesIO(event.encoded_image_string))).std() > 10 for event in images)


def test_a_clean_run_gives_no_alarm(tmp_path):
    said = printed(tmp_path, "findings/train.py", *OPTIONS, "--clean", "--logs", tmp_path / "logs")
    assert "**No alarm.**" in said
    assert "ALARM" not in said
