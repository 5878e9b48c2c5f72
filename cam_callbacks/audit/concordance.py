"""Concordance: how far numbers order images as what is true of them does, and how far they do so by chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PERMUTATIONS = 1999
_SEED = 0
_FEW_IMAGES, _VALUES = 256, 2**20  # whose permutations are kept; of permutations, at once
_TINY = 1e-12
_DIGITS = 1e6  # values that differ by less, relative to the largest, are equal


@dataclass(frozen=True)
class Concordance:
    """How far numbers order images as T things do that are true of them.

    Attributes:
        areas: (T,) within [0, 1]: of two images, how often the one with the larger truth has the larger number. Pairs
            count by how many ranks their truths are apart, and half if their numbers are equal; those of equal truths
            do not count.
        chance: (T,) how far from 0.5 that is on average over permuted images.
        sureness: (T,) how far from 0.5 it is, in standard deviations over permuted images.
        by_chance: (permutations,) the largest sureness of any of the T.
    """

    areas: Tensor
    chance: Tensor
    sureness: Tensor
    by_chance: Tensor


def concordance(values: Tensor, truths: Tensor) -> Concordance:
    """Measure how far values order images as each of some truths does.

    Of a truth that is 0 or 1 the area is that under the ROC curve (Mann & Whitney 1947); of numbers that all differ it
    is (1 + r) / 2, r Spearman's rank correlation (1904). Both are linear in the ranks of the values, 0.5 more than
    half the slope of these on the ranks of the truths, so that all permutations are one product of matrices.

    Args:
        values: (n,) numbers; those that differ by rounding are equal.
        truths: (n, T), each of which takes two values at least.
    """
    ranks = _ranks((values.double() / values.abs().max().clamp_min(_TINY) * _DIGITS).round())
    centered = torch.stack([_ranks(truth) for truth in truths.unbind(dim=1)], dim=1) - (len(ranks) + 1) / 2
    halves = centered / (2 * centered.square().sum(dim=0))  # half of a slope is the product of these with ranks
    spread = (ranks.std() * halves.norm(dim=0)).clamp_min(_TINY)
    true, found = ranks @ halves, torch.cat([ranks[orders] @ halves for orders in _orders(len(ranks))])
    return Concordance(
        areas=0.5 + true,
        chance=found.abs().mean(dim=0),
        sureness=true.abs() / spread,
        by_chance=(found.abs() / spread).amax(dim=1),
    )


def _orders(count: int) -> Iterator[Tensor]:
    """Yield random orders, always the same, (a part of the permutations, `count`)."""
    if count <= _FEW_IMAGES:
        yield _orders_of_few(count)
        return
    draw, step = torch.Generator().manual_seed(_SEED), max(1, _VALUES // count)
    for start in range(0, PERMUTATIONS, step):
        yield torch.rand(min(step, PERMUTATIONS - start), count, generator=draw).argsort(dim=1)


@lru_cache(maxsize=4)  # of all images, of those with a background, and of those whose numbers are known
def _orders_of_few(count: int) -> Tensor:
    return torch.rand(PERMUTATIONS, count, generator=torch.Generator().manual_seed(_SEED)).argsort(dim=1)


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks (n,) from 1, of equal values their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    last = counts.cumsum(0)
    found: Tensor = (last - (counts - 1) / 2)[place].double()
    return found
