"""The colors of pictures: those of text and marks, and the color maps of heat."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BACKGROUND = (32, 33, 36)
TEXT = (232, 234, 237)
MUTED = (154, 160, 166)
ALERT = (255, 138, 128)
OUTLINE = (0, 230, 118)
PLOT_BACKGROUND = (16, 17, 19)
CURVES = ((138, 180, 248), (129, 201, 149), (253, 214, 99), (244, 143, 177))

# The color map "inferno" of Matplotlib (CC0) at nine equal steps; linear between them.
_INFERNO = (0x000004, 0x1F0C48, 0x550F6D, 0x88226A, 0xBA3655, 0xE35933, 0xF98C0A, 0xF9C932, 0xFCFFA4)


def look_up(table: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Color heat in [0, 1]: (...) to (..., 3) in [0, 255]."""
    colors: NDArray[np.float32] = table[(heat.clip(0, 1) * 255).round().astype(np.uint8)]
    return colors


@cache
def inferno() -> NDArray[np.float32]:
    """Return the 256 colors from black over purple and orange to yellow, (256, 3)."""
    anchors = np.array([[color >> 16, color >> 8 & 255, color & 255] for color in _INFERNO], dtype=np.float32)
    at = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(at, range(len(anchors)), channel) for channel in anchors.T], axis=1).astype(np.float32)


@cache
def jet() -> NDArray[np.float32]:
    """Return the 256 colors from blue over green and yellow to red, (256, 3)."""
    at = np.linspace(0, 1, 256)[:, None]
    centers = np.array([0.75, 0.5, 0.25])
    table: NDArray[np.float32] = ((1.5 - np.abs(at - centers) * 4).clip(0, 1) * 255).astype(np.float32)
    return table
