"""Batch norms folded into the convolutions before them within a context: the same function, fewer operations.

In evaluation a batch norm multiplies and shifts each channel by constants; a convolution right before it can do that
with its own weights (Markus 2018 and others; PyTorch's `fuse_conv_bn_eval`). The user's weights are not touched: within
the context the convolution computes with other weights, and the batch norm passes on what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from cam_callbacks.explain.hooks import hooked

Pair = tuple[_ConvNd, _BatchNorm]

_ROUNDING = 1e-4


@contextmanager
def folded(pairs: list[Pair]) -> Iterator[None]:
    """Fold batch norms into their convolutions within the context; undo it on the way out, also after an error."""
    try:
        for conv, norm in pairs:
            conv.forward = _convolution(conv, norm)
            norm.forward = _identity  # type: ignore[method-assign,assignment]
        yield
    finally:
        for pair in pairs:
            for module in pair:
                module.__dict__.pop("forward", None)


def equivalent_pairs(model: nn.Module, run: Callable[[], object], run_again: Callable[[], object]) -> list[Pair]:
    """Return the pairs of `foldable`, or none if folding them changes what the model returns by more than rounding.

    Args:
        model: The model, in eval mode.
        run: Runs it on an image.
        run_again: Runs it on that image once more, folded.
    """
    outputs: list[object] = []
    pairs = foldable(model, lambda: outputs.append(run()))
    if not pairs:
        return []
    try:
        with folded(pairs):
            outputs.append(run_again())
        before, after = (_floating_tensors(output) for output in outputs)
        same = len(before) == len(after) and all(map(_equal_up_to_rounding, before, after))
    except (RuntimeError, TypeError):  # it fails when folded, or its output cannot be looked into
        return []
    return pairs if same else []


def foldable(model: nn.Module, run: Callable[[], Any]) -> list[Pair]:
    """Return pairs of a convolution and the batch norm that is given its output, each called once while `run` runs.

    Args:
        model: The model, in eval mode.
        run: Runs it.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return []
    made_by: dict[int, tuple[_ConvNd, Tensor]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: list[Pair] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, _ConvNd):
            made_by[id(output)] = (module, output)  # the output is kept, so that its identity stays unique
        elif inputs and isinstance(module, _BatchNorm) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], module))

    with hooked([module for module in model.modules() if _is_plain(module)], note):
        run()
    return [pair for pair in pairs if all(calls[module] == 1 for module in pair)]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution or a batch norm with constants, of PyTorch's own kind, without hooks."""
    if type(module) not in _KINDS or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    return not isinstance(module, _BatchNorm) or module.running_var is not None


_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _convolution(conv: _ConvNd, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    fused = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    weight, bias = (parameter.detach() for parameter in fused)

    def convolve(images: Tensor) -> Tensor:
        convolved: Tensor = conv._conv_forward(images, weight, bias)
        return convolved

    return convolve


def _identity(images: Tensor) -> Tensor:
    return images


def _floating_tensors(output: object) -> list[Tensor]:
    """Return all floating point tensors in what a model returned."""
    leaves = tree_leaves(output if isinstance(output, (Tensor, tuple, list, dict)) else vars(output))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _equal_up_to_rounding(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.cpu().double(), b.cpu().double()  # MPS has no double precision
    return bool((a - b).norm() <= _ROUNDING * a.norm())
