"""Layouts: where in a layer's output the channels are, and where the positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

ReshapeTransform = Callable[[Tensor], Tensor]
"""Called with a layer's output; returns it as (N, channels, *spatial). It may only rearrange and leave out."""

_PREFIX_TOKENS = (0, 1, 2, 5)  # none; class token; class and distillation token; class token and four registers


def to_maps(output: Tensor, size: Sequence[int], reshape_transform: ReshapeTransform | None = None) -> Tensor | None:
    """A layer's output as maps (N, channels, *spatial); None if it has no positions that fit images of `size`.

    Understood are (N, channels, *spatial), (N, *spatial, channels), and for images with two spatial dimensions tokens
    (N, tokens, channels): row by row, with one, two or five tokens before them that belong to no position (class token,
    registers). The grid of tokens is the one with the proportions of the image. Where two readings are possible, the
    one that keeps the proportions of the image better is taken; for sequences always (N, channels, time), because
    nothing tells the two apart there.

    Args:
        output: What the layer put out.
        size: Spatial size of the images.
        reshape_transform: What the user says instead.
    """
    if reshape_transform is not None:
        maps = reshape_transform(output)
        if not isinstance(maps, Tensor):
            raise TypeError(f"reshape_transform returned {type(maps).__name__}, not a tensor (N, channels, *spatial)")
        return maps if maps.ndim == len(size) + 2 and maps.shape[2:].numel() > 1 else None
    if not output.is_floating_point():
        return None
    if output.ndim == len(size) + 2:
        first, last = _distortion(output.shape[2:], size), _distortion(output.shape[1:-1], size)
        if first <= last:
            return output if first <= 8 and output.shape[2:].numel() > 1 else None
        most = 1.5 if len(size) == 2 else 4  # videos shrink less in time than in space
        return output.movedim(-1, 1) if last <= most and output.shape[1:-1].numel() > 1 else None
    if output.ndim == 3 and len(size) == 2:
        grid = token_grid(output.shape[1], size)
        if grid is not None:
            positions = output[:, -math.prod(grid) :]
            # (N, h*w, C) -> (N, C, h, w)
            return positions.transpose(1, 2).reshape(len(output), -1, *grid)
    return None


def is_channels_first(output: Tensor, size: Sequence[int]) -> bool:
    """Whether an output that `to_maps` understands is (N, channels, *spatial) already."""
    return output.ndim == len(size) + 2 and _distortion(output.shape[2:], size) <= _distortion(output.shape[1:-1], size)


def token_grid(tokens: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Height and width of the grid that so many tokens form for images of `size`, with the fewest tokens left over."""
    for prefix in _PREFIX_TOKENS:
        positions = tokens - prefix
        if positions < 4:
            return None
        height = round(math.sqrt(positions * size[0] / size[1]))
        if height and positions % height == 0 and _distortion((height, positions // height), size) < 1.1:
            return height, positions // height
    return None


def _distortion(output: Sequence[int], size: Sequence[int]) -> float:
    """How much more an output shrinks in one dimension than in another; 1 for the proportions of the image."""
    if min(output) == 0 or max(out / side for out, side in zip(output, size, strict=True)) > 8:
        return math.inf
    if min(output) == 1 and len(output) > 1:
        return 4.0  # one row or column: its proportions tell nothing
    ratios = [out / side for out, side in zip(output, size, strict=True)]
    return max(ratios) / min(ratios)
