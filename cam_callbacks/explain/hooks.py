"""Hooks of a model's forward that cannot stay behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def hooked(
    modules: Iterable[nn.Module], hook: Callable[..., Any], *, with_kwargs: bool = False, first: bool = False
) -> Iterator[None]:
    """Register a forward hook on each of `modules`; remove them all on the way out, also after an error.

    A module that takes no hooks, as a scripted one, is listened to by a hook of all modules, which comes before the
    user's own. Within such a module nothing is called that could be listened to.

    Args:
        modules: The modules; one that is listed twice gets the hook twice.
        hook: Called as `hook(module, inputs, output)` after each forward of a module; what it returns, if not None,
            replaces the output.
        with_kwargs: Call it as `hook(module, inputs, kwargs, output)`, with the keyword arguments of the forward.
        first: Call it before the hooks that the module has.
    """

    def on_one(module: nn.Module) -> Any:
        return module.register_forward_hook(hook, with_kwargs=with_kwargs, prepend=first)

    def on_all(filtered: Callable[..., Any]) -> Any:
        return register_module_forward_hook(filtered, with_kwargs=with_kwargs)

    with _registered(modules, hook, on_one, on_all):
        yield


@contextmanager
def pre_hooked(modules: Iterable[nn.Module], hook: Callable[..., Any], *, first: bool = False) -> Iterator[None]:
    """Register a forward pre-hook on each of `modules`; remove them all on the way out, also after an error.

    Args:
        modules: The modules; those that take no hooks are treated as in `hooked`.
        hook: Called as `hook(module, inputs)` before each forward of a module; what it returns, if not None, replaces
            the inputs.
        first: Call it before the hooks that the module has.
    """
    with _registered(
        modules,
        hook,
        lambda module: module.register_forward_pre_hook(hook, prepend=first),
        register_module_forward_pre_hook,
    ):
        yield


@contextmanager
def _registered(
    modules: Iterable[nn.Module],
    hook: Callable[..., Any],
    on_one: Callable[[nn.Module], Any],
    on_all: Callable[[Callable[..., Any]], Any],
) -> Iterator[None]:
    """Register a hook on each module by `on_one`, or on those that refuse it by a filtered one of all modules."""
    handles: list[Any] = []
    refusing: dict[int, nn.Module] = {}  # kept, so that their identities stay unique

    def filtered(module: nn.Module, *arguments: Any) -> Any:
        return hook(module, *arguments) if id(module) in refusing else None

    try:
        for module in modules:
            try:
                handles.append(on_one(module))
            except RuntimeError:
                refusing[id(module)] = module
        if refusing:
            handles.append(on_all(filtered))
        yield
    finally:
        for handle in handles:
            handle.remove()
