"""Heatmap -> overlay -> grid. Pure functions; pictures are uint8 arrays (height, width, 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cam_callbacks._checks import check_choice
from cam_callbacks.data.normalization import Normalization, denormalized, in_display_range
from cam_callbacks.figures.settings import OverlayStyle

Picture: TypeAlias = NDArray[np.uint8]
Style: TypeAlias = OverlayStyle
STYLES = get_args(Style)

BACKGROUND = (32, 33, 36)
TEXT = (232, 234, 237)
MUTED = (154, 160, 166)
ALERT = (255, 138, 128)

# TensorBoard shows a picture about 350 pixels wide: what is drawn 480 wide shrinks, and this text stays readable.
_FONT_SIZE = 18
_LINE_HEIGHT = _FONT_SIZE + 4
_PADDING = 6
_MOST_SLICES = 9
_SIGNAL_WIDTH, SIGNAL_HEIGHT, STRIP_HEIGHT = 224, 64, 14
_OUTLINE = (0, 230, 118)
_CURVES = ((138, 180, 248), (129, 201, 149), (253, 214, 99), (244, 143, 177))
# The color map "inferno" of Matplotlib (CC0) at nine equal steps; linear between them.
_INFERNO = (0x000004, 0x1F0C48, 0x550F6D, 0x88226A, 0xBA3655, 0xE35933, 0xF98C0A, 0xF9C932, 0xFCFFA4)


def to_pictures(images: Tensor, normalization: Normalization | None = None) -> list[Picture]:
    """Undo the normalization of images, for display.

    Args:
        images: (N, C, H, W): one channel becomes gray, of three they are red, green and blue, of any other number the
            first three are shown as such (two: their mean as gray). (N, C, T): signals, drawn as curves over a strip
            that is left free for their heat. (N, C, D, H, W): volumes, set out as slices.
        normalization: Mean and standard deviation of each channel; None for images that are in [0, 1] already. Images
            that still leave [0, 1] are scaled to their own minimum and maximum.

    Returns:
        N pictures (H, W, 3).
    """
    shown = denormalized(images, normalization)
    if shown.ndim == 3:
        return [_curves(signal.numpy()) for signal in shown]
    if shown.shape[1] == 2:
        shown = shown.mean(dim=1, keepdim=True)
    shown = shown[:, :3].expand(-1, 3, *[-1] * (shown.ndim - 2))
    if not in_display_range(shown):
        every = tuple(range(1, shown.ndim))
        low, high = (pick(dim=every, keepdim=True) for pick in (shown.amin, shown.amax))
        shown = (shown - low) / (high - low).clamp_min(1e-12)
    pictures = (shown.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return [montage(volume) for volume in pictures] if shown.ndim == 5 else list(pictures)


def montage(volume: NDArray[Any]) -> NDArray[Any]:
    """Set out slices of a volume (D, H, W, ...), at most nine, row by row: (rows*H, columns*W, ...)."""
    depth = len(volume)
    chosen = np.linspace(0, depth - 1, min(depth, _MOST_SLICES)).round().astype(int)
    columns = math.ceil(math.sqrt(len(chosen)))
    empty = [np.zeros_like(volume[0])] * (-len(chosen) % columns)
    slices = [*volume[chosen], *empty]
    rows = [np.concatenate(slices[start : start + columns], axis=1) for start in range(0, len(slices), columns)]
    return np.concatenate(rows, axis=0)


def _curves(signal: NDArray[np.float32]) -> Picture:
    """Signals (C, T) as curves, one color each, with a strip below."""
    canvas = Image.new("RGB", (_SIGNAL_WIDTH, SIGNAL_HEIGHT + STRIP_HEIGHT), (16, 17, 19))
    draw = ImageDraw.Draw(canvas)
    low, high = float(np.nanmin(signal)), float(np.nanmax(signal))
    across = np.linspace(1, _SIGNAL_WIDTH - 2, signal.shape[1])
    for curve, color in zip(signal, cycle(_CURVES), strict=False):
        down = 3 + (SIGNAL_HEIGHT - 8) * (1 - (curve - low) / max(high - low, 1e-12))
        draw.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=color)
    draw.rectangle((0, SIGNAL_HEIGHT, _SIGNAL_WIDTH, SIGNAL_HEIGHT + STRIP_HEIGHT), fill=BACKGROUND)
    return np.asarray(canvas)


def overlay(image: Picture, heatmap: Tensor | NDArray[np.float32], style: Style = "blend") -> Picture:
    """Lay a heatmap over an image.

    Args:
        image: (H, W, 3) uint8, as made by `to_pictures`.
        heatmap: (H, W) in [0, 1]; of a signal (T,), drawn as a colored strip under the curves; of a volume (D, H, W).
            One that is not finite (a skipped map) gives the darkened gray image, crossed out.
        style: `"blend"`: heat in color (black, purple, orange, yellow) over the gray image. `"jet"`: the picture of
            the class activation literature: heat under 0.2 is cut, the rest goes through jet, darker where colder,
            onto the image at half brightness in gray. `"heatmap"`: the heat alone, in the colors of `"blend"`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: An unknown style, or a heatmap of another size than the image.
    """
    check_choice("style", style, STYLES)
    heat = np.asarray(heatmap, dtype=np.float32)
    if heat.ndim == 1:
        return _with_strip(image, heat, style)
    if heat.ndim == 3:
        heat = montage(heat)
    if heat.shape != image.shape[:2]:
        raise ValueError(f"heatmap has shape {heat.shape}, the image {image.shape[:2]}; upsample the heatmap first")
    gray = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    if not np.isfinite(heat).all():
        return _crossed_out(_to_uint8(gray * 0.4))
    if style == "heatmap":
        return _to_uint8(_look_up(_inferno(), heat))
    if style == "blend":
        return _to_uint8(0.35 * gray + 0.65 * _look_up(_inferno(), heat))
    kept = np.where(heat < 0.2, 0, heat)
    total = gray / 2 + _look_up(_jet(), kept) * kept[..., None]
    return _to_uint8((total / 1.5).astype(np.float32))


def outlined(image: Picture, mask: Tensor | NDArray[np.bool_]) -> Picture:
    """Draw the edge of a mask (H, W) bool, two pixels wide, onto an image (H, W, 3)."""
    inside = np.asarray(mask, dtype=bool)
    core = inside.copy()
    for _ in range(max(1, min(inside.shape) // 64)):
        shrunk = core.copy()
        shrunk[1:] &= core[:-1]
        shrunk[:-1] &= core[1:]
        shrunk[:, 1:] &= core[:, :-1]
        shrunk[:, :-1] &= core[:, 1:]
        core = shrunk
    drawn: Picture = image.copy()
    drawn[inside & ~core] = _OUTLINE
    return drawn


def histogram(values: Sequence[float], limit: float, width: int = 224, height: int = 64) -> Picture:
    """Bars of how many values lie where between `-limit` and `limit`, with a line at 0, and these three below."""
    bins = 28
    counts, _ = np.histogram(np.asarray(values), bins=bins, range=(-limit, limit))
    canvas = Image.new("RGB", (width, height + _LINE_HEIGHT), (16, 17, 19))
    draw = ImageDraw.Draw(canvas)
    tallest = max(int(counts.max()), 1)
    for place, count in enumerate(counts.tolist()):
        left, right = round(place * width / bins), round((place + 1) * width / bins) - 2
        if count:
            draw.rectangle((left, height - 1 - round((height - 4) * count / tallest), right, height), fill=_CURVES[0])
    draw.line([(width // 2, 0), (width // 2, height)], fill=ALERT, width=2)
    for text, at, anchor in ((f"{-limit:g}", 2, "la"), ("0", width // 2, "ma"), (f"+{limit:g}", width - 2, "ra")):
        draw.text((at, height), text, font=_font(), fill=MUTED, anchor=anchor)
    return np.asarray(canvas)


def _with_strip(image: Picture, heat: NDArray[np.float32], style: Style) -> Picture:
    """Signals with their heat (T,) as a colored strip under them."""
    if not np.isfinite(heat).all():
        return _crossed_out(_to_uint8(image * np.float32(0.4)))
    at = np.linspace(0, len(heat) - 1, image.shape[1])
    along = np.interp(at, np.arange(len(heat)), heat).astype(np.float32)
    picture: Picture = image.copy()
    picture[-STRIP_HEIGHT:] = _to_uint8(_look_up(_jet() if style == "jet" else _inferno(), along))
    return picture


def _look_up(table: NDArray[np.float32], heat: NDArray[np.float32]) -> NDArray[np.float32]:
    colors: NDArray[np.float32] = table[(heat.clip(0, 1) * 255).round().astype(np.uint8)]
    return colors


@cache
def _inferno() -> NDArray[np.float32]:
    anchors = np.array([[color >> 16, color >> 8 & 255, color & 255] for color in _INFERNO], dtype=np.float32)
    at = np.linspace(0, len(anchors) - 1, 256)
    return np.stack([np.interp(at, range(len(anchors)), channel) for channel in anchors.T], axis=1).astype(np.float32)


@cache
def _jet() -> NDArray[np.float32]:
    at = np.linspace(0, 1, 256)[:, None]
    centers = np.array([0.75, 0.5, 0.25])
    table: NDArray[np.float32] = ((1.5 - np.abs(at - centers) * 4).clip(0, 1) * 255).astype(np.float32)
    return table


def _crossed_out(picture: Picture) -> Picture:
    canvas = Image.fromarray(np.broadcast_to(picture, (*picture.shape[:2], 3)).copy())
    draw = ImageDraw.Draw(canvas)
    right, bottom = canvas.width - 1, canvas.height - 1
    draw.line([(0, 0), (right, bottom)], fill=ALERT)
    draw.line([(0, bottom), (right, 0)], fill=ALERT)
    return np.asarray(canvas)


def _to_uint8(values: NDArray[np.float32]) -> Picture:
    rounded: Picture = values.round().clip(0, 255).astype(np.uint8)
    return rounded


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
    """Whether the cell is framed as a mistake."""


def grid(cells: Sequence[Cell], columns: int = 1, size: int = 96, title: Sequence[Line] = ()) -> Picture:
    """Set cells out in rows.

    Args:
        cells: Each row is as high as its highest cell.
        columns: Cells in a row.
        size: Longer side of each picture in pixels; small pictures are enlarged without smoothing.
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
    top = _LINE_HEIGHT * len(title) + (_PADDING if title else 0)
    canvas = Image.new("RGB", (columns * width, top + sum(heights)), BACKGROUND)
    _write(canvas, title, _PADDING)
    for place, row in enumerate(rows):
        for column, cell in enumerate(row):
            canvas.paste(cell, (column * width, top + sum(heights[:place])))
    # Without the two lowest bits, which no eye misses, the PNG of a photo is a quarter smaller.
    picture: Picture = np.asarray(canvas) & np.uint8(0xFC)
    return picture


