"""Interventions: exchange or change the background, the ring, or the colors of images.

Each exchange has two arms: a donor of the same class, and one of another class (the BG-gap of Xiao et al. 2020, arXiv
2006.09994). A pasted edge and a strange mixture are in both, and cancel in the difference. The place of the donor's
object does not, if it shows: its outline tells the donor's class. So it is inpainted, and what still shows is measured
by a placebo, `with_trace_of`. Images stay as the model is fed them, normalized. Masks are bool, True on the object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.inpainting import box_mean, grown, inpaint, resized

_RING_WIDTH = 8  # the ring is an eighth of the side wide
_MIN_SPREAD = 1e-3  # of the range of a channel, to divide by
_ROUNDING = 1e-6  # of a color: two that differ by less are the same
_TINY = torch.finfo(torch.float32).tiny
_BRIGHTER = 0.1  # of the range of all images
_BLUR = 0.2  # of the side: the width of the box of a blur, which is applied twice
_BLURRED_SIDE = 64  # positions: such a blur does not need more


def mean_color(images: Tensor, where: Tensor) -> Tensor:
    """Return the mean of each channel over the positions (N, *spatial) bool of images (N, C, *spatial): (N, C).

    It is summed in double precision: else rounding would tell how many positions there are.
    """
    return _mean_over(images, where, torch.float64).flatten(1).float()


def _mean_over(images: Tensor, where: Tensor, summed_as: torch.dtype = torch.float32) -> Tensor:
    """Return the mean of each channel over the positions, (N, C, 1, ...); 0 if there are none."""
    weights, space = where.unsqueeze(1).float(), tuple(range(2, images.ndim))
    total, count = (each.sum(dim=space, keepdim=True, dtype=summed_as) for each in (images * weights, weights))
    return total / count.clamp_min(1)


def fill(images: Tensor, where: Tensor) -> Tensor:
    """Fill the positions (N, *spatial) bool of images (N, C, *spatial) with the mean color of the other positions."""
    return torch.where(where.unsqueeze(1), _mean_over(images, ~where), images)


def before(backgrounds: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Put the objects of images (n, C, *spatial), at their masks (n, *spatial), before backgrounds (n, C, *spatial).

    The edges are hard: soft ones would change small objects more.
    """
    return torch.where(masks.unsqueeze(1), images, backgrounds)


def without_object(images: Tensor, masks: Tensor) -> Tensor:
    """Inpaint the objects of images (n, C, *spatial), and a little around their masks (n, *spatial)."""
    return inpaint(images, grown(masks))


def with_trace_of(images: Tensor, masks: Tensor, donor_masks: Tensor) -> Tensor:
    """Give each image the trace that the object of its donor leaves in an exchange, and nothing else of it.

    Its own background stays. Where the donor's object would be, it is inpainted, as the donor's background is in an
    exchange. If that hides all of its background, the mean color of the background fills it.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial).
        donor_masks: (n, *spatial).
    """
    trace = grown(donor_masks)
    hole = trace | grown(masks)  # the own object, which hides a part of it, does not color it
    is_all = hole.flatten(1).all(dim=1).view(-1, *[1] * (images.ndim - 1))
    without = torch.where(is_all, _mean_over(images, ~masks), inpaint(images, hole))
    return before(torch.where(trace.unsqueeze(1), without, images), images, masks)


def blurred(images: Tensor) -> Tensor:
    """Blur images (n, C, *spatial) so much that no shape is left, by a box applied twice; at 64 positions a side."""
    size = images.shape[2:]
    found = F.interpolate(images, [min(side, _BLURRED_SIDE) for side in size], mode="area")
    for _ in range(2):
        found = box_mean(found, [round(_BLUR * side / 2) for side in found.shape[2:]])
    return resized(found, size)


def with_ring_of(images: Tensor, inside: Tensor, donors: Tensor) -> Tensor:
    """Give each image (n, C, *spatial) the outer ring of its donor; `inside` (n, *spatial) bool is what it keeps."""
    return torch.where(inside.unsqueeze(1), images, donors)


def with_colors_of(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor, limits: Tensor) -> Tensor:
    """Move the color statistics of each background to those of its donor's background.

    The mean and the spread of each channel over the background become the donor's (Reinhard et al. 2001); values stay
    within the limits. No content is pasted, so that nothing of the donor's object can leak.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial).
        donors: (n, C, *spatial), the donor of each image.
        donor_masks: (n, *spatial).
        limits: (2, 1, C, 1, ...), the smallest and the largest value of each channel: `value_range`.
    """
    low, high = limits.to(images.device)
    least = (_MIN_SPREAD * (high - low)).clamp_min(_TINY)
    mean, spread = _background_color(images, masks, least)
    donor_mean, donor_spread = _background_color(donors, donor_masks, least)
    moved = (images - mean) / spread * donor_spread + donor_mean
    return torch.where(masks.unsqueeze(1), images, moved.clamp(low, high))


