"""Score-CAM computes the formula that it documents, and spends no pass more than it needs."""

import dataclasses
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from passes import NEIGHBORS
from torch import nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain import progress

exact = functools.partial(ScoreCAM, tolerance=0)

WEIGHTINGS = ["probability", "logit-softmax", "increase", "matlab", "contrast"]
READINGS = {weighting: exact(weighting) for weighting in WEIGHTINGS} | {"one side": exact("contrast", complement=False)}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def score(network, image, target):
    """Logit, probability and log-odds of the target class for one image (C, *spatial)."""
    output = network(image[None])[0]
    if len(output) == 1:
        logits = torch.cat([-output, output])
        return logits[target], logits[target].sigmoid(), logits[target]
    others = torch.cat([output[:target], output[target + 1 :]])
    return output[target], output.softmax(dim=0)[target], output[target] - others.logsumexp(dim=0)


@torch.no_grad()
def live_channels(network, images):
    """For each image, how many channels of `features` are not constant."""
    activations = network.features(images).flatten(2)
    return (activations.amin(dim=2) < activations.amax(dim=2)).sum(dim=1).tolist()


def both_sides(kept, deleted):
    """The difference of two sides, each in units of its own deviation, in units of the mean deviation."""
    spreads = [side.std(correction=0) for side in (kept, deleted)]
    scaled = [(side - side.mean()) / spread for side, spread in zip((kept, deleted), spreads, strict=True)]
    return (scaled[0] - scaled[1]) * sum(spreads) / 2


@torch.no_grad()
def by_the_book(network, image, target):
    """Score-CAM of one image as the paper writes it, channel after channel: by weighting, the raw map and the
    heatmap."""
    activation = network.features(image[None])[0]
    size, mode = image.shape[1:], MODES[image.ndim - 1]
    own_probability = score(network, image, target)[1]
    empty_probability = score(network, torch.zeros_like(image), target)[1]
    maps, scaled_maps, logits, probabilities, kept, deleted = [], [], [], [], [], []
    for channel in activation:
        if channel.min() == channel.max():
            continue  # dead
        upsampled = F.interpolate(channel[None, None], size=size, mode=mode, align_corners=False)[0, 0]
        mask = (upsampled - upsampled.min()) / (upsampled.max() - upsampled.min())
        logit, probability, log_odds = score(network, image * mask, target)
        maps.append(channel)
        scaled_maps.append((channel - channel.min()) / (channel.max() - channel.min()))
        logits.append(logit)
        probabilities.append(probability)
        kept.append(log_odds)
        deleted.append(score(network, image * (1 - mask), target)[2])
    logits, probabilities, kept, deleted = map(torch.stack, (logits, probabilities, kept, deleted))
    readings = {
        "probability": (probabilities, maps),
        "logit-softmax": (logits.softmax(dim=0), maps),
        "increase": (probabilities - empty_probability, maps),
        "matlab": ((probabilities - own_probability).softmax(dim=0), scaled_maps),
        "contrast": (both_sides(kept, deleted), maps),
        "one side": (kept - kept.mean(), maps),
    }
    found = {}
    for weighting, (weights, channels) in readings.items():
        raw = sum(weight * channel for weight, channel in zip(weights, channels, strict=True)).relu()
        heatmap = F.interpolate(raw[None, None], size=size, mode=mode, align_corners=False)[0, 0]
        found[weighting] = raw, (heatmap - heatmap.min()) / ((heatmap.max() - heatmap.min()) or 1)
    return found


def assert_by_the_book(network, images, targets):
    found = [by_the_book(network, image, target) for image, target in zip(images, targets, strict=True)]
    for reading, method in READINGS.items():
        explanation = dataclasses.replace(method, batch_size=5)(network, images, "features", targets)
        for i, maps in enumerate(found):
            raw, heatmap = maps[reading]
            largest = raw.max() or 1
            torch.testing.assert_close(
                explanation.layer_maps[i].to(raw.dtype) / largest, raw / largest, atol=1e-4, rtol=0
            )
            torch.testing.assert_close(explanation.heatmaps[i].to(raw.dtype), heatmap, atol=1e-4, rtol=0)
        assert not explanation.blank.all(), "blank maps compare nothing; choose another seed"


