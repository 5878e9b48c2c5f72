"""Batch norms are folded into the convolutions before them, and nothing of it is left."""

import pytest
import torch
from torch import nn
from torchvision import models

from cam_callbacks import ScoreCAM
from cam_callbacks.explain.batch_norm_folding import foldable, folded


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = models.resnet18(num_classes=5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    return network


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_network_computes_the_same(network, images):
    pairs = foldable(network, lambda: network(images))
    assert len(pairs) == 20
    expected, weights = network(images), network.conv1.weight.clone()
    with folded(pairs):
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(network(images), expected)
    assert torch.equal(network.conv1.weight, weights)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_in_any_number_of_dimensions(dimensions, bias):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](3, 4, 3, bias=bias)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1](4).eval()
    norm.running_mean.normal_()
    network, images = nn.Sequential(conv, norm), torch.randn(2, 3, *[6] * dimensions)
    pairs = foldable(network, lambda: network(images))
    expected = network(images)
    with folded(pairs):
        torch.testing.assert_close(network(images), expected)
    assert pairs


def test_everything_is_put_back_after_an_error(network, images):
    pairs = foldable(network, lambda: network(images))
    with pytest.raises(RuntimeError, match="mine"), folded(pairs):
        raise RuntimeError("mine")
    assert not any("forward" in vars(module) for module in network.modules())


class Reuses(nn.Module):
    """Reads the output of a convolution twice: before and after the batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.norm.running_mean.fill_(3.0)

    def forward(self, images):
        maps = self.conv(images)
        return self.head((self.norm(maps) + maps).relu().mean(dim=(2, 3)))


def test_what_cannot_be_folded_is_explained_as_it_is(images):
    torch.manual_seed(0)
    network = Reuses().eval()
    method = ScoreCAM(tolerance=0)
    explanation = method(network, images, "conv", targets=1)
    hooked = network.conv.register_forward_hook(lambda *_: None)  # a module with a hook is not folded
    expected = method(network, images, "conv", targets=1)
    hooked.remove()
    torch.testing.assert_close(explanation.layer_maps, expected.layer_maps)


class AddsRows(nn.Module):
    """Adds to each normalized row the raw one above it, in place: of one tensor that cannot be done."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.norm.running_mean.normal_()

    def forward(self, images):
        raw = self.conv(images)
        maps = self.norm(raw)
        maps[:, :, 1:] += raw[:, :, :-1]
        return self.head(maps.relu().mean(dim=(2, 3)))


def test_what_fails_when_it_is_folded_is_explained_as_it_is(images):
    torch.manual_seed(0)
    network = AddsRows().eval()
    image = images[:1].contiguous(memory_format=torch.channels_last)  # as they are forwarded
    pairs = foldable(network, lambda: network(image))
    with torch.no_grad(), folded(pairs), pytest.raises(RuntimeError, match="refer to a single memory location"):
        network(image)
    method = ScoreCAM(tolerance=0)
    explanation = method(network, images, "conv", targets=1)
    assert not explanation.blank.any()
    network.conv.register_forward_hook(lambda *_: None)  # a module with a hook is not folded
    torch.testing.assert_close(explanation.layer_maps, method(network, images, "conv", targets=1).layer_maps)


def test_shared_and_hooked_modules_are_not_folded(images):
    conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3).eval()
    shared = nn.Sequential(conv, norm, conv)
    assert foldable(shared, lambda: shared(images)) == []
    hooked = nn.Sequential(conv, norm)
    conv.register_forward_hook(lambda *_: None)
    assert foldable(hooked, lambda: hooked(images)) == []
    without_constants = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    assert foldable(without_constants, lambda: without_constants(images)) == []


@pytest.mark.slow
def test_the_maps_are_those_of_the_network_as_it_is(network, images):
    explanation = ScoreCAM(tolerance=0)(network, images, "layer1", targets=2)
    for module in network.modules():
        module.register_forward_hook(lambda *_: None)
    expected = ScoreCAM(tolerance=0)(network, images, "layer1", targets=2)
    torch.testing.assert_close(
        explanation.layer_maps, expected.layer_maps, rtol=1e-3, atol=1e-4 * float(expected.layer_maps.max())
    )


class Neck(nn.Module):
    """Returns what a convolution puts out, beside logits that are read through the batch norm after it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.conv, self.norm, self.head = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Linear(16, 4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.2, 3)

    def forward(self, images):
        maps = self.conv(self.stem(images))
        return {"logits": self.head(self.norm(maps).relu().mean((2, 3))), "embedding": maps.mean((2, 3))}


class Finds(Neck):
    """Returns as many numbers for an image as it finds large ones, as a detector does: none in what is not folded."""

    def __init__(self):
        super().__init__()
        self.norm.bias.data[0] = 100

    def forward(self, images):
        output = super().forward(images)
        return {"logits": output["logits"], "found": [each[each > 50] for each in output["embedding"]]}


def first(output):
    return output["embedding"][:, 0]


def confidence(output):
    return output["logits"][:, 0] - torch.stack([each.sum() for each in output["found"]])


@pytest.mark.parametrize(("kind", "target"), [(Neck, first), (Finds, confidence)])
def test_whatever_a_callable_may_read_stays_the_same(images, kind, target):
    torch.manual_seed(0)
    network = kind().eval()
    explanation = ScoreCAM(tolerance=0)(network, images, "stem", target)
    assert not explanation.blank.any()
    network.conv.register_forward_hook(lambda *_: None)  # a module with a hook is not folded
    torch.testing.assert_close(
        explanation.layer_maps, ScoreCAM(tolerance=0)(network, images, "stem", target).layer_maps
    )