def _background_color(images: Tensor, masks: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, at least `least`, of each channel over the background, (n, C, 1, ...)."""
    outside = ~masks
    mean = _mean_over(images, outside)
    variance = _mean_over((images - mean).square(), outside)
    return mean, variance.sqrt().clamp_min(least)


def value_range(images: Tensor) -> Tensor:
    """Return the smallest and the largest value of each channel over all images: (2, 1, C, 1, ...)."""
    low, high = torch.aminmax(images.flatten(2), dim=2)  # (N, C)
    return torch.stack([low.amin(dim=0), high.amax(dim=0)]).view(2, 1, -1, *[1] * (images.ndim - 2))


def limits_of_both(images: Tensor, donors: Tensor) -> Tensor:
    """Return the smallest and the largest value of each channel over an image and its donor: (2, n, C, 1, ...)."""
    both = torch.cat([images.flatten(2), donors.flatten(2)], dim=2)
    return torch.stack(torch.aminmax(both, dim=2)).view(2, *images.shape[:2], *[1] * (images.ndim - 2))


def mean_color_of_all(images: Tensor) -> Tensor:
    """Return the mean of each channel over all images, (1, C, 1, ...)."""
    return images.mean(dim=_all_but_channels(images), keepdim=True)


def _all_but_channels(images: Tensor) -> tuple[int, ...]:
    return (0, *range(2, images.ndim))


def on_color(images: Tensor, masks: Tensor, color: Tensor) -> Tensor:
    """Put the objects alone before a color (1, C, 1, ...)."""
    return torch.where(masks.unsqueeze(1), images, color)


def ring(size: torch.Size | tuple[int, ...]) -> Tensor:
    """Return the outer ring of an image, (*size) bool: an eighth of the side wide, 44% of a square image.

    Along an axis of fewer than 8 positions, such as rows that are sensors, there is none.
    """
    inside = torch.zeros(*size, dtype=torch.bool)
    widths = [side // _RING_WIDTH for side in size]
    inside[tuple(slice(width, side - width) for width, side in zip(widths, size, strict=True))] = True
    return ~inside


def roll_colors(images: Tensor) -> Tensor:
    """Make red green, green blue, and blue red."""
    return images.roll(1, dims=1)


def gray(images: Tensor) -> Tensor:
    """Put the mean of the channels into each of them."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def brighter(images: Tensor, limits: Tensor) -> Tensor:
    """Brighten images by a tenth of the range of all images (`value_range`): a placebo for the changes of color."""
    return images + _BRIGHTER * (limits[1].max() - limits[0].min())


def color_auc(colors: Tensor, labels: Tensor) -> Tensor:
    """Measure how well a color tells the class of each image from the others.

    For each class a ridge regression of "is of this class" on the color. An image's value is the share of the images
    of other classes that are judged less likely to be of its class, each pair judged by a regression that has seen
    neither (leave pair out, Airola et al. 2011): their mean over a class is the area under the ROC curve. Chance is
    0.5.

    Args:
        colors: (N, C).
        labels: (N,) the classes.

    Returns:
        (N,) float32 in [0, 1].
    """
    spread = colors.std(dim=0).clamp_min(_ROUNDING * colors.abs().amax(dim=0)).clamp_min(_TINY)
    standardized = ((colors - colors.mean(dim=0)) / spread).double()
    design = torch.cat([torch.ones(len(colors), 1, dtype=torch.float64), standardized], dim=1)
    gram = design.T @ design + torch.eye(design.shape[1], dtype=torch.float64)
    hat = design @ torch.linalg.solve(gram, design.T)
    unseen = 1 - hat.diagonal()
    values = torch.full((len(labels),), torch.nan, dtype=torch.float32)
    for c in set(labels.tolist()):
        own = labels == c
        is_own = own.double()
        residual = is_own - hat @ is_own
        # For each pair of an image of the class (rows) and another one (columns): the residuals without these two.
        a, b, both = unseen[own].unsqueeze(1), unseen[~own].unsqueeze(0), hat[own][:, ~own]
        r, s = residual[own].unsqueeze(1), residual[~own].unsqueeze(0)
        lead = 1 - ((b - both) * r - (a - both) * s) / (a * b - both.square())
        values[own] = ((lead > 1e-9).float() + 0.5 * (lead.abs() <= 1e-9).float()).mean(dim=1)
    return values
