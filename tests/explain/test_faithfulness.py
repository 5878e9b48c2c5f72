"""Heatmaps of a network whose evidence is known: true maps are told from wrong ones, and from the controls."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import GradCAM
from cam_callbacks.explain.faithfulness import MEAN_ACTIVATION, MEASURES, RANDOM, measure_faithfulness
from cam_callbacks.explain.imputation import imputed

SIZE, CLASSES = 32, 4
HIGHER = {"transplant", "insertion", "road", "pixel_flipping", "average_gain", "increase_in_confidence"}


class Corners(nn.Module):
    """The class is the corner that is brightest."""

    def __init__(self):
        super().__init__()
        self.features = nn.AvgPool2d(4)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        bright = self.features(images).mean(dim=1)[:, 1:-1, 1:-1]
        corners = [bright[:, :3, :3], bright[:, :3, 3:], bright[:, 3:, :3], bright[:, 3:, 3:]]
        return 8 * self.weight * torch.stack([corner.amax(dim=(1, 2)) for corner in corners], dim=1)


def corner(target):
    """(8, 8), the middle of a corner."""
    place = torch.zeros(8, 8)
    row, column = divmod(target, 2)
    place[1 + 3 * row : 4 + 3 * row, 1 + 3 * column : 4 + 3 * column] = 1
    return place


@pytest.fixture(scope="module")
def scene():
    """Images (8, 3, 32, 32) of noise with one bright corner, their classes, the true maps and those of the opposite."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.arange(8) % CLASSES
    images = 0.1 * torch.randn(8, 3, SIZE, SIZE, generator=draw)
    true = torch.stack([corner(each) for each in classes.tolist()])
    opposite = torch.stack([corner(CLASSES - 1 - each) for each in classes.tolist()])
    return images + F.interpolate(true[:, None], SIZE, mode="nearest"), classes, true, opposite


@pytest.fixture(scope="module")
def found(scene):
    images, classes, true, opposite = scene
    return measure_faithfulness(Corners(), images, {"true": true, "opposite": opposite}, classes)


@pytest.mark.parametrize("measure", [name for name in MEASURES if not name.startswith("transplant_")])
def test_true_maps_are_told_from_those_of_another_place(found, measure):
    better, low, high = found.difference("true", "opposite", measure)
    sign = 1 if measure in HIGHER else -1
    if measure in ("average_gain", "increase_in_confidence", "average_drop"):
        assert sign * better >= 0  # half of the image may hold both corners
    else:
        assert min(sign * low, sign * high) > 0


def test_what_makes_the_class_makes_it_in_another_image_too(found):
    assert found.mean("true", "transplant")[1] > 0.3
    for control in ("transplant_cold", "transplant_other"):
        assert abs(found.mean("true", control)[0]) < 0.1
    assert abs(found.mean(RANDOM, "transplant")[0]) < found.mean("true", "transplant")[0] / 2


def test_controls_are_measured_too_and_all_are_rows(found):
    assert set(found.values) == {"true", "opposite", RANDOM, MEAN_ACTIVATION}
    rows = found.rows()
    assert len(rows) == 4 * len(MEASURES)
    for row in rows:
        assert row["images"] == 8
        assert row["low"] <= row["mean"] <= row["high"]


def by_hand(model, images, classes, maps, start, end, steps):
    """The area under the probability while the hottest pixels of `start` become those of `end`."""
    areas = []
    for image, target, heat, first, last in zip(images, classes, maps, start, end, strict=True):
        order = heat.flatten().argsort(descending=True, stable=True)
        curve = []
        for step in range(steps + 1):
            changed = first.clone().flatten(1)
            hot = order[: round(step / steps * heat.numel())]
            changed[:, hot] = last.flatten(1)[:, hot]
            curve.append(model(changed.view_as(image)[None]).softmax(1)[0, target])
        areas.append(torch.trapezoid(torch.stack(curve), dx=1 / steps))
    return torch.stack(areas).detach()


