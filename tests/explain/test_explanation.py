"""Explanation holds maps; upsampling, scaling and the test for contrast are the one rule for all of them."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from cam_callbacks import Explanation
from cam_callbacks.explain.explanation import Channels, has_contrast, min_max, scaled, upsample


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def explanation():
    """Three images: the first with a map, the second blank, the third skipped."""
    maps = torch.stack([torch.linspace(0, 3, 4).view(2, 2), torch.zeros(2, 2), torch.full((2, 2), torch.nan)])
    scores = torch.tensor([[0.0, 2.0], [1.0, -1.0], [torch.nan, 0.0]])
    return Explanation(
        layer_maps=maps,
        size=(4, 4),
        upsampling="bilinear",
        targets=torch.tensor([0, 0, 1]),
        score_kind="probability",
        target_scores=scores.softmax(dim=1)[:, 0],
        logits=scores,
        probabilities=scores.softmax(dim=1),
        target_layer="features",
        passes=torch.tensor([9, 1, 1]),
        estimated_error=torch.zeros(3),
        skipped=torch.tensor([False, False, True]),
        channels=Channels(torch.zeros(3, 2).long(), torch.ones(3, 2), torch.ones(3, 2, 2, 2)),
    )


class TestExplanation:
    def test_is_as_long_as_there_are_images(self, explanation):
        assert len(explanation) == 3

    def test_knows_the_predicted_class_beside_the_explained_one(self, explanation):
        assert explanation.predicted[:2].tolist() == [1, 0]
        assert explanation.targets[:2].tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("coarse", "fine"), [((3,), (4,)), ((3, 5), (4, 4)), ((1, 15), (2, 8)), ((3, 4, 5), (4, 4, 4))], ids=str
    )
    @pytest.mark.parametrize("leading", [(3,), (3, 2)], ids=["one target", "two"])
    def test_maps_of_few_positions_are_coarse(self, explanation, coarse, fine, leading):
        for positions, expected in ((coarse, True), (fine, False)):
            made = dataclasses.replace(
                explanation,
                layer_maps=torch.rand(*leading, *positions),
                size=(32,) * len(positions),
                estimated_error=torch.zeros(leading),
            )
            assert made.positions == positions
            assert made.is_coarse is expected

    def test_some_of_it_is_an_explanation_of_those_images(self, explanation):
        mask = [False, True, True]
        for rows in (slice(1, 3), torch.tensor([1, 2]), [1, -1], np.array([1, 2]), range(1, 3), mask, np.array(mask)):
            some = explanation[rows]
            assert len(some) == 2
            torch.testing.assert_close(some.layer_maps, explanation.layer_maps[1:], equal_nan=True)
            torch.testing.assert_close(some.heatmaps, explanation.heatmaps[1:], equal_nan=True)
            assert len(some.channels.weight) == 2

    def test_an_index_is_a_slice_of_one_image(self, explanation):
        for index, rows in ((0, slice(0, 1)), (-1, slice(2, 3)), (torch.tensor(1), [1]), (np.int64(2), [2])):
            one, same = explanation[index], explanation[rows]
            assert one.layer_maps.shape == (1, 2, 2)
            torch.testing.assert_close(one.layer_maps, same.layer_maps, equal_nan=True)

    def test_is_iterated_over_image_by_image(self, explanation):
        assert [len(each) for each in explanation] == [1, 1, 1]
        assert [bool(each.skipped) for each in explanation] == [False, False, True]

    def test_refuses_what_is_not_an_index(self, explanation):
        for beyond in (3, -4, [0, 3], torch.tensor(-4)):
            with pytest.raises(IndexError, match=r"explanation\[(3|-4)\]: there are 3 images"):
                explanation[beyond]
        for wrong in ("cat", True, None, 1.0, (0, 1), [[0, 1]], [True, False], torch.tensor([0.0])):
            with pytest.raises(TypeError, match=r"explanation\[.*\]: give an index, a slice"):
                explanation[wrong]

    def test_may_be_turned_around_or_empty(self, explanation):
        assert explanation[::-1].skipped.tolist() == [True, False, False]
        for nothing in ([], slice(0, 0), torch.zeros(3, dtype=torch.bool)):
            assert len(explanation[nothing]) == 0

    def test_tells_blank_from_skipped(self, explanation):
        assert explanation.blank.tolist() == [False, True, False]
        assert explanation.skipped.tolist() == [False, False, True]

    def test_moves_all_its_tensors(self, explanation):
        moved = explanation.to("meta")
        tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) == 8
        assert moved.channels.weight.device.type == "meta"
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert moved.target_layer == "features"
        assert explanation.heatmaps.device.type == "cpu"

    def test_cannot_be_changed(self, explanation):
        with pytest.raises(dataclasses.FrozenInstanceError):
            explanation.target_layer = "another"

    def test_survives_pickling(self, explanation):
        copy = pickle.loads(pickle.dumps(explanation))
        assert copy.target_layer == "features"
        torch.testing.assert_close(copy.heatmaps, explanation.heatmaps, equal_nan=True)
        for name, value in vars(explanation).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(copy, name), value, equal_nan=True)

    def test_is_sent_without_its_heatmaps(self, explanation):
        size = len(pickle.dumps(explanation))
        assert explanation.heatmaps.shape == (3, 4, 4)
        assert len(pickle.dumps(explanation)) == size

    def test_has_heatmaps_at_the_resolution_of_the_images(self, explanation):
        heatmaps = explanation.heatmaps
        assert heatmaps.shape == (3, 4, 4)
        assert torch.equal(heatmaps[0], min_max(upsample(explanation.layer_maps[:1], (4, 4)))[0])
        assert (heatmaps[1] == 0).all()
        assert heatmaps[2].isnan().all()

    def test_has_heatmaps_of_several_targets_for_each_image(self, explanation):
        maps = explanation.layer_maps.unsqueeze(1).expand(3, 2, 2, 2)
        several = dataclasses.replace(explanation, layer_maps=maps, estimated_error=torch.zeros(3, 2))
        assert several.heatmaps.shape == (3, 2, 4, 4)
        for target in range(2):
            torch.testing.assert_close(several.heatmaps[:, target], explanation.heatmaps, equal_nan=True)
        assert several.blank.tolist() == [[False, False], [True, True], [False, False]]

    def test_that_is_not_upsampled_is_shown_in_blocks(self, explanation):
        coarse = dataclasses.replace(explanation, upsampling="none")
        assert coarse.heatmaps.shape == (3, 2, 2)
        blocks = coarse.scaled_to(None)
        assert torch.equal(blocks[0], coarse.heatmaps[0].repeat_interleave(2, 0).repeat_interleave(2, 1))
        assert torch.equal(coarse.scaled_to(6.0)[0], blocks[0] / 2)

    def test_at_a_common_scale_keeps_its_magnitude(self, explanation):
        assert explanation.scaled_to(6.0)[0].max() == 0.5
        torch.testing.assert_close(explanation.scaled_to(None), explanation.heatmaps, equal_nan=True)


class TestScaled:
    def test_maps_have_their_own_range_or_a_common_one(self):
        maps = torch.stack([torch.linspace(0, 1, 9).view(3, 3), torch.linspace(0, 4, 9).view(3, 3)])
        own, common = scaled(maps, (6, 6)), scaled(maps, (6, 6), brightest=4.0)
        assert own.amax(dim=(1, 2)).tolist() == [1, 1]
        assert common.amax(dim=(1, 2)).tolist() == pytest.approx([0.25, 1], abs=0.05)

    @pytest.mark.parametrize("brightest", [None, 2.0, 0.0])
    def test_skipped_maps_are_not_a_number_and_blank_ones_0(self, brightest):
        maps = torch.stack([torch.full((3, 3), torch.nan), torch.zeros(3, 3)])
        heatmaps = scaled(maps, (6, 6), brightest=brightest)
        assert heatmaps[0].isnan().all()
        assert (heatmaps[1] == 0).all()

    def test_a_constant_map_is_blank_on_its_own_scale_only(self):
        constant = torch.full((1, 3, 3), 2.0)
        assert (scaled(constant, (6, 6)) == 0).all()
        assert torch.allclose(scaled(constant, (6, 6), brightest=4.0), torch.tensor(0.5))


class TestUpsample:
    def test_places_values_at_the_centers_of_their_cells(self):
        assert upsample(torch.tensor([[0.0, 1.0]]), [4]).tolist() == [[0.0, 0.25, 0.75, 1.0]]

    @pytest.mark.parametrize("size", [(9,), (9, 6), (9, 6, 7)])
    def test_reaches_the_size_in_one_to_three_dimensions(self, size):
        maps = torch.rand(5, *[3] * len(size))
        assert upsample(maps, size).shape == (5, *size)
        assert upsample(maps, torch.Size(size)).shape == (5, *size)

    def test_is_linear_along_each_dimension_alike(self):
        row = torch.rand(1, 5)
        wide = upsample(row, [13])
        torch.testing.assert_close(upsample(row.view(1, 1, 5).expand(1, 3, 5), [8, 13]), wide.expand(1, 8, 13))
        torch.testing.assert_close(
            upsample(row.view(1, 5, 1).expand(1, 5, 3), [13, 8]), wide.view(1, 13, 1).expand(1, 13, 8)
        )

    def test_keeps_a_map_of_the_right_size_and_a_constant_map(self):
        maps = torch.rand(2, 5, 4)
        torch.testing.assert_close(upsample(maps, [5, 4]), maps)
        torch.testing.assert_close(upsample(torch.full((1, 3, 3), 0.3), [7, 7]), torch.full((1, 7, 7), 0.3))

    def test_keeps_maps_apart_and_their_type(self):
        maps = torch.rand(3, 4, 4, dtype=torch.float64)
        assert upsample(maps, [8, 8]).dtype == torch.float64
        torch.testing.assert_close(upsample(maps, [8, 8])[1:2], upsample(maps[1:2], [8, 8]))


class TestMinMax:
    @pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (3, 5, 4, 2)])
    def test_scales_each_map_to_its_own_range(self, shape):
        maps = torch.randn(shape) * torch.tensor([1.0, 1e4, 1e-8]).view(-1, *[1] * (len(shape) - 1))
        scaled = min_max(maps).flatten(1)
        assert scaled.amin(dim=1).tolist() == [0, 0, 0]
        assert scaled.amax(dim=1).tolist() == [1, 1, 1]
        assert torch.equal(scaled.argsort(dim=1), maps.flatten(1).argsort(dim=1))

    def test_is_not_changed_by_scale_and_shift(self):
        maps = torch.randn(2, 6, 6)
        torch.testing.assert_close(min_max(3 * maps + 2), min_max(maps))
        torch.testing.assert_close(min_max(min_max(maps)), min_max(maps))

    @pytest.mark.parametrize("constant", [0.0, 1.0, -7.5, 1e-30, 1e30])
    def test_makes_a_constant_map_zero(self, constant):
        assert (min_max(torch.full((1, 4, 4), constant)) == 0).all()

    def test_makes_a_map_zero_that_varies_by_rounding_only(self):
        maps = torch.full((1, 4, 4), 0.3)
        maps[0, 1, 1] = torch.nextafter(maps[0, 1, 1], torch.tensor(1.0))
        assert (min_max(maps) == 0).all()

    @pytest.mark.parametrize(
        "layout", [lambda x: x.transpose(1, 2), lambda x: x[:, ::2], lambda x: x.expand(2, -1, -1)]
    )
    def test_takes_any_memory_layout_and_leaves_its_argument(self, layout):
        maps = layout(torch.randn(1, 6, 4))
        kept = maps.clone()
        torch.testing.assert_close(min_max(maps), min_max(kept))
        assert torch.equal(maps, kept)


class TestHasContrast:
    def test_is_asked_of_each_channel_of_each_image(self):
        activations = torch.zeros(2, 3, 4, 4)
        activations[0, 1, 2, 2] = 1
        activations[1, 2] = torch.randn(4, 4)
        assert has_contrast(activations).tolist() == [[False, True, False], [False, False, True]]

    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
    def test_does_not_depend_on_the_scale(self, scale):
        varying, constant = torch.rand(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        assert has_contrast(scale * torch.cat([varying, constant], dim=1)).tolist() == [[True, False]]

    def test_is_not_rounding(self):
        activations = torch.full((1, 1, 4), 100.0)
        activations[0, 0, 0] += 1e-5
        assert not has_contrast(activations)

    @pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 2)])
    def test_is_known_of_one_to_three_dimensions(self, shape):
        assert has_contrast(torch.randn(shape)).tolist() == [[True] * 3] * 2
