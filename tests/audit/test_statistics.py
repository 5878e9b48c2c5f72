"""Means come with intervals that hold them as often as they say, and with counts of what was left out."""

import math

import pytest
import torch

from cam_callbacks.audit.statistics import bootstrap, measure, resampled_means, share_of_means_up_to, wilson


class TestMeasure:
    def test_nan_is_counted_not_averaged(self):
        found = measure(torch.tensor([1.0, torch.nan, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        assert (found.overall.value, found.overall.count, found.overall.skipped) == (pytest.approx(2 / 3), 3, 1)
        assert (found.per_class[0].value, found.per_class[0].count, found.per_class[0].skipped) == (1, 1, 1)
        assert found.values_of(1).tolist() == [0, 1]

    def test_without_any_value_all_is_nan_and_nothing_fails(self):
        found = measure(torch.full((2,), torch.nan), torch.tensor([0, 1])).overall
        assert all(math.isnan(each) for each in (found.value, found.low, found.high))
        assert (found.count, found.skipped) == (0, 2)

    def test_the_chance_level_stands_on_the_same_images(self):
        found = measure(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0]), torch.tensor([0.2, 1.0]))
        assert found.overall.chance == pytest.approx(0.2)


class TestIntervals:
    @pytest.mark.parametrize("count", [30, 60])
    def test_about_95_of_100_hold_the_true_mean(self, count):
        draw = torch.Generator().manual_seed(1)
        drawn = torch.rand(800, count, generator=draw)
        differences = (drawn < 0.35).float() - (drawn > 0.9).float()  # mean 0.25
        held = [low <= 0.25 <= high for low, high in map(bootstrap, differences)]
        assert 0.9 <= sum(held) / len(held) <= 0.97

    def test_are_the_same_each_time_and_touch_no_random_state(self):
        before = torch.get_rng_state()
        values = torch.arange(20.0)
        assert bootstrap(values) == bootstrap(values)
        assert torch.equal(torch.get_rng_state(), before)

    def test_wilsons_stays_within_0_and_1_and_is_that_of_the_textbook(self):
        assert wilson(0, 0) == (0, 1)
        assert wilson(10, 10)[1] == pytest.approx(1)
        assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


class TestShareOfMeans:
    def test_is_that_of_many_drawn_means(self):
        values = torch.tensor([1.0] * 6 + [-1.0] * 3 + [0.0] * 21)
        drawn = (resampled_means(values) <= 0.05).double().mean()
        assert share_of_means_up_to(0.05, values) == pytest.approx(float(drawn), abs=0.05)

    def test_is_exact_where_it_can_be_counted_by_hand(self):
        assert share_of_means_up_to(0.05, torch.tensor([1.0] * 3 + [0.0] * 7)) == pytest.approx(0.7**10)
        assert share_of_means_up_to(1, torch.tensor([1.0, -1, 0])) == pytest.approx(1)

    def test_refuses_other_values(self):
        with pytest.raises(ValueError, match="-1, 0 or 1"):
            share_of_means_up_to(0, torch.tensor([0.5]))
