"""Run a model without leaving a trace: one context manager that puts everything back, also after an error."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, find it and the process outside as they were.

    Inside: every module is in eval mode, gradients are off, backward hooks of modules are silent, and compiled parts
        run eagerly, so that forward hooks fire and nothing is recompiled. On the way out, whatever happened: all that
        and the random number generators (Python, NumPy, torch on every device in use) are put back. Buffers that a
        model's own forward changes in eval mode stay changed.

    Gradients are off by `no_grad`, not by `inference_mode`, which is left where the caller is in it: a tensor that a
    model caches during its forward would become an inference tensor, and the next training step would fail on it.
    """
    training = [(module, module.training) for module in model.modules()]
    backward_hooks = [(module, module._backward_hooks, module._backward_pre_hooks) for module, _ in training]
    try:
        with (
            random_state_kept(),
            torch.compiler.set_stance("force_eager"),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            for module, _ in training:
                # Not .eval(): a model may have overridden it to do more than set the flag.
                module.training = False
                module._backward_hooks, module._backward_pre_hooks = OrderedDict(), OrderedDict()
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for module, hooks, pre_hooks in backward_hooks:
            module._backward_hooks, module._backward_pre_hooks = hooks, pre_hooks


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random number generators back on the way out."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global generator is what must be put back
    torch_state = torch.get_rng_state()
    cuda_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if cuda_used else None
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)
