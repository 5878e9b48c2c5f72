"""Scenes of colored squares, and parts of networks that see colors by construction.

Channel k of the one convolution is the brightness of color k over the others. So it is known where the evidence lies:
on the square of that color.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

COUNT, SIDE, SQUARE = 24, 16, 5
COLORS = ("red", "green", "blue")


class Scene(NamedTuple):
    """An image with one or two squares.

    Attributes:
        image: (3, *spatial) in [0, 1].
        pixels: (*spatial) int64: 0, or one more than the color of the square.
        color: The color of the larger square.
    """

    image: Tensor
    pixels: Tensor
    color: int


def scene(index: int, dimensions: int = 2, squares: int = 1) -> Scene:
    """The same scene each time; colors take turns, and a second square is smaller."""
    draw = torch.Generator().manual_seed(index)
    size = (SIDE,) * dimensions
    image, pixels = 0.1 * torch.rand(3, *size, generator=draw), torch.zeros(size, dtype=torch.int64)
    for place in range(squares):
        color, side = (index + place) % 3, SQUARE - 2 * place
        half = SIDE // 2 * place  # the second lies in the other half
        corner = torch.randint(0, SIDE // 2 - side + 1, (dimensions,), generator=draw).tolist()
        corner[0] += half
        region = tuple(slice(at, at + side) for at in corner)
        image[(color, *region)] += 0.8
        pixels[region] = color + 1
    return Scene(image, pixels, index % 3)


class Scenes(Dataset[Any]):
    """Scenes, each in the form that the stranger's data set gives."""

    def __init__(
        self, item: Callable[[Scene], Any], dimensions: int = 2, squares: int = 1, only_red: bool = False
    ) -> None:
        self.item = item
        indices = range(0, 3 * COUNT, 3) if only_red else range(COUNT)
        self.scenes = [scene(index, dimensions, squares) for index in indices]

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.item(self.scenes[index])


def sees_colors(conv: type[nn.Module], channels: int = 3, first: int = 0) -> nn.Sequential:
    """A convolution and a ReLU that give the brightness of three colors; the bands of an image begin at `first`."""
    layer: Any = conv(channels, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        for color in range(3):
            for band in range(3):
                layer.weight[color, first + band] = (1.0 if band == color else -1.0) / layer.weight[0, 0].numel()
    return nn.Sequential(layer, nn.ReLU())


def reads(outputs: int, slope: float = 100.0) -> nn.Linear:
    """A linear layer whose output k is that of color k; other outputs are low."""
    layer = nn.Linear(3, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-3.0)
        for color in range(min(3, outputs)):
            layer.weight[color, color] = slope
    return layer
