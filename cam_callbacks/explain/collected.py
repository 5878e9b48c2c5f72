"""What forwards and hooks collect in lists, dictionaries, sets, deques and names: put back as it was."""

from __future__ import annotations

import functools
import operator
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as of_all_modules

from cam_callbacks.explain.ownership import Ownership, is_library, is_of_no_library
from cam_callbacks.explain.written import WRITABLE

_KINDS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device})
_NAMES_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_WRAPPERS: dict[type, Callable[[Any], list[object]]] = {
    types.MethodType: lambda method: [method.__func__, method.__self__],
    types.BuiltinMethodType: lambda method: [method.__self__],
    staticmethod: lambda method: [method.__func__],
    classmethod: lambda method: [method.__func__],
    property: lambda method: [method.fget],
}
_Entries = tuple[list[Any], ...]
_DEPTH = 5  # of steps from a module or a hook
_MANY = 1000  # entries, from which on a container is kept, but not looked into
_MAX_VALUES = 20_000  # that are looked at


class Contents:
    """What containers held when this was made; entries are not copied, and containers stay the same objects.

    Looked for are containers that the forwards and forward hooks of the modules can reach: attributes of modules and
    their classes, what functions hold on to (closures, defaults, the globals that they name, functions among them), and
    the attributes of the user's own objects. Names that are bound to something else are bound again to what they were.

    Looked at are a few steps only. What large containers hold is not, nor whatever belongs to a library
    (`cam_callbacks.explain.ownership`): a trainer, a data set, a logger keeps a state of its own. Of a module that is
    kept in a container or an object, as a teacher or a metric may be, parameters, buffers, parts and attributes are. No
    code of the user's runs.

    Args:
        modules: The modules of a model; none, and nothing is looked for.

    Attributes:
        modules: The modules that were found beside those that were given, as in a list.
        writable: The tensors, arrays and generators that were found, the contents of which are not looked at: see
            `cam_callbacks.explain.written`.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        self.writable: list[object] = []
        self.modules: list[nn.Module] = []
        self._containers: list[tuple[Any, Any, _Entries]] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any], frozenset[str]]] = []
        self._bindings: dict[tuple[int, str], _Binding] = {}
        self._ownership = Ownership(modules)
        self._seen: dict[int, object] = {id(module): module for module in modules}
        self._waiting: deque[tuple[object, int]] = deque()
        self._wait(_hooks(modules), 0)
        for module in modules:
            self._wait(_own_values(module), 1)
            self._wait(type(module).__mro__, 1)
        while self._waiting:
            with suppress(Exception):  # objects may be as odd as they like
                self._visit(*self._waiting.popleft())
        self._seen.clear()

    def restore(self) -> None:
        """Let all containers hold again what they held, and names mean again what they meant."""
        for binding in self._bindings.values():
            with suppress(Exception):
                binding.restore()
        for names, before, left in self._attributes:
            with suppress(Exception):
                for name in names.keys() - before.keys() - left:
                    del names[name]
                names.update({name: value for name, value in before.items() if names.get(name, self) is not value})
        for kind, container, entries in self._containers:
            with suppress(Exception):
                if not _are_same(_entries(kind, container), entries):
                    _fill(kind, container, entries)

    def _wait(self, values: Iterable[object], depth: int) -> None:
        """Let values be visited; those that are near come first."""
        if depth > _DEPTH:
            return
        for value in list(values):
            if type(value) not in _ATOMS and id(value) not in self._seen and len(self._seen) < _MAX_VALUES:
                self._seen[id(value)] = value  # kept, so that its identity stays unique
                if issubclass(type(value), WRITABLE):
                    self.writable.append(value)
                self._waiting.append((value, depth))

    def _visit(self, value: Any, depth: int) -> None:
        kind = type(value)
        if issubclass(kind, (*_KINDS, tuple)):
            self._container(value, depth)
        elif kind is types.FunctionType:
            self._function(value, depth)
        elif kind in _WRAPPERS:
            self._wait(_WRAPPERS[kind](value), depth)
        elif issubclass(kind, functools.partial):
            self._wait([value.func], depth)
            self._wait([*value.args, *value.keywords.values()], depth + 1)
        elif issubclass(kind, type):
            self._class(value, depth)
        elif issubclass(kind, types.ModuleType):
            return  # what code names of it was kept where it is named
        else:
            if issubclass(kind, nn.Module):
                self._module(value, depth)
            if self._ownership.is_open(kind) or (depth == 0 and is_of_no_library(kind)):  # what a hook is bound to
                self._object(value, depth)

    def _container(self, value: Any, depth: int) -> None:
        base = next((each for each in _KINDS if issubclass(type(value), each)), tuple)
        entries = _entries(base, value)
        if base is not tuple:
            self._containers.append((base, value, entries))
        if len(entries[-1]) <= _MANY:
            self._wait(entries[-1], depth + 1)
        if self._ownership.is_users_class(type(value)):
            self._object(value, depth)

    def _module(self, module: nn.Module, depth: int) -> None:
        self.modules.append(module)
        parts = vars(module)
        self._wait([parts["_parameters"], parts["_buffers"]], depth)
        self._wait(parts["_modules"].values(), depth)
        self._wait(_own_values(module), depth + 1)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        space = function.__globals__
        module = space.get("__name__")
        self._names(vars(function), depth)  # also what it wraps
        if is_library(module):
            return
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # it is empty yet
                self._bind(cell, "cell_contents", cell.cell_contents, depth + 1)
        self._wait([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()], depth + 1)
        if self._ownership.is_users(module):
            self._globals(set(_names(function.__code__)), space, depth + 1)

    def _globals(self, names: set[str], space: dict[str, Any], depth: int) -> None:
        """Keep what code names, also in those of the user's Python modules that it names."""
        found = [vars(space[name]) for name in names if isinstance(space.get(name), types.ModuleType)]
        for each in (space, *(own for own in found if self._ownership.is_users(own.get("__name__")))):
            for name in names & each.keys():
                self._bind(each, name, each[name], depth, each.get, each.__setitem__)

    def _class(self, kind: type, depth: int) -> None:
        if self._ownership.is_users_class(kind):
            for name, value in list(vars(kind).items()):
                if callable(value) or type(value) in _WRAPPERS:
                    self._wait([value], depth + 1)
                elif not name.startswith("__"):
                    put = functools.partial(type.__setattr__, kind)
                    self._bind(kind, name, value, depth + 1, vars(kind).get, put)

    def _object(self, value: object, depth: int) -> None:
        kind = type(value)
        with suppress(AttributeError):
            names = object.__getattribute__(value, "__dict__")
            self._names(names, depth + 1, _NAMES_OF_EVERY_MODULE if issubclass(kind, nn.Module) else frozenset())
        for base in kind.__mro__:
            for name, slot in list(vars(base).items()):
                if isinstance(slot, types.MemberDescriptorType):
                    with suppress(AttributeError):  # it is empty yet
                        self._bind(value, name, slot.__get__(value), depth + 1)
        self._wait(kind.__mro__, depth)

    def _names(self, names: Any, depth: int, left: frozenset[str] = frozenset()) -> None:
        if type(names) is dict:
            before = {name: value for name, value in names.items() if name not in left}
            self._attributes.append((names, before, left))
            self._wait(before.values(), depth)

    def _bind(
        self,
        owner: Any,
        name: str,
        value: object,
        depth: int,
        get: Callable[[str], object] | None = None,
        put: Callable[[str, Any], object] | None = None,
    ) -> None:
        get, put = (
            get or functools.partial(object.__getattribute__, owner),
            put or functools.partial(object.__setattr__, owner),
        )
        self._bindings[id(owner), name] = _Binding(name, value, get, put)
        self._wait([value], depth)


