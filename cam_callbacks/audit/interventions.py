"""Interventions: what becomes of the image when its background, its ring or its colors are exchanged.

Each exchange has two arms: a donor of the same class, and one of another class. What the exchange itself does to an
image - a pasted edge, a strange mixture - is the same in both and cancels in the difference (the BG-gap of Xiao et al.
2020, arXiv 2006.09994). Images stay as the model is fed them, normalized.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Donors:
    """For each of N images, whose background it is given.

    Attributes:
        same: (N,) int64, another image of the same class; -1 where there is none.
        other: (N,) int64, an image of another class; -1 where there is none.
    """

    same: Tensor
    other: Tensor

    @property
    def known(self) -> Tensor:
        """(N,) bool, whether an image has both."""
        return (self.same >= 0) & (self.other >= 0)


def choose_donors(labels: Tensor, usable: Tensor, fingerprint: str) -> Donors:
    """Choose donors, the same ones for the same images.

    Within a class every image gives once. To a class the others give by turns, in an order drawn for it, and within
    each of them all images in turn.

    Args:
        labels: (N,) classes.
        usable: (N,) bool, which images have a background to give.
        fingerprint: Of the images, as hexadecimal digits: it seeds the choice.
    """
    generator = torch.Generator().manual_seed(int(fingerprint[:15], 16))
    count = len(labels)
    same, other = torch.full((count,), -1), torch.full((count,), -1)
    classes = sorted(set(labels.tolist()))
    members = {c: ((labels == c) & usable).nonzero().flatten() for c in classes}
    members = {c: part[torch.randperm(len(part), generator=generator)] for c, part in members.items()}
    given = dict.fromkeys(classes, 0)
    for c in classes:
        own = members[c]
        if len(own) > 1:
            same[own] = own.roll(1)
        givers = [other for other in classes if other != c and len(members[other])]
        order = torch.randperm(len(givers), generator=generator).tolist()
        for turn, image in enumerate(own.tolist() if givers else []):
            giver = givers[order[turn % len(givers)]]
            other[image] = members[giver][given[giver] % len(members[giver])]
            given[giver] += 1
    return Donors(same, other)


def fill(images: Tensor, where: Tensor) -> Tensor:
    """Images (N, C, *spatial) with the positions (N, *spatial) bool replaced by the mean color of the others."""
    weights = (~where).unsqueeze(1).float()
    space = tuple(range(2, images.ndim))
    mean = (images * weights).sum(dim=space, keepdim=True) / weights.sum(dim=space, keepdim=True).clamp_min(1)
    return torch.where(where.unsqueeze(1), mean, images)


def with_background_of(images: Tensor, masks: Tensor, donor: Tensor) -> Tensor:
    """Each object (masks (N, *spatial) bool) before the background of its donor (N,), the donor's own object filled."""
    backgrounds = fill(images, masks)[donor]
    return torch.where(masks.unsqueeze(1), images, backgrounds)


def with_ring_of(images: Tensor, inside: Tensor, donor: Tensor) -> Tensor:
    """Each image with the outer ring of its donor (N,); `inside` (N, *spatial) bool is what it keeps."""
    return torch.where(inside.unsqueeze(1), images, images[donor])


def with_colors_of(images: Tensor, masks: Tensor, donor: Tensor) -> Tensor:
    """Each image with its own background, whose color statistics are moved to those of its donor's background.

    The mean and the spread of each channel over the background become the donor's (Reinhard et al. 2001); values stay
    in the range that the images have. No content is pasted, so that nothing of the donor's object can leak.
    """
    mean, spread = _background_color(images, masks)
    moved = (images - mean) / spread * spread[donor] + mean[donor]
    every = tuple(i for i in range(images.ndim) if i != 1)
    low, high = images.amin(dim=every, keepdim=True), images.amax(dim=every, keepdim=True)
    return torch.where(masks.unsqueeze(1), images, moved.clamp(low, high))


def _background_color(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the background, (N, C, 1, ...)."""
    weights = (~masks).unsqueeze(1).float()
    space = tuple(range(2, images.ndim))
    total = weights.sum(dim=space, keepdim=True).clamp_min(1)
    mean = (images * weights).sum(dim=space, keepdim=True) / total
    variance = ((images - mean).square() * weights).sum(dim=space, keepdim=True) / total
    return mean, variance.sqrt().clamp_min(1e-3)


def mean_color(images: Tensor, where: Tensor) -> Tensor:
    """(N, C) mean of each channel over the positions (N, *spatial) bool."""
    weights = where.unsqueeze(1).float()
    space = tuple(range(2, images.ndim))
    return (images * weights).sum(dim=space) / weights.sum(dim=space).clamp_min(1)


def color_auc(colors: Tensor, labels: Tensor) -> Tensor:
    """How well a color tells each image's class from the others.

    For each class a ridge regression of "is of this class" on the color. An image's value is the share of the images
    of other classes that are judged less likely to be of its class, each pair judged by a regression that has seen
    neither (leave pair out, Airola et al. 2011): their mean over a class is the area under the ROC curve. Chance is
    0.5.

    Args:
        colors: (N, C).
        labels: (N,) classes.

    Returns:
        (N,) float32 in [0, 1].
    """
    spread = colors.std(dim=0).clamp_min(1e-6)
    design = torch.cat([torch.ones(len(colors), 1), (colors - colors.mean(dim=0)) / spread], dim=1).double()
    gram = design.T @ design + torch.eye(design.shape[1], dtype=torch.float64)
    hat = design @ torch.linalg.solve(gram, design.T)
    unseen = 1 - hat.diagonal()
    values = torch.full((len(labels),), torch.nan)
    for c in set(labels.tolist()):
        own = labels == c
        wanted = own.double()
        residual = wanted - hat @ wanted
        # Of each pair of an image of the class (rows) and another one (columns): the residuals without these two.
        a, b, both = unseen[own].unsqueeze(1), unseen[~own].unsqueeze(0), hat[own][:, ~own]
        r, s = residual[own].unsqueeze(1), residual[~own].unsqueeze(0)
        lead = 1 - ((b - both) * r - (a - both) * s) / (a * b - both.square())
        values[own] = ((lead > 1e-9).float() + 0.5 * (lead.abs() <= 1e-9).float()).mean(dim=1)
    return values


def on_gray(images: Tensor, masks: Tensor) -> Tensor:
    """The objects alone, before the mean color of all images."""
    every = tuple(i for i in range(images.ndim) if i != 1)
    return torch.where(masks.unsqueeze(1), images, images.mean(dim=every, keepdim=True))


def ring(size: torch.Size | tuple[int, ...]) -> Tensor:
    """(*size) bool, True on the outer ring, an eighth of the side wide; it covers 44 % of a square image."""
    inside = torch.zeros(*size, dtype=torch.bool)
    widths = [max(1, side // 8) for side in size]
    inside[tuple(slice(width, side - width) for width, side in zip(widths, size, strict=True))] = True
    return ~inside


def roll_colors(images: Tensor) -> Tensor:
    """Red becomes green, green blue, blue red."""
    return images.roll(1, dims=1)


def gray(images: Tensor) -> Tensor:
    """The mean of the channels in each of them."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def brighter(images: Tensor) -> Tensor:
    """A placebo for the changes of color: a little brighter, by a tenth of the range of all images."""
    return images + 0.1 * (images.max() - images.min())
