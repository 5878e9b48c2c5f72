"""Pictures of tensors: images, signals and volumes, and heat over them.

Pictures are uint8 arrays (height, width, 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import cycle
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from cam_callbacks._checks import check_choice
from cam_callbacks._threads import threads
from cam_callbacks.data.normalization import Normalization, denormalized, in_display_range
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.figures.colors import ALERT, BACKGROUND, CURVES, OUTLINE, PLOT_BACKGROUND, inferno, jet, look_up
from cam_callbacks.figures.settings import OverlayStyle, check_bands

Picture: TypeAlias = NDArray[np.uint8]

_MAX_SLICES = 9
_SIGNAL_WIDTH, _SIGNAL_HEIGHT, _STRIP_HEIGHT = 224, 64, 14
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_CROSSED_OUT_BRIGHTNESS = 0.4
_HEAT_OPACITY = 0.65
_PHOTO_BRIGHTNESS = 0.7  # under heat; a white photo must not look hot
_JET_MIN_HEAT = 0.2
_COMPRESSION = 4  # takes half the time of the usual 6, for files 2% larger


def to_pictures(
    images: Tensor, normalization: Normalization | None = None, bands: Sequence[int] | None = None
) -> list[Picture]:
    """Turn images, as the model is fed them, into pictures.

    Args:
        images: (N, C, H, W): one channel becomes gray; three are red, green and blue; of any other number the first
            three are shown (of two channels their mean, as gray). (N, C, T): signals, drawn as curves over a strip
            that is left free for their heat. (N, C, D, H, W): volumes, laid out as slices.
        normalization: Mean and standard deviation of each channel, which is undone; None for images that are in
            [0, 1] already. Images that still leave [0, 1] are scaled to their own minimum and maximum.
        bands: The channels that become red, green and blue, or the one that becomes gray, counted from 0; None for the
            first three.

    Returns:
        N pictures (H, W, 3).

    Raises:
        ValueError: `bands` are not one or three channels of the images.
        TypeError: `bands` is not a list.
    """
    check_bands(bands)
    shown = denormalized(images, normalization)
    if shown.ndim == 3:
        return [_curves(signal.numpy()) for signal in shown]
    if bands is not None:
        if max(bands) >= shown.shape[1]:
            raise ValueError(f"bands={bands!r}: the images have the channels 0 to {shown.shape[1] - 1}")
        shown = shown[:, list(bands)]
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
    """Lay out slices of a volume (D, H, W, ...), at most nine, row by row: (rows*H, columns*W, ...)."""
    depth = len(volume)
    chosen = np.linspace(0, depth - 1, min(depth, _MAX_SLICES)).round().astype(int)
    columns = math.ceil(math.sqrt(len(chosen)))
    empty = [np.zeros_like(volume[0])] * (-len(chosen) % columns)
    slices = [*volume[chosen], *empty]
    rows = [np.concatenate(slices[start : start + columns], axis=1) for start in range(0, len(slices), columns)]
    return np.concatenate(rows, axis=0)


def _curves(signal: NDArray[np.float32]) -> Picture:
    """Draw signals (C, T) as curves, one color each, above an empty strip."""
    canvas = Image.new("RGB", (_SIGNAL_WIDTH, _SIGNAL_HEIGHT + _STRIP_HEIGHT), PLOT_BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    low, high = float(np.nanmin(signal)), float(np.nanmax(signal))
    across = np.linspace(1, _SIGNAL_WIDTH - 2, signal.shape[1])
    for curve, color in zip(signal, cycle(CURVES), strict=False):
        down = 3 + (_SIGNAL_HEIGHT - 8) * (1 - (curve - low) / max(high - low, 1e-12))
        draw.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=color)
    draw.rectangle((0, _SIGNAL_HEIGHT, _SIGNAL_WIDTH, _SIGNAL_HEIGHT + _STRIP_HEIGHT), fill=BACKGROUND)
    return np.asarray(canvas)


def heat_layout(heat: Tensor, size: Sequence[int]) -> Tensor:
    """Lay out a heatmap as `to_pictures` lays out its image, at the resolution that it has.

    Args:
        heat: (h, w), (t,) of a signal, or (d, h, w) of a volume.
        size: Spatial size of the image, in pixels.

    Returns:
        (h', w'); scaled to the picture of the image, each value lies over the part that it is about.
    """
    if heat.ndim == 3:
        slices = upsample(heat.unsqueeze(0), (size[0], *heat.shape[1:]))[0]
        return torch.from_numpy(montage(slices.numpy()))
    if heat.ndim == 1:
        return torch.cat([torch.zeros(_SIGNAL_HEIGHT, len(heat)), heat.expand(_STRIP_HEIGHT, -1)])
    return heat


def overlay(image: Picture, heatmap: Tensor | NDArray[np.float32], style: OverlayStyle = "blend") -> Picture:
    """Lay a heatmap over an image.

    Args:
        image: (H, W, 3) uint8, as made by `to_pictures`.
        heatmap: (H, W) in [0, 1]; (T,) of a signal, drawn as a colored strip under the curves; (D, H, W) of a volume.
            If it is not finite (a skipped map), the image is darkened, turned gray and crossed out.
        style: `"blend"`: heat in color (black, purple, orange, yellow) over the image, which is turned gray and
            darkened, so that all color is heat. `"color"`: the same heat over the image in its own colors, with which
            those of heat mix. `"jet"`: as in the literature on class activation maps: heat below 0.2 is cut off, the
            rest is colored by jet, darker where it is lower, and added to the gray image at half brightness.
            `"heatmap"`: the heat alone, in the colors of `"blend"`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: An unknown style, or a heatmap of another size than the image.
        TypeError: `image` is not such an array.
    """
    check_choice("style", style, get_args(OverlayStyle))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"image must be an array (H, W, 3) uint8, as made by to_pictures; got {type(image).__name__}")
    heat = np.asarray(heatmap, dtype=np.float32)
    if heat.ndim == 1:
        return _with_strip(image, heat, style)
    if heat.ndim == 3:
        heat = montage(heat)
    if heat.shape != image.shape[:2]:
        raise ValueError(f"heatmap has shape {heat.shape}, the image {image.shape[:2]}; upsample the heatmap first")
    gray = (image @ _LUMINANCE)[..., None]
    if not np.isfinite(heat).all():
        return _crossed_out(_to_uint8(gray * _CROSSED_OUT_BRIGHTNESS))
    if style == "heatmap":
        return _to_uint8(look_up(inferno(), heat))
    if style in ("blend", "color"):
        photo = image.astype(np.float32) if style == "color" else gray * _PHOTO_BRIGHTNESS
        return _to_uint8((1 - _HEAT_OPACITY) * photo + _HEAT_OPACITY * look_up(inferno(), heat))
    kept = np.where(heat < _JET_MIN_HEAT, 0, heat)
    total = gray / 2 + look_up(jet(), kept) * kept[..., None]
    return _to_uint8((total / 1.5).astype(np.float32))


def _with_strip(image: Picture, heat: NDArray[np.float32], style: OverlayStyle) -> Picture:
    """Draw the heat (T,) of signals as a colored strip under their curves."""
    if not np.isfinite(heat).all():
        return _crossed_out(_to_uint8(image * np.float32(_CROSSED_OUT_BRIGHTNESS)))
    at = np.linspace(0, len(heat) - 1, image.shape[1])
    along = np.interp(at, np.arange(len(heat)), heat).astype(np.float32)
    picture: Picture = image.copy()
    picture[-_STRIP_HEIGHT:] = _to_uint8(look_up(jet() if style == "jet" else inferno(), along))
    return picture


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


def outlined(image: Picture, mask: Tensor | NDArray[np.bool_]) -> Picture:
    """Draw the inner edge of a mask (H, W) bool onto an image (H, W, 3), a 64th of its shorter side wide."""
    inside = np.asarray(mask, dtype=bool)
    core = inside
    for _ in range(max(1, min(inside.shape) // 64)):
        core = _without_edge(core)
    drawn: Picture = image.copy()
    drawn[inside & ~core] = OUTLINE
    return drawn


def _without_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove the pixels of a mask with one of their four neighbors outside it; beyond the image all is inside."""
    around = np.pad(mask, 1, constant_values=True)
    core: NDArray[np.bool_] = mask & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return core


def as_pngs(images: Iterable[Image.Image]) -> bytes:
    """Encode images as PNG, one after the other; in threads, since Pillow lets others run meanwhile."""
    with threads() as pool:
        return b"".join(pool.map(as_png, images))


def as_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    file = BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()
