"""Run a model without leaving a trace: one context manager that puts everything back, also after an error."""

from __future__ import annotations

import operator
import random
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cam_callbacks.checks import check_type, is_kind

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = (list, deque, set, dict)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, find it and the process outside as they were.

    Inside: every module is in eval mode, gradients are off, backward hooks of modules are silent, and compiled parts
        run eagerly, so that forward hooks fire and nothing is recompiled. On the way out, whatever happened: all that,
        the random number generators (Python, NumPy, torch on every device in use), and what the model's own forward
        has written into its modules are put back.

    Gradients are off by `no_grad`, not by `inference_mode`, which is left where the caller is in it: a tensor that a
    model caches during its forward would become an inference tensor, and the next training step would fail on it.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    training = [(module, module.training) for module in model.modules()]
    backward_hooks = [(module, module._backward_hooks, module._backward_pre_hooks) for module, _ in training]
    written = _Written(model)
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
        written.put_back()


class _Written:
    """What a model's own forward may write into its modules, as it is before.

    That is: what their attributes are (a counter, a tensor that is kept), what is in lists, sets and dictionaries that
    are attributes, and the values of buffers and of the states of torchmetrics' metrics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._values: list[tuple[Tensor, int | None, Tensor]] = []
        for module in model.modules():
            own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
            buffers = {name: value for name, value in module._buffers.items() if value is not None}
            self._attributes += [(vars(module), own)]
            self._attributes += (
                [(module._buffers, buffers)] if isinstance(module._buffers, dict) else []
            )  # else scripted
            self._contents += [(value, _contents(value)) for value in own.values() if isinstance(value, _CONTAINERS)]
            written_in_place = [*buffers.values(), *(own.values() if is_kind(module, "Metric") else ())]
            tensors = [value for value in written_in_place if isinstance(value, Tensor)]
            self._values += [(tensor, _version(tensor), tensor.detach().clone()) for tensor in tensors]

    def put_back(self) -> None:
        """Put back what is another now."""
        for attributes, before in self._attributes:
            attributes.update({name: value for name, value in before.items() if attributes.get(name) is not value})
        for container, contents in self._contents:
            if not _same(_contents(container), contents):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(contents)
        for tensor, version, value in self._values:
            if version is None or tensor._version != version:
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    if tensor.shape == value.shape:
                        tensor.copy_(value)
                    else:
                        tensor.data = value


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version


def _contents(container: Any) -> Any:
    """What is in a list, a set or a dictionary, whatever class of these it is."""
    return dict(container) if isinstance(container, dict) else (set if isinstance(container, set) else list)(container)


def _same(a: Any, b: Any) -> bool:
    """Whether two lists, sets or dictionaries hold the very same objects."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(key in b and value is b[key] for key, value in a.items())
    return a == b if isinstance(a, set) else all(map(operator.is_, a, b))


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
