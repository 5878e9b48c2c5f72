"""Hooks of a model's forward that cannot stay behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """Register a forward hook on each of `modules`; remove them all on the way out, also after an error.

    Args:
        modules: The modules; one that is listed twice gets the hook twice.
        hook: Called as `hook(module, inputs, output)` after each forward of a module; what it returns, if not None,
            replaces the output.
        with_kwargs: Call it as `hook(module, inputs, kwargs, output)`, with the keyword arguments of the forward.
    """
    handles = []
    try:
        for module in modules:
            handles.append(module.register_forward_hook(hook, with_kwargs=with_kwargs))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def pre_hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Register a forward pre-hook on each of `modules`; remove them all on the way out, also after an error.

    Args:
        modules: The modules.
        hook: Called as `hook(module, inputs)` before each forward of a module; what it returns, if not None, replaces
            the inputs.
    """
    handles = []
    try:
        for module in modules:
            handles.append(module.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
