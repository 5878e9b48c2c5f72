"""Well-known models are explained without a word about them, or refused for the reason that the docs give."""

import re

import pytest
import torch
import torchvision.models
from model_zoo import METHODS, ZOO

from cam_callbacks import CAM, GradCAM, ReciproCAM, ScoreCAM, SegmentationTarget
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.network import Network

_FEW_PASSES = [ReciproCAM("evidence", max_positions=4), ScoreCAM("probability", max_passes=1), GradCAM(), CAM()]
EACH = dict(zip(METHODS, _FEW_PASSES, strict=True))
CHOOSES = ("Score-CAM", "CAM")  # the others choose as Score-CAM


@pytest.fixture(scope="module", params=ZOO, ids=str)
def entry(request):
    pytest.importorskip(request.param.library)
    return request.param


@pytest.fixture(scope="module")
def model(entry):
    """For small images."""
    torch.manual_seed(entry.seed)
    return entry.build(entry.size).eval()


def test_a_model_is_explained_or_refused_as_the_docs_say(entry, model, blobs):
    images = blobs(2, *entry.size)[:1]
    target = None if entry.segmented is None else SegmentationTarget(entry.segmented, (20, 40))
    for name, method in EACH.items():
        layer = entry.layers.get(name, entry.layer if name == "CAM" else entry.small_layer)
        if name in entry.refused:
            with pytest.raises(ValueError, match=re.escape(entry.refused[name])):
                method(model, images, layer, target)
            continue
        explanation = method(model, images, None if name in CHOOSES else layer, target)
        assert explanation.target_layer == layer, name
        assert explanation.heatmaps.shape == (1, *entry.size), name
        assert not explanation.skipped.any(), name
        # In some networks that are not trained, features are too small to speak for a class.
        assert name == "Recipro-CAM" or not explanation.blank.any(), name
        assert explanation.heatmaps.isfinite().all(), name
        assert explanation.heatmaps.min() >= 0, name
        assert explanation.heatmaps.max() <= 1, name


def test_for_images_of_the_usual_size_the_layer_is_the_one_in_the_docs(entry, model, blobs):
    if entry.layer == entry.small_layer:
        pytest.skip("the layer is that of small images")
    size = entry.enough or entry.usual_size
    if entry.is_sized:
        model = entry.build(size).eval()
    images = blobs(1, *size)
    with isolated(model):
        assert Network(model, images).choose_layer() == entry.layer


def test_the_layer_is_the_same_before_a_transformer_head_is_trained():
    network = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3
    )
    assert not network.heads.head.weight.any()
    assert GradCAM().check(network, torch.rand(1, 3, 32, 32)) == "encoder.layers.encoder_layer_1.ln_1"
