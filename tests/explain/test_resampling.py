"""The bootstrap holds a mean as often as it says."""

import pytest
import torch

from cam_callbacks.explain.resampling import bootstrap


@pytest.mark.parametrize("count", [30, 60])
def test_about_95_of_100_hold_the_true_mean(count):
    draw = torch.Generator().manual_seed(1)
    drawn = torch.rand(800, count, generator=draw)
    differences = (drawn < 0.35).float() - (drawn > 0.9).float()  # mean 0.25
    held = [low <= 0.25 <= high for low, high in map(bootstrap, differences)]
    assert 0.9 <= sum(held) / len(held) <= 0.97


def test_are_the_same_each_time_and_touch_no_random_state():
    before = torch.get_rng_state()
    values = torch.arange(20.0)
    assert bootstrap(values) == bootstrap(values)
    assert torch.equal(torch.get_rng_state(), before)