def _draw(cell: Cell, size: int) -> Image.Image:
    pictures = [_resized(picture, size) for picture in cell.pictures]
    inner = sum(picture.width for picture in pictures) + _PADDING * (len(pictures) - 1)
    top = _PADDING + (_LINE_HEIGHT if cell.headings else 0)
    below = top + max(picture.height for picture in pictures)
    canvas = Image.new("RGB", (inner + 2 * _PADDING, below + _LINE_HEIGHT * len(cell.lines) + 2 * _PADDING), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    left = _PADDING
    for index, picture in enumerate(pictures):
        if cell.headings:
            heading = _fitting(cell.headings[index], picture.width)
            draw.text((left, _PADDING - 2), heading, font=_font(), fill=MUTED)
        canvas.paste(picture, (left, top))
        left += picture.width + _PADDING
    _write(canvas, cell.lines, below + 2)
    if cell.alert:
        draw.rectangle((1, 1, canvas.width - 2, canvas.height - 4), outline=ALERT, width=2)
    return canvas


def _write(canvas: Image.Image, lines: Sequence[Line], top: int) -> None:
    """Lines of text one below the other, from `top` on."""
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(lines):
        text = _fitting(line.text, canvas.width - 2 * _PADDING)
        draw.text((_PADDING, top + _LINE_HEIGHT * index), text, font=_font(), fill=line.color)


def _resized(picture: Picture, size: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _fitting(text: str, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)
