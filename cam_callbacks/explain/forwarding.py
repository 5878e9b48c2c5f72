"""Forwarding: how a model is called, by itself or by the user's `forward_fn`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cam_callbacks.explain import precision
from cam_callbacks.explain.sharding import share

ForwardFn: TypeAlias = Callable[[nn.Module, Tensor], Any] | Callable[[nn.Module, Tensor, Tensor], Any]
"""Called as `forward_fn(model, images)`, or as `forward_fn(model, images, rows)` if it takes a third argument.

`images` are (B, C, *spatial): the N images that are explained or changed forms of them. `rows` are (B,) int64 on the
device of the images: which of the N each one is, from 0 to N - 1. With them a second input of each image finds its
image: `lambda model, images, rows: model(images, ages[rows])`. It returns whatever is understood of a model, such as
logits (B, classes).
"""


def forward(model: nn.Module, images: Tensor, rows: Tensor, forward_fn: ForwardFn | None = None) -> Any:
    """Call `forward_fn` if it is given, else `model(images)`.

    Args:
        model: The model.
        images: (B, C, *spatial); the model may change them in place.
        rows: (B,) int64, which of the images that are explained each one is.
        forward_fn: See `ForwardFn`.

    Raises:
        TypeError: The model has no `forward`, or its `forward` does not take images as its only argument; or
            `forward_fn` returned None.
    """
    try:
        with precision.as_wanted(images.device.type):
            if forward_fn is None:
                return _call(model, images)
            output = forward_fn(model, images, rows) if takes_rows(forward_fn) else forward_fn(model, images)  # type: ignore[call-arg]
    except Exception as error:
        share(error)
        raise
    if output is None:
        raise TypeError("forward_fn returned None; it must return what the model returns, e.g. logits (N, classes)")
    return output


def takes_rows(forward_fn: ForwardFn | None) -> bool:
    """Whether `forward_fn` has a third argument that is needed, or is called `rows`."""
    try:
        parameters = inspect.signature(forward_fn, follow_wrapped=False).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it is None, or a builtin
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 and (positional[2].default is inspect.Parameter.empty or positional[2].name == "rows")


def of_rows(forward_fn: ForwardFn | None, rows: Tensor) -> ForwardFn | None:
    """Return what to give a method that sees only some of the images, so that `forward_fn` gets their true rows.

    Args:
        forward_fn: See `ForwardFn`.
        rows: (n,) int64, which of all images the method sees.
    """
    if forward_fn is None or not takes_rows(forward_fn):
        return forward_fn
    return lambda model, images, own: forward_fn(model, images, rows.to(own.device)[own])  # type: ignore[call-arg]


def of_entry(forward_fn: ForwardFn, place: int) -> ForwardFn:
    """Return a `forward_fn` that returns one entry of the tuple or list that another one returns."""
    if takes_rows(forward_fn):
        return lambda model, images, rows: forward_fn(model, images, rows)[place]  # type: ignore[call-arg]
    return lambda model, images: forward_fn(model, images)[place]  # type: ignore[call-arg]


def _call(model: nn.Module, images: Tensor) -> Any:
    try:
        return model(images)
    except NotImplementedError as error:
        if 'missing the required "forward" function' in str(error):
            raise TypeError(
                f"{type(model).__name__} has no forward method; define it, or give forward_fn, a callable (model, "
                "images) -> logits"
            ) from error
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        share(error)
        refusal = _refusal(model, images)
        if refusal is None:
            raise
        raise TypeError(f"{type(model).__name__}.forward {refusal} ({type(error).__name__}: {error})") from error


def _refusal(model: nn.Module, images: Tensor) -> str | None:
    """Return why a `forward` that has failed cannot be called with images alone, and what to do; None if it can."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    keywords = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    needed = [each.name for each in positional[1:] + keywords if each.default is each.empty]
    if positional or takes_any:
        if needed:
            return (
                f"needs more than the images ({', '.join(needed)}); give forward_fn, a callable (model, images) -> "
                "logits that calls the model with all that it needs; or a callable (model, images, rows), if that "
                "differs from image to image: rows count the images that are explained, not those of a data set"
            )
        return _refusal_of_a_batch(model, images)
    for name in needed or [each.name for each in keywords]:
        if _works(functools.partial(model, **{name: images})):
            return f"takes keywords only; give forward_fn=lambda model, images: model({name}=images)"
    if keywords:
        return (
            f"takes keywords only ({', '.join(each.name for each in keywords)}); give forward_fn, a callable (model, "
            "images) -> logits that calls the model with them"
        )
    return None


def _refusal_of_a_batch(model: nn.Module, images: Tensor) -> str | None:
    """Return that a `forward` wants a whole batch, a mapping or a pair; None if it does not seem to."""
    asked = _AskedFor()
    if not _works(lambda: model(asked)) and len(asked.names) == 1:
        key = asked.names[0]
        if _works(lambda: model({key: images})):
            return f"takes a batch, not images; give forward_fn=lambda model, images: model({{{key!r}: images}})"
        return (
            f"takes a batch, not images, and reads {key!r} from it; give forward_fn, a callable (model, images) -> "
            "logits that makes such a batch"
        )
    if _works(lambda: model((images, None))):
        return "takes a batch, not images; give forward_fn=lambda model, images: model((images, None))"
    return None


class _AskedFor(dict[Any, Any]):
    """An empty mapping that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[Any] = []

    def __missing__(self, name: Any) -> Any:
        self.names.append(name)
        raise KeyError(name)


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception as error:
        share(error)
        return False
    return True
