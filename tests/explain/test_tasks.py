"""Whatever a model does - classify, regress, segment, detect, embed - each method that can explains it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.ops import box_iou

from cam_callbacks import CAM, GradCAM, ReciproCAM, RegressionTarget, ScoreCAM, SegmentationTarget

ALL = [ScoreCAM(tolerance=0), ScoreCAM(), GradCAM(), ReciproCAM(), CAM()]
WITHOUT_HEAD = ALL[:3]


def names(method):
    return f"{method.name}{'' if getattr(method, 'tolerance', 0) == 0 else ', adaptive'}"


@pytest.fixture
def images(blobs):
    return blobs(2, 32, 32)


def is_sound(explanation, images):
    assert explanation.heatmaps.shape == (len(images), *images.shape[2:])
    assert not explanation.skipped.any()
    assert not explanation.blank.any()
    return True


@pytest.mark.parametrize("method", ALL, ids=names)
class TestClassification:
    def test_of_many_classes(self, method, small_cnn, images):
        network = small_cnn()
        explanation = method(network, images)
        assert is_sound(explanation, images)
        assert torch.equal(explanation.targets, network(images).argmax(dim=1))
        logits = network(images)
        read = {"probability": logits.softmax(1), "logit": logits, "log-odds": logits.softmax(1).logit()}
        expected = read[explanation.score_kind]
        torch.testing.assert_close(explanation.target_scores, expected.gather(1, explanation.targets[:, None])[:, 0])

    def test_of_two_classes_by_one_logit(self, method, small_cnn, images):
        explanation = method(small_cnn(classes=1), images, targets=1)
        assert explanation.probabilities.shape == (2, 2)
        assert not explanation.skipped.any()

    def test_of_several_labels(self, method, small_cnn, images):
        network = small_cnn()
        several = type(method)(**{**settings(method), "multi_label": True})
        explanation = several(network, images)
        assert is_sound(explanation, images)
        torch.testing.assert_close(explanation.probabilities, network(images).sigmoid())


def settings(method):
    return {"tolerance": method.tolerance} if isinstance(method, ScoreCAM) else {}


def test_a_label_does_not_depend_on_the_others(small_cnn, images):
    """The probability of a label, and so its Score-CAM, stays when the logits of other labels change."""
    network = small_cnn()
    method = ScoreCAM(tolerance=0, multi_label=True)
    expected = method(network, images, targets=3)
    with torch.no_grad():
        network.head.bias[0] += 5
    assert torch.equal(method(network, images, targets=3).layer_maps, expected.layer_maps)
    assert not torch.equal(
        ScoreCAM(tolerance=0)(network, images, targets=3).layer_maps,
        ScoreCAM(tolerance=0)(small_cnn(), images, targets=3).layer_maps,
    )


@pytest.mark.parametrize("method", ALL, ids=names)
def test_regression(method, small_cnn, images):
    network = small_cnn()
    explanation = method(network, images, targets=RegressionTarget(2))
    assert explanation.heatmaps.shape == (2, 32, 32)
    assert not explanation.skipped.any()
    torch.testing.assert_close(explanation.target_scores, network(images)[:, 2])
    assert explanation.targets is explanation.logits is explanation.probabilities is explanation.predicted is None
    assert explanation.score_kind == "RegressionTarget(index=2)"


def test_score_cam_of_a_regression_weighs_what_masks_add(small_cnn, images):
    network = small_cnn()
    explanation = ScoreCAM("probability", tolerance=0)(network, images, "features", RegressionTarget(2))
    activations = network.features(images).detach()
    masks = F.interpolate(activations, images.shape[2:], mode="bilinear")
    low, high = (pick(dim=(2, 3), keepdim=True) for pick in (masks.amin, masks.amax))
    masks = torch.where(high - low > 1e-4, (masks - low) / (high - low), 0)  # a constant one masks all: it weighs 0
    empty = network(torch.zeros_like(images[:1]))[0, 2]
    for index, image in enumerate(images):
        weights = network(image * masks[index].unsqueeze(1))[:, 2] - empty
        expected = torch.einsum("k,khw->hw", weights, activations[index]).relu()
        torch.testing.assert_close(explanation.layer_maps[index], expected.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ALL, ids=names)
@pytest.mark.parametrize(("dimensions", "size"), [(1, (60,)), (3, (8, 16, 16))], ids=["sequences", "volumes"])
def test_sequences_and_volumes(method, small_cnn, blobs, dimensions, size):
    images = blobs(2, *size)
    assert is_sound(method(small_cnn(dimensions=dimensions), images), images)


class TinySegmenter(nn.Module):
    """Logits (N, 3, H, W) in a mapping, as torchvision's segmentation models return them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU())
        self.classifier = nn.Conv2d(12, 3, 1)

    def forward(self, images):
        return {"out": F.interpolate(self.classifier(self.backbone(images)), images.shape[2:], mode="bilinear")}


