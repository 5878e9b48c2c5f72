"""Follows the axes of the images through a forward: what lies along each dimension of each tensor.

Whoever makes a tensor decides where its channels are: a convolution, its norm and pooling have them in dimension 1,
linear layers, layer norms and attention in the last. Rearrangements are followed exactly. What an unknown operation
makes is unknown; the sum with something known (a residual) makes it known again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cam_callbacks.explain import axis_rules
from cam_callbacks.explain.axis_rules import Dim, is_channels, run_of, tensors_in, unknown_dim
from cam_callbacks.explain.layouts import Layout


class AxisTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows what lies along the dimensions of all tensors that are made inside it.

    A tensor is recognized by its memory, shape and strides. Memory is used again, but whatever is made in it is noted
    in place of what was there.

    Args:
        images: (N, C, *spatial), what the forward begins with.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[object, tuple[Dim, ...]] = {}
        self._images = len(images)
        self._axes = images.ndim - 2
        self._note(
            images,
            [
                (),
                axis_rules.channels_dim(images.shape[1]),
                *(axis_rules.axis_dim(k, images.shape[2 + k]) for k in range(self._axes)),
            ],
        )

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

    def layout(self, output: Tensor) -> Layout | None:
        """Return the layout of an output; None if it is not known, or if there is no more than one position."""
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
        return Layout(others[0], channels[0], tuple(runs), self._axes)

    def channels(self, output: Tensor) -> int | None:
        """Return the dimension of an output's channels; None if it is not known."""
        places = [place for place, dim in enumerate(self._of(output)) if is_channels(dim)]
        return places[0] if len(places) == 1 else None

    def has_no_positions(self, output: Tensor) -> bool:
        """Whether it is known that nothing but images and channels lies along an output."""
        dims = self._of(output)
        others = [place for place, dim in enumerate(dims) if not is_channels(dim) and output.shape[place] > 1]
        return len(others) <= (self._images > 1) and any(map(is_channels, dims))

    def _of(self, tensor: Tensor) -> list[Dim]:
        try:
            known = self._known.get(_key(tensor))
        except RuntimeError:  # it has no memory of its own
            known = None
        return list(known) if known is not None else [unknown_dim(size) for size in tensor.shape]

    def _note(self, tensor: Tensor, dims: Sequence[Dim] | None) -> None:
        dims = [unknown_dim(size) for size in tensor.shape] if dims is None else dims
        sizes = zip(dims, tensor.shape, strict=True)
        fitting = tuple(
            dim if math.prod(atom.size for atom in dim) == size else unknown_dim(size) for dim, size in sizes
        )
        try:
            self._known[_key(tensor)] = fitting
        except RuntimeError:
            return

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = axis_rules.name_of(func)
        outputs = tensors_in(result)
        if not outputs:
            return
        known = [(tensor, self._of(tensor)) for tensor in tensors_in([*args, *kwargs.values()])]
        made = [None] * len(outputs) if not known else axis_rules.made_by(name, func, args, kwargs, known, outputs)
        for output, dims in zip(outputs, made, strict=True):
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


def _key(tensor: Tensor) -> object:
    memory = tensor.untyped_storage()._cdata
    return memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
