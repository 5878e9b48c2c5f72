"""Where a layer answers if a small patch of the image changes: how its output is read if the modules do not say it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.layouts import Layout, Run

_PATCHES_IN_A_SIDE = 32
_MIN_CORRELATION, _MAX_OTHER_CORRELATION, _MIN_WAY = 0.9, 0.5, 0.15
_MAX_SHIFT = 0.1  # of a side
_MIN_PEAK = 1.5  # of the response of a token to a patch, in means over all patches


class Probe:
    """One forward of copies of an image, in each of which another small patch is changed, after the unchanged one.

    Corners, center, and the centers of the quarters are changed. A model that takes one image at a time is run on each.

    Args:
        run: Runs the model on images.
        image: (1, C, *spatial).
        modules: The layers that are listened to.
        images: How many images there were in the forward that other shapes are known from.
        agreed: Gives all ranks the values of the first.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Any],
        image: Tensor,
        modules: Iterable[nn.Module],
        images: int,
        agreed: Callable[[Tensor], Tensor],
    ) -> None:
        self._agreed, self._axes, self._images = agreed, image.ndim - 2, images
        self._places = _places(self._axes)
        copies = _changed(image, self._places)
        if len(copies) == images:  # the dimension of the images shows itself by its size
            copies = torch.cat([copies, image])
        self._modules = list({id(module): module for module in modules}.values())
        self._count = len(copies)
        self._outputs: list[dict[int, list[Any]]] = []
        try:
            self._record(run, copies)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError):
            self._outputs, self._count = [], 1
            for copy in copies:
                self._record(run, copy.unsqueeze(0))

    def _record(self, run: Callable[[Tensor], Any], images: Tensor) -> None:
        calls: dict[int, list[Any]] = {id(module): [] for module in self._modules}

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            calls[id(module)].append(output.detach().clone() if isinstance(output, Tensor) else None)

        with hooked(self._modules, keep):
            run(images)
        self._outputs.append(calls)

    def layout(
        self, module: nn.Module, call: int, shape: Sequence[int], known_channels: int | None = None
    ) -> Layout | None:
        """Return how the output of a call of a module is read; None if the responses do not decide it.

        Args:
            module: The module.
            call: Which of its calls.
            shape: The output's shape in the earlier forward.
            known_channels: The dimension of its channels, if the modules say it.
        """
        found = self._responses(module, call, shape)
        if found is None:
            return None
        batch, responses = found
        others = [place for place in range(len(shape)) if place != batch]
        layouts = [
            Layout(batch, others[channels], tuple((others[at], run) for at, run in runs), self._axes)
            for channels in range(len(others))
            if known_channels in (None, others[channels]) and (runs := self._runs(responses, channels)) is not None
        ]
        return layouts[0] if len(layouts) == 1 else None

    def answers_everywhere_alike(self, module: nn.Module, call: int, shape: Sequence[int]) -> bool:
        """Whether each value of an output responds to all patches alike, or to none: it has no positions."""
        found = self._responses(module, call, shape)
        if found is None:
            return False
        responses = found[1]
        return all(float(_relative(responses, [place]).amax()) < _MIN_PEAK for place in range(responses.ndim - 1))

    def _responses(self, module: nn.Module, call: int, shape: Sequence[int]) -> tuple[int, Tensor] | None:
        """Return the dimension of the images, and (patches, ...) how much each value changed."""
        outputs: list[Any] = [
            calls[id(module)][call] if call < len(calls[id(module)]) else None for calls in self._outputs
        ]
        if any(output is None or output.ndim != len(shape) or not output.is_floating_point() for output in outputs):
            return None
        sizes = zip(shape, outputs[0].shape, strict=True)
        differ = [place for place, (before, now) in enumerate(sizes) if before != now]
        if not differ and self._count == self._images == 1:
            differ = [place for place, size in enumerate(shape) if size == 1][:1]
        if len(differ) != 1 or outputs[0].shape[differ[0]] != self._count:
            return None
        rows = torch.cat([output.movedim(differ[0], 0) for output in outputs])[: 1 + len(self._places)]
        return differ[0], self._agreed((rows[1:].double() - rows[:1].double()).abs())

    def _runs(self, responses: Tensor, channels: int) -> tuple[tuple[int, Run], ...] | None:
        """Return what runs along the dimensions other than those of the channels, if they follow the patches."""
        dimensions = [place for place in range(responses.ndim - 1) if place != channels]
        if len(dimensions) == 1 and self._axes > 1:
            run = self._tokens(_relative(responses, dimensions))
            return None if run is None else ((dimensions[0], run),)
        if (
            len(dimensions) != self._axes
            or _relative(responses, [channels]).amax() > _relative(responses, dimensions).amax()
        ):
            return None
        axes = [self._axis(_relative(responses, [place])) for place in dimensions]
        if any(axis is None for axis in axes) or len(set(axes)) < self._axes:
            return None
        # the channels are what does not follow the patch
        if self._axis(_relative(responses, [channels])) is not None:
            return None
        return tuple(
            (place, Run((axis,), (responses.shape[1 + place],)))
            for place, axis in zip(dimensions, axes, strict=True)
            if axis is not None
        )

    def _axis(self, relative: Tensor) -> int | None:
        """Return the axis of the image that the center of the response (patches, size) follows."""
        size = relative.shape[1]
        if size < 2:
            return None
        weight = (relative - 1).clamp_min(0)
        total = weight.sum(1)
        answered = total > 0  # a stride may have stepped over a patch
        if 2 * int(answered.sum()) <= len(answered):
            return None
        positions = torch.arange(size, dtype=weight.dtype, device=weight.device)
        center = (weight @ positions)[answered] / total[answered]
        if float(center.amax() - center.amin()) < _MIN_WAY * (size - 1):
            return None
        places = torch.tensor(self._places, dtype=weight.dtype, device=weight.device)[answered]
        follows = torch.corrcoef(torch.cat([center.unsqueeze(0), places.T]))[0, 1:]
        axis = int(follows.argmax())
        others = [float(value.abs()) for at, value in enumerate(follows) if at != axis]
        clear = follows[axis] >= _MIN_CORRELATION and max(others, default=0.0) <= _MAX_OTHER_CORRELATION
        shift = float((center - places[:, axis] * (size - 1)).mean().abs())  # as of an image that the model moves
        return axis if clear and shift <= max(1, _MAX_SHIFT * size) else None

    def _tokens(self, relative: Tensor) -> Run | None:
        """Return the grid of tokens, from those that respond most to the corners; the other patches confirm it."""
        peaks, tokens = relative.max(dim=1)
        if float(peaks.amin()) < _MIN_PEAK:
            return None
        at = dict(zip(self._places, tokens.tolist(), strict=True))
        before = at[(0.0,) * self._axes]
        steps = [at[tuple(float(axis == k) for axis in range(self._axes))] - before for k in range(self._axes)]
        order = sorted(range(self._axes), key=lambda k: steps[k])  # fastest first
        strides, sizes, stride = [0] * self._axes, [0] * self._axes, 1
        for axis in order:
            if steps[axis] <= 0 or steps[axis] % stride:
                return None
            strides[axis], sizes[axis] = stride, steps[axis] // stride + 1
            stride *= sizes[axis]
        if before + math.prod(sizes) > relative.shape[1]:
            return None
        for place, token in at.items():
            offset = token - before
            cells = [offset // strides[k] % sizes[k] for k in range(self._axes)]
            away = [abs(cell - place[k] * (sizes[k] - 1)) for k, cell in enumerate(cells)]
            if not 0 <= offset < math.prod(sizes) or max(away) > (0 if set(place) <= {0.0, 1.0} else 1):
                return None
        slowest_first = tuple(reversed(order))
        return Run(slowest_first, tuple(sizes[axis] for axis in slowest_first), before)


def _relative(responses: Tensor, kept: Sequence[int]) -> Tensor:
    """Return (patches, size kept): responses summed over all else, divided by their mean over patches."""
    gone = [1 + place for place in range(responses.ndim - 1) if place not in kept]
    summed = (responses.sum(dim=gone) if gone else responses).flatten(1)
    return summed / summed.mean(dim=0).clamp_min(1e-30)


def _places(axes: int) -> list[tuple[float, ...]]:
    """Where patches are changed, in [0, 1] along each axis: corners, center, quarters."""
    corners = list(itertools.product((0.0, 1.0), repeat=axes))
    quarters = list(itertools.product((0.25, 0.75), repeat=axes))
    return [*corners, (0.5,) * axes, *quarters]


def _changed(image: Tensor, places: Sequence[tuple[float, ...]]) -> Tensor:
    """Return the image, and copies of it each with noise of both signs in one patch."""
    chance = torch.Generator().manual_seed(0)
    height = float(image.abs().amax().nan_to_num()) or 1.0
    sizes = [min(side, max(2, round(side / _PATCHES_IN_A_SIDE))) for side in image.shape[2:]]
    noise = (torch.rand(image.shape[1], *sizes, generator=chance) * 4 - 2) * height
    copies = image.repeat(1 + len(places), *[1] * (image.ndim - 1))
    for copy, place in zip(copies[1:], places, strict=True):
        starts = [round(at * (side - size)) for at, side, size in zip(place, image.shape[2:], sizes, strict=True)]
        window = (slice(None), *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)))
        copy[window] = in_type(copy[window] + noise.to(image.device), image.dtype)
    return copies
