"""What a look leaves behind in a run: the state right before the monitor, and right after it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from states import state_of
from torch import Tensor, nn


class Witness(Callback):
    """Keeps the state of the module at the end of each batch of a validation or a test."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        return f"Witness {id(self)}"

    def on_validation_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        self.states.append(state_of(pl_module))

    on_test_batch_end = on_validation_batch_end


def around(callback: Callback) -> tuple[list[Callback], Witness, Witness]:
    """The callbacks of a run in which one witness is asked right before the callback, and another right after it."""
    before, after = Witness(), Witness()
    return [before, callback, after], before, after


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for mine, theirs in zip(a, b, strict=True):
            assert_equal(mine, theirs)
    else:
        assert a == b
