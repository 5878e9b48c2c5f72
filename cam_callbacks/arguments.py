"""Checks of what the user configured, with errors that name the argument, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from cam_callbacks.datasets import IMAGENET, Normalization
from cam_callbacks.trainer import Misconfiguration


def read_normalization(
    given: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None,
) -> Normalization | None:
    """Mean and standard deviation from what the user gave."""
    if given is None:
        return None
    if isinstance(given, str):
        check_choice("normalization", given, ("imagenet",), "or a pair (mean, std)")
        return IMAGENET
    try:
        mean, std = (tuple(map(float, part)) for part in given)
    except (TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise Misconfiguration(
            f"normalization={given} must be a pair: the means and the standard deviations (> 0), one of each for "
            "every channel"
        )
    return mean, std


def is_dataset(value: Any) -> bool:
    """Whether a value is a map-style data set."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (tuple, list, Tensor))


def is_list(value: Any) -> bool:
    """Whether a value is a list of any kind, such as OmegaConf's, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_list(argument: str, value: Any, wanted: str) -> None:
    """Raise unless the value is a list, or None."""
    if value is not None and not is_list(value):
        raise Misconfiguration(f"{argument}={value!r} must be {wanted}")


def check_type(argument: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise unless the value is of that kind."""
    if not isinstance(value, kind):
        raise Misconfiguration(f"{argument}={value!r} must be {wanted}")


def check_layer_names(target_layer: Any) -> None:
    """Raise unless it is a name, a list of at least one name, or None."""
    several = is_list(target_layer) and target_layer and all(isinstance(name, str) for name in target_layer)
    if not several:
        check_type(
            "target_layer", target_layer, (str, type(None)), "the dotted name of a layer, a list of them, or None"
        )


def check_positive(argument: str, value: int) -> None:
    """Raise unless the value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Misconfiguration(f"{argument}={value!r} must be a whole number of at least 1")


def check_choice(argument: str, value: Any, choices: Sequence[str], or_else: str = "") -> None:
    """Raise unless the value is one of the choices; `or_else` names what else would be accepted."""
    if not isinstance(value, str) or value not in choices:
        raise Misconfiguration(
            f"{argument}={value!r} is unknown; choose one of {', '.join(choices)} {or_else}".rstrip()
        )
