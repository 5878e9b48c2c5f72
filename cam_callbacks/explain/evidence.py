"""The weight of evidence: how far parts of something change the log-odds of a class (Good 1950)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDINGS = 4  # that add up in a difference of scores
_NEGLIGIBLE = 1e-6  # relative to scores


def evidence(
    alone: Tensor, nothing: Tensor, without: Tensor, everything: Tensor, rounding: float, unit: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return what M parts say for a class: each on its own, and each by what is lost without it.

    The two sides are scaled to the mean of their sizes, and added. Where nothing at all has no finite score, as in a
    model that divides by its features, only what is lost counts.

    Args:
        alone: (N, M, T), the scores of each part alone.
        nothing: (N, 1, T), the scores where no part is there.
        without: (N, M, T), the scores where each part is missing.
        everything: (N, M, T), the scores of all parts together.
        rounding: The relative rounding of scores.
        unit: (N, 1, 1), the size of the numbers that scores were made from, if that is larger than theirs.

    Returns:
        The evidence (N, M, T), at least 0; and (N, T), by how much its Pearson correlation with that of unrounded
        scores may be below 1.
    """
    scores = torch.cat([alone, nothing, without, everything], dim=1)
    largest = scores.nan_to_num(0, 0, 0).abs().amax(dim=1, keepdim=True)
    said, lost = (alone - nothing).nan_to_num(0, 0, 0), everything - without
    return _added([said, lost], _ROUNDINGS * rounding * largest.clamp_min(unit), _NEGLIGIBLE * largest)


def _added(sides: Sequence[Tensor], noise: Tensor, negligible: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `evidence` does.

    Args:
        sides: Of each, the changes of scores (N, M, T).
        noise: (N, 1, T), the rounding of changes. A side of which nothing exceeds it counts as 0.
        negligible: (N, 1, T), up to which it makes no difference that a side is lost in noise.
    """
    total, variance, sizes = torch.zeros_like(sides[0]), torch.zeros_like(noise), []
    for changes in sides:
        positive = changes.relu()
        largest = positive.amax(dim=1, keepdim=True)
        scale = largest.clamp_min(torch.finfo(largest.dtype).tiny)  # so that no square is too large or too small
        size = (positive / scale).square().mean(dim=1, keepdim=True).sqrt() * scale
        is_lost = largest <= noise
        is_missed = is_lost & (largest > negligible)
        total = total + torch.where(is_lost, 0, positive / size)
        variance = variance + torch.where(is_lost, is_missed.to(size), (noise / size).square())
        sizes.append(torch.where(is_lost, 0, size))
    spread = total.var(dim=1, correction=0, keepdim=True)
    error = torch.where(spread > 0, 1 - (1 + variance / spread).rsqrt(), (variance > 0).to(spread))
    return total * torch.stack(sizes).mean(dim=0), error.squeeze(1)
