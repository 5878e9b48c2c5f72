"""The target layer: find it by name, choose it, record what it puts out."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layouts import ReshapeTransform, is_channels_first, to_maps
from cam_callbacks.explain.model_outputs import logits_of

Forward = Callable[[Tensor], Any]
"""The model's forward with everything but the images already given."""


def find(model: nn.Module, name: str) -> nn.Module:
    """The submodule called `name`.

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
    except AttributeError:
        pass
    names = [known.replace("_orig_mod.", "") for known, _ in model.named_modules() if known]
    ending = [known for known in names if known.endswith(f".{name}")]
    nearest = (ending + [near for near in difflib.get_close_matches(name, names, n=5) if near not in ending])[:5]
    hint = f"nearest: {', '.join(map(repr, nearest))}" if nearest else f"it has {', '.join(map(repr, names[:8]))}, ..."
    raise ValueError(f"target_layer={name!r} is not in {type(model).__name__}; {hint}")


def name_of(model: nn.Module, layer: object) -> str:
    """The dotted name of a layer that is given by name or as the module itself.

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
            return str(name).replace("_orig_mod.", "")
    raise ValueError(f"target_layer={type(layer).__name__}(...) is not a submodule of {type(model).__name__}")


def split_call(name: str) -> tuple[str, int | None]:
    """The name of a layer, and which of its calls in one forward is meant: `"relu[0]"` is the first call of `relu`."""
    match = re.fullmatch(r"(.+)\[(-?\d+)\]", name)
    return (match[1], int(match[2])) if match else (name, None)


@contextmanager
def recorded(layers: Sequence[nn.Module], differentiable: bool = False) -> Iterator[list[list[Any]]]:
    """Collect what layers put out, a list for each, one entry a call; hooks are gone on the way out, also on error.

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
            own.append(output)
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


def spatial_output(
    outputs: list[Any], name: str, images: Tensor, reshape_transform: ReshapeTransform | None = None
) -> Tensor:
    """The one among a layer's outputs, one a call, that has positions: of several the last, or the one that is named.

    Args:
        outputs: What the layer put out in one forward.
        name: The layer's name, with or without a call.
        images: What was forwarded.
        reshape_transform: As in `cam_callbacks.explain.layouts.to_maps`.

    Raises:
        ValueError: The layer was not called, not so often, or its output has no positions.
    """
    if not outputs:
        raise ValueError(
            f"target_layer={name!r} was never called in the forward pass; name a layer that the images run through"
        )
    layer, call = split_call(name)
    spatial = [output for output in outputs if _is_spatial(output, images, reshape_transform)]
    if call is not None:
        if not -len(outputs) <= call < len(outputs):
            raise ValueError(
                f"target_layer={name!r} names a call that there is not: {layer!r} is called {len(outputs)} times"
            )
        chosen = outputs[call]
    else:
        chosen = spatial[-1] if spatial else outputs[-1]
        if len(spatial) > 1:
            warnings.warn(
                f"target_layer={name!r} is called {len(outputs)} times in one forward pass; the last call is used. "
                f"'{layer}[0]' names the first one, '{layer}[-1]' the last",
                stacklevel=2,
            )
    if not isinstance(chosen, Tensor):
        raise ValueError(
            f"target_layer={name!r} returns {type(chosen).__name__}, not a tensor; name a layer inside it or after it"
        )
    if not _is_spatial(chosen, images, reshape_transform):
        remedy = (
            "reshape_transform must return (N, channels, *spatial) with more than one position"
            if reshape_transform
            else "(N, channels, *spatial), (N, *spatial, channels), or tokens (N, tokens, channels) that form a grid "
            "of the images' proportions are understood, with more than one position. Name an earlier layer, leave "
            "target_layer out, or give reshape_transform, a callable from the output to (N, channels, *spatial)"
        )
        raise ValueError(
            f"target_layer={name!r} has an output of shape {tuple(chosen.shape)} for images {tuple(images.shape)}; "
            f"{remedy}"
        )
    return chosen


def _is_spatial(output: Any, images: Tensor, reshape_transform: ReshapeTransform | None = None) -> bool:
    maps = to_maps(output, images.shape[2:], reshape_transform) if isinstance(output, Tensor) else None
    return maps is not None and len(maps) == len(images)


@dataclass
class _Call:
    """One call of a module; the output is kept so that its identity stays unique."""

    name: str
    output: Tensor
    passed_over: bool
    is_tokens: bool
    has_weights: bool
    is_read: bool = True


def choose(model: nn.Module, images: Tensor, forward: Forward, class_map: bool = False) -> str:
    """The last layer with positions that the answer is read from, found by running `forward` on one image.

    Passed over are: pooling, because the map is finer just before it; class maps (as many channels as the model has
    classes, and no weights after them but those of other class maps, as at the end of SqueezeNet), because they are the
    answer, not what it was read from; and layers that compute no features (dropout, identity, softmax, permutation). Of
    modules that return the very same tensor (a block and the last layer in it) the outermost gives the name.

    Of layers that put out tokens, or have the channels last, only blocks and normalizations are considered, which carry
    what is passed on.

    If the model has gradients, only layers are considered whose positions the answer depends on: none after the last
    attention of a transformer with a class token, where nothing but that token is read, and no side branch.

    Args:
        model: The model; to be called inside `isolated`.
        images: (N, C, *spatial); only the first is used.
        forward: Runs the model on images.
        class_map: Do not pass over class maps.

    Raises:
        ValueError: No layer has spatial output.
    """
    found = _calls_with_gradients(model, images[:1], forward) or _calls(model, images[:1], forward)
    output, calls, before = found
    if not calls:
        raise ValueError(
            f"no layer of {type(model).__name__} has an output of shape (N, channels, *spatial), nor one of tokens "
            f"that form a grid, for images {tuple(images.shape)}; name one by target_layer, and give "
            "reshape_transform, a callable from its output to (N, channels, *spatial)"
        )
    read = [place for place, call in enumerate(calls) if call.is_read] or range(len(calls))
    classes = _count_classes(output)
    narrow = {place for place in read if calls[place].output.shape[1] == classes and not calls[place].is_tokens}
    last = max([before, *(place for place in read if calls[place].has_weights and place not in narrow)])
    features = [
        place
        for place in read
        if not calls[place].passed_over and (class_map or not (place in narrow and place >= last))
    ]
    chosen = calls[(features or read)[-1]]
    return chosen.name.replace("_orig_mod.", "")


def _calls(model: nn.Module, image: Tensor, forward: Forward) -> tuple[Any, list[_Call], int]:
    """The model's output, all calls with positions, and how many of them come before the last weights without."""
    calls: list[_Call] = []
    before = 0
    names = {id(module): name for name, module in model.named_modules()}

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal before
        name = names[id(module)]
        has_weights = next(module.parameters(recurse=False), None) is not None
        if not _is_spatial(output, image):
            before = len(calls) if has_weights else before
            return
        tokens = not is_channels_first(output, image.shape[2:])
        inner = [call for call in calls if call.output is output and call.name.startswith(f"{name}.")]
        if inner:
            passed_over = all(call.passed_over for call in inner)
        else:
            passed_over = _rearranges(module) or (tokens and not _carries_on(module))
        calls.append(_Call(name, output, passed_over, tokens, has_weights))

    with hooked((module for name, module in model.named_modules() if name), note):
        return forward(image), calls, before