class TestFormula:
    """Of each weighting."""

    def test_holds_for_several_images_and_classes(self, small_cnn, blobs):
        assert_by_the_book(small_cnn(), blobs(4, 30, 22), [0, 3, 1, 3])

    @pytest.mark.parametrize("size", [(41,), (9, 14, 10)], ids=["1-D", "3-D"])
    def test_holds_for_signals_and_volumes(self, small_cnn, blobs, size):
        network, images = small_cnn(dimensions=len(size), seed=2), blobs(2, *size, seed=3)
        assert_by_the_book(network, images, network(images).argmax(dim=1))

    @pytest.mark.parametrize("logits", [1, 2])
    def test_holds_for_both_classes_of_a_binary_head(self, small_cnn, blobs, logits):
        assert_by_the_book(small_cnn(classes=logits), blobs(1, 24, 24).expand(2, -1, -1, -1), [0, 1])

    def test_holds_for_a_double_precision_model(self, small_cnn, blobs):
        assert_by_the_book(small_cnn().double(), blobs(2, 24, 24).double(), [2, 4])


def test_the_weightings_give_different_maps(small_cnn, blobs):
    images = blobs(1, 24, 24)
    maps = [exact(weighting)(small_cnn(), images, "features", 0).heatmaps for weighting in WEIGHTINGS]
    for i, first in enumerate(maps):
        for second in maps[:i]:
            assert (first - second).abs().max() > 0.01