@pytest.mark.parametrize("batch_size", [3, None])
def test_insertion_and_deletion_are_their_definitions(scene, batch_size):
    images, classes, true, _ = scene
    model, maps = Corners(), torch.rand(len(true), SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = measure_faithfulness(
        model, images, maps, classes, measures=["insertion", "deletion"], steps=5, batch_size=batch_size
    )
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    expected = by_hand(model, images, classes, maps, blurred, images, 5)
    torch.testing.assert_close(found.values["heatmaps"]["insertion"], expected, atol=1e-5, rtol=1e-4)
    expected = by_hand(model, images, classes, maps, images, mean, 5)
    torch.testing.assert_close(found.values["heatmaps"]["deletion"], expected, atol=1e-5, rtol=1e-4)


def test_blank_and_skipped_maps_count_in_no_mean(scene):
    images, classes, true, _ = scene
    maps = true.clone()
    maps[0], maps[1] = 0.5, torch.nan
    found = measure_faithfulness(Corners(), images, maps, classes, measures=["deletion"])
    assert found.values["heatmaps"]["deletion"].isnan().tolist() == [True, True, *[False] * 6]
    assert found.blank["heatmaps"].tolist() == [True, *[False] * 7]
    (row,) = (row for row in found.rows() if row["heatmaps"] == "heatmaps")
    assert (row["images"], row["blank"]) == (6, 1)


def test_a_small_map_without_contrast_is_blank(scene):
    images, classes, _, _ = scene
    found = measure_faithfulness(Corners(), images, torch.full((8, 7, 7), 0.1), classes, measures=["deletion"])
    assert found.blank["heatmaps"].all()


def test_values_do_not_depend_on_the_batch_or_on_other_measures(scene):
    images, classes, true, _ = scene
    asked = {"measures": ["road", "pixel_flipping"], "batch_size": 3}, {"measures": "pixel_flipping"}
    first, second = (measure_faithfulness(Corners(), images, true, classes, **each) for each in asked)
    torch.testing.assert_close(
        first.values["heatmaps"]["pixel_flipping"], second.values["heatmaps"]["pixel_flipping"], atol=1e-5, rtol=1e-4
    )


class OfBytes(Corners):
    def forward(self, images):
        assert images.dtype == torch.uint8
        return super().forward(images.float() / 255)


def test_images_of_whole_numbers_and_maps_of_numpy_are_measured(scene):
    images, classes, true, _ = scene
    as_bytes = (images.clamp(0, 1) * 255).round().byte()
    found = measure_faithfulness(OfBytes(), as_bytes, true.numpy()[:, ::-1][:, ::-1], classes)
    real = measure_faithfulness(Corners(), as_bytes.float() / 255, true, classes)
    for measure, values in real.values["heatmaps"].items():
        torch.testing.assert_close(found.values["heatmaps"][measure], values, atol=0.02, rtol=0.05)


def test_images_of_one_class_are_transplanted_nowhere(scene):
    images, _, true, _ = scene
    found = measure_faithfulness(Corners(), images[:2], true[:2], [0, 0], measures=["transplant", "insertion"])
    assert found.values["heatmaps"]["transplant"].isnan().all()
    assert found.values["heatmaps"]["insertion"].isfinite().all()
    two = measure_faithfulness(Corners(), images[:2], true[:2], [0, 1], measures=["transplant", "transplant_other"])
    assert two.values["heatmaps"]["transplant"].isfinite().all()
    assert two.values["heatmaps"]["transplant_other"].isnan().all()


def test_an_explanation_brings_its_classes(small_cnn, blobs):
    model, images = small_cnn(), blobs(3, 24, 24)
    explanation = GradCAM()(model, images, "features", [1, 2, 0])
    before = copy.deepcopy(model.state_dict())
    own = measure_faithfulness(model, images, explanation, target_layer="features", measures=["deletion"])
    given = measure_faithfulness(
        model, images, explanation.heatmaps, [1, 2, 0], target_layer="features", measures=["deletion"]
    )
    torch.testing.assert_close(own.values, given.values, equal_nan=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_signals_have_no_road(small_cnn, blobs):
    model, images = small_cnn(dimensions=1), blobs(3, 24)
    found = measure_faithfulness(model, images, torch.rand(3, 24), target_layer="features")
    assert set(found.values["heatmaps"]) == set(MEASURES) - {"road"}
    with pytest.raises(ValueError, match="measures: 'road' is none of"):
        measure_faithfulness(model, images, torch.rand(3, 24), measures=["road"])


@pytest.mark.parametrize(
    ("heatmaps", "targets", "words"),
    [
        (
            torch.rand(2, 8, 8),
            None,
            r"heatmaps: 'heatmaps' has shape \(2, 8, 8\), .* need one real map each, \(8, 32, 32\)",
        ),
        ({RANDOM: torch.rand(8, 8, 8)}, None, "'random map' is the name of a control"),
        (torch.rand(8, 8, 8), torch.zeros(8, 2).long(), "must be one class for each of the 8 images"),
        (torch.rand(8, 0, 8), None, "heatmaps: 'heatmaps' has shape"),
    ],
)
def test_what_does_not_fit_is_named(scene, heatmaps, targets, words):
    with pytest.raises(ValueError, match=words):
        measure_faithfulness(Corners(), scene[0], heatmaps, targets)


KERNEL = {(0, 1): 1 / 6, (1, 0): 1 / 6, (1, 1): 1 / 12}


class TestImputed:
    def solved(self, image, missing):
        """The system of equations of the paper, solved as a whole; (C, H, W)."""
        places = missing.nonzero().tolist()
        number = {tuple(place): row for row, place in enumerate(places)}
        matrix, right = torch.zeros(len(places), len(places)).double(), torch.zeros(len(places), len(image)).double()
        for (row, column), own in number.items():
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    near = (row + down, column + across)
                    weight = KERNEL.get((abs(down), abs(across)))
                    if weight is None or not (0 <= near[0] < missing.shape[0] and 0 <= near[1] < missing.shape[1]):
                        continue
                    matrix[own, own] += weight
                    if near in number:
                        matrix[own, number[near]] -= weight
                    else:
                        right[own] += weight * image[:, near[0], near[1]]
        filled = image.clone()
        filled[:, missing] = torch.linalg.solve(matrix, right).T.float()
        return filled

    def test_solves_the_equations_of_the_paper(self):
        draw = torch.Generator().manual_seed(0)
        images = F.interpolate(torch.rand(2, 3, 5, 5, generator=draw), 24, mode="bilinear")
        hole = torch.zeros(2, 1, 24, 24).bool()
        hole[0, :, 4:20, 6:24] = True
        hole[1] = torch.rand(1, 24, 24, generator=draw) < 0.6
        filled = imputed(images, hole)
        expected = torch.stack([self.solved(*each) for each in zip(images, hole[:, 0], strict=True)])
        torch.testing.assert_close(filled, expected, atol=0.02, rtol=0)
        assert torch.equal(filled[~hole.expand_as(filled)], images[~hole.expand_as(filled)])

    def test_adds_a_little_noise_where_pixels_are_missing(self):
        images, hole = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16).bool()
        hole[..., 4:12, 4:12] = True
        noisy = imputed(images, hole, torch.randn(1, 3, 16, 16))
        off = (noisy - imputed(images, hole))[hole.expand_as(images)]
        assert 0 < off.std() < 0.02 * images.std()
