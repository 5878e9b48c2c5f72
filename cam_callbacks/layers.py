"""The target layer: find it by name, choose it, record what it puts out."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.targets import logits_of

Forward = Callable[[Tensor], Any]
"""The model's forward with everything but the images already given."""


def find(model: nn.Module, name: str) -> nn.Module:
    """The submodule called `name`.

    Args:
        model: The model, or the LightningModule that holds it.
        name: A dotted name as in `model.named_modules()`; the `_orig_mod` of compiled parts may be left out.

    Raises:
        ValueError: There is no such submodule; the message lists the nearest names.
    """
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


def name_of(model: nn.Module, layer: str | nn.Module) -> str:
    """The dotted name of a layer that is given by name or as the module itself.

    Raises:
        ValueError: It is not a part of the model.
    """
    if isinstance(layer, str):
        find(model, layer)
        return layer
    for name, module in model.named_modules():
        if module is layer:
            return str(name).replace("_orig_mod.", "")
    raise ValueError(f"target_layer={type(layer).__name__}(...) is not a submodule of {type(model).__name__}")


@contextmanager
def recorded(layer: nn.Module) -> Iterator[list[Any]]:
    """Collect what `layer` puts out, one entry a call; the hook is gone on the way out, also after an error.

    A tensor is cloned at once: an in-place operation after the layer (`ReLU(inplace=True)`) would change it.
    """
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output.detach().clone() if isinstance(output, Tensor) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def spatial_output(outputs: list[Any], name: str, images: Tensor) -> Tensor:
    """The activations (N, K, *spatial) among what a layer put out; of several calls in one forward the last with space.

    Raises:
        ValueError: The layer was not called, or its output has no spatial dimensions.
    """
    if not outputs:
        raise ValueError(
            f"target_layer={name!r} was never called in the forward pass; name a layer that the images run through"
        )
    activations = next((output for output in reversed(outputs) if _is_spatial(output, images)), outputs[-1])
    if not isinstance(activations, Tensor):
        raise ValueError(
            f"target_layer={name!r} returns {type(activations).__name__}, not a tensor; name a layer inside it or "
            "after it"
        )
    if not _is_spatial(activations, images):
        raise ValueError(
            f"target_layer={name!r} has an output of shape {tuple(activations.shape)} for images "
            f"{tuple(images.shape)}; Score-CAM needs (N, channels, *spatial) with more than one position. Name an "
            "earlier layer, or leave target_layer out"
        )
    return activations


def _is_spatial(output: Any, images: Tensor) -> bool:
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and output.ndim == images.ndim
        and output.shape[0] == images.shape[0]
        and output.shape[2:].numel() > 1
        and _same_proportions(output.shape[2:], images.shape[2:])
    )


def _same_proportions(output: Sequence[int], images: Sequence[int]) -> bool:
    """Whether a layer's output may be a picture of the images: (N, H, W, C) taken for (N, C, H, W) is not."""
    ratios = [out / image for out, image in zip(output, images, strict=True)]
    return max(ratios) <= 4 * min(ratios) or min(output) == 1


@dataclass
class _Call:
    """One call of a module; the output is kept so that its identity stays unique."""

    name: str
    output: Tensor
    passed_over: bool


def choose(model: nn.Module, images: Tensor, forward: Forward) -> str:
    """The last layer with spatial output, found by running `forward` on one image.

    Three kinds of layers are passed over: pooling, because the map is finer just before it; class maps (as many
    channels as the model has classes, and no weights after them, as at the end of SqueezeNet), because they are the
    answer, not what it was read from; and those that are no features (dropout, identity, softmax). Of modules that
    return the very same tensor (a block and the last layer in it) the outermost gives the name.

    Args:
        model: The model; to be called inside `undisturbed`.
        images: (N, C, *spatial); only the first is used.
        forward: Runs the model on images.

    Raises:
        ValueError: No layer has spatial output.
    """
    calls: list[_Call] = []
    tokens = ""  # the last module with weights that put out neither maps nor vectors, if it came after all maps
    weighted = 0  # the place in `calls` of the last layer with weights of its own

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal tokens, weighted
            if next(module.parameters(recurse=False), None) is not None:
                weighted = len(calls)
            if isinstance(output, Tensor) and output.ndim > 2 and output.shape[1:].numel() > max(output.shape[1:]):
                tokens = "" if _is_spatial(output, images[:1]) else name
            if _is_spatial(output, images[:1]):
                inner = [call for call in calls if call.output is output and call.name.startswith(f"{name}.")]
                passed_over = all(call.passed_over for call in inner) if inner else isinstance(module, _PASSED_OVER)
                calls.append(_Call(name, output, passed_over))

        return keep

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        output = forward(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise ValueError(
            f"no layer of {type(model).__name__} has an output of shape (N, channels, *spatial) for images "
            f"{tuple(images.shape)}; name one by target_layer"
        )
    logits = logits_of(output)
    classes = logits.shape[1] if logits.ndim > 1 else 1
    features = [
        call
        for place, call in enumerate(calls)
        if not call.passed_over and not (call.output.shape[1] == classes and place >= weighted)
    ]
    chosen = (features or calls)[-1].name.replace("_orig_mod.", "")
    if tokens:
        warnings.warn(
            f"{type(model).__name__} goes on in another layout than (N, channels, *spatial), up to {tokens!r}: "
            f"tokens, or channels last. Such layers cannot be explained; {chosen!r}, the last one before them, sees "
            "little of what the model makes of the image",
            stacklevel=2,
        )
    return chosen


def bytes_put_out(model: nn.Module, images: Tensor, forward: Forward) -> int:
    """How many bytes all innermost modules together put out for one image: more than a forward pass holds at once."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    innermost = [module for module in model.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(count) for module in innermost]
    try:
        forward(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return total


_POOLING = [f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for d in (1, 2, 3)]
_DROPOUT = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
_PASSED_OVER = tuple(getattr(nn, name) for name in [*_POOLING, *_DROPOUT, "Identity", "Softmax"])


def device_and_dtype(model: nn.Module, images: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where the model computes and in which floating type: that of its first floating parameter, else the images'."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return images.device, images.dtype
