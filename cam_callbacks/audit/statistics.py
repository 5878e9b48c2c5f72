"""Estimates: a mean over images with an interval, how many images it stands on, and how many were left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations

import torch
from torch import Tensor

from cam_callbacks.audit.donors import Donors
from cam_callbacks.explain.resampling import bootstrap

_POINTS, _HALVINGS = 4001, 50  # of a numerical integral, and of a search
_LEVEL = 0.95
_Z = 1.959964  # of a normal distribution, two-sided at this level


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean; NaN without images.
        low: The lower bound of its 95% interval; NaN if it stands on fewer than two images.
        high: The upper bound of that interval.
        count: How many images it stands on.
        skipped: How many images were left out because the measure is not defined for them.
        chance: What a model that does not look at the object, or a map that says nothing, would get; None if there is
            no such level.
    """

    value: float
    low: float
    high: float
    count: int
    skipped: int = 0
    chance: float | None = None


@dataclass(frozen=True, eq=False)
class Measure:
    """A measure of all images, and of each class.

    Attributes:
        overall: The mean over all images that count for all classes together.
        per_class: The mean over the images of each class, by its index.
        values: (N,) float32, the value of each image; NaN if it is not defined.
        labels: (N,) int64, the class of each image.
        by_donor: (N, K) float32, the values of each image with each of its donors, of which `values` are the means;
            None if it has none.
    """

    overall: Estimate
    per_class: dict[int, Estimate]
    values: Tensor
    labels: Tensor
    by_donor: Tensor | None = None

    def values_of(self, index: int) -> Tensor:
        """Return (n,) the values of the images of a class."""
        return self.values[self.labels == index]


def measure(
    values: Tensor,
    labels: Tensor,
    chance: Tensor | float | None = None,
    donors: Donors | None = None,
    *,
    counts: Tensor | None = None,
    limit: float = 1.0,
) -> Measure:
    """Summarize one number for each image, or one for each of its donors.

    Args:
        values: (N,), or with each of K donors (N, K); NaN if the measure is not defined for an image.
        labels: (N,) the classes.
        chance: The chance level: (N,), of which the mean over the same images is taken; one for all; or None.
        donors: The images that gave each image its background, K or more of each kind; values of images that share one
            depend on each other. Needed for values of shape (N, K), else not used.
        counts: (N,) bool, which images count for all classes together; None for all.
        limit: How far from 0 values with donors are at most.
    """
    values, labels = values.detach().float().cpu(), labels.cpu()
    donors = None if donors is None or values.ndim == 1 else donors.first(values.shape[1])
    chance = chance.detach().float().cpu() if isinstance(chance, Tensor) else chance

    def of(members: Tensor) -> Estimate:
        of_these = chance[members] if isinstance(chance, Tensor) else chance
        return _estimate(values[members], of_these, None if donors is None else donors.of(members), limit)

    per_class = {index: of(labels == index) for index in sorted(set(labels.tolist()))}
    overall = of(torch.ones_like(labels, dtype=torch.bool) if counts is None else counts)
    if donors is None:
        return Measure(overall, per_class, values, labels)
    return Measure(overall, per_class, values.mean(dim=1), labels, by_donor=values)


def _estimate(values: Tensor, chance: Tensor | float | None, donors: Donors | None, limit: float) -> Estimate:
    known = ~values.reshape(len(values), -1).isnan().any(dim=1)
    low, high = math.nan, math.nan
    if known.sum() > 1:
        low, high = bootstrap(values[known]) if donors is None else _interval(values[known], donors.of(known), limit)
    if isinstance(chance, Tensor):
        chance = chance[known].nanmean()
    return Estimate(
        value=float(values[known].mean()),
        low=low,
        high=high,
        count=int(known.sum()),
        skipped=int((~known).sum()),
        chance=None if chance is None else float(chance),
    )


def _interval(values: Tensor, donors: Donors, limit: float) -> tuple[float, float]:
    """Return the 95% interval of the mean of values (n, K), within a limit, of images that share donors."""
    mean = values.double().mean()
    residuals = ((values.double() - mean) / values.numel()).flatten()
    images = torch.arange(len(values)).repeat_interleave(values.shape[1])
    kinds = (images, donors.same.flatten(), donors.other.flatten())
    freedom = max(min(len(set(each.tolist())) for each in kinds) - 1, 1)
    half = student_t_quantile((1 - _LEVEL) / 2, freedom) * standard_error(residuals, kinds)
    return max(float(mean) - half, -limit), min(float(mean) + half, limit)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927): it stays within [0, 1], also for few cases."""
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    center = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


def standard_error(residuals: Tensor, clusters: Sequence[Tensor]) -> float:
    """Return the standard error of a sum of numbers that depend on each other within clusters of several kinds.

    The variances that each kind of clusters gives are added, those that two kinds give together are taken off, and so
    on (Cameron, Gelbach & Miller 2011, doi 10.1198/jbes.2010.07136, equation 2.13). It is at least what the first kind
    alone gives.

    Args:
        residuals: (n,) float64, each number minus its mean, times its weight in the sum.
        clusters: Of each kind (n,) int64, the cluster that a number is in.
    """
    variance = 0.0
    for size in range(1, len(clusters) + 1):
        for kinds in combinations(clusters, size):
            variance -= (-1) ** size * _variance(residuals, reduce(_intersection, kinds))
    return math.sqrt(max(variance, _variance(residuals, clusters[0])))


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return (n,) clusters of the numbers that are together in both kinds."""
    second = second - second.min()
    return _numbered(first) * (second.max() + 1) + second


def _numbered(clusters: Tensor) -> Tensor:
    """Return (n,) the same clusters, numbered from 0 without gaps."""
    numbers: Tensor = torch.unique(clusters, return_inverse=True)[1]
    return numbers


def _variance(residuals: Tensor, clusters: Tensor) -> float:
    """Return the variance of a sum of numbers that depend on each other within clusters (n,)."""
    sums = torch.bincount(_numbered(clusters), weights=residuals)
    return float(sums.square().sum()) * len(sums) / max(len(sums) - 1, 1)


def student_t_tail(value: float, freedom: int) -> float:
    """Return the probability that Student's t with so many degrees of freedom is at least a value.

    With t = sqrt(freedom) tan(a) its density is proportional to cos(a) to the power of freedom - 1, which is integrated
    numerically.
    """
    if value < 0:
        return 1 - student_t_tail(-value, freedom)
    start = math.atan(value / math.sqrt(freedom))
    whole, tail = (_area_of_power_of_cosine(first, freedom - 1) for first in (0.0, start))
    return 0.5 * tail / whole


def _area_of_power_of_cosine(first: float, power: int) -> float:
    angles = torch.linspace(first, math.pi / 2, _POINTS, dtype=torch.float64)
    return float(torch.trapezoid(angles.cos().clamp_min(0) ** power, angles))


@cache
def student_t_quantile(tail: float, freedom: int) -> float:
    """Return the value above which Student's t lies with the probability `tail`, in (0, 0.5)."""
    low, high = 0.0, 1.0
    while student_t_tail(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_tail(middle, freedom) > tail else (low, middle)
    return high