class NanOfOneClass(nn.Module):
    """One of its logits is not finite for dark images."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        logits = self.network(images)
        dark = images.mean(dim=(1, 2, 3)) < 0.05
        return torch.cat([logits[:, :4], torch.where(dark, torch.nan, logits[:, 4])[:, None]], dim=1)


@pytest.mark.parametrize("weighting", ["probability", "contrast"])
def test_a_target_that_is_not_finite_takes_no_other_with_it(small_cnn, blobs, weighting):
    network, images = NanOfOneClass(small_cnn()), blobs(2, 24, 24).abs()
    targets = torch.tensor([[0, 4], [4, 1]])
    found = [
        ScoreCAM(weighting, tolerance=tolerance, multi_label=True)(network, images, "network.features", targets)
        for tolerance in (0, 0.01)
    ]
    for each in found:
        assert each.skipped.tolist() == [[False, True], [True, False]]
    torch.testing.assert_close(found[0].layer_maps, found[1].layer_maps, equal_nan=True, rtol=0.05, atol=0.05)


def test_without_targets_the_predicted_class_is_explained(small_cnn, blobs):
    network, images = small_cnn(), blobs(4, 24, 24)
    predicted = network(images).argmax(dim=1)
    assert len(predicted.unique()) > 1
    chosen, named = exact()(network, images, "features"), exact()(network, images, "features", predicted)
    assert torch.equal(chosen.targets, predicted)
    assert torch.equal(chosen.heatmaps, named.heatmaps)


def test_the_explanation_has_the_shapes_types_and_ranges_it_documents(small_cnn, blobs):
    network, images = small_cnn(classes=7), blobs(3, 32, 20)
    explanation = exact()(network, images, "features", 4)
    assert explanation.heatmaps.shape == (3, 32, 20)
    assert explanation.layer_maps.shape == (3, 8, 5)
    assert (
        explanation.heatmaps.dtype == explanation.layer_maps.dtype == explanation.estimated_error.dtype == torch.float32
    )
    assert explanation.heatmaps.flatten(1).amin(dim=1).tolist() == [0, 0, 0]
    assert explanation.heatmaps.flatten(1).amax(dim=1).tolist() == [1, 1, 1]
    assert (explanation.layer_maps >= 0).all()
    assert explanation.targets.tolist() == [4, 4, 4]
    torch.testing.assert_close(explanation.logits, network(images).detach())
    torch.testing.assert_close(explanation.probabilities, network(images).softmax(dim=1).detach())
    assert explanation.target_layer == "features"
    assert explanation.estimated_error.tolist() == [0, 0, 0]
    assert not explanation.skipped.any()
    assert not explanation.blank.any()


class TestBatches:
    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    def test_images_explained_together_and_one_by_one_give_the_same(self, small_cnn, blobs, weighting):
        network, images, method = small_cnn(), blobs(3, 24, 24), exact(weighting, batch_size=7)
        together = method(network, images, "features")
        for i, image in enumerate(images):
            alone = method(network, image[None], "features")
            torch.testing.assert_close(alone.heatmaps[0], together.heatmaps[i], atol=1e-5, rtol=0)
            torch.testing.assert_close(alone.layer_maps[0], together.layer_maps[i])
            assert alone.targets == together.targets[i]
            assert alone.passes == together.passes[i]

    def test_the_batch_size_changes_nothing(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(2, 24, 24)
        reference = exact()(network, images, "features")
        for batch_size in (1, 3, 7, 64):
            explanation = exact(batch_size=batch_size)(network, images, "features")
            torch.testing.assert_close(explanation.heatmaps, reference.heatmaps, atol=1e-5, rtol=0)
            assert torch.equal(explanation.passes, reference.passes)
            assert torch.equal(explanation.targets, reference.targets)


FOLDING = 2
"""Passes of one image that try whether batch norms can be folded; they are not counted."""


class TestPasses:
    def test_are_one_an_image_and_one_for_each_live_channel(self, small_cnn, blobs):
        network, images = small_cnn(dead={2: -1.0, 5: 0.7}), blobs(3, 24, 24)
        live = live_channels(network, images)
        assert max(live) == 10
        assert exact("probability")(network, images, "features").passes.tolist() == [1 + count for count in live]

    def test_are_not_spent_on_a_channel_that_is_dead_for_one_image(self, small_cnn, blobs):
        network, images = small_cnn(dead={}), blobs(3, 24, 24)
        images[1] = 0.5
        network.features[0].padding = network.features[3].padding = (0, 0)  # a constant image has constant activations
        explanation = exact()(network, images, "features")
        assert explanation.passes[1] == 1
        assert explanation.passes[0] > 10
        assert explanation.blank.tolist() == [False, True, False]

    @pytest.mark.parametrize(
        ("weighting", "batch_size"),
        [("probability", 4), ("probability", 32), *((reading, 4) for reading in READINGS if reading != "probability")],
    )
    def test_are_what_the_model_sees(self, small_cnn, blobs, forwarded, weighting, batch_size):
        network = small_cnn()
        sizes = forwarded(network)
        method = dataclasses.replace(READINGS[weighting], batch_size=batch_size)
        explanation = method(network, blobs(3, 24, 24), "features")
        # The pass of the empty image is counted with each of the three images, which share it.
        shared = 2 if weighting == "increase" else 0
        assert sum(sizes) == explanation.passes.sum() - shared + FOLDING + NEIGHBORS

    def test_are_two_for_each_live_channel_with_both_sides_of_the_mask(self, small_cnn, blobs):
        network, images = small_cnn(), blobs(3, 24, 24)
        explanation = READINGS["contrast"](network, images, "features")
        assert explanation.passes.tolist() == [1 + 2 * count for count in live_channels(network, images)]
        few = ScoreCAM("contrast", max_passes=7)(network, images, "features")
        assert few.passes.tolist() == [1 + 7] * 3

    def test_choosing_the_layer_takes_one_more(self, small_cnn, blobs, forwarded):
        network = small_cnn()
        sizes = forwarded(network)
        explanation = exact()(network, blobs(3, 24, 24))
        assert sum(sizes) == explanation.passes.sum() + 1 + FOLDING + NEIGHBORS

    def test_fill_their_batches_across_images(self, small_cnn, blobs, forwarded):
        network = small_cnn()
        images, sizes = blobs(3, 24, 24), forwarded(network)
        exact(batch_size=8)(network, images, "features")
        masked = sum(live_channels(network, images))
        assert sizes[:9] == [1, 2, 3, *[1] * FOLDING, 8, 8, 8, masked - 24]

    def test_are_reported_as_they_are_done(self, small_cnn, blobs):
        network, images, told = small_cnn(), blobs(3, 24, 24), []
        with progress.shown(lambda *counts: told.append(counts)):
            exact("probability", batch_size=8)(network, images, "features")
        masked = sum(live_channels(network, images))
        total = 3 + masked
        assert told == [(3, 3), (11, total), (19, total), (27, total), (total, total)]


@pytest.mark.parametrize("reading", ["contrast", "one side"])
def test_by_contrast_two_classes_have_opposite_weights(small_cnn, blobs, reading):
    network, images = small_cnn(classes=2), blobs(2, 24, 24)
    both = READINGS[reading](network, images, "features", torch.tensor([[0, 1], [0, 1]])).channels
    first, second = torch.zeros(2, 2, 12).scatter(2, both.index, both.weight).unbind(dim=1)
    assert first.abs().max() > 0.01
    torch.testing.assert_close(first, -second, atol=1e-5, rtol=0)


def test_by_contrast_a_score_that_does_not_move_gives_a_blank_map(small_cnn, blobs):
    network = small_cnn()
    with torch.no_grad():
        network.head.weight.zero_()
    explanation = exact("contrast")(network, blobs(2, 24, 24), "features", 1)
    assert explanation.blank.all()
    assert (explanation.channels.weight == 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_layer_whose_channels_are_all_dead_gives_a_blank_map(small_cnn, blobs, weighting):
    network = small_cnn(dead=dict.fromkeys(range(12), 0.3))
    explanation = exact(weighting)(network, blobs(2, 24, 24), "features")
    assert explanation.blank.all()
    assert not explanation.skipped.any()
    assert (explanation.heatmaps == 0).all()
    assert (explanation.layer_maps == 0).all()


def test_increase_gives_a_blank_map_where_no_mask_raises_the_probability(small_cnn, blobs):
    network, images = small_cnn(), blobs(1, 24, 24)
    empty = network(torch.zeros(1, 3, 24, 24)).argmax()
    with torch.no_grad():
        network.head.bias[empty] += 50  # whatever is not masked out can only lower its probability
        network.head.weight[empty] = -1
    explanation = exact("increase")(network, images, "features", int(empty))
    assert explanation.blank.all()
    assert not explanation.skipped.any()


class TestValue:
    def test_equal_settings_are_equal_and_hash_alike(self):
        assert ScoreCAM("increase", batch_size=8) == ScoreCAM(weighting="increase", batch_size=8)
        assert len({ScoreCAM(), ScoreCAM("probability"), ScoreCAM(tolerance=0.02)}) == 1
        assert len({ScoreCAM(), ScoreCAM("matlab"), ScoreCAM(batch_size=31)}) == 3

    def test_survives_pickling(self):
        method = ScoreCAM("logit-softmax", batch_size=3)
        assert pickle.loads(pickle.dumps(method)) == method

    def test_shows_its_settings(self):
        shown = repr(ScoreCAM("matlab", batch_size=3))
        assert (
            "batch_size=3, weighting='matlab', tolerance=0.02, max_passes=None, complement=None, compile=False)"
            in shown
        )

    def test_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            ScoreCAM().batch_size = 3

    def test_an_unknown_weighting_is_refused_with_the_known_ones(self):
        with pytest.raises(
            ValueError, match="weighting='prob' is unknown; choose one of 'probability', 'logit-softmax'"
        ):
            ScoreCAM("prob")

    def test_both_sides_of_the_mask_are_for_contrast_and_take_two_passes(self):
        with pytest.raises(ValueError, match="complement=True needs weighting=\"contrast\", not 'increase'"):
            ScoreCAM("increase", complement=True)
        for passes, complement in ((1, False), (3, True)):
            with pytest.raises(ValueError, match=f"max_passes={passes} is too few: by contrast channels are compared"):
                ScoreCAM("contrast", complement=complement, max_passes=passes)

    @pytest.mark.parametrize("batch_size", [0, -4, 2.5, True])
    def test_a_batch_size_that_is_not_a_positive_whole_number_is_refused(self, batch_size):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a whole number of at least 1"):
            ScoreCAM(batch_size=batch_size)
