"""The bar under pictures of heat, which says what their colors mean."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch

from cam_callbacks.figures.drawing import overlay
from cam_callbacks.figures.scale import with_scale
from cam_callbacks.figures.settings import OverlayStyle

WIDE, NARROW = np.zeros((20, 420, 3), dtype=np.uint8), np.zeros((20, 146, 3), dtype=np.uint8)
BAR = (slice(20 + 8, 20 + 12), slice(24, 24 + 80))
"""Inside of the bar under these."""


@pytest.mark.parametrize("style", get_args(OverlayStyle))
def test_the_bar_has_the_colors_of_the_style_from_least_to_most(style: Any) -> None:
    bar = with_scale(WIDE, style, 2)[BAR].astype(int)
    ramp = torch.linspace(0, 1, 84)[2:-2].expand(4, -1)
    assert np.abs(bar - overlay(np.full((4, 80, 3), 128, dtype=np.uint8), ramp, style)).max() < 12


def test_the_bar_of_signals_is_heat_alone_as_in_their_strips() -> None:
    assert np.array_equal(with_scale(WIDE, "blend", 1), with_scale(WIDE, "heatmap", 2))


def test_the_picture_above_stays_as_it_is() -> None:
    picture = np.full((30, 300, 3), 200, dtype=np.uint8)
    scaled = with_scale(picture, "blend", 2)
    assert np.array_equal(scaled[:30], picture)
    assert scaled.shape[1:] == picture.shape[1:]


def test_words_that_find_no_room_beside_the_bar_stand_below_it() -> None:
    assert with_scale(NARROW, "blend", 2).shape[0] > with_scale(WIDE, "blend", 2).shape[0]


def test_the_scale_of_the_run_is_told_from_that_of_each_map() -> None:
    own, run, brighter = (with_scale(WIDE, "blend", 2, brightest) for brightest in (None, 1.5, 2.5))
    assert not np.array_equal(own, run)
    assert not np.array_equal(run, brighter)
    assert np.array_equal(run[BAR], own[BAR])
