"""Backgrounds are exchanged as promised: who gives to whom, what changes in an image and what does not."""

import pytest
import torch

from cam_callbacks.audit import interventions

LABELS = torch.arange(40) % 4
USABLE = torch.ones(40, dtype=torch.bool)


class TestDonors:
    def test_of_the_same_class_are_other_images_and_each_gives_once(self):
        donors = interventions.choose_donors(LABELS, USABLE, "ab" * 32)
        assert torch.equal(LABELS[donors.same], LABELS)
        assert not (donors.same == torch.arange(40)).any()
        assert sorted(donors.same.tolist()) == list(range(40))

    def test_of_another_class_give_about_equally_often(self):
        donors = interventions.choose_donors(LABELS, USABLE, "ab" * 32)
        assert (LABELS[donors.other] != LABELS).all()
        assert donors.other.bincount(minlength=40).max() <= 2

    def test_come_from_all_over_many_classes_not_from_neighbors_in_the_list(self):
        labels = torch.arange(100).repeat_interleave(3)
        donors = interventions.choose_donors(labels, torch.ones(300, dtype=torch.bool), "12" * 32)
        steps = (labels[donors.other] - labels) % 100
        assert (steps > 10).float().mean() > 0.8

    def test_depend_on_the_fingerprint_and_on_no_global_state(self):
        first = interventions.choose_donors(LABELS, USABLE, "ab" * 32)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        again, others = (interventions.choose_donors(LABELS, USABLE, f * 32) for f in ("ab", "cd"))
        assert torch.equal(first.same, again.same)
        assert torch.equal(first.other, again.other)
        assert not torch.equal(first.same, others.same)
        assert torch.equal(torch.get_rng_state(), before)

    def test_are_missing_for_single_images_and_for_unusable_ones(self):
        labels, usable = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
        donors = interventions.choose_donors(labels, usable, "ab" * 32)
        assert donors.known.tolist() == [True, True, False, False]
        assert 2 not in [*donors.same.tolist(), *donors.other.tolist()]


class TestExchanges:
    @pytest.fixture
    def masks(self):
        masks = torch.zeros(2, 8, 8, dtype=torch.bool)
        masks[:, 2:5, 2:5] = True
        return masks

    def test_the_background_is_the_donors_with_its_object_filled(self, masks):
        images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
        images[:, :, 2:5, 2:5] = 9
        mixed = interventions.with_background_of(images, masks, images.flip(0), masks.flip(0))
        inside = masks.unsqueeze(1).expand_as(images)
        assert (mixed[inside] == 9).all()
        assert (mixed[0][~inside[0]] == 1).all()
        assert (mixed[1][~inside[1]] == 0).all()

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

    def test_the_ring_covers_44_percent_and_is_never_empty(self):
        assert interventions.ring((64, 64)).float().mean() == pytest.approx(0.4375)
        assert interventions.ring((6, 6)).any()


class TestColorAuc:
    LABELS = torch.tensor([0] * 30 + [1] * 30)

    def test_is_one_for_colors_that_tell_the_classes_apart(self):
        colors = self.LABELS.float().unsqueeze(1) + 0.01 * torch.arange(60).unsqueeze(1)
        assert interventions.color_auc(colors, self.LABELS).mean() == 1

    def test_is_a_half_for_equal_colors(self):
        assert interventions.color_auc(torch.full((60, 3), 0.3), self.LABELS).mean() == pytest.approx(0.5)

    def test_is_about_a_half_for_colors_that_say_nothing(self):
        draw = torch.Generator().manual_seed(0)
        mean = torch.stack(
            [interventions.color_auc(torch.randn(60, 3, generator=draw), self.LABELS).mean() for _ in range(200)]
        ).mean()
        assert mean == pytest.approx(0.5, abs=0.03)
