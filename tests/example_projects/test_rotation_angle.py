"""The example of a regression, end to end: a short version of it is trained, and its files are read back."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from examples import loaded, printed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cam_callbacks import GradCAM, RegressionTarget

SCRIPT = "rotation_angle/train.py"
EPOCHS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rotation_angle")
    options = ["--epochs", EPOCHS, "--num-images", 128, "--logs", folder / "logs", "--picture", folder / "picture.png"]
    return folder, printed(folder, SCRIPT, *options)


@pytest.fixture(scope="module")
def example():
    return loaded(SCRIPT)


def test_the_picture_shows_two_digits_at_five_angles_with_both_maps(trained):
    picture = np.asarray(Image.open(trained[0] / "picture.png"))
    assert picture.shape[0] > 3 * 128
    assert picture.shape[1] > 2 * 5 * 128
    assert picture.std() > 30


@pytest.mark.parametrize("name", ["cam", "cam_opposite"])
def test_each_validation_leaves_heatmaps_of_both_signs(trained, name):
    log = EventAccumulator(str(trained[0] / "logs"), size_guidance={"images": 0})
    log.Reload()
    images = log.Images(f"{name}/heatmaps")
    assert len(images) == EPOCHS
    assert all(np.asarray(Image.open(BytesIO(event.encoded_image_string))).std() > 10 for event in images)
    assert all(event.value == 0 for event in log.Scalars(f"{name}/skipped"))


def test_it_prints_the_mean_absolute_error(trained):
    (error,) = re.findall(r"Mean absolute error: ([\d.]+) degrees", trained[1])
    assert 0 < float(error) < 90


def test_positive_angles_turn_to_the_left(example):
    """An upright stroke whose upper end goes left, as the hour hand from twelve to ten."""
    stroke = torch.zeros(1, 1, 8, 8)
    stroke[..., 3:5] = 1
    (image,) = example.turn(stroke, torch.tensor([30.0]))
    across = torch.arange(example.SIZE).float()
    upper, lower = ((part.sum(dim=(0, 1)) * across).sum() / part.sum() for part in image.chunk(2, dim=1))
    assert upper < lower - 4


def test_both_maps_together_are_the_number_read_but_for_a_constant(example):
    torch.manual_seed(0)
    model = example.AngleReader().eval()
    images = example.turned_digits("val", 6).tensors[0]
    raising = GradCAM()(model, images, "features", RegressionTarget())
    lowering = GradCAM()(model, images, "features", example.opposite)
    parts = (raising.layer_maps - lowering.layer_maps).sum(dim=(1, 2))
    constant = example.LARGEST * model.head.bias.item()
    torch.testing.assert_close(parts + constant, raising.target_scores, rtol=1e-3, atol=1e-3)


def test_one_handwriting_in_five_is_kept_for_validation(example):
    train, val = (len(example.handwriting(split)[0]) for split in ("train", "val"))
    assert train + val == 1797
    assert val == 1797 // 5
