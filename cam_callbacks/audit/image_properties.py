"""Simple properties of images: how bright and how sharp they are, where their object is, and what shape it has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from torch import Tensor

from cam_callbacks.audit import jpeg
from cam_callbacks.audit.inpainting import grown
from cam_callbacks.audit.interventions import ring
from cam_callbacks.explain.portions import in_portions

_LEAST = 0.01  # of the positions of an image, to be measured there
_TINY = 1e-12
_EDGE = 0.5  # of the standard deviation, from one position to the next
_READ = 8  # blocks along a side, to read how an image was compressed: more takes longer and tells no more

JPEG, ASPECT = "JPEG quality", "aspect ratio"
"""Names of properties."""


def measured(
    images: Tensor, masks: Tensor | None = None, are_given: bool = True, are_boxes: bool = False
) -> dict[tuple[str, str], Tensor]:
    """Return each property of images by its name and where it is measured, (N,); NaN where it is not defined.

    Args:
        images: (N, C, *spatial), normalized or not.
        masks: (N, *spatial) bool, True on the object; None without. Images whose mask is empty, or covers all, have
            only properties of the whole image.
        are_given: Whether the masks are true, and not estimated, which would say nothing of objects.
        are_boxes: Whether they are boxes, within which is measured, too.
    """
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for rows in in_portions(torch.arange(len(images)), images):
        shown, own = images[rows].float(), None if masks is None else masks[rows]
        for place, values in _of_images(shown, own, are_given, are_boxes):
            parts.setdefault(place, []).append(values)
    found = {place: torch.cat(values) for place, values in parts.items()}
    quality = found.get((JPEG, "image"))
    if quality is not None and not (quality < jpeg.UNCOMPRESSED).any():
        del found[JPEG, "image"]  # no image has traces
    return found


def _of_images(
    images: Tensor, masks: Tensor | None, are_given: bool, are_boxes: bool
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield the properties of a few images."""
    maps, everywhere = _Maps(images), torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    if masks is None:
        for name, values in maps.within(ring(images.shape[2:]).expand_as(everywhere)):
            yield (name, "outer ring"), values
    else:
        found = {(name, "background"): values for name, values in maps.within(~grown(masks))}
        if are_given:
            found |= {(name, "object"): values for name, values in _of_objects(masks)}
        if are_given and are_boxes:
            found |= {(name, "box"): values for name, values in maps.within(masks)}
        share = masks.flatten(1).float().mean(dim=1)
        for place, values in found.items():
            yield place, values.masked_fill((share == 0) | (share == 1), torch.nan)
    for name, values in maps.within(everywhere):
        yield (name, "image"), values
    if jpeg.is_readable(images):
        yield (JPEG, "image"), _quality(images)


class _Maps:
    """What is measured of images (n, C, *spatial) at each position, before it is summed up in regions."""

    def __init__(self, images: Tensor) -> None:
        self._gray, channels = images.mean(dim=1), images.unbind(dim=1)
        self._saturation = None
        if len(channels) == 3:
            self._saturation = reduce(torch.maximum, channels) - reduce(torch.minimum, channels)
        # Sums over the axes of second differences, and of squared first differences, (n, *inner positions).
        center = _inner(self._gray)
        self._laplacian, self._gradient = torch.zeros_like(center), torch.zeros_like(center)
        self._has_neighbors = False
        for before, after in _neighbors(self._gray):
            self._laplacian += before + after - 2 * center
            self._gradient += ((after - before) / 2).square_()
            self._has_neighbors = True

    def within(self, where: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the properties of the images within regions (n, *spatial) bool, (n,) each."""
        region = _Region(where)
        mean, variance = region.moments(self._gray)
        yield "brightness", mean
        yield "contrast", variance.sqrt()
        if self._saturation is not None:
            yield "saturation", region.mean(self._saturation)
        if not self._has_neighbors:
            return
        inside = _inner(where).clone()
        for before, after in _neighbors(where):
            inside &= before & after
        inner, is_flat = _Region(inside), ~(variance > 0)
        rough = inner.moments(self._laplacian)[1] / variance
        yield "sharpness", rough.masked_fill(is_flat, torch.nan)
        least = (_EDGE**2 * variance).view(-1, *[1] * (where.ndim - 1))
        yield "edge density", inner.mean((self._gradient > least).float()).masked_fill(is_flat, torch.nan)


class _Region:
    """Where images are measured, (n, *spatial) bool; what is measured is NaN where that is tiny."""

    def __init__(self, where: Tensor) -> None:
        self._weights = where.flatten(1).float()
        self._count = self._weights.sum(dim=1)
        self._is_tiny = self._count < _LEAST * self._weights.shape[1]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean (n,) of values (n, *spatial)."""
        mean = (values.flatten(1) * self._weights).sum(dim=1) / self._count.clamp_min(1)
        return mean.masked_fill(self._is_tiny, torch.nan)

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance (n,) of values (n, *spatial); 0 is the variance of what differs by rounding."""
        mean = self.mean(values)
        variance = self.mean((values.flatten(1) - mean.unsqueeze(1)).square_())
        return mean, variance.masked_fill(variance <= _TINY, 0)


def _neighbors(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is before and after the inner positions of values (n, *spatial), along each axis that has such."""
    for axis in range(1, values.ndim):
        count = values.shape[axis] - 2
        if count > 0:
            line = _inner(values, but=axis)
            yield line.narrow(axis, 0, count), line.narrow(axis, 2, count)


def _inner(values: Tensor, but: int = 0) -> Tensor:
    """Return values (n, *spatial) without the first and the last of each axis of three or more, one axis excepted."""
    for axis in range(1, values.ndim):
        if axis != but and values.shape[axis] > 2:
            values = values.narrow(axis, 1, values.shape[axis] - 2)
    return values


def _of_objects(masks: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the properties of objects, by masks (n, *spatial)."""
    weights = masks.float()
    yield "size", weights.flatten(1).mean(dim=1)
    if masks.ndim != 3:
        return
    rows, columns = (weights.sum(dim=dim) for dim in (2, 1))
    for name, counts in (("vertical position", rows), ("horizontal position", columns)):
        places = torch.arange(counts.shape[1], dtype=torch.float32)
        yield name, (counts * places).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
    height, width = (_extent(counts > 0) for counts in (rows, columns))
    yield ASPECT, height / width


def _extent(is_there: Tensor) -> Tensor:
    """Return (n,) how many places there are from the first to the last that is True, (n, places); at least 1."""
    places = torch.arange(is_there.shape[1]).expand_as(is_there)
    last = places.masked_fill(~is_there, 0).amax(dim=1)
    first = places.masked_fill(~is_there, is_there.shape[1]).amin(dim=1)
    return (last - first + 1).clamp_min(1).float()


def _quality(images: Tensor) -> Tensor:
    """Return (n,) the quality of images, read in their middle; 100 without traces, NaN if not of 256 levels."""
    for axis in (2, 3):
        blocks = images.shape[axis] // jpeg.SIDE
        count = min(blocks, _READ)
        images = images.narrow(axis, (blocks - count) // 2 * jpeg.SIDE, count * jpeg.SIDE)
    level = jpeg.level_of(images)
    quality = jpeg.quality_of(jpeg.to_blocks(jpeg.brightness(images, level))).float()
    return quality.masked_fill(~level.isfinite().all(dim=1), torch.nan)
