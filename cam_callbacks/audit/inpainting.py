"""Fill holes of images from what surrounds them, so that the outline of what was there shows as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

_MARGIN = 0.01  # of the side: how far a hole reaches beyond the mask, whose edge mixes object and background
_SMOOTHING = 3  # steps at each resolution
_FEW = 1e-6
_FINEST = 128  # positions a side: what fills a hole is smooth, and needs no more

_POOL: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def inpaint(images: Tensor, holes: Tensor) -> Tensor:
    """Fill holes smoothly from their edges (pull-push, Gortler et al. 1996, "The Lumigraph", section 3.4).

    The known positions are averaged to half the resolution, again and again until no hole is left; on the way back
    each hole takes the values of the coarser image, smoothed. It works on the device of the images, in any number of
    channels, and in one to three dimensions. Images of more than 128 positions a side are averaged to that first.

    Args:
        images: (N, C, *spatial).
        holes: (N, *spatial) bool. Of an image that is nothing but a hole all values become 0.

    Returns:
        (N, C, *spatial); outside of the holes the images as they are.
    """
    known, size = (~holes).unsqueeze(1).to(images.dtype), images.shape[2:]
    step = ceil(max(size) / _FINEST)
    if step == 1:
        return _filled(images, known)
    mean, share = _pooled(images, known, [min(side, step) for side in size])
    coarse = _filled(mean, (share > 0).to(images.dtype))
    fine = resized(coarse, [side * min(whole, step) for side, whole in zip(coarse.shape[2:], size, strict=True)])
    for dim, side in enumerate(size, start=2):
        fine = fine.narrow(dim, 0, side)
    return torch.where(known > 0, images, fine)


def _filled(images: Tensor, known: Tensor) -> Tensor:
    """Fill where `known` (N, 1, *spatial), 0 or 1, is 0."""
    size = images.shape[2:]
    if max(size) == 1:
        return images * known
    mean, share = _pooled(images, known, [min(side, 2) for side in size])
    coarse = _filled(mean, (share > 0).to(images.dtype))
    found = torch.where(known > 0, images, resized(coarse, size))
    for _ in range(_SMOOTHING):
        found = torch.where(known > 0, images, box_mean(found, [1] * len(size)))
    return found


def _pooled(images: Tensor, known: Tensor, blocks: list[int]) -> tuple[Tensor, Tensor]:
    """Return the mean of what is known in each block of so many positions along each axis, and its share."""
    pool = partial(_POOL[len(blocks)], kernel_size=blocks, ceil_mode=True, count_include_pad=False)
    share = pool(known)
    return pool(images * known) / share.clamp_min(_FEW), share


def box_mean(images: Tensor, reach: Sequence[int]) -> Tensor:
    """Return the mean over a box around each position of images (N, C, *spatial), of what is inside of the image.

    Args:
        images: (N, C, *spatial).
        reach: How far the box reaches to both sides, in positions along each axis.
    """
    for dim, step in enumerate(reach, start=2):
        images = _mean_along(dim, images, step)
    return images


def _mean_along(dim: int, images: Tensor, reach: int) -> Tensor:
    """Return the mean of each position and its neighbors on both sides, whose values are added one after the other."""
    side = images.shape[dim]
    places = torch.arange(side, device=images.device)
    count = (places + reach).clamp_max(side - 1) - (places - reach).clamp_min(0) + 1
    total = images.clone()
    for step in range(1, min(reach, side - 1) + 1):
        total.narrow(dim, step, side - step).add_(images.narrow(dim, 0, side - step))
        total.narrow(dim, 0, side - step).add_(images.narrow(dim, step, side - step))
    return total.div_(count.view(-1, *[1] * (images.ndim - dim - 1)))


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return images (N, C, *spatial) at another size, linearly between positions."""
    return F.interpolate(images, list(size), mode=_LINEAR[len(size)])


def grown(masks: Tensor, share: float = _MARGIN) -> Tensor:
    """Return masks (N, *spatial) bool that reach further to all sides: by a share of the side, a position at least.

    Those that would cover all are left as they are: what surrounds an object is what fills its place.
    """
    larger = masks
    for dim, side in enumerate(masks.shape[1:], start=1):
        larger = _spread(larger, dim, max(1, round(share * side)))
    covers_all = larger.flatten(1).all(dim=1).view(-1, *[1] * (masks.ndim - 1))
    return torch.where(covers_all, masks, larger)


def _spread(masks: Tensor, dim: int, reach: int) -> Tensor:
    """Return masks that reach further to both sides along one axis."""
    side, reached = masks.shape[dim], 0
    reach = min(reach, side - 1)
    while reached < reach:
        step = min(reached + 1, reach - reached)  # no further, or there would be gaps at the edge
        larger = masks.clone()
        larger.narrow(dim, step, side - step).logical_or_(masks.narrow(dim, 0, side - step))
        larger.narrow(dim, 0, side - step).logical_or_(masks.narrow(dim, step, side - step))
        masks, reached = larger, reached + step
    return masks


def shrunk(masks: Tensor, share: float = _MARGIN) -> Tensor:
    """Return masks (N, *spatial) bool that reach less far to all sides; those of which nothing would be left as is."""
    return ~grown(~masks, share)
