"""The bootstrap: how sure a mean over images is."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_NUM_RESAMPLES = 1000
_LEVEL = 0.95


def bootstrap(values: Tensor) -> tuple[float, float]:
    """Return the percentile bootstrap 95% interval of the mean (Efron & Tibshirani 1993, chapter 13); NaN if empty.

    It draws from a generator of its own: the same values give the same interval, and no global generator is touched.

    Args:
        values: (n,), finite.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    means = _times_drawn(len(values)) @ values.double() / len(values)
    tail = (1 - _LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def mean_and_interval(values: Tensor) -> tuple[float, float, float]:
    """Return mean, and lower and upper end of its 95 % interval, over the values that are finite.

    The interval is that of `bootstrap`; NaN for fewer than two values.

    Args:
        values: (n,), one for each image.
    """
    known = values[values.isfinite()]
    interval = bootstrap(known) if len(known) > 1 else (torch.nan, torch.nan)
    return float(known.double().mean()), *interval


@lru_cache(maxsize=4)  # a look draws from as many values again and again
def _times_drawn(count: int) -> Tensor:
    """Return (1000, count) float64, how often each value is drawn in each of the resamples."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (_NUM_RESAMPLES, count), generator=generator)
    ones = torch.ones(1, dtype=torch.float64).expand(drawn.shape)
    return torch.zeros(drawn.shape, dtype=torch.float64).scatter_add(1, drawn, ones)
