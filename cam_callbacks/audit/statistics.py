"""Estimates: a mean over images with an interval, how many images it stands on, and how many were left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NUM_RESAMPLES = 1000
_LEVEL = 0.95
_Z = 1.959964  # of a normal distribution, two-sided at this level


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        value: The mean; NaN without images.
        low: The lower bound of its 95% interval.
        high: The upper bound of its 95% interval.
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
        overall: The mean over all images.
        per_class: The mean over the images of each class, by its index.
        values: (N,) float32, the value of each image; NaN if it is not defined.
        labels: (N,) int64, the class of each image.
    """

    overall: Estimate
    per_class: dict[int, Estimate]
    values: Tensor
    labels: Tensor

    def values_of(self, index: int) -> Tensor:
        """Return (n,) the values of the images of a class."""
        return self.values[self.labels == index]


def measure(values: Tensor, labels: Tensor, chance: Tensor | float | None = None) -> Measure:
    """Summarize one number for each image.

    Args:
        values: (N,), NaN if the measure is not defined for an image.
        labels: (N,) the classes.
        chance: The chance level: (N,), of which the mean over the same images is taken; one for all; or None.
    """
    values, labels = values.detach().float().cpu(), labels.cpu()
    chance = chance.detach().float().cpu() if isinstance(chance, Tensor) else chance
    per_class = {}
    for index in sorted(set(labels.tolist())):
        members = labels == index
        per_class[index] = _estimate(values[members], chance[members] if isinstance(chance, Tensor) else chance)
    return Measure(_estimate(values, chance), per_class, values, labels)


def _estimate(values: Tensor, chance: Tensor | float | None) -> Estimate:
    known = ~values.isnan()
    low, high = bootstrap(values[known])
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


def bootstrap(values: Tensor) -> tuple[float, float]:
    """Return the percentile bootstrap 95% interval of the mean (Efron & Tibshirani 1993, chapter 13); NaN if empty.

    It draws from a generator of its own: the same values give the same interval, and no global generator is touched.

    Args:
        values: (n,), finite.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    means = resampled_means(values)
    tail = (1 - _LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def resampled_means(values: Tensor) -> Tensor:
    """Return (1000,) means of values (n,) drawn again with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (_NUM_RESAMPLES, len(values)), generator=generator)
    return values.double()[drawn].mean(dim=1)


def share_of_means_up_to(bound: float, differences: Tensor) -> float:
    """Return the share of all bootstrap means that are at or below a bound, for values of -1, 0 and 1.

    The means are counted, not drawn: the sum of n draws is distributed as the n-fold convolution of one. So the share
    can be as small as many comparisons at once need, which a share of 1000 draws cannot.

    Args:
        bound: The largest mean that counts.
        differences: (n,), each -1, 0 or 1.

    Raises:
        ValueError: `differences` has other values.
    """
    if not bool(((differences == 0) | (differences.abs() == 1)).all()):
        raise ValueError("differences must each be -1, 0 or 1")
    count = len(differences)
    one = torch.stack([(differences == value).double().mean() for value in (-1, 0, 1)])
    sums = torch.fft.ifft(torch.fft.fft(one, 2 * count + 1) ** count).real.clamp_min(0)
    means = torch.arange(-count, count + 1, dtype=torch.float64) / count
    return float(sums[means <= bound].sum())


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927): it stays within [0, 1], also for few cases."""
    if count == 0:
        return 0.0, 1.0
    share = hits / count
    center = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)
