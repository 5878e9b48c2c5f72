"""Containers: lists, dictionaries, sets and deques that a forward or a hook collects in, put back as they were."""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import nn

from cam_callbacks._checks import is_kind

_KINDS = (list, dict, set, deque)
_NAMES_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_OPAQUE = (type, types.ModuleType, nn.Module)
_LIBRARIES = (sys.stdlib_module_names - {"types"}) | {"torch", "cam_callbacks"}  # whose objects look after themselves


class Contents:
    """What containers held when this was made; entries are not copied, and containers stay the same objects.

    Looked for are containers, and containers in them, among the attributes of modules; and in what their forward hooks
    hold on to: closures, bound objects and their attributes, arguments of partial functions. What hangs on these
    further down is not followed, nor is a trainer, nor are objects of torch, of the standard library and of this
    package: the hooks of `fully_shard`, and ours, keep a state of their own.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._seen: set[int] = set()
        self._containers: list[tuple[Any, Any]] = []
        self._cells: list[tuple[types.CellType, object]] = []
        for module in modules:
            for name, value in list(vars(module).items()):
                if name not in _NAMES_OF_EVERY_MODULE:
                    self._keep(value)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                self._follow(hook)

    def restore(self) -> None:
        """Let all containers hold again what they held."""
        for cell, value in self._cells:
            cell.cell_contents = value
        for container, before in self._containers:
            if not _are_same(container, before):
                container.clear()
                (container.update if isinstance(container, (dict, set)) else container.extend)(before)

    def _is_new(self, value: object) -> bool:
        is_new = id(value) not in self._seen
        self._seen.add(id(value))
        return is_new

    def _keep(self, value: object, depth: int = 1) -> None:
        if not isinstance(value, _KINDS) or not self._is_new(value):
            return
        self._containers.append((value, dict(value) if isinstance(value, dict) else list(value)))
        if depth:
            for inner in list(value.values() if isinstance(value, dict) else value):
                self._keep(inner, depth - 1)

    def _follow(self, value: object) -> None:
        """Keep what a callable, or what it holds on to, may collect in."""
        if isinstance(value, _KINDS):
            self._keep(value)
        elif isinstance(value, functools.partial):
            for each in (value.func, *value.args, *value.keywords.values()):
                self._follow(each)
        elif isinstance(value, types.MethodType):
            self._follow(value.__self__)
        elif isinstance(value, types.FunctionType):
            if self._is_new(value):
                for cell in value.__closure__ or ():
                    self._follow_cell(cell)
        elif hasattr(value, "__dict__") and not _is_opaque(value):
            self._keep(vars(value))

    def _follow_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # it is empty yet
            return
        self._cells.append((cell, value))
        self._follow(value)


def _is_opaque(value: object) -> bool:
    package = type(value).__module__.partition(".")[0]
    return isinstance(value, _OPAQUE) or package in _LIBRARIES or is_kind(value, "Trainer")


def _are_same(container: Any, before: Any) -> bool:
    """Whether a container holds the very same entries, in the same order."""
    if len(container) != len(before):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), before.items(), strict=True)
        return all(a is b and one is two for (a, one), (b, two) in pairs)
    return all(a is b for a, b in zip(container, before, strict=True))
