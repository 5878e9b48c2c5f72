"""Whether images of a batch influence each other is found by running them together, whatever the modules say."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import GradCAM
from cam_callbacks.explain.neighbors import Influence, influence


class Classifier(nn.Module):
    def __init__(self, mixing):
        super().__init__()
        self.mixing, self.gate = mixing, nn.Parameter(torch.ones(()))
        self.layer, self.norm, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, images):
        return self.head(self.mixing(self, self.layer(images)).relu().mean(dim=(2, 3)))


def training_norm(model, maps):
    model.norm.training = True
    return model.norm(maps)


MIXING = {
    "functional norm": lambda model, maps: F.batch_norm(maps, None, None, training=True),
    "mean of the batch": lambda model, maps: maps - maps.mean(dim=0),
    "first of the batch": lambda model, maps: maps - maps[:1] / 2,
    "norm that trains": training_norm,
    "largest of the batch": lambda model, maps: maps / maps.abs().max(),
    "range of the batch": lambda model, maps: (maps - maps.min()) / (maps.max() - maps.min()),
}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(3, 3, 16, 16)


@pytest.mark.parametrize("mixing", MIXING.values(), ids=MIXING)
def test_images_that_influence_each_other_are_explained_alone(mixing, images):
    model = Classifier(mixing).eval()
    with pytest.warns(UserWarning, match="if another one is beside it .* each image is forwarded alone"):
        together = GradCAM()(model, images, "layer", targets=1)
    for place in range(3):
        alone = GradCAM()(model, images[place : place + 1], "layer", targets=1)
        assert torch.allclose(together.heatmaps[place], alone.heatmaps[0], atol=1e-5)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda model, maps: model.norm(maps),
        lambda model, maps: maps * torch.nan,
    ],
    ids=["none", "not finite"],
)
def test_images_that_do_not_are_explained_together(mixing, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM()(Classifier(mixing).eval(), images, "layer", targets=1)


def test_a_first_image_that_is_black_hides_nothing(images):
    images[0] = 0
    model = Classifier(MIXING["functional norm"]).eval()
    with pytest.warns(UserWarning, match="if another one is beside it"):
        together = GradCAM()(model, images, "layer", targets=1)
    alone = GradCAM()(model, images[1:2], "layer", targets=1)
    assert torch.allclose(together.heatmaps[1], alone.heatmaps[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_images_of_whole_numbers_are_tried_too(images, dtype):
    model = Classifier(MIXING["mean of the batch"]).eval()
    whole = images > 0 if dtype == torch.bool else (images * 20 + 100).to(dtype)
    with pytest.warns(UserWarning, match="if another one is beside it"):
        GradCAM()(model, whole, "layer", targets=1, forward_fn=lambda m, x: m(x.float()))


def test_answers_that_change_from_pass_to_pass_are_named(images):
    model = Classifier(lambda model, maps: F.dropout(maps, 0.5)).eval()
    with pytest.warns(UserWarning, match="the same image differently from pass to pass, as a dropout does"):
        GradCAM()(model, images, "layer", targets=1)


def test_it_is_asked_again_once_weights_have_changed(images):
    model = Classifier(lambda model, maps: maps - model.gate * maps.mean(dim=0)).eval()
    with torch.no_grad():
        model.gate.zero_()
        GradCAM()(model, images, "layer", targets=1)
        model.gate.fill_(1.0)
    with pytest.warns(UserWarning, match="each image is forwarded alone"):
        GradCAM()(model, images, "layer", targets=1)


def test_neighbors_have_no_values_that_the_image_does_not_have(images):
    classes = (images * 3).long().clamp(2, 9)
    seen = []

    def run(shown):
        seen.append(shown)
        return shown.float().mean(dim=(2, 3))

    assert influence(run, classes) is Influence.NOTHING
    assert [len(shown) for shown in seen] == [1, 2]
    assert set(seen[1][:1].unique().tolist()) == {2, int(classes[0].max())}
    assert torch.equal(seen[1][1], classes[0])
