"""Recipro-CAM is the formula of its paper, and runs only what comes after the layer for each position."""

import pytest
import torch
from passes import NEIGHBORS
from torch import nn
from torchvision.models import VisionTransformer
from two_parts import TwoParts, head_of, two_parts

from cam_callbacks import ReciproCAM
from cam_callbacks.explain import progress


class JoinsTheImage(TwoParts):
    """Goes on with what it has kept of the images beside the features: as many rows as there are images."""

    def forward(self, images):
        small = nn.functional.avg_pool2d(images, 4)
        return self.head(torch.cat([self.features(images), small], dim=1))


@pytest.fixture
def network():
    return two_parts()


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


GAUSSIAN = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def by_hand(features, rest, target, gaussian=False):
    """One position after the other, as in the paper; (h, w)."""
    _, _, height, width = features.shape
    found = torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            mask = torch.zeros(height + 2, width + 2)
            if gaussian:
                mask[row : row + 3, column : column + 3] = GAUSSIAN
            else:
                mask[row + 1, column + 1] = 1
            found[row, column] = rest(features * mask[1:-1, 1:-1]).softmax(dim=1)[0, target]
    return found - found.min()


@pytest.mark.parametrize("neighborhood", ["position", "gaussian"])
@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_it_is_the_formula(network, images, neighborhood, batch_size):
    explanation = ReciproCAM(neighborhood=neighborhood, batch_size=batch_size)(network, images, "features", [0, 3, 4])
    with torch.no_grad():
        for image, own, target in zip(images, explanation.layer_maps, [0, 3, 4], strict=True):
            features = network.features(image.unsqueeze(0))
            expected = by_hand(features, network.head, target, neighborhood == "gaussian")
            torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)
    assert not explanation.blank.any()
    assert explanation.passes.tolist() == [37, 37, 37]
    assert explanation.channels is None
    assert explanation.estimated_error.tolist() == [0, 0, 0]


def test_positions_cost_the_layers_after_the_layer_only(network, images, forwarded):
    before, after = forwarded(network.features), forwarded(network.head)
    ReciproCAM(batch_size=64)(network, images, "features", 1)
    # Copies of one image and masked alone, twice each, and images in three orders.
    assert sum(before) <= 3 * len(images) + 3 + NEIGHBORS + 3 * len(images)
    assert sum(after) >= 36 * len(images)


def test_several_targets_share_the_passes(network, images):
    together = ReciproCAM()(network, images, "features", [[0, 1], [2, 3], [4, 0]])
    for column, targets in enumerate([[0, 2, 4], [1, 3, 0]]):
        alone = ReciproCAM()(network, images, "features", targets)
        torch.testing.assert_close(together.layer_maps[:, column], alone.layer_maps)
    assert together.passes.tolist() == alone.passes.tolist()


def test_a_model_that_joins_what_it_kept_of_the_image_is_shown_it_again(images):
    torch.manual_seed(0)
    network = JoinsTheImage(head_of(11)).eval()
    explanation = ReciproCAM()(network, images, "features", 2)
    with torch.no_grad():
        kept = nn.functional.avg_pool2d(images, 4)
        for index, own in enumerate(explanation.layer_maps):
            features, small = network.features(images[index : index + 1]), kept[index : index + 1]
            expected = by_hand(features, lambda masked, small=small: network.head(torch.cat([masked, small], 1)), 2)
            torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)


class AddsTheImage(TwoParts):
    """Adds what it kept of the image, which goes with any number of copies of one image, but not of several."""

    def forward(self, images):
        return self.head(self.features(images) + images.mean(dim=(1, 2, 3), keepdim=True))


def test_a_model_that_adds_what_it_kept_is_shown_one_after_the_other(images):
    torch.manual_seed(0)
    network = AddsTheImage(head_of(8)).eval()
    explanation = ReciproCAM()(network, images, "features", 2)
    with torch.no_grad():
        for image, own in zip(images, explanation.layer_maps, strict=True):
            features, mean = network.features(image.unsqueeze(0)), image.mean()
            expected = by_hand(features, lambda masked, mean=mean: network.head(masked + mean), 2)
            torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)


class KeepsForEachRow(AddsTheImage):
    """Adds to each row what it kept of an image, of the first one again after the last one."""

    def forward(self, images):
        features, means = self.features(images), images.mean(dim=(1, 2, 3), keepdim=True)
        return self.head(features + means.repeat(len(features) // len(means), 1, 1, 1))


class HidesWhatItKept(KeepsForEachRow):
    """What is kept of an image shows only where little is left of the features."""

    def forward(self, images):
        features, means = self.features(images), images.mean(dim=(1, 2, 3), keepdim=True)
        kept = 3 * means.repeat_interleave(len(features) // len(means), dim=0)
        is_little = features.sum(dim=(1, 2, 3), keepdim=True) < 10
        return self.head(torch.where(is_little, features + kept, features))


@pytest.mark.parametrize("kind", [KeepsForEachRow, HidesWhatItKept])
@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 0], [0, 1, 2, 1, 0]])
def test_copies_that_are_taken_for_those_of_other_images_are_not_trusted(images, kind, order):
    torch.manual_seed(0)
    network = kind(head_of(8)).eval()
    images = images[order] * torch.tensor([0.5, 2, 1, 0.7, 3])[: len(order)].view(-1, 1, 1, 1).abs()
    images = images + torch.tensor([1.0, -1, 0.5])[order].view(-1, 1, 1, 1)
    explanation = ReciproCAM()(network, images, "features", 2)
    alone = [ReciproCAM()(network, image.unsqueeze(0), "features", 2).layer_maps for image in images]
    torch.testing.assert_close(explanation.layer_maps, torch.cat(alone))


