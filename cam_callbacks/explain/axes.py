"""Follows the axes of the images through a forward: what lies along each dimension of each tensor.

Whoever makes a tensor decides where its channels are: a convolution, its norm and pooling have them in dimension 1,
linear layers, layer norms and attention in the last. Rearrangements are followed exactly, and so is which part of the
image positions cover. What an unknown operation makes from images is unknown, and so is its sum with something known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from cam_callbacks.explain import axis_rules
from cam_callbacks.explain.axis_rules import tensors_in
from cam_callbacks.explain.dimensions import (
    Dim,
    axis_dim,
    channels_dim,
    constant_dim,
    is_channels,
    is_constant,
    run_of,
    unknown_dim,
)
from cam_callbacks.explain.layouts import Layout, Run


class AxisTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows what lies along the dimensions of all tensors that are made inside it.

    A tensor is recognized by its memory, shape and strides. What is known of a memory is never taken for that of
    another one in its place: a weak reference keeps its identity, not its contents.

    Args:
        images: (N, C, *spatial), what the forward begins with.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[object, tuple[Dim, ...]] = {}
        self._made: dict[int, StorageWeakRef] = {}  # the memory of what was made from the images
        self._images, self._sides = len(images), images.shape[2:]
        axes = [axis_dim(axis, side) for axis, side in enumerate(self._sides)]
        self._note(images, [(), channels_dim(images.shape[1]), *axes])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        try:
            self._follow(func, args, kwargs or {}, result)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            for each in tensors_in(result):  # an operation that is called in another way than known
                self._note(each, None)
        return result

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()
        self._made.clear()

    def layout(self, output: Tensor) -> Layout | None:
        """Return the layout of an output; None if it is not known, or if there is no more than one position."""
        layout = self._layout(output)
        return None if layout is None or layout.is_beside_the_image else layout

    def _layout(self, output: Tensor) -> Layout | None:
        dims = self._of(output)
        channels = [place for place, dim in enumerate(dims) if is_channels(dim)]
        runs = [(place, run) for place, dim in enumerate(dims) if (run := run_of(dim)) is not None]
        taken = {*channels, *(place for place, _ in runs)}
        others = [place for place in range(output.ndim) if place not in taken]
        along = [axis for _, run in runs for axis in run.axes]
        if len(channels) != 1 or len(others) != 1 or len(set(along)) < len(along) or not output.is_floating_point():
            return None
        if output.shape[others[0]] != self._images or math.prod(run.count for _, run in runs) < 2:
            return None
        if any(stretch.rolled for _, run in runs for stretch in run.stretches):
            return None
        plain = tuple((place, replace(run, stretches=())) for place, run in runs)
        return Layout(others[0], channels[0], plain, len(self._sides), self._margins([run for _, run in runs]))

    def _margins(self, runs: Sequence[Run]) -> tuple[tuple[int, int], ...]:
        margins = [(0, 0)] * len(self._sides)
        for run in runs:
            for axis, size, stretch in zip(run.axes, run.grid, run.stretches, strict=True):
                margins[axis] = stretch.margins(size, self._sides[axis])
        return tuple(margins) if any(map(any, margins)) else ()

    def channels(self, output: Tensor) -> int | None:
        """Return the dimension of an output's channels; None if it is not known."""
        places = [place for place, dim in enumerate(self._of(output)) if is_channels(dim)]
        return places[0] if len(places) == 1 else None

    def has_no_positions(self, output: Tensor) -> bool:
        """Whether it is known that nothing but images and channels lies along an output."""
        dims = self._of(output)
        layout = self._layout(output)
        if layout is not None and layout.is_beside_the_image:
            return True
        others = [place for place, dim in enumerate(dims) if not is_channels(dim) and output.shape[place] > 1]
        return len(others) <= (self._images > 1) and any(map(is_channels, dims))

    def _of(self, tensor: Tensor) -> list[Dim]:
        if not self._is_made(tensor):
            return [constant_dim(size) for size in tensor.shape]
        try:
            known = self._known.get(_key(tensor))
        except RuntimeError:
            known = None
        return list(known) if known is not None else [unknown_dim(size) for size in tensor.shape]

    def _is_made(self, tensor: Tensor) -> bool:
        """Whether a tensor was made from the images, or may be because it has no memory of its own."""
        try:
            return _memory(tensor) in self._made
        except RuntimeError:
            return True

    def _note(self, tensor: Tensor, dims: Sequence[Dim] | None) -> None:
        """Note what lies along a tensor that was made from the images; None if that is not known."""
        dims = [unknown_dim(size) for size in tensor.shape] if dims is None else dims
        sizes = zip(dims, tensor.shape, strict=True)
        fitting = tuple(
            dim if math.prod(atom.size for atom in dim) == size and not is_constant(dim) else unknown_dim(size)
            for dim, size in sizes
        )
        try:
            self._known[_key(tensor)] = fitting
            self._made.setdefault(_memory(tensor), StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        except RuntimeError:
            return

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = axis_rules.name_of(func)
        outputs, operands = tensors_in(result), tensors_in([*args, *kwargs.values()])
        if not outputs or axis_rules.makes_constants(name) or not any(map(self._is_made, operands)):
            return
        known = [(tensor, self._of(tensor)) for tensor in operands]
        for output, dims in zip(outputs, axis_rules.made_by(name, func, args, kwargs, known, outputs), strict=True):
            self._note(output, dims)


def tracked(run: Callable[[], Any], tracker: AxisTracker, again: Callable[[], object]) -> Any:
    """Return what `run` returns, inside the tracker if the model can be run there.

    Args:
        run: Runs the model.
        tracker: Follows the axes.
        again: Called before the model runs a second time, without the tracker.
    """
    try:
        with tracker:
            return run()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):
        # Its tensors take no such mode; or it fails by itself, then it does so again.
        tracker.forget()
        again()
        return run()


def _memory(tensor: Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory


def _key(tensor: Tensor) -> object:
    return _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
