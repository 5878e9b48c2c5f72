"""Checks of arguments, with errors that name the argument, the value and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard


def check_type(argument: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a TypeError unless the value is of that kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument}={value!r} must be {wanted}")


def check_choice(argument: str, value: object, choices: Sequence[str], or_else: str = "") -> None:
    """Raise a ValueError unless the value is one of the choices; `or_else` names what else would be accepted."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{argument}={value!r} is unknown; choose one of {', '.join(map(repr, choices))} {or_else}".rstrip()
        )


def check_positive(argument: str, value: object, or_none: bool = False) -> None:
    """Raise a ValueError unless the value is a whole number of at least 1, or, if that is allowed, None."""
    if value is None and or_none:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 1{', or None' if or_none else ''}")


def check_index(argument: str, value: object) -> None:
    """Raise a ValueError unless the value is a whole number of at least 0."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 0:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 0")


def check_share(argument: str, value: object, wanted: str) -> None:
    """Raise a ValueError unless the value is a number of at least 0 and below 1."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError(f"{argument}={value!r} must be {wanted}")


def check_callable(argument: str, value: object, wanted: str, takes: int | None = None) -> None:
    """Raise a TypeError unless the value can be called, with so many arguments if that is known, or is None."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(f"{argument}={value!r} must be {wanted}, or None")
    if takes is None:
        return
    try:
        signature = inspect.signature(value, follow_wrapped=False)
    except Exception:  # e.g. of a builtin: it is found out when it is called
        return
    try:
        signature.bind(*[None] * takes)
    except TypeError as error:
        raise TypeError(f"{argument} must be {wanted}; this one does not take {takes} arguments: {error}") from error


def is_kind(value: object, name: str) -> bool:
    """Whether a value is of a class of that name, or of one that inherits from it, in whichever package."""
    return any(kind.__name__ == name for kind in type(value).__mro__)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list of any kind, such as OmegaConf's, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_list(argument: str, value: object, kind: type, wanted: str) -> None:
    """Raise a TypeError unless the value is a list of that kind, or None."""
    if value is not None and not (is_list(value) and all(isinstance(each, kind) for each in value)):
        raise TypeError(f"{argument}={value!r} must be {wanted}, or None")
