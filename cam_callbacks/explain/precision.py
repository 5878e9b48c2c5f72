"""Precision: methods that read small differences of scores run the model in 32 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

_NARROW = (torch.float16, torch.bfloat16)


@dataclass
class FullPrecision:
    """What full precision has changed.

    Attributes:
        differs: Whether weights were narrow, or autocast was on.
    """

    differs: bool = False


_WANTED: ContextVar[FullPrecision | None] = ContextVar("full precision", default=None)


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[FullPrecision]:
    """Run a model without autocast inside, wherever that was switched on, and hold weights of 16 bits in 32.

    On the way out the weights are the very tensors that they were.
    """
    narrow = [each for each in (*model.parameters(), *model.buffers()) if each.dtype in _NARROW]
    before = [each.data for each in narrow]
    state = FullPrecision(differs=bool(narrow))
    token = _WANTED.set(state)
    try:
        for each in narrow:
            each.data = each.data.float()
        yield state
    finally:
        _WANTED.reset(token)
        for each, data in zip(narrow, before, strict=True):
            each.data = data


@contextmanager
def as_wanted(device_type: str) -> Iterator[None]:
    """Switch autocast off inside if full precision is wanted."""
    state = _WANTED.get()
    if state is None or not torch.is_autocast_enabled(device_type):
        yield
        return
    state.differs = True
    with torch.autocast(device_type, enabled=False):
        yield


def rounding_of(output: Any) -> float:
    """Return the relative rounding of the numbers that a model returns."""
    types = [each.dtype for each in tree_leaves(output) if isinstance(each, torch.Tensor)]
    return max((torch.finfo(each).eps for each in types if each.is_floating_point), default=0.0)
