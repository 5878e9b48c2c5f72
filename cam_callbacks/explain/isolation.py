"""Run a model without leaving a trace: one context manager that puts everything back, also after an error."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cam_callbacks._checks import check_type, is_kind

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_WATCHED: ContextVar[frozenset[int]] = ContextVar("models whose writings are watched already", default=frozenset())


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, find it and the process outside as they were.

    Inside: every module is in eval mode, gradients are off, backward hooks of modules are silent, and compiled parts
        run eagerly, so that forward hooks fire and nothing is recompiled. On the way out, whatever happened: all that
        and the random number generators (Python, NumPy, torch on every device in use) are put back; and, of what the
        model's own forward has written into its modules: buffers, the states of torchmetrics' metrics, and attributes
        that are numbers or tensors. What it writes elsewhere (parameters, lists, flags, globals) stays.

    Gradients are off by `no_grad`, not by `inference_mode`, which is left where the caller is in it: a tensor that a
    model caches during its forward would become an inference tensor, and the next training step would fail on it.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    training = [(module, module.training) for module in model.modules()]
    backward_hooks = [(module, module._backward_hooks, module._backward_pre_hooks) for module, _ in training]
    watched = _WATCHED.get()
    written = None if id(model) in watched else _ModuleState(model)
    token = _WATCHED.set(watched | {id(model)})
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
        _WATCHED.reset(token)
        if written is not None:
            written.put_back()


class _ModuleState:
    """What a model's own forward may write into its modules, as it is before: see `isolated`.

    Where a forward makes modules, parameters or buffers, as lazy ones do, that module is left as it is then: to put
    back but a part of it would be worse.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[tuple[nn.Module, object, dict[str, Any], dict[str, Tensor | None]]] = []
        self._states: list[tuple[list[Any], list[Any]]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        for module in model.modules():
            own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
            attributes = {name: value for name, value in own.items() if type(value) in (int, float, Tensor)}
            buffers = dict(module._buffers.items())
            self._modules.append((module, _made_of(module), attributes, buffers))
            states = list(own.values()) if is_kind(module, "Metric") else []
            self._states += [(state, list(state)) for state in states if type(state) is list]
            tensors = [each for each in (*buffers.values(), *states) if isinstance(each, Tensor)]
            self._values += [(tensor, tensor.detach().clone()) for tensor in tensors if _can_be_written(tensor)]

    def put_back(self) -> None:
        """Put back what is another now."""
        for module, made_of, attributes, buffers in self._modules:
            if _made_of(module) != made_of:
                continue
            _restore(vars(module), attributes)
            if isinstance(module._buffers, dict):  # else it is scripted, and makes other tensors of them each time
                _restore(module._buffers, buffers)
        for state, before in self._states:
            state[:] = before
        for tensor, value in self._values:
            if tensor.shape != value.shape:
                tensor.data = value
            elif not torch.equal(tensor, value):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(value)


def _restore(names: dict[str, Any], before: dict[str, Any]) -> None:
    """Let the names that stand for something else now stand for what they did."""
    names.update({name: value for name, value in before.items() if names[name] is not value})


def _made_of(module: nn.Module) -> object:
    """Its class, and the names of what it has."""
    parts = (module._parameters, module._buffers, module._modules, vars(module))
    return type(module), *(tuple(part.keys()) for part in parts)


def _can_be_written(tensor: Tensor) -> bool:
    """Whether it has values of its own: not before it is initialized, nor where it is a view with repeated values."""
    return not (is_lazy(tensor) or tensor.is_meta) and tensor.layout == torch.strided and 0 not in tensor.stride()


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
