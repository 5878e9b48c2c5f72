"""Scores are read out of what a model returns, in whatever shape and beside whatever else; what is open is refused."""

import functools
from types import SimpleNamespace

import pytest
import torch
from passes import NEIGHBORS
from torch import nn

from cam_callbacks import CAM, GradCAM, RegressionTarget, ScoreCAM, SegmentationTarget

METHODS = [GradCAM(), ScoreCAM(tolerance=0), CAM(), ScoreCAM(tolerance=0, batch_size=1)]


class Returns(nn.Module):
    """A convolutional network that returns its class scores in another form."""

    def __init__(self, form, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, classes)
        self.form = form
        with torch.no_grad():
            self.head.weight.mul_(6)

    def forward(self, images):
        means = self.features(images).mean((2, 3))
        return self.form(self.head(means))


def loss(scores):
    return scores.square().mean()


FORMS = {
    "(N, 1, classes)": lambda z: z.unsqueeze(1),
    "(N, classes, 1)": lambda z: z.unsqueeze(2),
    "(N, classes, 1, 1)": lambda z: z[:, :, None, None],
    "(N, 1, 1, classes)": lambda z: z[:, None, None],
    "a list of one": lambda z: [z],
    "logits": lambda z: {"logits": z},
    "loss and logits": lambda z: {"loss": loss(z), "logits": z},
    "object with a loss": lambda z: SimpleNamespace(loss=loss(z), logits=z),
    "object without a loss": lambda z: SimpleNamespace(loss=None, logits=z.unsqueeze(1)),
    "(loss, logits)": lambda z: (loss(z), z),
    "(loss (1,), logits)": lambda z: (loss(z).reshape(1), z),
    "(number, logits, features)": lambda z: (loss(z).item(), z, z.repeat(1, 5)),
    "(None, logits)": lambda z: [None, z],
    "(losses, logits of one position)": lambda z: (loss(z), z.abs().sum(), z.unsqueeze(1)),
    "probabilities of one position": lambda z: (loss(z), z.softmax(1).unsqueeze(1)),
}


@pytest.fixture(scope="module")
def plainly(blobs):
    """Explains the network that returns scores, or probabilities, as they are; once for all forms."""

    @functools.cache
    def explain(method, count, targets, are_probabilities=False):
        network = Returns((lambda z: z.softmax(1)) if are_probabilities else (lambda z: z))
        return method(network, blobs(count, 32, 32), targets=targets)

    return explain


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 3])
def test_class_scores_are_found_in(blobs, form, count, plainly):
    images, model = blobs(count, 32, 32), Returns(FORMS[form])
    for method in METHODS:
        found, wanted = method(model, images, targets=2), plainly(method, count, 2, "probabilities" in form)
        torch.testing.assert_close(found.probabilities, wanted.probabilities)
        torch.testing.assert_close(found.layer_maps, wanted.layer_maps)
        assert (found.outputs, found.target_layer) == (wanted.outputs, "features")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "form",
    [lambda z: (z[:, 0], z.repeat(1, 5)), lambda z: (z.squeeze(), z.repeat(1, 5)), lambda z: z[:, :, None, None]],
    ids=["(N,) and features", "squeezed and features", "(N, 1, 1, 1)"],
)
def test_one_score_for_each_image_is_no_loss(blobs, form, count):
    images, model, plain = blobs(count, 32, 32), Returns(form, classes=1), Returns(lambda z: z, classes=1)
    for method in METHODS:
        found, wanted = (method(each, images, "features", 1) for each in (model, plain))
        torch.testing.assert_close(found.probabilities, wanted.probabilities)
        torch.testing.assert_close(found.layer_maps, wanted.layer_maps)


@pytest.mark.parametrize("form", [name for name in FORMS if "probabilities" not in name])
def test_numbers_are_found_in(blobs, form, plainly):
    images, model, target = blobs(3, 32, 32), Returns(FORMS[form]), RegressionTarget(3)
    for method in METHODS:
        found, wanted = method(model, images, targets=target), plainly(method, 3, target)
        torch.testing.assert_close(found.target_scores, wanted.target_scores)
        torch.testing.assert_close(found.layer_maps, wanted.layer_maps)


class Positions(nn.Module):
    """Scores at positions along an image: one class each, or the classes of one position each."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)
        self.form = form

    def forward(self, images):
        return self.form(self.head(self.features(images)))


@pytest.mark.parametrize(
    "form",
    [
        lambda maps: maps.flatten(2),
        lambda maps: maps.flatten(2).transpose(1, 2),
        lambda maps: maps.mean(2),
        lambda maps: maps.mean(3, keepdim=True),
        lambda maps: (maps.sum(), maps.flatten(2)),
        lambda maps: maps.flatten(1).sort(dim=1).values.unsqueeze(1),
    ],
    ids=["(N, 1, positions)", "(N, positions, 1)", "(N, 1, columns)", "(N, 1, rows, 1)", "with a loss", "unknown"],
)
@pytest.mark.parametrize("method", METHODS[:2])
def test_positions_are_not_taken_for_classes(blobs, form, method):
    with pytest.raises(ValueError, match=r"returned a tensor of shape \(3, .*SegmentationTarget"):
        method(Positions(form), blobs(3, 32, 32), "features", targets=1)


def test_positions_of_a_signal_are_not_taken_for_classes(blobs):
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 1))
    with pytest.raises(ValueError, match=r"returned a tensor of shape \(2, 1, 38\)"):
        GradCAM()(model, blobs(2, 40), targets=1)
    assert GradCAM()(model, blobs(2, 40), "1", SegmentationTarget(1)).layer_maps.shape == (2, 40)


@pytest.mark.parametrize("position", [None, (0, 0)])
def test_a_segmentation_target_reads_a_map_of_one_position(blobs, position):
    images, model, plain = blobs(3, 32, 32), Returns(FORMS["(N, classes, 1, 1)"]), Returns(lambda z: z)
    found = GradCAM()(model, images, targets=SegmentationTarget(2, position))
    scores = plain(images).detach()
    predicted = scores.argmax(dim=1) == 2
    expected = scores[:, 2] if position else torch.where(predicted, scores[:, 2], 0)
    torch.testing.assert_close(found.target_scores, expected)


def test_the_model_is_run_on_two_images_only_where_its_output_is_open(blobs, forwarded):
    for form, more in ((lambda z: z, 0), (FORMS["logits"], 0), (FORMS["(N, 1, classes)"], 2)):
        model = Returns(form)
        sizes = forwarded(model)
        GradCAM()(model, blobs(3, 32, 32), "features", targets=1)
        assert sum(sizes) == 3 + NEIGHBORS + more
