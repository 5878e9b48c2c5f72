"""Exchange how strongly images were compressed, as JPEG files are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit import jpeg
from cam_callbacks.audit.inpainting import box_mean
from cam_callbacks.audit.interventions import limits_of_both

_ALIKE = 2  # qualities that differ by no more have nearly the same steps, and are read for each other


def recompressed(images: Tensor, _masks: Tensor, donors: Tensor, _donor_masks: Tensor) -> Tensor:
    """Give each image the traces of compression that its donor has, in all of it: most lie at the edges of the object.

    The quality of both is read from their pixels. The coefficients of the image's brightness are rounded to the steps
    of the donor's quality. If that is the better one, what the image has lost is filled in first: it is smoothed a
    little, as far as its own file would still be the same. Nothing else of the donor plays a part.

    An image stays as it is if both qualities are nearly the same, if neither has traces (none are left once an image is
    resized), or if it or its donor does not have 256 levels. None changes unless images have two dimensions, one
    channel or three (red, green, blue), and 24 pixels a side. No image influences another.

    Args:
        images: (n, C, *spatial), normalized in whatever way.
        donors: (n, C, *spatial), the donor of each image.
    """
    if not jpeg.is_readable(images):
        return images
    with torch.autocast(images.device.type, enabled=False):
        level, of_donors = jpeg.level_of(images), jpeg.level_of(donors)
        plain = jpeg.brightness(images, level)
        own, others = (_whole_blocks(each) for each in (plain, jpeg.brightness(donors, of_donors)))
        change = _recompressed(own, others)[..., : images.shape[2], : images.shape[3]] - plain
        changed = images + change.round() * level.view(*level.shape, 1, 1)  # of 256 levels again
    low, high = limits_of_both(images, donors)
    are_read = (level + of_donors).isfinite().all(dim=1).view(-1, 1, 1, 1)
    return torch.where(are_read, changed.clamp(low, high), images)


def _whole_blocks(values: Tensor) -> Tensor:
    """Return values (n, 1, H, W), continued at the right and below to whole blocks, as JPEG continues them."""
    height, width = values.shape[2:]
    return F.pad(values, (0, -width % jpeg.SIDE, 0, -height % jpeg.SIDE), mode="replicate")


def _recompressed(own: Tensor, others: Tensor) -> Tensor:
    """Return the brightness of images, (n, 1, H, W) in levels, with the quality of that of others."""
    size = (own.shape[2], own.shape[3])
    coefficients = jpeg.to_blocks(own)
    quality, wanted = jpeg.quality_of(coefficients), jpeg.quality_of(jpeg.to_blocks(others))
    half = jpeg.steps_of(quality).unsqueeze(1) / 2
    smooth = jpeg.to_blocks(box_mean(own, (1, 1)))
    restored = torch.minimum(torch.maximum(smooth, coefficients - half), coefficients + half)
    start = torch.where((wanted > quality).view(-1, 1, 1, 1), restored, coefficients)
    steps = jpeg.steps_of(wanted).unsqueeze(1)
    rounded = (start / steps).round() * steps
    rounded[..., 0, 0] = start[..., 0, 0]  # the mean, of which a constant is not known
    return torch.where(((wanted - quality).abs() <= _ALIKE).view(-1, 1, 1, 1), own, jpeg.from_blocks(rounded, size))
