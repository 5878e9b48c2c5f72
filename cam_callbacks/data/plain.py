"""Values of batches as plain tensors, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor of a subclass (MONAI's MetaTensor, torchvision's Image) as the plain tensor that it holds."""
    if type(tensor) is Tensor:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():  # the subclass may have an idea of its own of any call, also of this
        return tensor.as_subclass(Tensor)


def as_numbers(values: Any) -> Tensor | None:
    """Return numbers in any container as one plain tensor; None if they are not, or not all of one shape.

    Args:
        values: A tensor; a NumPy array; a list or tuple of numbers, or of tensors or arrays of one shape.
    """
    if isinstance(values, Tensor):
        return plain(values)
    if isinstance(values, (np.ndarray, np.generic)):
        is_numeric = values.dtype.kind in "biuf"
        return torch.from_numpy(np.array(values)) if is_numeric and values.dtype.itemsize <= 8 else None
    if isinstance(values, Number):
        return None if isinstance(values, complex) else torch.tensor(values)
    if not isinstance(values, (list, tuple)) or not values:
        return None
    parts = [as_numbers(value) for value in values]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.shape for part in known}) > 1:
        return None
    return torch.stack([part.to(known[0].device) for part in known])


def describe(value: Any, depth: int = 3) -> str:
    """Describe the type of a value and its shape or parts: `tuple(Tensor float32 (8, 3, 64, 64), str)`."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        value = plain(value)
        return f"{kind} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{kind} {value.dtype} {value.shape}"
    if depth == 0 or isinstance(value, str):
        return kind
    if isinstance(value, Mapping):
        return f"{kind}({', '.join(f'{key!r}: {describe(part, depth - 1)}' for key, part in list(value.items())[:8])})"
    if is_dataclass(value):
        parts = [f"{field.name}={describe(getattr(value, field.name, None), depth - 1)}" for field in fields(value)[:8]]
        return f"{kind}({', '.join(parts)})"
    if isinstance(value, Sequence):
        parts = [describe(part, depth - 1) for part in value[:8]]
        if len(value) > 2 and len(set(parts)) == 1:
            return f"{kind} of {len(value)} {parts[0]}"
        return f"{kind}({', '.join(parts)})"
    return kind