def _carries_on(module: nn.Module) -> bool:
    """Whether a module is a block or a normalization, not a part of an attention or of a block's inner network."""
    return next(module.children(), None) is not None or "norm" in type(module).__name__.lower()


def _count_classes(output: Any) -> int | None:
    try:
        logits = logits_of(output)
    except TypeError:
        return None  # e.g. a detector
    return logits.shape[1] if logits.ndim > 1 else 1


def _calls_with_gradients(model: nn.Module, image: Tensor, forward: Forward) -> tuple[Any, list[_Call], int] | None:
    """What `_calls` returns, and of each call whether the output depends on its positions; None without gradients.

    What is passed back is not a number: unlike a gradient it does not vanish where weights are 0, as those of a head
    that is not trained yet may be.
    """
    try:
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            output, calls, before = _calls(model, image.detach().clone().requires_grad_().clone(), forward)
            logits = logits_of(output)
            reached = [call.output for call in calls if call.output.requires_grad]
            gradients = torch.autograd.grad(logits, reached, torch.full_like(logits, torch.nan), allow_unused=True)
            found = dict(zip(map(id, reached), gradients, strict=True))
            for call in calls:
                gradient = found.get(id(call.output))
                maps = None if gradient is None else to_maps(gradient, image.shape[2:])
                call.is_read = maps is not None and bool((maps != 0).any())
            return output, calls, before
    except (RuntimeError, TypeError, ValueError):
        return None


def activation_bytes(model: nn.Module, images: Tensor, forward: Forward) -> int:
    """How many bytes all innermost modules together put out for one image: more than a forward pass holds at once."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    innermost = [module for module in model.modules() if next(module.children(), None) is None]
    with hooked(innermost, count):
        forward(images[:1])
    return total


_POOLING = [f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for d in (1, 2, 3)]
_DROPOUT = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
_PASSED_OVER = tuple(getattr(nn, name) for name in [*_POOLING, *_DROPOUT, "Identity", "Softmax"])


def _rearranges(module: nn.Module) -> bool:
    """Whether a module computes no features; torchvision's permutation is told by its name, without importing it."""
    return isinstance(module, _PASSED_OVER) or type(module).__name__ == "Permute"


def device_mesh(model: nn.Module) -> DeviceMesh | None:
    """The processes over which the weights of a model are spread (`fully_shard`); None where each holds all of it.

    None of them can run such a model alone.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return next((part.device_mesh for part in model.parameters() if isinstance(part, DTensor)), None)


def whole(parameter: Tensor) -> Tensor:
    """A weight as one tensor, also where it is spread over processes, all of which then call this."""
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def device_and_dtype(model: nn.Module, images: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where the model computes and in which floating type: that of its first floating parameter, else the images'."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return images.device, images.dtype