class _Binding(NamedTuple):
    """A name and what it is bound to; it holds its owner by its functions."""

    name: str
    value: object
    get: Callable[[str], object]
    put: Callable[[str, Any], object]

    def restore(self) -> None:
        try:
            is_same = self.get(self.name) is self.value
        except (AttributeError, ValueError):  # it is bound to nothing now
            is_same = False
        if not is_same:
            self.put(self.name, self.value)


def _own_values(module: nn.Module) -> list[object]:
    """Return the attributes of a module that not every module has."""
    return [value for name, value in vars(module).items() if name not in _NAMES_OF_EVERY_MODULE]


def _hooks(modules: list[nn.Module]) -> Iterator[object]:
    for hooks in (of_all_modules._global_forward_hooks, of_all_modules._global_forward_pre_hooks) if modules else ():
        yield from hooks.values()
    for module in modules:
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield all names that code uses and that are not local to it, also those of functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _entries(base: Any, container: Any) -> _Entries:
    """Return what a container holds, for a dictionary the keys and the values, past methods of a class of its own."""
    entries = list(base.__iter__(container))
    if not issubclass(base, dict):
        return (entries,)
    if base is dict:
        return entries, list(dict.values(container))
    return entries, [dict.__getitem__(container, key) for key in entries]  # in the order of an OrderedDict


def _are_same(entries: _Entries, before: _Entries) -> bool:
    """Whether these are the very same entries, in the same order."""
    return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in zip(entries, before, strict=True))


def _fill(base: Any, container: Any, entries: _Entries) -> None:
    base.clear(container)
    if issubclass(base, dict):
        for key, value in zip(*entries, strict=True):
            base.__setitem__(container, key, value)
    elif base is set:
        set.update(container, *entries)
    else:
        base.extend(container, *entries)
