"""Ownership: whose code a class or a function is, the user's, or that of a library, which looks after itself."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from torch import nn

_OURS = "cam_callbacks"
_LIBRARIES = frozenset(
    {_OURS, "torch", "torchmetrics", "lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"}
)
_PLAIN = frozenset({"builtins", "abc", "typing", "types", "collections", "collections.abc"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})


class Ownership:
    """Tells the user's code from that of libraries, by where it lies.

    The user's is what is not installed, and the packages that the model's modules come from; never torch, Lightning,
    the standard library and this package.

    Args:
        modules: The modules of a model.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._packages = {_package(type(module).__module__) for module in modules}
        self._known: dict[type, bool] = {}

    def is_users(self, module: object) -> bool:
        """Whether code is the user's, given the name of its Python module."""
        package = _package(module)
        return not is_library(package) and (package in self._packages or not _is_installed(package))

    def is_users_class(self, kind: type) -> bool:
        """Whether a class, and what its objects hold, is the user's.

        Data sets, loggers, optimizers, threads and the like are not: they derive from a class of a library.
        """
        if kind not in self._known:
            self._known[kind] = self.is_users(kind.__module__) and not _looks_after_itself(kind)
        return self._known[kind]

    def is_open(self, kind: type) -> bool:
        """Whether what objects of a class hold is the user's, also in a class that merely holds attributes."""
        return kind.__module__ in _PLAIN or self.is_users_class(kind)


def is_library(module: object) -> bool:
    """Whether code is torch's, Lightning's, of the standard library or ours, given the name of its Python module."""
    package = _package(module)
    return package in _LIBRARIES or (package in sys.stdlib_module_names and _is_installed(package))


def is_of_no_library(kind: type) -> bool:
    """Whether a class and its bases are of no library, but for those whose objects merely hold attributes."""
    return all(base.__module__ in _PLAIN or not is_library(base.__module__) for base in kind.__mro__)


def _looks_after_itself(kind: type) -> bool:
    if any(_package(base.__module__) == _OURS for base in kind.__mro__):
        return True
    if issubclass(kind, nn.Module) or any(base.__name__ == "Callback" for base in kind.__mro__):
        return False
    return not is_of_no_library(kind)


def _package(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


@functools.cache
def _is_installed(package: str) -> bool:
    if package in ("", "__main__"):
        return False
    names = vars(sys.modules[package]) if package in sys.modules else {}
    places = [names["__file__"]] if names.get("__file__") else list(names.get("__path__", ()))
    if not places:
        return package in sys.stdlib_module_names
    library = sysconfig.get_path("stdlib")
    return any(_INSTALLED & set(Path(place).parts) or Path(place).is_relative_to(library) for place in places)
