"""Estimates: a mean over images with an interval, how many images it stands on, and how many were left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean; NaN without images.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
        count: How many images it stands on.
        skipped: How many were left out, because the measure is not defined for them.
        chance: What a model that does not look at the object, or a map that says nothing, would get; None where there
            is no such level.
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
        overall: Of all images.
        per_class: By class index.
        values: (N,) float32, of each image; NaN where it is not defined.
        labels: (N,) int64, its class.
    """

    overall: Estimate
    per_class: dict[int, Estimate]
    values: Tensor
    labels: Tensor

    def values_of(self, index: int) -> Tensor:
        """(n,) the values of the images of a class."""
        return self.values[self.labels == index]


def measure(values: Tensor, labels: Tensor, chance: Tensor | float | None = None) -> Measure:
    """Summarize one number for each image.

    Args:
        values: (N,), NaN where the measure is not defined.
        labels: (N,) classes.
        chance: The chance level: (N,), of which the mean over the same images is taken; one for all; or none.
    """
    values = values.detach().float().cpu()
    levels = chance.detach().float().cpu() if isinstance(chance, Tensor) else chance

    def summed(chosen: Tensor) -> Estimate:
        part = values[chosen]
        known = part[~part.isnan()]
        low, high = bootstrap(known)
        level = levels[chosen][~part.isnan()].nanmean() if isinstance(levels, Tensor) else levels
        return Estimate(
            value=float(known.mean()),
            low=low,
            high=high,
            count=len(known),
            skipped=len(part) - len(known),
            chance=None if level is None else float(level),
        )

    classes = sorted(set(labels.tolist()))
    everything = torch.ones_like(values, dtype=torch.bool)
    labels = labels.cpu()
    return Measure(summed(everything), {c: summed(labels == c) for c in classes}, values, labels)


def bootstrap(values: Tensor, level: float = _LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13); NaN for no values.

    It draws from a generator of its own: the same values give the same interval, and no global generator is touched.

    Args:
        values: (n,), finite.
        level: Share of the intervals that are to hold the mean.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    means = resampled_means(values)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def resampled_means(values: Tensor) -> Tensor:
    """(1000,) means of values drawn again with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (_RESAMPLES, len(values)), generator=generator)
    return values.double()[drawn].mean(dim=1)


def share_of_means_up_to(bound: float, differences: Tensor) -> float:
    """The share of all bootstrap means that are at or below a bound, for values of -1, 0 and 1.

    Counted, not drawn: the sum of n draws is distributed as the n-fold convolution of one. So it may be as small as
    many comparisons at once need; a share of 1000 draws may not.

    Args:
        bound: The bound.
        differences: (n,), each -1, 0 or 1.

    Raises:
        ValueError: Other values.
    """
    if not bool(((differences == 0) | (differences.abs() == 1)).all()):
        raise ValueError("differences must each be -1, 0 or 1")
    count = len(differences)
    one = torch.stack([(differences == value).double().mean() for value in (-1, 0, 1)])
    sums = torch.fft.ifft(torch.fft.fft(one, 2 * count + 1) ** count).real.clamp_min(0)
    means = torch.arange(-count, count + 1, dtype=torch.float64) / count
    return float(sums[means <= bound].sum())


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): it stays within [0, 1], also for few cases."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    share = hits / count
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)
