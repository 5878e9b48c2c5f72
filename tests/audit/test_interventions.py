"""Backgrounds are exchanged as promised: what changes in an image and what does not."""

import pytest
import torch
import torch.nn.functional as F

from cam_callbacks.audit import interventions
from cam_callbacks.audit.inpainting import box_mean, grown, inpaint


class TestExchanges:
    @pytest.fixture
    def masks(self):
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[:, 2:5, 2:5] = True
        return masks

    @pytest.fixture
    def scenes(self, masks):
        """Flat backgrounds, the object and its edge of another color."""
        images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
        images[:, :, 1:6, 1:6] = 9
        return images

    def test_the_background_is_the_donors_without_its_object_and_its_edge(self, scenes, masks):
        backgrounds = interventions.without_object(scenes, masks).flip(0)
        mixed = interventions.before(backgrounds, scenes, masks)
        inside = masks.unsqueeze(1).expand_as(scenes)
        assert (mixed[inside] == 9).all()
        torch.testing.assert_close(mixed[0][~inside[0]], torch.ones_like(mixed[0][~inside[0]]))
        torch.testing.assert_close(mixed[1][~inside[1]], torch.zeros_like(mixed[1][~inside[1]]))

    def test_the_trace_changes_no_more_than_the_place_of_the_donors_object(self, scenes, masks):
        there = torch.zeros_like(masks)
        there[:, 5:7, 5:7] = True
        images = scenes + torch.rand(scenes.shape, generator=torch.Generator().manual_seed(0))
        changed = (interventions.with_trace_of(images, masks, there) != images).any(dim=1)
        assert torch.equal(changed, grown(there) & ~masks)

    def test_a_blur_leaves_no_content(self):
        draw = torch.Generator().manual_seed(0)
        images = torch.rand(2, 3, 8, 8, generator=draw)
        blurred = interventions.blurred(images)
        assert blurred.shape == images.shape
        assert blurred.std() < 0.5 * images.std()

    def test_a_blur_of_large_images_is_that_of_small_ones(self):
        draw = torch.Generator().manual_seed(0)
        small = torch.rand(2, 3, 48, 56, generator=draw)
        large = small.repeat_interleave(5, dim=2).repeat_interleave(5, dim=3)
        expected = interventions.blurred(small).repeat_interleave(5, dim=2).repeat_interleave(5, dim=3)
        torch.testing.assert_close(interventions.blurred(large), expected, atol=0.03, rtol=0)

    def test_colors_are_moved_without_content(self, masks):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        images[1] = images[1] * 0.5 + 0.2
        moved = interventions.with_colors_of(
            images, masks, images.flip(0), masks.flip(0), interventions.value_range(images)
        )
        inside = masks.unsqueeze(1).expand_as(images)
        assert torch.equal(moved[inside], images[inside])
        colors = interventions.mean_color(images, ~masks)
        torch.testing.assert_close(interventions.mean_color(moved, ~masks)[0], colors[1], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
    def test_colors_are_moved_alike_whatever_the_unit_of_the_images(self, masks, unit):
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

        def moved(images):
            others, limits = images.flip(0) * 0.5, interventions.value_range(images)
            return interventions.with_colors_of(images, masks, others, masks.flip(0), limits)

        torch.testing.assert_close(moved(images * unit) / unit, moved(images))

    def test_a_trace_that_hides_all_of_a_background_has_its_mean_color(self):
        left = torch.zeros(1, 8, 8, dtype=torch.bool)
        left[:, :, :4] = True
        images = torch.where(left, 9.0, 2.0).unsqueeze(1)
        torch.testing.assert_close(interventions.with_trace_of(images, left, ~left), images)

    def test_the_ring_is_an_eighth_of_the_side_wide_where_that_is_a_position(self):
        assert interventions.ring((64, 64)).float().mean() == pytest.approx(0.4375)
        sensors = interventions.ring((3, 16))
        assert sensors[:, [0, 1, 14, 15]].all()
        assert not sensors[:, 2:14].any()
        assert not interventions.ring((7, 4)).any()


class TestBoxes:
    @pytest.mark.parametrize("size", [(2,), (40,), (9, 13), (9, 11, 7), (2, 1, 3)])
    def test_a_hole_takes_the_color_around_it_in_one_to_three_dimensions(self, size):
        holes = torch.zeros(2, *size, dtype=torch.bool)
        holes[:, 0] = True
        images = torch.where(holes, 9.0, torch.tensor([0.25, -1.0]).view(2, *[1] * len(size))).unsqueeze(1)
        filled = inpaint(images, holes)
        torch.testing.assert_close(filled, images[:, :, -1:].expand_as(images))

    @pytest.mark.parametrize("reach", [(1, 1), (3, 0), (2, 8)])
    def test_boxes_end_at_the_edge_of_the_image(self, reach):
        images = torch.randn(2, 3, 9, 17, generator=torch.Generator().manual_seed(0))
        box = [2 * step + 1 for step in reach]
        mean = F.avg_pool2d(images, box, stride=1, padding=reach, count_include_pad=False)
        torch.testing.assert_close(box_mean(images, reach), mean)

    def test_masks_reach_further_to_all_sides_along_each_axis(self):
        masks = torch.zeros(1, 40, 20, 10, dtype=torch.bool)
        masks[0, 20, 0, 5] = True
        wanted = torch.zeros_like(masks)
        wanted[0, 16:25, :3, 4:7] = True
        assert torch.equal(grown(masks, 0.1), wanted)

    @pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
    def test_masks_reach_as_far_at_the_edge_as_elsewhere(self, share):
        masks = torch.rand(40, 24, 24, generator=torch.Generator().manual_seed(0)) > 0.995
        masks[:4, 0, 0] = masks[4:8, -1, 3] = True
        reach = max(1, round(share * 24))
        wanted = F.max_pool2d(masks.float().unsqueeze(1), 2 * reach + 1, stride=1, padding=reach).squeeze(1) > 0
        assert torch.equal(grown(masks, share), wanted)

    def test_masks_that_would_cover_all_stay_as_they_are(self):
        masks = torch.ones(2, 12, 9, dtype=torch.bool)
        masks[0, 0] = False
        masks[1, :2] = False
        larger = grown(masks)
        assert torch.equal(larger[0], masks[0])
        assert not larger[1, 0].any()
        assert larger[1, 1:].all()


class TestColorAuc:
    LABELS = torch.tensor([0] * 30 + [1] * 30)

    def test_is_one_for_colors_that_tell_the_classes_apart(self):
        colors = self.LABELS.float().unsqueeze(1) + 0.01 * torch.arange(60).unsqueeze(1)
        assert interventions.color_auc(colors, self.LABELS).mean() == 1

    def test_the_mean_of_one_color_is_that_color_over_however_many_positions(self):
        """Else rounding would tell classes apart whose objects are larger or smaller."""
        images = torch.full((60, 1, 37, 41), -0.4242)
        where = torch.arange(37 * 41).view(37, 41) < torch.arange(1, 1500, 25).view(60, 1, 1)
        assert (interventions.mean_color(images, where) == images[0, 0, 0, 0]).all()

    def test_is_a_half_for_equal_colors(self):
        assert interventions.color_auc(torch.full((60, 3), 0.3), self.LABELS).mean() == pytest.approx(0.5)

    def test_is_about_a_half_for_colors_that_say_nothing(self):
        draw = torch.Generator().manual_seed(0)
        mean = torch.stack(
            [interventions.color_auc(torch.randn(60, 3, generator=draw), self.LABELS).mean() for _ in range(200)]
        ).mean()
        assert mean == pytest.approx(0.5, abs=0.03)
