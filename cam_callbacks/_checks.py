"""Checks of arguments; their errors name the argument, its value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeGuard


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Put before the message of an error to what it belongs, such as `Audit(...)`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None


def check_bool(argument: str, value: object) -> None:
    """Raise a TypeError unless the value is True or False."""
    check_type(argument, value, bool, "True or False")


def check_type(argument: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise a TypeError unless the value is an instance of `kind`; `expected` says in words what it must be."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument}={value!r} must be {expected}")


def check_choice(argument: str, value: object, choices: Sequence[str], or_else: str = "") -> None:
    """Raise a ValueError unless the value is one of the choices; `or_else` names what else would be accepted."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{argument}={value!r} is unknown; choose one of {', '.join(map(repr, choices))} {or_else}".rstrip()
        )


def check_positive(argument: str, value: object, or_none: bool = False) -> None:
    """Raise a ValueError unless the value is a whole number of at least 1; with `or_none`, None is accepted too."""
    if value is None and or_none:
        return
    if not _is_whole_number(value) or int(value) < 1:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 1{', or None' if or_none else ''}")


def check_index(argument: str, value: object) -> None:
    """Raise a ValueError unless the value is a whole number of at least 0."""
    if not _is_whole_number(value) or int(value) < 0:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 0")


def check_fraction(argument: str, value: object, expected: str) -> None:
    """Raise a ValueError unless the value is a number of at least 0 and below 1; `expected` says so in words."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError(f"{argument}={value!r} must be {expected}")


def check_share(argument: str, value: object, expected: str) -> None:
    """Raise a ValueError unless the value is None or a number above 0 and up to 1; `expected` says so in words."""
    if value is not None and (not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) <= 1):
        raise ValueError(f"{argument}={value!r} must be {expected}")


def check_callable(argument: str, value: object, expected: str, takes: int | None = None) -> None:
    """Raise a TypeError unless the value is None or can be called, with `takes` arguments if that is given."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"{argument}={value!r} must be {expected}, or None")
    if takes is None:
        return
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except Exception:  # e.g. a builtin: the call itself will tell
        return
    try:
        signature.bind(*[None] * takes)
    except TypeError as error:
        raise TypeError(f"{argument} must be {expected}; this one does not take {takes} arguments: {error}") from error


def check_list(argument: str, value: object, kind: type, expected: str) -> None:
    """Raise a TypeError unless the value is None or a list whose items are all instances of `kind`."""
    if value is not None and not (is_list(value) and all(isinstance(each, kind) for each in value)):
        raise TypeError(f"{argument}={value!r} must be {expected}, or None")


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Check whether a value is a list of any kind, such as OmegaConf's, but not a string."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_kind(value: object, name: str) -> bool:
    """Check whether a value is an instance of a class of that name, or of its subclass, in whichever package."""
    return any(kind.__name__ == name for kind in type(value).__mro__)


def _is_whole_number(value: object) -> TypeGuard[Integral]:
    return isinstance(value, Integral) and not isinstance(value, bool)