def test_images_are_shown_together_if_their_copies_go_into_a_batch(network, blobs):
    calls = []
    network.head.register_forward_hook(lambda *_: calls.append(1))
    needed = []
    for count in (2, 8):
        calls.clear()
        ReciproCAM(batch_size=512)(network, blobs(count, 24, 24), "features", 1)
        needed.append(len(calls))
    assert needed[0] == needed[1]


class ReadsAsManyAsItWasGiven(TwoParts):
    """Takes as many features to its head as it was given images."""

    def forward(self, images):
        features = self.features(images)
        return self.head(features.reshape(len(images), -1)[:, : 8 * 36].view(-1, 8, 6, 6))


def test_copies_that_are_not_taken_for_images_are_not_trusted(images):
    torch.manual_seed(0)
    network = ReadsAsManyAsItWasGiven(head_of(8)).eval()
    explanation = ReciproCAM()(network, images[:1], "features", 2)
    with torch.no_grad():
        expected = by_hand(network.features(images[:1]), network.head, 2)
    torch.testing.assert_close(explanation.layer_maps[0], expected, atol=1e-6, rtol=1e-4)


def test_a_class_token_is_kept():
    torch.manual_seed(0)
    network = VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(network.heads.head.weight)
    images, layer = torch.rand(2, 3, 32, 32), network.encoder.layers[1].ln_1
    explanation = ReciproCAM()(network, images, layer, 3)
    maps = []
    with torch.no_grad():
        for position in range(16):

            def mask(_module, _inputs, tokens, position=position):
                masked = torch.zeros_like(tokens)
                masked[:, [0, 1 + position]] = tokens[:, [0, 1 + position]]
                return masked

            with layer.register_forward_hook(mask):
                maps.append(network(images).softmax(dim=1)[:, 3])
    expected = torch.stack(maps, dim=1).view(2, 4, 4)
    expected = expected - expected.flatten(1).amin(dim=1).view(2, 1, 1)
    torch.testing.assert_close(explanation.layer_maps, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_signals_and_volumes_have_maps_of_their_own_size(small_cnn, blobs, dimensions):
    explanation = ReciproCAM()(small_cnn(dimensions=dimensions), blobs(2, *[12] * dimensions), "features")
    assert explanation.heatmaps.shape == (2, *[12] * dimensions)
    assert explanation.passes.tolist() == [1 + explanation.layer_maps[0].numel()] * 2


def test_progress_counts_each_position(network, images):
    shown = []
    with progress.shown(lambda done, total: shown.append((done, total))):
        ReciproCAM()(network, images, "features", 1)
    assert shown[-1] == (3 * 37, 3 * 37)


def test_an_unknown_neighborhood_is_named():
    with pytest.raises(ValueError, match="neighborhood='wide'"):
        ReciproCAM(neighborhood="wide")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"weighting": "odds"}, "weighting='odds'"), ({"max_positions": 0}, "max_positions=0")],
)
def test_settings_out_of_range_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        ReciproCAM(**arguments)


class KeepsFeatures(TwoParts):
    """Reads what a hook of its own has kept of a layer, as feature extractors do."""

    def __init__(self, head):
        super().__init__(head)
        self.kept = []
        self.features.register_forward_hook(lambda _module, _inputs, output: self.kept.append(output))

    def forward(self, images):
        self.features(images)
        return self.head(self.kept.pop())


def test_features_that_a_hook_has_kept_are_masked_as_others_are(images):
    network = two_parts()
    keeps = KeepsFeatures(network.head).eval()
    keeps.features.load_state_dict(network.features.state_dict())
    expected = ReciproCAM("evidence")(network, images, "features", 2)
    found = ReciproCAM("evidence")(keeps, images, "features", 2)
    assert not found.blank.any()
    torch.testing.assert_close(found.layer_maps, expected.layer_maps)


class RoundsByTheLargest(TwoParts):
    """Rounds features to steps of the largest of all of them, as dynamic quantization does."""

    def forward(self, images):
        features = self.features(images)
        step = features.abs().max() / 31
        return self.head((features / step).round() * step)


@pytest.mark.parametrize("batch_size", [1, None])
def test_copies_that_influence_each_other_are_forwarded_alone(images, batch_size):
    torch.manual_seed(0)
    network = RoundsByTheLargest(head_of(8)).eval()
    with pytest.warns(UserWarning, match="if another one is beside it"):
        explanation = ReciproCAM(batch_size=batch_size)(network, images[:1], "features", 2)

    def rest(masked):
        step = masked.abs().max() / 31
        return network.head((masked / step).round() * step if step else masked)

    with torch.no_grad():
        expected = by_hand(network.features(images[:1]), rest, 2)
    torch.testing.assert_close(explanation.layer_maps[0], expected, atol=1e-6, rtol=1e-4)
