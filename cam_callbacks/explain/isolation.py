"""Context manager that restores a model and the random number generators after it ran."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cam_callbacks._checks import check_type, is_kind
from cam_callbacks.explain.collected import Contents
from cam_callbacks.explain.sharding import device_mesh, together
from cam_callbacks.explain.written import Writes

_FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_NAMES_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_ISOLATED: ContextVar[frozenset[int]] = ContextVar("identities of the models that are isolated", default=frozenset())


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, find it and the process outside as they were.

    Inside, every module is in eval mode, gradients are off, backward hooks of modules are silent, and compiled parts
    run eagerly, so that forward hooks fire and nothing is recompiled. Scripted and traced parts are not optimized for
    what they are fed here.

    On the way out, whatever happened, all that is restored, as are the random number generators (Python, NumPy, torch
    on every device in use) and what the model's own forward has written into its modules: parameters, buffers, the
    states of torchmetrics' metrics, attributes, new ones too. What the forward or a forward hook has collected is taken
    out of its containers again, and what it has written to objects, classes and globals of the user's is put back
    (`cam_callbacks.explain.collected`). So is what it has written in place, into tensors and arrays, and the states of
    the generators of random numbers that it holds (`cam_callbacks.explain.written`). What is written elsewhere (files,
    objects of libraries, iterators that are advanced, weights that are sharded across ranks), or kept by the user's
    `forward_fn`, which nothing else calls, stays.

    Gradients are off by `no_grad`, not by `inference_mode`, and if the caller is in inference mode, it is left: a
    tensor that a model caches during its forward would become an inference tensor, and the next training step would
    fail on it.

    The ranks of a sharded model run it, and fail, together (`cam_callbacks.explain.sharding.together`).
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    with together(model), _restored(model):
        yield


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    training = [(module, module.training) for module in modules if hasattr(module, "training")]  # not if it is frozen
    backward_hooks = [(module, module._backward_hooks, module._backward_pre_hooks) for module in modules]
    outer = _ISOLATED.get()
    is_outermost = id(model) not in outer
    is_sharded = device_mesh(model) is not None
    contents = Contents(modules if is_outermost else [])
    own_and_found = [*modules, *contents.modules] if is_outermost else []
    states = [_ModuleState.of(module, is_sharded) for module in own_and_found]
    own = [parameter for state in states for parameter in state.parameters.values() if parameter is not None]
    writes = Writes([*own, *(each for each in contents.writable if not (is_sharded and is_kind(each, "Parameter")))])
    token = _ISOLATED.set(outer | {id(model)})
    try:
        with (
            random_state_kept(),
            torch.compiler.set_stance("force_eager"),
            torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
            torch.inference_mode(False),
            torch.no_grad(),
            writes.watched(),
        ):
            for module, _ in training:
                # Not .eval(): a model may have overridden it to do more than set the flag.
                module.training = False
            for module in modules:
                module._backward_hooks, module._backward_pre_hooks = OrderedDict(), OrderedDict()
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for module, hooks, pre_hooks in backward_hooks:
            module._backward_hooks, module._backward_pre_hooks = hooks, pre_hooks
        _ISOLATED.reset(token)
        contents.restore()
        for state in states:
            state.restore_names()
        for state in states:
            state.restore_values()
        writes.restore()


@dataclass(frozen=True, eq=False)
class _ModuleState:
    """What a forward may write into one module, as it was when captured.

    Attributes:
        module: The module.
        structure: What `_structure` said of it.
        attributes: All that is not a part of every module, by name.
        hooks: The contents of its containers of forward hooks, which a forward may add to.
        buffers: Its buffers, by name.
        parameters: Its parameters, by name; none where they are sharded, for they come and go as they are gathered.
        values: Each tensor that a forward may write to in place, with a copy of its values.
    """

    module: nn.Module
    structure: object
    attributes: dict[str, Any]
    hooks: list[tuple[dict[Any, Any], dict[Any, Any]]]
    buffers: dict[str, Tensor | None]
    parameters: dict[str, Tensor | None]
    values: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, module: nn.Module, is_sharded: bool) -> _ModuleState:
        """Capture the state of a module, as part of a model whose weights are, or are not, sharded across ranks."""
        own = {name: value for name, value in vars(module).items() if name not in _NAMES_OF_EVERY_MODULE}
        buffers = dict(module._buffers.items())
        metric_states = list(own.values()) if is_kind(module, "Metric") else []
        tensors = [each for each in (*buffers.values(), *metric_states) if isinstance(each, Tensor)]
        return cls(
            module,
            _structure(module),
            own,
            [(kept, dict(kept)) for kept in map(vars(module).get, _FORWARD_HOOKS) if isinstance(kept, dict)],
            buffers,
            {} if is_sharded else dict(module._parameters.items()),
            [(tensor, tensor.detach().clone()) for tensor in tensors if _is_writable(tensor)],
        )

    def restore_names(self) -> None:
        """Let attributes, forward hooks, buffers and parameters be the objects again that they were.

        A forward that creates modules, parameters or buffers, as lazy modules do, has changed the structure of its
        module, which is then left as it is: restoring a part of it would be worse.
        """
        if _structure(self.module) != self.structure:
            return
        names = vars(self.module)
        for name in names.keys() - self.attributes.keys() - _NAMES_OF_EVERY_MODULE:
            del names[name]
        _restore(names, self.attributes)
        for hooks, before in self.hooks:
            if list(hooks.items()) != list(before.items()):
                hooks.clear()
                hooks.update(before)
        if isinstance(self.module._buffers, dict):  # else it is scripted, and makes new tensors of them each time
            _restore(self.module._buffers, self.buffers)
            _restore(self.module._parameters, self.parameters)

    def restore_values(self) -> None:
        """Write back the contents of tensors that have changed."""
        for tensor, value in self.values:
            if tensor.shape != value.shape:
                tensor.data = value
            elif not torch.equal(tensor, value):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.copy_(value)


def _restore(names: dict[str, Any], before: dict[str, Any]) -> None:
    """Bind names again to the objects that they were bound to before, if they are bound to others now."""
    names.update({name: value for name, value in before.items() if name not in names or names[name] is not value})


def _structure(module: nn.Module) -> object:
    """Return the class of a module and the names of its parts; equal as long as nothing is added or removed."""
    parts = (module._parameters, module._buffers, module._modules)
    return type(module), *(tuple(part.keys()) for part in parts)


def _is_writable(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own: it is initialized, and not a view that repeats values."""
    return not (is_lazy(tensor) or tensor.is_meta) and tensor.layout == torch.strided and 0 not in tensor.stride()


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random number generators on the way out."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global generator is what must be restored
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
