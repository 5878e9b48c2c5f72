"""Heat on the object is the share of the heat inside the mask; its chance level is the share of the area."""

import pytest
import torch

from cam_callbacks.audit.attention import (
    area_share,
    border_share,
    heat_by_chance,
    heat_on_object,
    mean_heat_by_chance,
    mean_heat_on_shifted,
    pointing,
    rank_accuracy,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def left_half():
    """One mask of 4 by 6 pixels, the object on the left."""
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[:, :, :3] = True
    return mask


class TestHeatOnObject:
    def test_is_one_where_all_heat_lies_on_the_object(self, left_half):
        assert heat_on_object(left_half * 0.3, left_half) == 1

    def test_is_zero_where_all_heat_lies_off_the_object(self, left_half):
        assert heat_on_object((~left_half).float(), left_half) == 0

    def test_is_the_share_of_the_heat_inside(self, left_half):
        heatmaps = torch.where(left_half, 0.25, 0.75)
        assert heat_on_object(heatmaps, left_half) == pytest.approx(0.25)

    def test_of_a_flat_map_is_the_share_of_the_area(self):
        masks = torch.rand(5, 8, 8) > 0.7
        torch.testing.assert_close(heat_on_object(torch.full((5, 8, 8), 0.4), masks), area_share(masks))

    def test_does_not_depend_on_the_scale_of_a_map(self, left_half):
        heatmaps = torch.rand(1, 4, 6)
        torch.testing.assert_close(heat_on_object(heatmaps, left_half), heat_on_object(7 * heatmaps, left_half))

    def test_is_read_image_by_image(self, left_half):
        masks = torch.cat([left_half, ~left_half, left_half])
        assert heat_on_object(left_half.float().expand(3, -1, -1), masks).tolist() == [1, 0, 1]

    @pytest.mark.parametrize("size", [(12,), (4, 5), (3, 4, 5)])
    def test_is_known_in_one_to_three_dimensions(self, size):
        masks = torch.zeros(2, *size, dtype=torch.bool)
        masks[:, 0] = True
        assert heat_on_object(torch.ones(2, *size), masks).tolist() == pytest.approx([1 / size[0]] * 2)

    def test_of_a_blank_and_of_a_skipped_map_is_nan_and_spoils_no_other(self, left_half):
        heatmaps = torch.stack([torch.zeros(4, 6), torch.full((4, 6), torch.nan), torch.ones(4, 6)])
        shares = heat_on_object(heatmaps, left_half.expand(3, -1, -1))
        assert shares.isnan().tolist() == [True, True, False]
        assert shares[2] == 0.5
        assert shares.nanmean() == 0.5

    def test_is_zero_and_one_for_an_empty_and_a_full_mask(self):
        masks = torch.tensor([False, True]).view(2, 1, 1).expand(2, 4, 6)
        assert heat_on_object(torch.rand(2, 4, 6) + 0.1, masks).tolist() == [0, 1]

    def test_is_single_precision(self, left_half):
        assert heat_on_object(torch.rand(1, 4, 6), left_half).dtype == torch.float32

    @pytest.mark.parametrize("shape", [(1, 6, 4), (2, 4, 6), (4, 6), (1, 1, 4, 6)])
    def test_refuses_masks_of_another_shape(self, left_half, shape):
        with pytest.raises(
            ValueError, match=r"heatmaps has shape .*, masks \(1, 4, 6\); they must be the same"
        ) as error:
            heat_on_object(torch.rand(shape), left_half)
        assert str(shape) in str(error.value)


class TestAreaShare:
    def test_is_the_share_of_the_pixels(self, left_half):
        masks = torch.cat([left_half, torch.zeros_like(left_half), torch.ones_like(left_half)])
        assert area_share(masks).tolist() == [0.5, 0, 1]
        assert area_share(masks).dtype == torch.float32

    def test_is_exact_for_large_masks(self):
        masks = torch.zeros(1, 4096, 4099, dtype=torch.bool)
        masks[:, :1024] = True
        assert area_share(masks) == 0.25


class TestChance:
    def test_of_one_class_is_the_heat_on_the_masks_of_the_others(self, left_half):
        masks = torch.cat([left_half, ~left_half, left_half])
        heatmaps = left_half.float().expand(3, -1, -1)
        assert heat_by_chance(heatmaps, masks, torch.tensor([0, 0, 1]))[:2].tolist() == [0, 1]

    def test_masks_that_are_empty_or_cover_all_do_not_count(self, left_half):
        nothing, everything = torch.zeros_like(left_half), torch.ones_like(left_half)
        masks = torch.cat([left_half, nothing, everything, ~left_half])
        chance = heat_by_chance(left_half.float().expand(4, -1, -1), masks, torch.zeros(4, dtype=torch.long))
        assert chance.tolist() == [0, 0.5, 0.5, 1]

    def test_is_unknown_for_a_single_image(self, left_half):
        assert heat_by_chance(left_half.float(), left_half, torch.tensor([0])).isnan().all()

    def test_means_by_chance_are_below_heat_that_follows_the_object(self):
        masks = torch.zeros(12, 12, 12, dtype=torch.bool)
        masks[torch.arange(12), torch.arange(12)] = True
        null = mean_heat_by_chance(masks.float(), masks)
        assert null.shape == (200,)
        assert null.max() < heat_on_object(masks.float(), masks).mean()
        assert torch.equal(null, mean_heat_by_chance(masks.float(), masks))

    def test_is_as_exact_under_autocast(self):
        draw = torch.Generator().manual_seed(0)
        heatmaps, labels = torch.rand(6, 30, 30, generator=draw), torch.zeros(6, dtype=torch.long)
        masks = torch.rand(6, 30, 30, generator=draw) > 0.5
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = heat_by_chance(heatmaps, masks, labels)
        torch.testing.assert_close(found, heat_by_chance(heatmaps, masks, labels))

    def test_shifted_masks_keep_their_size_and_leave_their_place(self):
        heatmaps = torch.zeros(8, 20, 90)
        heatmaps[:, 5:10, 30:60] = 1
        shifted = mean_heat_on_shifted(heatmaps, heatmaps > 0)
        assert shifted.shape == (200,)
        assert shifted.mean() == pytest.approx(5 * 30 / (20 * 90), abs=0.01)
        assert shifted.max() < 0.6  # and on the object it is 1
        assert torch.equal(shifted, mean_heat_on_shifted(heatmaps, heatmaps > 0))

    def test_flat_maps_have_the_share_of_the_area_on_any_shifted_mask(self):
        masks = torch.zeros(3, 12, 10, 6, dtype=torch.bool)
        masks[:, 2:5, :4, 1:4] = True
        shifted = mean_heat_on_shifted(torch.ones(3, 12, 10, 6), masks)
        torch.testing.assert_close(shifted, torch.full((200,), 3 * 4 * 3 / 720))


class TestRanksAndPoints:
    def test_heat_on_the_object_has_both_at_one_and_heat_off_it_at_zero(self, left_half):
        for rule in (rank_accuracy, pointing):
            assert rule(left_half.float(), left_half) == 1
            assert rule((~left_half).float(), left_half) == 0

    def test_blank_maps_and_empty_masks_are_unknown(self, left_half):
        for rule in (rank_accuracy, pointing):
            assert rule(torch.zeros(1, 4, 6), left_half).isnan()
            assert rule(torch.ones(1, 4, 6), torch.zeros_like(left_half)).isnan()

    def test_equally_hot_positions_share_the_point(self, left_half):
        assert pointing(torch.ones(1, 4, 6), left_half) == 0.5


def test_the_border_share_of_a_flat_map_is_the_share_of_the_ring():
    assert border_share(torch.ones(1, 16, 16)) == pytest.approx(1 - (12 / 16) ** 2)
