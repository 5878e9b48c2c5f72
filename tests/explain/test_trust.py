"""Measures of the heatmap itself, on maps whose answer is known."""

import pytest
import torch

from cam_callbacks.explain import trust


def test_the_hottest_half_is_half():
    maps = torch.rand(3, 6, 6)
    kept = trust.hottest_half(maps)
    assert kept.flatten(1).sum(dim=1).tolist() == [18] * 3
    assert maps[kept].min() >= 0
    assert all(each[half].min() >= each[~half].max() for each, half in zip(maps, kept, strict=True))


def test_average_drop_and_increase():
    whole, kept = torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.9])
    assert trust.average_drop(whole, kept).tolist() == [0.5, 0]
    assert trust.increase_in_confidence(whole, kept).tolist() == [0, 1]


class TestCorrelation:
    def test_of_a_map_with_itself_is_one_and_with_its_negative_minus_one(self):
        maps = torch.rand(4, 5, 5)
        for rule in (trust.correlation, trust.rank_correlation):
            assert rule(maps, maps).tolist() == pytest.approx([1] * 4)
            assert rule(maps, -maps).tolist() == pytest.approx([-1] * 4)

    def test_of_ranks_does_not_change_with_the_scale(self):
        maps = torch.rand(4, 5, 5)
        assert trust.rank_correlation(maps, maps.exp()).tolist() == pytest.approx([1] * 4)

    def test_of_a_map_without_contrast_is_nan(self):
        flat = torch.full((1, 7, 7), 0.3)
        assert trust.rank_correlation(flat, torch.rand(1, 7, 7)).isnan()

    def test_of_ranks_is_near_zero_for_independent_maps_with_many_zeros(self):
        draw = torch.Generator().manual_seed(0)
        a, b = ((torch.randn(300, 8, 8, generator=draw) - 0.5).relu() for _ in range(2))
        assert trust.rank_correlation(a, b).mean() == pytest.approx(0, abs=0.03)
