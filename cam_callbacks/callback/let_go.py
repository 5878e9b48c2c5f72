"""Exchanges that return only when no thread of PyTorch holds their tensors any more."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PATIENCE = 1.0
"""Seconds after which an exchange returns all the same. Later ones then wait no longer: this PyTorch keeps tensors."""
_PAUSE = 0.0005
"""Seconds between two looks whether the tensors are gone; the thread that is to let go of them can run meanwhile."""


class _Exchanged(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the tensors of collectives, without keeping them.

    Attributes:
        waits: Whether exchanges wait; not once one of them has waited in vain.
    """

    waits: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; if it is a collective, note its tensors."""
        if func.namespace == "c10d":
            self._tensors += [weakref.ref(each) for each in tree_leaves(args) if isinstance(each, Tensor)]
        return func(*args, **kwargs or {})

    def are_gone(self) -> bool:
        """Return whether all of the tensors have been deleted."""
        return all(each() is None for each in self._tensors)


@contextmanager
def letting_go() -> Iterator[None]:
    """Exchange inside, and leave when all tensors of the exchange are gone; nothing outside may hold them.

    A thread of gloo holds the tensors of a collective a little longer than the collective takes. As they are Python
    objects, it must not be the last to let go of them while Python shuts down: that aborts the process.
    See https://github.com/pytorch/pytorch/issues/190489. With other backends this does nothing.
    """
    has_ranks = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (_Exchanged.waits and has_ranks and torch.distributed.get_backend() == "gloo"):
        yield
        return
    exchanged = _Exchanged()
    with exchanged:
        yield
    end = time.monotonic() + _PATIENCE
    while not exchanged.are_gone():
        if time.monotonic() > end:
            _Exchanged.waits = False
            return
        time.sleep(_PAUSE)
