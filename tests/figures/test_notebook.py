"""Figures of explanations: what a heatmap is made of, classes side by side, methods side by side."""

import numpy as np
import pytest
import torch

from cam_callbacks import GradCAM, ScoreCAM
from cam_callbacks.figures.notebook import classes_side_by_side, methods_side_by_side, strongest_channels

SIDE = 192


@pytest.fixture
def images(blobs):
    return blobs(2, 24, 24)


@pytest.fixture
def network(small_cnn):
    return small_cnn()


@pytest.mark.parametrize("method", [ScoreCAM(tolerance=0), GradCAM()], ids=lambda method: method.name)
def test_the_strongest_channels_are_those_of_largest_weight(network, images, method):
    explanation = method(network, images, "features")
    channels = explanation.channels
    assert channels.index.shape == channels.weight.shape == (2, 12)
    activations = network.features(images).detach()
    live = channels.activations.flatten(2).amax(dim=2) > channels.activations.flatten(2).amin(dim=2)
    for image in range(2):
        assert (channels.weight[image][live[image]].diff() <= 0).all()
        assert not (live[image].int().diff() > 0).any()  # dead ones come last
    for image in range(2):
        torch.testing.assert_close(channels.activations[image], activations[image][channels.index[image]])
        summed = torch.einsum("k,khw->hw", channels.weight[image], channels.activations[image]).relu()
        torch.testing.assert_close(explanation.layer_maps[image], summed, rtol=1e-4, atol=1e-5)


def test_at_most_sixteen_channels_are_kept(small_cnn, images):
    assert GradCAM()(small_cnn(channels=40), images, "features").channels.index.shape == (2, 16)


def test_the_montage_has_two_pictures_a_channel(network, images):
    explanation = GradCAM()(network, images, "features")
    figure = strongest_channels(images[1], explanation, 1, count=6, columns=3)
    assert figure.dtype == np.uint8
    assert figure.shape[1] > 3 * 2 * SIDE
    assert figure.shape[0] > 2 * SIDE
    assert not np.array_equal(figure, strongest_channels(images[0], explanation, 0, count=6, columns=3))


def test_the_montage_of_several_targets_is_that_of_the_first(network, images):
    several = GradCAM()(network, images, "features", [[1, 2], [1, 2]])
    alone = GradCAM()(network, images, "features", 1)
    assert np.array_equal(strongest_channels(images[0], several), strongest_channels(images[0], alone))


def test_fused_layers_have_no_channels_to_show(network, images):
    with pytest.raises(ValueError, match="several layers has no channels to show; explain one layer"):
        strongest_channels(images[0], GradCAM()(network, images, ["features.2", "features"]))


def test_the_montage_is_of_one_image(network, images):
    with pytest.raises(ValueError, match=r"image has shape \(2, 3, 24, 24\); one image \(C, \*spatial\) is needed"):
        strongest_channels(images, GradCAM()(network, images, "features"))


def test_classes_stand_side_by_side(network, images):
    targets = network(images).topk(3, dim=1).indices
    explanation = ScoreCAM(tolerance=0)(network, images, "features", targets)
    figure = classes_side_by_side(images, explanation, ["cat", "dog", "owl", "cow", "pig"])
    assert figure.shape[1] > 4 * SIDE
    assert figure.shape[0] > 2 * SIDE
    with pytest.raises(ValueError, match=r"one target for each image; explain several, with targets of shape \(N, T\)"):
        classes_side_by_side(images, ScoreCAM(tolerance=0)(network, images, "features"))
    with pytest.raises(ValueError, match="explanation has 2 images, images has 1; give the same"):
        classes_side_by_side(images[:1], explanation)


def test_methods_stand_side_by_side(network, images):
    methods = {"Score-CAM": ScoreCAM(), "Grad-CAM": GradCAM(), "coarse": GradCAM(upsampling="none")}
    explanations = {name: method(network, images, "features") for name, method in methods.items()}
    figure = methods_side_by_side(images, explanations)
    assert figure.shape[1] > 4 * SIDE
    with pytest.raises(ValueError, match=r"the explanation 'many' has heatmaps \(2, 2, 24, 24\)"):
        methods_side_by_side(images, {"many": GradCAM()(network, images, "features", [[0, 1], [1, 2]])})


def test_coarse_maps_have_a_line_above_that_says_so(network, blobs):
    images = blobs(2, 64, 64)
    fine, coarse = (GradCAM()(network, images[..., :side, :side], "features", 1) for side in (16, 12))
    several = GradCAM()(network, images[..., :12, :12], "features", [[1, 2], [1, 2]])
    assert (fine.is_coarse, coarse.is_coarse, several.is_coarse) == (False, True, True)

    def height(draw, *arguments):
        return draw(*arguments).shape[0]

    small = images[..., :12, :12]
    plain = height(methods_side_by_side, images[..., :16, :16], {"a": fine})
    assert height(methods_side_by_side, small, {"a": coarse}) > plain
    assert height(methods_side_by_side, small, {"a": coarse, "b": coarse}) > height(
        methods_side_by_side, small, {"a": coarse}
    )
    assert height(classes_side_by_side, small, several) > plain
    assert height(strongest_channels, small[0], coarse, 0, None, 1) > height(
        strongest_channels, images[0, :, :16, :16], fine, 0, None, 1
    )


@pytest.mark.parametrize(("dimensions", "size"), [(1, (40,)), (3, (6, 12, 12))], ids=["sequences", "volumes"])
def test_sequences_and_volumes_are_drawn_too(small_cnn, blobs, dimensions, size):
    network, images = small_cnn(dimensions=dimensions), blobs(2, *size)
    explanation = GradCAM()(network, images, targets=[[0, 1], [2, 3]])
    assert classes_side_by_side(images, explanation).size
    assert strongest_channels(images[0], explanation, count=2).size