@pytest.mark.parametrize("method", WITHOUT_HEAD, ids=names)
class TestSegmentation:
    def test_of_a_class(self, method, images):
        network = TinySegmenter().eval()
        present = int(network(images)["out"].argmax(dim=1).mode().values.mode().values[0])
        explanation = method(network, images, "backbone", SegmentationTarget(present))
        assert is_sound(explanation, images)
        assert explanation.score_kind == f"SegmentationTarget({present}, region=None)"
        torch.testing.assert_close(explanation.target_scores, SegmentationTarget(present)(network(images)))

    def test_of_one_position_lies_around_it(self, method, images):
        network = TinySegmenter().eval()
        with torch.no_grad():
            network.classifier.weight.abs_()
        explanation = method(network, images, "backbone", SegmentationTarget(1, (8, 24)))
        assert not explanation.skipped.any()

    def test_of_a_network_of_torchvision(self, method, images):
        torch.manual_seed(0)
        network = models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4).eval()
        explanation = method(network, images.repeat(1, 1, 2, 2), targets=SegmentationTarget(1, (30, 30)))
        assert explanation.heatmaps.shape == (2, 64, 64)


def test_grad_cam_of_one_position_is_where_it_is_read_from(images):
    """Only positions within the field of view of the pixel have a gradient; the mean over positions spreads it."""
    network = TinySegmenter().eval()
    explanation = GradCAM()(network, images, "backbone", SegmentationTarget(1, (8, 24)))
    activations = network.backbone(images).detach().requires_grad_()
    logits = F.interpolate(network.classifier(activations), images.shape[2:], mode="bilinear")
    (gradient,) = torch.autograd.grad(logits[:, 1, 8, 24].sum(), activations)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * activations.detach()).sum(dim=1).relu()
    torch.testing.assert_close(explanation.layer_maps, expected)


class BoxScore:
    """How surely a box of a class is found: the best agreement of a detection with it, times the detection's score."""

    def __init__(self, box, label):
        self.box, self.label = box, label

    def __call__(self, detections):
        return torch.stack([self.of(each) for each in detections])

    def of(self, found):
        agreement = box_iou(self.box.unsqueeze(0).to(found["boxes"]), found["boxes"])[0]
        scores = torch.where(found["labels"] == self.label, agreement * found["scores"], 0)
        return scores.max() if len(scores) else found["scores"].new_zeros(())


@pytest.mark.parametrize("method", [ScoreCAM(max_passes=8), GradCAM()], ids=names)
@pytest.mark.slow
def test_detection(method):
    torch.manual_seed(0)
    network = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=3,
        min_size=128,
        box_score_thresh=0.0,
        box_detections_per_img=20,
    ).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = network(images)[0]
    target = BoxScore(found["boxes"][0], int(found["labels"][0]))
    explanation = method(network, images, "backbone.body.16", [target])
    assert explanation.heatmaps.shape == (1, 64, 64)
    torch.testing.assert_close(explanation.target_scores[0], found["scores"][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", WITHOUT_HEAD, ids=names)
def test_embeddings(method, small_cnn, images):
    network = small_cnn()
    reference = network(images[1:])[0].detach()

    def similarity(output):
        return F.cosine_similarity(output, reference)

    explanation = method(network, images, targets=similarity)
    assert explanation.score_kind == "similarity"
    assert explanation.target_scores[1] == pytest.approx(1)
    assert not explanation.skipped.any()


def test_each_image_may_have_its_own_callable(small_cnn, images):
    network = small_cnn()
    mixed = ScoreCAM(tolerance=0)(network, images, "features", [RegressionTarget(0), RegressionTarget(4)])
    alone = [ScoreCAM(tolerance=0)(network, images, "features", RegressionTarget(index)) for index in (0, 4)]
    torch.testing.assert_close(mixed.layer_maps[0], alone[0].layer_maps[0])
    torch.testing.assert_close(mixed.layer_maps[1], alone[1].layer_maps[1])


@pytest.mark.parametrize("weighting", ["probability", "logit-softmax", "increase", "matlab"])
@pytest.mark.parametrize("tolerance", [0, 0.02])
def test_several_targets_share_all_passes(small_cnn, blobs, forwarded, weighting, tolerance):
    network, images = small_cnn(channels=64), blobs(2, 48, 48)
    method = ScoreCAM(weighting, tolerance=tolerance)
    targets = torch.tensor([[0, 1, 2], [4, 3, 2]])
    alone = [method(network, images, "features", targets[:, column]) for column in range(3)]
    counts = forwarded(network)
    explanation = method(network, images, "features", targets)
    forwarded_images = sum(counts)
    assert explanation.heatmaps.shape == (2, 3, 48, 48)
    if tolerance == 0 or weighting == "matlab":
        for column, each in enumerate(alone):
            torch.testing.assert_close(explanation.layer_maps[:, column], each.layer_maps, rtol=1e-4, atol=1e-5)
        assert torch.equal(explanation.passes, alone[0].passes)
    assert explanation.passes.sum() < sum(each.passes.sum() for each in alone)
    assert forwarded_images <= explanation.passes.sum() + 5  # those that look for batch norms to fold
