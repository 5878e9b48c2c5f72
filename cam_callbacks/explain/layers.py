"""The target layer: find it by name, choose it, record its output."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks._warnings import warn_user
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layouts import Layout, Margins, ReshapeTransform, transformed

_MAX_NAMES = 5
_MAX_NAMES_IF_NONE_IS_NEAR = 8

Forward = Callable[[Tensor], Any]
"""The model's forward with everything but the images already given."""


def find(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule called `name`.

    Args:
        model: The model, or the LightningModule that holds it.
        name: A dotted name as in `model.named_modules()`, with or without the `[call]` of `split_call`; the
            `_orig_mod` of compiled parts may be left out.

    Raises:
        ValueError: There is no such submodule; the message lists the nearest names.
    """
    name, _ = split_call(name)
    try:
        if name:
            return model.get_submodule(name)
    except (AttributeError, RuntimeError):  # there is none; or it is scripted, and says that it does not tell
        pass
    modules: dict[str, nn.Module] = {
        without_orig_mod(known): module for known, module in model.named_modules(remove_duplicate=False)
    }
    if name in modules and name:
        return modules[name]
    names = [known for known in modules if known]
    ending = [known for known in names if known.endswith(f".{name}")]
    close = difflib.get_close_matches(name, names, n=_MAX_NAMES)
    nearest = (ending + [near for near in close if near not in ending])[:_MAX_NAMES]
    some = ", ".join(map(repr, names[:_MAX_NAMES_IF_NONE_IS_NEAR]))
    hint = f"nearest: {', '.join(map(repr, nearest))}" if nearest else f"it has {some}, ..."
    raise ValueError(f"target_layer={name!r} is not in {type(model).__name__}; {hint}")


class UnknownLayoutError(ValueError):
    """A layer is there, but where the positions and the channels of its output are is not known."""


def layer_name(model: nn.Module, layer: object) -> str:
    """Return the dotted name of a layer that is given by its name or as the module itself.

    Raises:
        TypeError: It is neither.
        ValueError: It is not a part of the model.
    """
    if isinstance(layer, str):
        find(model, layer)
        return layer
    if not isinstance(layer, nn.Module):
        raise TypeError(f"target_layer={layer!r} must be the dotted name of a layer, or the module itself")
    for name, module in model.named_modules():
        if module is layer:
            return without_orig_mod(name)
    raise ValueError(f"target_layer={type(layer).__name__}(...) is not a submodule of {type(model).__name__}")


def without_orig_mod(name: str) -> str:
    """Return the name that a module has in the model before it is compiled."""
    return name.replace("_orig_mod.", "")


def split_call(name: str) -> tuple[str, int | None]:
    """Split a name into the layer and which of its calls is meant: `"relu[0]"` is the first call of `relu`."""
    match = re.fullmatch(r"(.+)\[(-?\d+)\]", name)
    return (match[1], int(match[2])) if match else (name, None)


@contextmanager
def recorded(layers: Sequence[nn.Module], differentiable: bool = False) -> Iterator[list[list[Any]]]:
    """Collect the outputs of layers, one list for each layer with one entry per call.

    An in-place operation after a layer (`ReLU(inplace=True)`) does not reach what was collected.

    Args:
        layers: The layers.
        differentiable: Let the rest of the forward depend on what is collected, and on nothing before it: the graph
            of gradients begins at the first layer that is reached.
    """
    outputs: dict[int, list[Any]] = {id(layer): [] for layer in layers}

    def keep(module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
        own = outputs[id(module)]
        if not isinstance(output, Tensor) or not output.is_floating_point():
            own.append(readable(output))
            return None
        if not differentiable:
            own.append(output.detach().clone())
            return None
        first = not any(outputs.values())
        own.append(output if output.requires_grad and not first else output.detach().requires_grad_())
        with torch.enable_grad():  # also where the model itself has switched gradients off
            return own[-1].clone()  # type: ignore[no-any-return]

    # A layer may be named twice, by two of its calls.
    with hooked({id(layer): layer for layer in layers}.values(), keep):
        yield [outputs[id(layer)] for layer in layers]


def readable(output: Any) -> Any:
    """Return what a layer has put out, in floating point if it is quantized."""
    return output.dequantize() if isinstance(output, Tensor) and output.is_quantized else output


def running_as_one(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Return the modules of whose parts with weights none is called by `run`, outermost ones; "" is the model itself.

    So runs what is scripted, traced or exported, and a module that only uses the weights of its parts.
    """
    called = {""}
    names = {id(module): name for name, module in model.named_modules()}
    with_weights = [name for name, module in model.named_modules() if next(module.parameters(), None) is not None]
    with hooked(model.modules(), lambda module, _inputs, _output: called.add(names[id(module)])):
        run()
    found: list[str] = []
    for name in sorted(called):
        inner = f"{name}." if name else ""
        parts = [part for part in with_weights if part.startswith(inner) and part != name]
        if parts and called.isdisjoint(parts) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def not_called(model: nn.Module, name: str, run: Callable[[], object]) -> str:
    """Return what to say of a target layer that is not called while `run` runs."""
    layer, _ = split_call(name)
    whole = next((each for each in running_as_one(model, run) if not each or layer.startswith(f"{each}.")), None)
    if whole is None:
        return f"target_layer={name!r} was never called in the forward pass; name a layer that the images run through"
    kind = type(find(model, whole) if whole else model).__name__
    outer = f"{whole!r} ({kind})" if whole else kind
    remedy = f"name {whole!r} itself or a layer outside of it, or " if whole else ""
    return (
        f"target_layer={name!r} was never called in the forward pass: it is a part of {outer}, which runs as one, as "
        f"modules do that are scripted, traced or exported; {remedy}{CALL_THE_PARTS}"
    )


CALL_THE_PARTS = (
    "keep the eager module in its place; or, if it is scripted, let forward_fn call its parts one by one, such as "
    "lambda model, images: model.head(model.features(images))"
)


@dataclass(frozen=True, eq=False)
class ReadLayer:
    """How the output of a target layer is read, the same in every forward of a call.

    Attributes:
        call: Which of the layer's calls is meant.
        to_maps: Brings its output, or the gradient of that, to (N, channels, *spatial).
        margins: What makes such maps cover the image, as in `Layout`.
    """

    call: int
    to_maps: Forward
    margins: Margins = ()


def read_layer(
    outputs: list[Any],
    name: str,
    images: Tensor,
    layout: Callable[[Tensor, int], Layout | None],
    reshape_transform: ReshapeTransform | None = None,
) -> ReadLayer:
    """Return how a layer is read: the call which is named, or else the last whose output has positions.

    Args:
        outputs: The outputs of the layer in one forward, one per call.
        name: The layer's name, with or without a call.
        images: The images that were forwarded.
        layout: Gives the layout of an output of the layer, by the output and its call; None if that is not known.
        reshape_transform: As in `Method`; its word is the last.

    Raises:
        ValueError: The layer was not called, or not as often as the name says, or its output has no positions, or
            nobody says how it lies.
    """
    if not outputs:
        raise ValueError(
            f"target_layer={name!r} was never called in the forward pass; name a layer that the images run through"
        )
    layer, named = split_call(name)
    if named is not None and not -len(outputs) <= named < len(outputs):
        raise ValueError(
            f"target_layer={name!r} is out of range: {layer!r} is called {len(outputs)} times in one forward pass; "
            f"name a call from {layer}[0] to {layer}[{len(outputs) - 1}]"
        )
    wanted = range(len(outputs)) if named is None else [named % len(outputs)]
    readers: dict[int, ReadLayer] = {}
    for call in wanted:
        if isinstance(outputs[call], Tensor):
            reader = _reader(outputs[call], call, images, layout, reshape_transform)
            if reader is not None:
                readers[call] = reader
    if readers:
        used = max(readers)
        if used != wanted[-1]:
            warn_user(
                f"target_layer={name!r} is called {len(outputs)} times in one forward pass; '{layer}[{used}]' is used, "
                "because what comes out of the later calls has no positions, or none that are understood. Name that "
                "call, or another one"
            )
        elif len(readers) > 1:
            warn_user(
                f"target_layer={name!r} is called {len(outputs)} times in one forward pass; the last call is used. "
                f"'{layer}[0]' names the first one, '{layer}[-1]' the last"
            )
        return readers[used]
    chosen = outputs[wanted[-1]]
    if not isinstance(chosen, Tensor):
        raise ValueError(
            f"target_layer={name!r} returns {type(chosen).__name__}, not a tensor; name a layer inside it or after it"
        )
    if chosen.ndim < 3 and reshape_transform is None:
        raise ValueError(
            f"target_layer={name!r} has an output of shape {tuple(chosen.shape)} for images "
            f"{tuple(images.shape)}: it has no positions. Name an earlier layer, or leave target_layer out"
        )
    remedy = (
        "reshape_transform must return (N, channels, *spatial) with more than one position"
        if reshape_transform
        else "neither its modules nor its response to a change of a small patch tell where positions and channels are. "
        "Name an earlier layer, leave target_layer out, or give reshape_transform, a callable from the output to (N, "
        "channels, *spatial)"
    )
    raise (ValueError if reshape_transform else UnknownLayoutError)(
        f"target_layer={name!r} has an output of shape {tuple(chosen.shape)} for images {tuple(images.shape)}; {remedy}"
    )


def _reader(
    output: Tensor,
    call: int,
    images: Tensor,
    layout: Callable[[Tensor, int], Layout | None],
    reshape_transform: ReshapeTransform | None,
) -> ReadLayer | None:
    if reshape_transform is None:
        found = layout(output, call)
        return None if found is None else ReadLayer(call, found.to_maps, found.margins)
    maps = transformed(output, reshape_transform, images.ndim - 2)
    return ReadLayer(call, reshape_transform) if maps is not None and len(maps) == len(images) else None
