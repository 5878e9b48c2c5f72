"""HiResCAM and LayerCAM are the formulas of their papers: each position is weighted by its own gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cam_callbacks import GradCAM, HiResCAM, LayerCAM
from cam_callbacks.explain import progress


@pytest.fixture
def network():
    """What follows the features is no mean: positions have gradients of their own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 8, 3, 2, 1)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
    ).eval()


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


def by_hand(network, images, classes, takes):
    """The formula, one image at a time; (N, h, w)."""
    maps = []
    for image, target in zip(images, classes, strict=True):
        activations = network[0](image.unsqueeze(0)).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network[1](activations)[0, target], activations)
        maps.append((takes(gradient) * activations.detach()).sum(dim=1).relu()[0])
    return torch.stack(maps)


METHODS = {HiResCAM: lambda gradient: gradient, LayerCAM: torch.relu}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_formula(network, images, method):
    explanation = method()(network, images, "0", [0, 3, 4])
    torch.testing.assert_close(explanation.layer_maps, by_hand(network, images, [0, 3, 4], METHODS[method]))
    assert not explanation.blank.any()
    assert explanation.passes.tolist() == [1, 1, 1]
    assert explanation.estimated_error.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_targets_of_images_in_any_batches_are_each_explained(network, images, method, batch_size):
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    explanation = method(batch_size=batch_size)(network, images, "0", targets)
    for column in range(2):
        alone = by_hand(network, images, targets[:, column].tolist(), METHODS[method])
        torch.testing.assert_close(explanation.layer_maps[:, column], alone)
    assert explanation.channels.weight.shape == explanation.channels.index.shape == (3, 2, 8)


@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_signals_and_volumes_have_maps_of_their_own_size(small_cnn, blobs, method, dimensions):
    explanation = method()(small_cnn(dimensions=dimensions), blobs(2, *[12] * dimensions), "features")
    assert explanation.heatmaps.shape == (2, *[12] * dimensions)
    assert not explanation.skipped.any()


def test_before_a_mean_and_a_linear_layer_hirescam_is_grad_cam(small_cnn, images):
    ours, grad_cam = (method()(small_cnn(), images, "features", 3) for method in (HiResCAM, GradCAM))
    torch.testing.assert_close(ours.heatmaps, grad_cam.heatmaps)


def test_of_a_linear_rest_the_map_of_hirescam_adds_up_to_the_score(images):
    """Its faithfulness, of which Grad-CAM has none where the linear layer weighs positions."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2, bias=False)).eval()
    with torch.no_grad():
        network[3].weight.abs_()  # so that the ReLU of the map cuts nothing
    explanation = HiResCAM()(network, images, "1", 1)
    torch.testing.assert_close(explanation.layer_maps.sum(dim=(1, 2)), network(images)[:, 1].detach())


def test_layercam_fuses_layers_by_the_largest_of_their_bent_maps(network, images):
    names = ["0.1", "0"]
    explanation = LayerCAM()(network, images, names, 2)
    each = [LayerCAM()(network, images, name, 2).layer_maps for name in names]
    bent = [torch.tanh(2 * maps / maps.amax(dim=(1, 2), keepdim=True)) for maps in each]
    finer = F.interpolate(bent[1].unsqueeze(1), size=(12, 12), mode="bilinear").squeeze(1)
    torch.testing.assert_close(explanation.layer_maps, torch.maximum(bent[0], finer))


def test_a_layer_without_evidence_takes_no_part_in_what_layercam_fuses(network, images):
    with torch.no_grad():
        network[1][4].weight[2] = 0
    explanation = LayerCAM()(network, images, ["0.1", "0"], 2)
    assert explanation.blank.all()
    assert not explanation.skipped.any()


@pytest.mark.parametrize("method", METHODS)
def test_the_score_may_be_the_probability(network, images, method):
    explanation = method("probability")(network, images, "0", 1)
    assert explanation.score_kind == "probability"
    with pytest.raises(ValueError, match="score='log-odds' is unknown; choose one of 'logit', 'probability'"):
        method("log-odds")


def test_progress_counts_the_images(network, images):
    told = []
    with progress.shown(lambda *counts: told.append(counts)):
        LayerCAM()(network, images, "0")
    assert told[-1] == (3, 3)
