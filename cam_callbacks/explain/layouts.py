"""Layouts: where in a layer's output the channels are, and where the positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

ReshapeTransform = Callable[[Tensor], Tensor]
"""Called with a layer's output; returns it as (N, channels, *spatial). It may only rearrange and leave out."""

_PREFIX_TOKENS = (0, 1, 2, 5)  # none; class token; class and distillation token; class token and four registers
_MIN_TOKENS = 4

_MAX_DISTORTION = 8.0  # of maps with the channels first
_MAX_DISTORTION_OF_CHANNELS_LAST = 1.5
_MAX_DISTORTION_OF_VIDEOS = 4.0  # with the channels last: videos shrink less in time than in space
_MAX_DISTORTION_OF_TOKENS = 1.1
_DISTORTION_OF_A_LINE = 4.0  # assumed of one row or column, whose proportions tell nothing
_MAX_ENLARGEMENT = 8.0  # of an output in comparison with the images


def to_maps(output: Tensor, size: Sequence[int], reshape_transform: ReshapeTransform | None = None) -> Tensor | None:
    """Return a layer's output as maps (N, channels, *spatial); None if it has no positions that fit images of `size`.

    Understood are (N, channels, *spatial), (N, *spatial, channels), and, for images with two spatial dimensions, tokens
    (N, tokens, channels): row by row, with up to five tokens before them that belong to no position (class token,
    registers). The grid of tokens is the one with the proportions of the image. If two readings are possible, the one
    that keeps the proportions of the image better is taken; for sequences it is always (N, channels, time), because
    nothing tells the two apart.

    Args:
        output: The output.
        size: Spatial size of the images.
        reshape_transform: The user's own way to bring it to (N, channels, *spatial).

    Raises:
        TypeError: `reshape_transform` does not return a tensor.
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
            return output if first <= _MAX_DISTORTION and output.shape[2:].numel() > 1 else None
        most = _MAX_DISTORTION_OF_CHANNELS_LAST if len(size) == 2 else _MAX_DISTORTION_OF_VIDEOS
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
    """Return height and width of the grid that tokens form for images of `size`, with the fewest tokens left over."""
    for prefix in _PREFIX_TOKENS:
        positions = tokens - prefix
        if positions < _MIN_TOKENS:
            return None
        height = round(math.sqrt(positions * size[0] / size[1]))
        if not height or positions % height:
            continue
        grid = (height, positions // height)
        if _distortion(grid, size) < _MAX_DISTORTION_OF_TOKENS:
            return grid
    return None


def _distortion(output: Sequence[int], size: Sequence[int]) -> float:
    """Return how much more an output shrinks in one dimension than in another; 1 for the proportions of the image."""
    ratios = [out / side for out, side in zip(output, size, strict=True)]
    if min(output) == 0 or max(ratios) > _MAX_ENLARGEMENT:
        return math.inf
    if min(output) == 1 and len(output) > 1:
        return _DISTORTION_OF_A_LINE
    return max(ratios) / min(ratios)
