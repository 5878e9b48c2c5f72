"""Recipro-CAM by evidence is its formula, in 32 bits whatever the model holds, and leaves nothing behind."""

import copy

import pytest
import torch
from torch import nn
from two_parts import TwoParts, head_of, two_parts

from cam_callbacks import ReciproCAM
from cam_callbacks.explain.precision import FullPrecision
from cam_callbacks.explain.trust import correlation


class JoinsAtFullSize(nn.Module):
    """Joins fine features with what it has kept of the images, unless it keeps a single row."""

    kept = None

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Sequential(nn.Conv2d(7, 4, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        features, small = self.features(images), nn.functional.avg_pool2d(images, 2)
        if self.kept:
            small = small[:1].expand(len(features), -1, -1, -1)
        return self.head(torch.cat([features, small], dim=1))


@pytest.fixture
def network():
    return two_parts()


@pytest.fixture
def images(blobs):
    return blobs(3, 24, 24)


def log_odds(logits, target):
    rest = [column for column in range(logits.shape[1]) if column != target]
    return logits[:, target] - logits[:, rest].logsumexp(dim=1)


def evidence_by_hand(features, rest, target, blocks=None):
    """One block of positions after the other; (positions,)."""
    blocks = torch.eye(features.shape[2] * features.shape[3]) if blocks is None else blocks
    alone, lost = [], []
    for block in blocks:
        mask = block.view(1, 1, *features.shape[2:])
        alone.append(log_odds(rest(features * mask), target) - log_odds(rest(features * 0), target))
        lost.append(log_odds(rest(features), target) - log_odds(rest(features * (1 - mask)), target))
    return of_like_size(torch.cat(alone), torch.cat(lost))


def of_like_size(*sides):
    sides = [side.clamp_min(0) for side in sides]
    sizes = [side.square().mean().sqrt() for side in sides]
    return sum(side / size for side, size in zip(sides, sizes, strict=True)) * sum(sizes) / len(sizes)


class TestEvidence:
    @pytest.mark.parametrize("batch_size", [1, 7, None])
    def test_it_is_the_formula(self, network, images, batch_size):
        explanation = ReciproCAM("evidence", batch_size=batch_size)(network, images, "features", [0, 3, 4])
        with torch.no_grad():
            for image, own, target in zip(images, explanation.layer_maps, [0, 3, 4], strict=True):
                expected = evidence_by_hand(network.features(image.unsqueeze(0)), network.head, target)
                torch.testing.assert_close(own.flatten(), expected, atol=1e-5, rtol=1e-3)
        assert explanation.passes.tolist() == [2 * 36 + 2] * 3
        assert float(explanation.estimated_error.max()) < 1e-6

    def test_many_positions_are_masked_in_blocks(self, network, images):
        explanation = ReciproCAM("evidence", max_positions=9)(network, images[:1], "features", 1)
        blocks = torch.eye(9).view(9, 3, 3).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        with torch.no_grad():
            found = evidence_by_hand(network.features(images[:1]), network.head, 1, blocks)
        expected = nn.functional.interpolate(found.view(1, 1, 3, 3), size=(6, 6), mode="bilinear")[0, 0]
        torch.testing.assert_close(explanation.layer_maps[0], expected, atol=1e-5, rtol=1e-3)
        assert explanation.passes.tolist() == [2 * 9 + 2]

    @pytest.mark.parametrize(("size", "most"), [((6, 6), 4), ((5, 7), 6), ((3, 12), 10), ((6, 6), 1)])
    def test_blocks_never_exceed_the_limit(self, small_cnn, blobs, size, most):
        explanation = ReciproCAM("evidence", max_positions=most)(small_cnn(), blobs(1, *size), "features")
        assert int(explanation.passes) <= 2 * most + 2
        assert explanation.heatmaps.shape == (1, *size)

    def test_a_layer_larger_than_the_image_is_masked_in_larger_blocks(self):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))
        images = torch.rand(1, 3, 24, 24)
        found = ReciproCAM("evidence")(network, images, "0")
        assert int(found.passes) == 2 * 8 * 8 + 2  # 256 * 2 / 8
        assert int(ReciproCAM("evidence", max_positions=None)(network, images, "0").passes) == 2 * 24 * 24 + 2

    def test_two_classes_have_different_maps(self, blobs):
        torch.manual_seed(0)
        network = TwoParts(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))).eval()
        maps = ReciproCAM("evidence")(network, blobs(4, 24, 24), "features", [[0, 1]] * 4).layer_maps
        # What speaks for one class speaks against the other one.
        assert bool((torch.minimum(maps[:, 0], maps[:, 1]) < 1e-3 * maps.amax(dim=(1, 2, 3)).view(-1, 1, 1)).all())

    def test_where_nothing_speaks_for_a_class_its_map_is_blank(self):
        class ReadsTheSum(nn.Module):
            def __init__(self):
                super().__init__()
                self.features = nn.ReLU()

            def forward(self, images):
                total = self.features(images).sum(dim=(1, 2, 3)).unsqueeze(1)
                return torch.cat([total, torch.zeros_like(total)], dim=1)

        images = torch.rand(2, 3, 8, 8)
        explanation = ReciproCAM("evidence")(ReadsTheSum(), images, "features", [[0, 1]] * 2)
        assert explanation.blank.tolist() == [[False, True]] * 2

    def test_masks_are_few_where_each_takes_a_whole_pass(self, blobs):
        torch.manual_seed(0)
        network = JoinsAtFullSize().eval()
        images = blobs(2, 24, 24)
        explanation = ReciproCAM("evidence")(network, images, "features", 1)
        assert explanation.passes.tolist() == [2 * 36 + 2] * 2
        network.kept = 1  # as many rows as there are features: the rest of the model runs alone
        assert ReciproCAM("evidence")(network, images, "features", 1).passes.tolist() == [2 * 144 + 2] * 2

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_does_not_round_small_evidence_away(self, network, images, dtype):
        expected = ReciproCAM("evidence")(network, images, "features", 1).layer_maps
        with torch.autocast("cpu", dtype):
            found = ReciproCAM("evidence")(network, images, "features", 1)
        torch.testing.assert_close(found.layer_maps, expected, atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_weights_of_16_bits_are_held_in_32_meanwhile(self, network, images, dtype):
        narrow = copy.deepcopy(network).to(dtype)
        held = [each.data_ptr() for each in narrow.parameters()]
        found = ReciproCAM("evidence")(narrow, images.to(dtype), "features", 1)
        expected = ReciproCAM("evidence")(copy.deepcopy(narrow).float(), images.to(dtype).float(), "features", 1)
        torch.testing.assert_close(found.layer_maps, expected.layer_maps, atol=1e-5, rtol=1e-3)
        assert [each.data_ptr() for each in narrow.parameters()] == held
        assert {each.dtype for each in narrow.parameters()} == {dtype}

    def test_the_rounding_of_answers_in_16_bits_is_estimated(self, network, images):
        class Rounds(TwoParts):
            def forward(self, images):
                return super().forward(images).bfloat16()

        rounding = Rounds(network.head)
        rounding.features = network.features
        exact = ReciproCAM("evidence")(network, images, "features", 1)
        rounded = ReciproCAM("evidence")(rounding, images, "features", 1)
        wrong = 1 - correlation(exact.layer_maps, rounded.layer_maps)
        assert bool((rounded.estimated_error > 1e-3).all())
        assert bool((wrong <= rounded.estimated_error)[~rounded.blank].all())
        assert bool((rounded.estimated_error == 1)[rounded.blank].all())

    def test_weights_are_put_back_where_the_model_fails(self, network, images):
        def fails(logits):
            if logits.dtype == torch.float32 and len(logits) > 5:
                raise RuntimeError("no")
            return logits[:, 1].float()

        network = network.bfloat16()
        with pytest.raises(RuntimeError, match="no"):
            ReciproCAM("evidence")(network, images.bfloat16(), "features", fails)
        assert {each.dtype for each in network.parameters()} == {torch.bfloat16}

    def test_hooks_on_the_accumulation_of_gradients_stay(self, network, images):
        network = network.bfloat16()  # a reducer of gradients, as of DDP, has such hooks
        weight = network.features[0].weight
        node = weight.view_as(weight).grad_fn.next_functions[0][0]
        called = []
        node.register_hook(lambda *_: called.append(True))
        ReciproCAM("evidence")(network, images.bfloat16(), "features", 1)
        network(images.bfloat16()).sum().backward()
        assert weight.view_as(weight).grad_fn.next_functions[0][0] is node
        assert called == [True]

    def test_weights_that_are_shared_are_shared_in_32_bits_too(self):
        network = TwoParts(head_of(8)).bfloat16()
        network.tied = nn.Linear(288, 5)
        network.tied.weight = weight = network.head[4].weight
        with FullPrecision(network).on():
            assert network.tied.weight is network.head[4].weight
            assert network.tied.weight.dtype == torch.float32
        assert network.tied.weight is network.head[4].weight is weight

    def test_without_memory_for_32_bits_it_runs_in_16(self, network, images, monkeypatch):
        network = network.bfloat16()
        wide = torch.Tensor.float

        def no_memory(tensor):
            if tensor.shape == network.head[1].weight.shape:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return wide(tensor)

        monkeypatch.setattr(torch.Tensor, "float", no_memory)
        explanation = ReciproCAM("evidence")(network, images.bfloat16(), "features", 1)
        assert not explanation.skipped.any()
        assert bool((explanation.estimated_error > 1e-3).all())
        assert {each.dtype for each in network.parameters()} == {torch.bfloat16}

    def test_rounding_inside_of_a_model_is_estimated(self, network, images):
        class RoundsInside(TwoParts):
            def forward(self, images):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(images).float()

        rounding = RoundsInside(network.head)
        rounding.features = network.features
        assert bool((ReciproCAM("evidence")(rounding, images, "features", 1).estimated_error > 1e-3).all())

    def test_where_nothing_has_no_score_what_is_lost_counts(self, images):
        class Divides(TwoParts):
            def forward(self, images):
                mean = self.features(images).relu().mean(dim=(2, 3))
                return self.head(mean / mean.norm(dim=1, keepdim=True))

        torch.manual_seed(0)
        network = Divides(nn.Linear(8, 3)).eval()
        network.features.append(nn.ReLU())
        explanation = ReciproCAM("evidence")(network, images, "features")
        with torch.no_grad():
            for image, own, target in zip(images, explanation.layer_maps, explanation.targets, strict=True):
                features = network.features(image.unsqueeze(0))

                def answer(features):
                    mean = features.mean(dim=(2, 3))
                    return network.head(mean / mean.norm(dim=1, keepdim=True))

                masks = 1 - torch.eye(36).view(36, 1, 6, 6)
                lost = (log_odds(answer(features), target) - log_odds(answer(features * masks), target)).clamp_min(0)
                assert float(correlation(own.view(1, -1), lost.view(1, -1))) > 0.999
        assert not explanation.skipped.any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_transform_may_cast(self, network, images, dtype):
        expected = ReciproCAM("evidence")(network, images, "features", 1).layer_maps
        found = ReciproCAM("evidence", reshape_transform=lambda output: output.to(dtype))(
            network, images, "features", 1
        )
        torch.testing.assert_close(found.layer_maps, expected, atol=1e-5, rtol=1e-3)

    def test_a_transform_that_makes_new_values_is_refused_by_name(self, network, images):
        with pytest.raises(ValueError, match="reshape_transform"):
            ReciproCAM("evidence", reshape_transform=lambda output: output * 0.5)(network, images, "features", 1)

    def test_the_score_of_a_callable_takes_the_place_of_log_odds(self, network, images):
        def second(logits):
            return logits[:, 1]

        found = ReciproCAM("evidence")(network, images, "features", second).layer_maps[0].flatten()
        with torch.no_grad():
            features = network.features(images[:1])
            masks = torch.eye(36).view(36, 1, 6, 6)
            alone = second(network.head(features * masks)) - second(network.head(features * 0))
            lost = second(network.head(features)) - second(network.head(features * (1 - masks)))
        torch.testing.assert_close(found, of_like_size(alone, lost), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_maps_are_the_same_in_any_unit_of_the_score(network, images, unit):
    def score(output):
        return output[:, 2] * unit

    plain = ReciproCAM("evidence")(network, images, "features", lambda output: output[:, 2])
    scaled = ReciproCAM("evidence")(network, images, "features", score)
    assert not scaled.skipped.any()
    torch.testing.assert_close(scaled.heatmaps, plain.heatmaps, atol=1e-3, rtol=0)


def test_what_all_logits_have_in_common_is_rounding_of_the_map(network, images):
    class Shifted(nn.Module):
        def forward(self, logits):
            return logits + 1e3

    shifted = TwoParts(nn.Sequential(network.head, Shifted())).eval()
    shifted.features = network.features
    exact = ReciproCAM("evidence")(network, images, "features", 2)
    rounded = ReciproCAM("evidence")(shifted, images, "features", 2)
    lost = 1 - correlation(rounded.layer_maps, exact.layer_maps)
    assert lost.max() > 1e-5  # else the test shows nothing
    assert (rounded.estimated_error >= lost).all()
