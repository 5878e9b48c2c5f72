"""What the colors of heat mean: a bar from the least heat to the most, under a grid of pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from cam_callbacks.figures.colors import BACKGROUND, MUTED
from cam_callbacks.figures.drawing import Picture, overlay
from cam_callbacks.figures.grid import LINE_HEIGHT, PADDING
from cam_callbacks.figures.settings import OverlayStyle
from cam_callbacks.figures.text import font_for

OWN_RANGE = "each map its own range"
RANGE_OF_BOTH = "both maps of an image share a range"

_BAR_WIDTH, _BAR_HEIGHT = 84, 12
_MEDIUM_GRAY = 128


def with_scale(
    picture: Picture,
    style: OverlayStyle,
    dimensions: int,
    brightest: float | None = None,
    own_range: str = OWN_RANGE,
) -> Picture:
    """Add a bar under a grid of heatmaps, in their colors, with the values at its ends and what they are relative to.

    Args:
        picture: (H, W, 3), the grid.
        style: The style of the overlays in it, as in `cam_callbacks.overlay`. The bar lies over medium gray as they do
            over their images.
        dimensions: The number of spatial dimensions of the images; the heat of signals covers nothing.
        brightest: The value that became full heat, of the whole run; None if each map was scaled to its own range.
        own_range: What is said where `brightest` is None.

    Returns:
        (H + n lines, W, 3).
    """
    least, most, about = "0", "1", own_range
    if brightest is not None:
        most, about = f"{brightest:.3g}", "the run's largest value"
    at_bar = PADDING + round(font_for(least).getlength(least)) + PADDING
    at_most = at_bar + _BAR_WIDTH + PADDING
    at_about = at_most + round(font_for(most).getlength(most)) + 2 * PADDING
    height, width = picture.shape[:2]
    lines = _lines(about, width - PADDING, at_about)
    canvas = Image.new("RGB", (width, height + LINE_HEIGHT * len(lines) + PADDING), BACKGROUND)
    canvas.paste(Image.fromarray(picture), (0, 0))
    canvas.paste(Image.fromarray(_bar(style, dimensions)), (at_bar, height + (LINE_HEIGHT - _BAR_HEIGHT) // 2))
    words = [(PADDING, 0, least), (at_most, 0, most), *((at, row, line) for row, (at, line) in enumerate(lines))]
    draw = ImageDraw.Draw(canvas)
    for left, row, text in words:
        draw.text((left, height + LINE_HEIGHT * row), text, font=font_for(text), fill=MUTED)
    drawn: Picture = np.asarray(canvas) & np.uint8(0xFC)  # as in `grid`
    return drawn


def _bar(style: OverlayStyle, dimensions: int) -> Picture:
    ground = np.full((_BAR_HEIGHT, _BAR_WIDTH, 3), _MEDIUM_GRAY, dtype=np.uint8)
    heat = np.linspace(0, 1, _BAR_WIDTH, dtype=np.float32)
    return overlay(ground, heat if dimensions == 1 else np.broadcast_to(heat, ground.shape[:2]), style)


def _lines(text: str, right: int, beside: int) -> list[tuple[int, str]]:
    """Place a text that ends before `right`: in the first line from `beside` on, else broken into lines below it."""
    if beside + font_for(text).getlength(text) <= right:
        return [(beside, text)]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = lines[-1] and PADDING + font_for(longer).getlength(longer) <= right
        lines = [*lines[:-1], longer] if fits else [*lines, word]
    return [(PADDING, line) for line in lines]
