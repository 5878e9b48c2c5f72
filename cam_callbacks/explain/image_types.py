"""Changed images, such as masked ones, in the type that the model is fed."""

from __future__ import annotations

import torch
from torch import Tensor


def in_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating point values in another type; for whole numbers rounded, and within what the type can hold."""
    if dtype == values.dtype:
        return values
    if dtype.is_floating_point:
        return values.to(dtype)
    if dtype == torch.bool:
        return values > 0.5
    limits = torch.iinfo(dtype)
    return values.round().clamp(limits.min, limits.max).to(dtype)
