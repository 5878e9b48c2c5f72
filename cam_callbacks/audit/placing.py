"""Move, resize and mirror the objects of images, before their own backgrounds.

What is exchanged is where an object lies, how large it is, or which way it faces; no pixel of the donor gets into the
image. The object's own place is inpainted. What that leaves behind is measured by placebos, `with_trace_of_move`,
`with_trace_of_size` and `with_trace_of_mirror`: the object stays as it is, and as much around it is inpainted as the
exchange would touch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.interventions import before, with_trace_of, without_object

_MAX_FACTOR = 2.0  # of the side of an object
_SYMMETRIC = 0.1  # of the skewness of a mask: less faces neither way
_TINY = 1e-6  # square positions


def moved(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Move the object of each image to where that of its donor lies, as far as it stays whole.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial) bool, with an object.
        donor_masks: (n, *spatial) bool.
    """
    return before(without_object(images, masks), *_moved(images, masks, donor_masks))


def with_trace_of_move(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Inpaint as much beside the object as `moved` would leave empty, and leave the object where it is."""
    return with_trace_of(images, masks, _moved(images, masks, donor_masks)[1])


def resized_as(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Resize the object of each image to the area of that of its donor, as far as it stays whole.

    Its sides become at most twice, or half, what they were.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial) bool, with an object.
        donor_masks: (n, *spatial) bool.
    """
    middle = _middle(masks)
    found = _placed(images, masks, middle, middle, _factor(masks, donor_masks), "bilinear")
    return before(without_object(images, masks), *found)


def with_trace_of_size(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Inpaint around the object as far as `resized_as` would change the image, and leave the object as it is."""
    factor, middle = _factor(masks, donor_masks), _middle(masks)
    return with_trace_of(images, masks, _placed(images, masks, middle, middle, torch.maximum(factor, 1 / factor))[1])


def mirrored(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Mirror the object of each image left to right, within its own box, if that of its donor faces the other way.

    An object faces the way on which its mask is drawn out: the sign of the skewness of the positions along the last
    axis. Where that is less than 0.1, of the object or of its donor's, the image stays as it is.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial) bool, with an object.
        donor_masks: (n, *spatial) bool.
    """
    turned = before(without_object(images, masks), *_mirrored(images, masks))
    return torch.where(_faces_away(masks, donor_masks).unsqueeze(1), turned, images)


def with_trace_of_mirror(images: Tensor, masks: Tensor, _donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Inpaint as much beside the object as `mirrored` would cover with it, and leave the object as it is."""
    return with_trace_of(images, masks, _mirrored(images, masks)[1] & _faces_away(masks, donor_masks))


def _moved(images: Tensor, masks: Tensor, donor_masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and masks, moved by whole positions."""
    size = masks.new_tensor(masks.shape[1:], dtype=torch.float32)
    low, high = _box(masks)
    step = (_middle(donor_masks) - _middle(masks)).round()
    step = torch.minimum(torch.maximum(step, -low), size - 1 - high)
    middle = _middle(masks)
    return _placed(images, masks, middle, middle + step, torch.ones_like(step[:, 0]))


def _mirrored(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and masks, mirrored along the last axis around the middle of the box of each object."""
    side = masks.shape[-1]
    low, high = (each[:, -1].view(-1, *[1] * (masks.ndim - 1)).long() for each in _box(masks))
    places = torch.arange(side, device=masks.device)
    source = (low + high - places).clamp(0, side - 1).expand(masks.shape)
    inside = (places >= low) & (places <= high)
    found = images.gather(-1, source.unsqueeze(1).expand_as(images))
    return found, masks.gather(-1, source) & inside


def _faces_away(masks: Tensor, donor_masks: Tensor) -> Tensor:
    """Return (n, 1, ...) where an object and that of its donor face different ways."""
    own, other = (_skewness(each) for each in (masks, donor_masks))
    is_so = (own * other < 0) & (own.abs() > _SYMMETRIC) & (other.abs() > _SYMMETRIC)
    return is_so.view(-1, *[1] * (masks.ndim - 1))


def _skewness(masks: Tensor) -> Tensor:
    """Return (n,) the skewness of the positions of each mask along the last axis; 0 where they are all the same."""
    weights = _along(masks, masks.ndim - 2).sum(dim=2)  # (n, side)
    count = weights.sum(dim=1, keepdim=True).clamp_min(1)
    away = torch.arange(masks.shape[-1], device=masks.device) - _middle(masks)[:, -1:]
    second, third = ((weights * away.pow(power) / count).sum(dim=1) for power in (2, 3))
    return torch.where(second > 0, third / second.clamp_min(_TINY).pow(1.5), 0)


def _factor(masks: Tensor, donor_masks: Tensor) -> Tensor:
    """Return (n,) what the sides of each object are multiplied by to have the area of the donor's."""
    dimensions = masks.ndim - 1
    own, other = (each.flatten(1).sum(dim=1).clamp_min(1).float() for each in (masks, donor_masks))
    factor = (other / own).pow(1 / dimensions).clamp(1 / _MAX_FACTOR, _MAX_FACTOR)
    low, high = _box(masks)
    middle, last = _middle(masks), masks.new_tensor(masks.shape[1:], dtype=torch.float32) - 1
    # How much larger it can be before it leaves the image, on either side of each axis.
    room = torch.minimum(middle / (middle - low), (last - middle) / (high - middle))
    return torch.minimum(factor, torch.where(room.isfinite(), room, _MAX_FACTOR).amin(dim=1).clamp_min(1))


def _box(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last position of each mask along each axis, (n, D) float."""
    ends = []
    for axis, side in enumerate(masks.shape[1:]):
        along = _along(masks, axis).any(dim=2)
        places = torch.arange(side, device=masks.device)
        ends.append((torch.where(along, places, side).amin(dim=1), torch.where(along, places, -1).amax(dim=1)))
    low, high = zip(*ends, strict=True)
    return torch.stack(low, dim=1).float(), torch.stack(high, dim=1).float()


def _along(masks: Tensor, axis: int) -> Tensor:
    """Return masks (n, *spatial) as (n, side of the axis, all other positions)."""
    return masks.movedim(1 + axis, 1).reshape(len(masks), masks.shape[1 + axis], -1)


def _middle(masks: Tensor) -> Tensor:
    """Return the mean position of each mask along each axis, (n, D)."""
    count = masks.flatten(1).sum(dim=1).clamp_min(1)
    found = []
    for axis, side in enumerate(masks.shape[1:]):
        along = _along(masks, axis).sum(dim=2)
        found.append((along * torch.arange(side, device=masks.device)).sum(dim=1) / count)
    return torch.stack(found, dim=1)


def _placed(
    images: Tensor, masks: Tensor, source: Tensor, target: Tensor, factor: Tensor, mode: str = "nearest"
) -> tuple[Tensor, Tensor]:
    """Return images and masks with `source` (n, D) at `target` (n, D), enlarged around it by `factor` (n,)."""
    sides, dimensions = masks.shape[1:], masks.ndim - 1
    axes = [torch.arange(side, device=images.device, dtype=torch.float32) for side in sides]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (*spatial, D)
    shape = (-1, *[1] * dimensions, dimensions)
    places = (positions - target.view(shape)) / factor.view(-1, *[1] * (dimensions + 1)) + source.view(shape)
    last = torch.tensor(sides, device=images.device, dtype=torch.float32) - 1
    grid = (2 * places / last.clamp_min(1) - 1).flip(-1)  # the last axis comes first
    if dimensions == 1:  # as an image of one row
        grid = torch.stack([grid[..., 0], torch.zeros_like(grid[..., 0])], dim=-1).unsqueeze(1)
        images, masks = images.unsqueeze(2), masks.unsqueeze(1)
    objects = F.grid_sample(masks.unsqueeze(1).float(), grid, "nearest", "zeros", align_corners=True) > 0.5
    found = F.grid_sample(images, grid, mode, "border", align_corners=True)
    return found.view(len(images), -1, *sides), objects.view(-1, *sides)
