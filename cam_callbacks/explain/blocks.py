"""Blocks: the positions of a fine layer, taken together so that there are few of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cam_callbacks.explain.explanation import upsample


@dataclass(frozen=True)
class Blocks:
    """Equal blocks of the positions of a layer; the last ones along an axis may be cut off.

    Attributes:
        spatial: How many positions the layer has along each axis.
        side: How many of them a block has along each axis.
    """

    spatial: torch.Size
    side: int

    @classmethod
    def at_most(cls, count: int, spatial: torch.Size) -> Blocks:
        """Return the smallest blocks of which there are no more than `count`."""
        side = 1
        while cls(spatial, side).grid.numel() > count:
            side += 1
        return cls(spatial, side)

    @property
    def grid(self) -> torch.Size:
        """How many blocks there are along each axis."""
        return torch.Size(-(-size // self.side) for size in self.spatial)

    def spread(self, masks: Tensor) -> Tensor:
        """Return masks (M, *grid) as (M, *spatial): each position has the value of its block."""
        for axis in range(1, masks.ndim):
            masks = masks.repeat_interleave(self.side, dim=axis)
        return self._cut(masks)

    def interpolated(self, maps: Tensor) -> Tensor:
        """Return maps (N, T, *grid) as (N, T, *spatial), linear between the centers of blocks."""
        if self.side == 1:
            return maps
        fine = self._cut(upsample(maps.flatten(0, 1), [size * self.side for size in self.grid]))
        return fine.view(*maps.shape[:2], *self.spatial)

    def _cut(self, maps: Tensor) -> Tensor:
        for axis, size in enumerate(self.spatial, 1):
            maps = maps.narrow(axis, 0, size)
        return maps
