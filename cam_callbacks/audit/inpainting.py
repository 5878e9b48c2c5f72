"""Fill holes of images from what surrounds them, so that the outline of what was there shows as little as possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MARGIN = 0.01  # of the side: how far a hole reaches beyond the mask, whose edge mixes object and background
_SMOOTHING = 3  # steps at each resolution
_FEW = 1e-6

POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def inpaint(images: Tensor, holes: Tensor) -> Tensor:
    """Fill holes smoothly from their edges (pull-push, Gortler et al. 1996, "The Lumigraph", section 3.4).

    The known positions are averaged to half the resolution, again and again until no hole is left; on the way back
    each hole takes the values of the coarser image, smoothed. It works on the device of the images, in any number of
    channels, and in one to three dimensions.

    Args:
        images: (N, C, *spatial).
        holes: (N, *spatial) bool. Of an image that is nothing but a hole all values become 0.

    Returns:
        (N, C, *spatial); outside of the holes the images as they are.
    """
    return _filled(images, (~holes).unsqueeze(1).to(images.dtype))


def _filled(images: Tensor, known: Tensor) -> Tensor:
    """Fill where `known` (N, 1, *spatial), 0 or 1, is 0."""
    size = images.shape[2:]
    if max(size) == 1:
        return images * known
    pool, halves = POOL[len(size)], [min(side, 2) for side in size]
    share = pool(known, halves, ceil_mode=True, count_include_pad=False)
    mean = pool(images * known, halves, ceil_mode=True, count_include_pad=False) / share.clamp_min(_FEW)
    coarse = _filled(mean, (share > 0).to(images.dtype))
    found = torch.where(known > 0, images, F.interpolate(coarse, size, mode=_LINEAR[len(size)]))
    for _ in range(_SMOOTHING):
        found = torch.where(known > 0, images, _blurred(found))
    return found


def _blurred(images: Tensor) -> Tensor:
    """Return the mean of each position and its neighbors."""
    dimensions = images.ndim - 2
    return POOL[dimensions](images, 3, stride=1, padding=1, count_include_pad=False)


def grown(masks: Tensor, share: float = _MARGIN) -> Tensor:
    """Return masks (N, *spatial) bool that reach further to all sides: by a share of the side, a position at least."""
    reach = [max(1, round(share * side)) for side in masks.shape[1:]]
    box = [2 * step + 1 for step in reach]
    largest: Tensor = _MAX_POOL[len(reach)](masks.unsqueeze(1).float(), box, stride=1, padding=reach)
    return largest.squeeze(1) > 0


def shrunk(masks: Tensor, share: float = _MARGIN) -> Tensor:
    """Return masks (N, *spatial) bool that reach less far to all sides; those of which nothing would be left as is."""
    smaller = ~grown(~masks, share)
    is_left = smaller.flatten(1).any(dim=1).view(-1, *[1] * (masks.ndim - 1))
    return torch.where(is_left, smaller, masks)
