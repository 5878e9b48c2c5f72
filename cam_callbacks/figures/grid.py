"""Pictures in rows, with text: cells and lines of a grid, and histograms to put into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from cam_callbacks.figures.colors import ALERT, BACKGROUND, CURVES, MUTED, PLOT_BACKGROUND, TEXT
from cam_callbacks.figures.drawing import Picture
from cam_callbacks.figures.text import FONT_SIZE, font_for

LINE_HEIGHT = FONT_SIZE + 4
PADDING = 6
_BINS = 28


@dataclass(frozen=True)
class Line:
    """A line of text under or beside pictures."""

    text: str
    color: tuple[int, int, int] = TEXT


@dataclass(frozen=True)
class Cell:
    """Pictures side by side, each with a heading, and lines of text under them."""

    pictures: Sequence[Picture]
    lines: Sequence[Line] = ()
    headings: Sequence[str] = ()
    alert: bool = False
    """Whether to frame the cell as a mistake."""


def grid(cells: Sequence[Cell], columns: int = 1, size: int = 96, title: Sequence[Line] = ()) -> Picture:
    """Lay out cells in rows.

    Args:
        cells: At least one. A row is as high as its highest cell.
        columns: How many cells make a row.
        size: Longer side of each picture, in pixels; small pictures are enlarged without smoothing.
        title: Lines above all cells.

    Raises:
        ValueError: There are no cells.
    """
    if not cells:
        raise ValueError("cells is empty; a grid needs at least one")
    drawn = [_draw(cell, size) for cell in cells]
    width = max(cell.width for cell in drawn)
    columns = min(columns, len(drawn))
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    top = LINE_HEIGHT * len(title) + (PADDING if title else 0)
    canvas = Image.new("RGB", (columns * width, top + sum(heights)), BACKGROUND)
    _write(canvas, title, PADDING)
    for place, row in enumerate(rows):
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * width, top + sum(heights[:place])))
    # Without the two lowest bits, which nobody sees, the PNG of a photo is a quarter smaller.
    picture: Picture = np.asarray(canvas) & np.uint8(0xFC)
    return picture


def _draw(cell: Cell, size: int) -> Image.Image:
    pictures = [_resized(picture, size) for picture in cell.pictures]
    inner = sum(picture.width for picture in pictures) + PADDING * (len(pictures) - 1)
    top = PADDING + (LINE_HEIGHT if cell.headings else 0)
    below = top + max(picture.height for picture in pictures)
    canvas = Image.new("RGB", (inner + 2 * PADDING, below + LINE_HEIGHT * len(cell.lines) + 2 * PADDING), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    left = PADDING
    for index, picture in enumerate(pictures):
        if cell.headings:
            heading = _truncated(cell.headings[index], picture.width)
            draw.text((left, PADDING - 2), heading, font=font_for(heading), fill=MUTED)
        canvas.paste(picture, (left, top))
        left += picture.width + PADDING
    _write(canvas, cell.lines, below + 2)
    if cell.alert:
        draw.rectangle((1, 1, canvas.width - 2, canvas.height - 4), outline=ALERT, width=2)
    return canvas


def _write(canvas: Image.Image, lines: Sequence[Line], top: int) -> None:
    """Write lines of text below each other, starting at `top`."""
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        text = _truncated(line.text, canvas.width - 2 * PADDING)
        draw.text((PADDING, top + LINE_HEIGHT * index), text, font=font_for(text), fill=line.color)


def _resized(picture: Picture, size: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _truncated(text: str, width: int) -> str:
    """Cut a text that is wider than `width` pixels, with an ellipsis."""
    text = " ".join(text.split())
    font = font_for(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def histogram(values: Sequence[float], limit: float, width: int = 224, height: int = 64) -> Picture:
    """Draw how many values lie where between `-limit` and `limit`, with a line at 0 and labels below."""
    counts, _ = np.histogram(np.asarray(values), bins=_BINS, range=(-limit, limit))
    canvas = Image.new("RGB", (width, height + LINE_HEIGHT), PLOT_BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    tallest = max(int(counts.max()), 1)
    for place, count in enumerate(counts.tolist()):
        left, right = round(place * width / _BINS), round((place + 1) * width / _BINS) - 2
        if count:
            draw.rectangle((left, height - 1 - round((height - 4) * count / tallest), right, height), fill=CURVES[0])
    draw.line([(width // 2, 0), (width // 2, height)], fill=ALERT, width=2)
    for text, at, anchor in ((f"{-limit:g}", 2, "la"), ("0", width // 2, "ma"), (f"+{limit:g}", width - 2, "ra")):
        draw.text((at, height), text, font=font_for(text), fill=MUTED, anchor=anchor)
    return np.asarray(canvas)
