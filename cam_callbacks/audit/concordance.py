"""Concordance: how far numbers order images as what is true of them does, and how far they do so by chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

PERMUTATIONS = 1999
_SEED = 0
_KEPT = 256  # images at most, of which the permutations are kept for the next audit
_VALUES = 2**22  # of permutations, at once
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


class Permutations:
    """Random orders of images, one for all that is told of them; of those in which something is not known, a part.

    So the largest sureness over several properties is that in the same permutation, also if each is known of others.
    """

    def __init__(self, count: int) -> None:
        self._orders = _kept_orders(count) if count <= _KEPT else _orders(count)
        self._last: tuple[Tensor, Tensor] | None = None  # which images were known, and their orders

    def of(self, known: Tensor) -> Tensor:
        """Return the orders (permutations, n) of the n images that are known (N,), by their place among these."""
        if known.all():
            return self._orders
        if self._last is None or not torch.equal(self._last[0], known):
            place = known.cumsum(dim=0) - 1
            self._last = known, place[self._orders[known[self._orders]]].view(PERMUTATIONS, -1)
        return self._last[1]


def concordance(values: Tensor, truths: Tensor, orders: Tensor | None = None) -> Concordance:
    """Measure how far values order images as each of some truths does.

    Of a truth that is 0 or 1 the area is that under the ROC curve (Mann & Whitney 1947); of numbers that all differ it
    is (1 + r) / 2, r Spearman's rank correlation (1904). Both are linear in the ranks of the values, 0.5 more than
    half the slope of these on the ranks of the truths, so that all permutations are one product of matrices.

    Args:
        values: (n,) numbers; those that differ by rounding are equal.
        truths: (n, T), each of which takes two values at least.
        orders: (permutations, n); random ones if not given.
    """
    ranks = _ranks((values.double() / values.abs().max().clamp_min(_TINY) * _DIGITS).round())
    ranks = ranks - (len(ranks) + 1) / 2
    centered = torch.stack([_ranks(truth) for truth in truths.unbind(dim=1)], dim=1) - (len(ranks) + 1) / 2
    halves = centered / (2 * centered.square().sum(dim=0))  # half of a slope is the product of these with ranks
    spread = (ranks.std() * halves.norm(dim=0)).clamp_min(_TINY)
    orders = Permutations(len(ranks)).of(torch.ones(len(ranks), dtype=torch.bool)) if orders is None else orders
    true, single, chance, by_chance = ranks @ halves, (halves / spread).float(), 0.0, []
    for some in torch.split(orders, max(1, _VALUES // max(truths.shape))):
        found = (ranks.float()[some] @ single).abs()
        chance = chance + found.sum(dim=0)
        by_chance.append(found.amax(dim=1))
    return Concordance(
        areas=0.5 + true,
        chance=chance / PERMUTATIONS * spread,
        sureness=true.abs() / spread,
        by_chance=torch.cat(by_chance).double(),
    )


def _orders(count: int) -> Tensor:
    """Return random orders, always the same, (permutations, count)."""
    return torch.rand(PERMUTATIONS, count, generator=torch.Generator().manual_seed(_SEED)).argsort(dim=1)


_kept_orders = lru_cache(maxsize=4)(_orders)


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks (n,) from 1, of equal values their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    last = counts.cumsum(0)
    found: Tensor = (last - (counts - 1) / 2)[place].double()
    return found
