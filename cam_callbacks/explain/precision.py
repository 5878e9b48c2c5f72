"""Precision: methods that read small differences of scores run the model in 32 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_NARROW = (torch.float16, torch.bfloat16)


class FullPrecision:
    """Copies in 32 bits of what a model holds in 16, to run it with; and autocast switched off around it.

    The model's own parameters stay untouched, in which others may have hooks: modules are given others meanwhile.

    Attributes:
        differs: Whether anything was narrow so far: weights, or autocast that was on.

    Args:
        model: The model.

    Raises:
        torch.OutOfMemoryError: There is no memory for the copies.
    """

    def __init__(self, model: nn.Module) -> None:
        copies: dict[Tensor, Tensor] = {}
        self._places: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.dtype in _NARROW:
                        if tensor not in copies:
                            wide = tensor.detach().float()
                            copies[tensor] = nn.Parameter(wide, False) if isinstance(tensor, nn.Parameter) else wide
                        self._places.append((held, name, tensor, copies[tensor]))
        self.differs = bool(self._places)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the model in full precision inside, wherever autocast was switched on around it."""
        token = _WANTED.set(self)
        try:
            for held, name, _, wide in self._places:
                held[name] = wide
            yield
        finally:
            for held, name, own, _ in self._places:
                held[name] = own
            _WANTED.reset(token)


_WANTED: ContextVar[FullPrecision | None] = ContextVar("full precision", default=None)


@contextmanager
def as_wanted(device_type: str) -> Iterator[None]:
    """Switch autocast off inside if full precision is on, and note that there was any."""
    wanted = _WANTED.get()
    if wanted is None or not torch.is_autocast_enabled(device_type):
        yield
        return
    wanted.differs = True
    with torch.autocast(device_type, enabled=False):
        yield


def rounding_of(values: Any) -> float:
    """Return the relative rounding of the numbers in a tensor, or in what a model returns."""
    types = [each.dtype for each in tree_leaves(values) if isinstance(each, Tensor)]
    return max((torch.finfo(each).eps for each in types if each.is_floating_point), default=0.0)
