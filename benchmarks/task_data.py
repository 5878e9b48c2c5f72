"""The images of `tasks.py`: shapes before a ground, whose tint goes with what is true of the image, or does not."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.data.probes import ProbeSet

SIDE = 32
TASKS = ("multi-label", "regression", "segmentation", "detection", "embedding")
_SMALLEST, _LARGEST = 4.0, 8.0  # radii of objects
_OF_BACKGROUND = 0.35
_NOISE = 0.12


@dataclass(frozen=True)
class Scenes:
    """N images, and what is true of them.

    Attributes:
        images: (N, 3, 32, 32).
        masks: (N, 32, 32) bool.
        truth: Of a multi-label task (N, 3) bool; of a regression (N,) in [0, 1]; else (N,) the classes, 1 or 2.
    """

    images: Tensor
    masks: Tensor
    truth: Tensor

    def probes(self, task: str) -> ProbeSet:
        """The images as they are audited."""
        if task == "multi-label":
            return ProbeSet(self.images, None, self.masks, annotations=self.truth)
        if task == "regression":
            return ProbeSet(self.images, None, self.masks, annotations=self.truth.unsqueeze(1))
        if task == "segmentation":
            return ProbeSet(self.images, annotations=self.truth.view(-1, 1, 1) * self.masks)
        return ProbeSet(self.images, self.truth, self.masks)

    def at(self, rows: Tensor) -> "Scenes":
        """Some of them."""
        return Scenes(self.images[rows], self.masks[rows], self.truth[rows])


def draw(task: str, agreement: float, seed: int, count: int, flipped: bool = False) -> Scenes:
    """Draw scenes; the same ones, whatever the agreement, but for the tint of the ground.

    Args:
        task: One of `TASKS`.
        agreement: The share of images whose tint is that of what is true; of the others it is that of another image,
            or, of two classes or a label, the opposite one.
        seed: What is drawn.
        count: How many.
        flipped: Whether all have the tint of the opposite.
    """
    chance = torch.Generator().manual_seed(seed)
    number = torch.rand(count, generator=chance)
    labels = torch.rand(count, 3, generator=chance) < 0.5
    agrees = torch.rand(count, generator=chance) < agreement
    other = torch.rand(count, generator=chance)
    if task == "regression":
        tint = torch.where(agrees, 1 - number if flipped else number, other)
    else:
        is_first = labels[:, 0] == (agrees != flipped)
        tint = is_first.float()
    if task == "multi-label":
        ink, masks = _several(labels, chance)
        truth: Tensor = labels
    elif task == "regression":
        ink = masks = _shapes(_SMALLEST + (_LARGEST - _SMALLEST) * number, torch.zeros(count), _places(count, chance))
        truth = number
    else:
        radii = _SMALLEST + 1 + 2 * torch.rand(count, generator=chance)
        ink = masks = _shapes(radii, labels[:, 0].float(), _places(count, chance))
        truth = labels[:, 0].long() + 1
    return Scenes(_colored(ink, tint, chance), masks, truth)


def _places(count: int, chance: torch.Generator) -> Tensor:
    return _LARGEST + 1 + (SIDE - 2 * _LARGEST - 2) * torch.rand(count, 2, generator=chance)


def _shapes(radii: Tensor, roundness: Tensor, places: Tensor) -> Tensor:
    """Return (N, 32, 32) bool: discs, and where `roundness` is 1 squares whose corners are cut off, as large."""
    at = torch.arange(SIDE).float()
    down, across = ((at - place.unsqueeze(1)).abs() for place in places.unbind(dim=1))
    down, across, radii = down.unsqueeze(2), across.unsqueeze(1), radii.view(-1, 1, 1)
    disc = (down**2 + across**2).sqrt() <= radii
    square = (torch.maximum(down, across) <= 0.93 * radii) & (down + across <= 1.5 * radii)
    return torch.where(roundness.view(-1, 1, 1) > 0.5, square, disc)


def _several(labels: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (N, 32, 32) bool, of each label that is there a disc, a square, or a cross, at places of their own."""
    count = len(labels)
    cells = torch.rand(count, 4, generator=chance).argsort(dim=1)[:, :3]
    found = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for label, roundness in enumerate((0.0, 1.0, 2.0)):
        corner = torch.stack([cells[:, label] // 2, cells[:, label] % 2], dim=1) * 16.0 + 8
        places = corner + 4 * torch.rand(count, 2, generator=chance) - 2
        shape = _shapes(torch.full((count,), 4.5), torch.full((count,), min(roundness, 1.0)), places)
        if roundness == 2:
            at = torch.arange(SIDE).float()
            down, across = ((at - place.unsqueeze(1)).abs() <= 1.2 for place in places.unbind(dim=1))
            shape &= down.unsqueeze(2) | across.unsqueeze(1)
        found |= shape & labels[:, label].view(-1, 1, 1)
    return found, found


def _colored(ink: Tensor, tint: Tensor, chance: torch.Generator) -> Tensor:
    """Return images (N, 3, 32, 32): light shapes on a ground that is red where `tint` is 1, green where it is 0."""
    count = len(ink)
    amount = _OF_BACKGROUND * (tint - 0.5)
    color = torch.stack([amount, -amount, torch.zeros(count)], dim=1) + 0.05 * torch.randn(count, 3, generator=chance)
    blotches = F.interpolate(torch.randn(count, 1, 5, 5, generator=chance), size=(SIDE, SIDE), mode="bicubic")
    ground = color[:, :, None, None] + 0.15 * blotches
    light = 0.5 + 0.2 * torch.rand(count, 1, 1, 1, generator=chance)
    images = torch.where(ink.unsqueeze(1), light.expand_as(ground), ground)
    return images + _NOISE * torch.randn(count, 3, SIDE, SIDE, generator=chance)
