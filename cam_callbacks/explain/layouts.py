"""Layout: where in a layer's output the channels are, and where the positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.explain.stretches import Stretch

ReshapeTransform = Callable[[Tensor], Tensor]
"""Called with a layer's output; returns it as (N, channels, *spatial). It may only rearrange and leave out."""

Margins = Sequence[tuple[int, int]]
"""How many positions are added before and after those along each axis of the images, or removed if it is negative."""


@dataclass(frozen=True)
class Run:
    """The positions along one dimension of an output.

    Attributes:
        axes: The axes of the image that they run along, slowest first: (0,) for rows, (0, 1) for tokens row by row.
        grid: How many there are along each of these axes.
        before: How many entries come before them that belong to no position, such as a class token. What is left
            after them belongs to none either.
        stretches: What they cover along each of these axes, while they are followed; empty in a `Layout`.
    """

    axes: tuple[int, ...]
    grid: tuple[int, ...]
    before: int = 0
    stretches: tuple[Stretch, ...] = ()

    @property
    def count(self) -> int:
        """The number of positions."""
        return math.prod(self.grid)


@dataclass(frozen=True)
class Layout:
    """How a layer's output is read.

    Attributes:
        batch: The dimension of the images.
        channels: The dimension of the channels.
        runs: The other dimensions, and what runs along each.
        axes: How many spatial axes the images have; along an axis that no dimension has there is one position.
        margins: What makes the positions cover the image, where the model pads or crops; empty if they do.
    """

    batch: int
    channels: int
    runs: tuple[tuple[int, Run], ...]
    axes: int
    margins: Margins = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        """The number of positions along each axis of the images."""
        sizes = {axis: size for _, run in self.runs for axis, size in zip(run.axes, run.grid, strict=True)}
        return tuple(sizes.get(axis, 1) for axis in range(self.axes))

    @property
    def is_beside_the_image(self) -> bool:
        """Whether not more than one of the positions lies within the image."""
        margins = zip(self.spatial, self.margins or [(0, 0)] * self.axes, strict=True)
        within = [size + sum(min(0, margin) for margin in both) for size, both in margins]
        return min(within) < 1 or math.prod(within) < 2

    @property
    def is_channels_first(self) -> bool:
        """Whether an output is (N, channels, *spatial) already."""
        return self.channels == 1 and all(len(run.axes) == 1 for _, run in self.runs)

    def to_maps(self, output: Tensor) -> Tensor:
        """Return an output, or its gradient, as (N, channels, *spatial)."""
        maps = output.permute(self.batch, self.channels, *(dimension for dimension, _ in self.runs))
        for place, (_, run) in enumerate(self.runs):
            maps = maps.narrow(2 + place, run.before, run.count)
        along = [axis for _, run in self.runs for axis in run.axes]
        maps = maps.reshape(*maps.shape[:2], *(size for _, run in self.runs for size in run.grid))
        maps = maps.permute(0, 1, *(2 + along.index(axis) for axis in sorted(along)))
        return maps.reshape(*maps.shape[:2], *self.spatial)


def covering(maps: Tensor, margins: Margins, repeats_edges: bool = False) -> Tensor:
    """Return maps whose positions cover the image, from those at a layer's positions.

    Args:
        maps: (..., *spatial of the layer).
        margins: See `Layout`.
        repeats_edges: Fill what no position covers with the nearest one instead of 0.
    """
    if not margins:
        return maps
    amounts = [amount for both in reversed(margins) for amount in both]  # of the last axis first
    cropped = F.pad(maps, [min(0, amount) for amount in amounts])
    added = [max(0, amount) for amount in amounts]
    if not repeats_edges:
        return F.pad(cropped, added)
    flat = cropped.flatten(0, -1 - len(margins)).unsqueeze(0)
    filled = F.pad(flat, added, mode="replicate")
    return filled.reshape(*maps.shape[: -len(margins)], *filled.shape[2:])


def transformed(output: Tensor, reshape_transform: ReshapeTransform, axes: int) -> Tensor | None:
    """Return maps as the user's own `reshape_transform` makes them; None if they have no positions.

    Args:
        output: A layer's output, or its gradient.
        reshape_transform: See `ReshapeTransform`.
        axes: How many spatial axes the images have.

    Raises:
        TypeError: It does not return a tensor.
    """
    maps = reshape_transform(output)
    if not isinstance(maps, Tensor):
        raise TypeError(f"reshape_transform returned {type(maps).__name__}, not a tensor (N, channels, *spatial)")
    return maps if maps.ndim == axes + 2 and maps.shape[2:].numel() > 1 else None
