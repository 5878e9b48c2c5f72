"""CAM reads the weights of the last linear layer, where the network is of that kind, and says why where it is not."""

import pytest
import torch
from torch import nn
from torchvision import models

from cam_callbacks import CAM, GradCAM, RegressionTarget, SegmentationTarget


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


def test_it_is_the_sum_of_channels_by_the_weights_of_the_class(small_cnn, images):
    network = small_cnn()
    explanation = CAM()(network, images, "features", [0, 3, 4])
    expected = torch.einsum("nk,nkhw->nhw", network.head.weight[[0, 3, 4]], network.features(images)).relu()
    torch.testing.assert_close(explanation.layer_maps, expected.detach())
    assert explanation.passes.tolist() == [1, 1, 1]
    assert explanation.score_kind == "logit"


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_it_is_grad_cam_up_to_scale(small_cnn, blobs, dimensions):
    network, images = small_cnn(dimensions=dimensions), blobs(2, *[16] * dimensions)
    for targets in (None, 1, [[0, 1], [2, 3]]):
        cam, grad_cam = (method(network, images, "features", targets) for method in (CAM(), GradCAM()))
        torch.testing.assert_close(cam.heatmaps, grad_cam.heatmaps, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            cam.layer_maps, grad_cam.layer_maps * cam.layer_maps.shape[-1] ** dimensions, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0"])
def test_it_is_grad_cam_up_to_scale_on_torchvisions_networks(name):
    torch.manual_seed(0)
    network, images = models.get_model(name, num_classes=7).eval(), torch.randn(1, 3, 96, 96)
    every = [list(range(7))]
    cam = CAM()(network, images, targets=every)
    grad_cam = GradCAM()(network, images, cam.target_layer, every)
    assert torch.equal(cam.blank, grad_cam.blank)
    assert cam.blank.sum() < 5
    for ours, theirs in zip(cam.layer_maps[~cam.blank], grad_cam.layer_maps[~cam.blank], strict=True):
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.9999


def test_the_last_layer_is_taken_however_coarse(small_cnn, blobs):
    explanation = CAM()(small_cnn(), blobs(2, 8, 8))
    assert (explanation.target_layer, explanation.positions) == ("features", (2, 2))
    assert explanation.is_coarse


def test_a_relu_between_layer_and_mean_is_applied():
    torch.manual_seed(0)
    network, images = models.densenet121(num_classes=7).eval(), torch.randn(1, 3, 96, 96)
    explanation = CAM()(network, images, targets=[list(range(7))])
    maps = network.features(images).relu()
    expected = torch.einsum("ck,nkhw->nchw", network.classifier.weight, maps).relu()
    torch.testing.assert_close(explanation.layer_maps, expected.detach())


def test_a_class_map_is_read_directly():
    torch.manual_seed(0)
    network, images = models.squeezenet1_1(num_classes=7).eval(), torch.randn(2, 3, 96, 96)
    explanation = CAM()(network, images, targets=[2, 5])
    class_map = network.classifier(network.features(images))
    network.classifier[3] = nn.Identity()  # without the pooling at the end
    class_map = network.classifier(network.features(images))
    torch.testing.assert_close(explanation.layer_maps, class_map[[0, 1], [2, 5]].detach())
    assert explanation.target_layer == "classifier.2"


def test_one_logit_speaks_for_class_1_and_against_class_0(small_cnn, images):
    network = small_cnn(classes=1)
    explanation = CAM()(network, images, "features", [[0, 1]] * 3)
    summed = torch.einsum("k,nkhw->nhw", network.head.weight[0], network.features(images)).detach()
    torch.testing.assert_close(explanation.layer_maps[:, 1], summed.relu())
    torch.testing.assert_close(explanation.layer_maps[:, 0], (-summed).relu())


def test_numbers_of_a_regression_and_several_labels(small_cnn, images):
    network = small_cnn()
    regression = CAM()(network, images, "features", RegressionTarget(3))
    several = CAM(multi_label=True)(network, images, "features", 3)
    assert torch.equal(regression.layer_maps, several.layer_maps)
    assert regression.score_kind == "RegressionTarget(index=3)"
    assert regression.targets is None
    torch.testing.assert_close(regression.target_scores, network(images)[:, 3].detach())


def test_each_image_may_have_a_number_of_its_own(small_cnn, images):
    network = small_cnn()
    own = CAM()(network, images, "features", [RegressionTarget(index % 3) for index in range(len(images))])
    for index, raw in enumerate(own.layer_maps):
        torch.testing.assert_close(
            raw, CAM()(network, images, "features", RegressionTarget(index % 3)).layer_maps[index]
        )


def test_a_softmax_at_the_end_does_no_harm(small_cnn, images):
    network = small_cnn()
    explanation = CAM()(nn.Sequential(network, nn.Softmax(1)), images, "0.features", 2)
    assert torch.equal(explanation.layer_maps, CAM()(network, images, "features", 2).layer_maps)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("alexnet", 96, r"AlexNet has 3 fully connected layers.*ScoreCAM and GradCAM explain this model"),
        ("mobilenet_v3_small", 64, r"MobileNetV3 has 2 fully connected layers"),
        ("convnext_tiny", 64, r"not the spatial mean of target_layer='features' \(a normalization, a class token"),
    ],
)
@pytest.mark.slow
def test_other_networks_are_refused_with_the_reason(name, size, said):
    network = models.get_model(name, num_classes=3).eval()
    for ask in (CAM(), CAM().check):
        with pytest.raises(ValueError, match=said):
            ask(network, torch.randn(1, 3, size, size))


def test_a_network_that_goes_on_after_its_linear_layer_is_refused(small_cnn, images):
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_cnn()

        def forward(self, images):
            return 3 * self.inner(images).tanh()

    for ask in (CAM(), CAM().check):
        with pytest.raises(ValueError, match="CAM: the output of Bounded is not that of its last linear layer; ScoreC"):
            ask(Bounded(), images)


def test_another_layer_of_a_network_with_a_class_map_is_refused():
    with pytest.raises(ValueError, match=r"nor the spatial mean of target_layer='features'.*Leave target_layer out"):
        CAM()(models.squeezenet1_1().eval(), torch.randn(1, 3, 64, 64), "features")


def test_a_callable_is_refused(small_cnn, images):
    def sum_of(output):
        return output.sum(dim=1)

    with pytest.raises(ValueError, match=r"CAM explains classes and RegressionTarget.*; not targets=sum_of"):
        CAM()(small_cnn(), images, "features", sum_of)


def test_a_region_of_a_segmentation_is_refused(images):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1))
    for targets in (SegmentationTarget(1), [SegmentationTarget(1)] * len(images)):
        with pytest.raises(ValueError, match="CAM explains classes and RegressionTarget"):
            CAM()(model, images, "1", targets)
