"""What could be left of a look: the state of a module and of the process, in values that compare with `==`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def as_bytes(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def state_of(module: nn.Module) -> dict[str, Any]:
    """All that a look could change."""
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - the global generator is meant
    parts = dict(module.named_modules())
    return {
        "train flags": {name: part.training for name, part in parts.items()},
        "hooks": {name: [list(getattr(part, hooks) or ()) for hooks in HOOKS] for name, part in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
        "weights and buffers": {name: as_bytes(tensor) for name, tensor in module.state_dict().items()},
        "gradients": {name: as_bytes(parameter.grad) for name, parameter in module.named_parameters()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        "generator of torch": as_bytes(torch.get_rng_state()),
        "generator of NumPy": (numpy_state["key"].tolist(), numpy_state["pos"]),
        "generator of Python": random.getstate(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "settings": (torch.get_default_dtype(), torch.get_num_threads(), torch.backends.cudnn.benchmark),
    }


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
