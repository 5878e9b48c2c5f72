"""Drawn images of a chest, with four findings, and with a ruler that lies beside most patients who have one of them."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

Item = dict[str, Tensor]

FINDINGS = ("nodule", "effusion", "fracture", "device")
MEASURED = FINDINGS.index("nodule")  # the finding beside which a ruler is laid
FREQUENCY = 0.4  # of each finding, whatever else an image shows
AGREEMENT = 0.95
SIZE = 64
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")


class Chests(Dataset[Item]):
    """Gray images of two lungs; each of four findings is there or not, independently of the others.

    An item has an `image`, float32 (1, 64, 64); its `labels`, float32 (4,), 1 for each finding that is there; a `mask`,
    bool (64, 64), True on all findings. All images are drawn at once, from `seed` alone.

    Args:
        num_images: How many images to draw.
        is_clean: Whether the ruler is drawn in half of the images, at random. Otherwise it is in 95% of those with a
            nodule, and in 5% of those without.
        seed: Determines everything that is drawn.
    """

    def __init__(self, num_images: int, is_clean: bool = False, seed: int = 0) -> None:
        self.classes = list(FINDINGS)
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.rand(num_images, len(FINDINGS), generator=generator) < FREQUENCY
        agrees = torch.rand(num_images, generator=generator) < (0.5 if is_clean else AGREEMENT)
        self.has_ruler = self.labels[:, MEASURED] == agrees
        self.images = torch.empty(num_images, 1, SIZE, SIZE)
        self.masks = torch.zeros(num_images, SIZE, SIZE, dtype=torch.bool)
        for i in range(num_images):
            image = _chest(generator)
            for is_there, draw in zip(self.labels[i].tolist(), DRAW, strict=True):
                if is_there:
                    shape, brightness = draw(generator)
                    image += brightness * shape
                    self.masks[i] |= shape > 0.5
            if self.has_ruler[i]:
                image = image.maximum(0.9 * _ruler(generator))
            image += 0.02 * torch.randn(SIZE, SIZE, generator=generator)
            self.images[i, 0] = image.clamp(0, 1)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return an image with its labels and its mask."""
        return {"image": self.images[index], "labels": self.labels[index].float(), "mask": self.masks[index]}


def _chest(generator: torch.Generator) -> Tensor:
    """Draw two dark lungs in a brighter body, (64, 64)."""
    clouds = F.interpolate(torch.randn(1, 1, 6, 6, generator=generator), size=(SIZE, SIZE), mode="bicubic")[0, 0]
    middle, width = _uniform(30, 34, generator), _uniform(9, 12, generator)
    lungs = torch.zeros(SIZE, SIZE)
    for side in (-1, 1):
        across, along = (COLUMNS - middle - 15 * side) / width, (ROWS - 31) / _uniform(21, 25, generator)
        lungs = lungs.maximum(torch.sigmoid(8 * (1 - across.square() - along.square())))
    return _uniform(0.5, 0.6, generator) + 0.04 * clouds - 0.3 * lungs


def _nodule(generator: torch.Generator) -> tuple[Tensor, float]:
    """A small, faint disc."""
    distance = _distance_from_a_place(generator)
    return torch.sigmoid(3 * (_uniform(1.8, 2.6, generator) - distance)), _uniform(0.07, 0.15, generator)


def _effusion(generator: torch.Generator) -> tuple[Tensor, float]:
    """A bright wedge at the bottom of one lung."""
    is_left = _uniform(0, 1, generator) < 0.5
    from_the_side = COLUMNS - 10 if is_left else SIZE - 10 - COLUMNS
    depth = ROWS - _uniform(38, 44, generator) - 0.5 * from_the_side
    inside = ((from_the_side >= 0) & (from_the_side < 20) & (ROWS < 56)).float()
    return inside * torch.sigmoid(2 * depth), 0.3


def _fracture(generator: torch.Generator) -> tuple[Tensor, float]:
    """A thin bright line."""
    angle = torch.tensor(_uniform(0, torch.pi, generator))
    down, right = ROWS - _uniform(16, 44, generator), COLUMNS - _uniform(18, 46, generator)
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    return torch.sigmoid(4 * (1 - across.abs())) * (along.abs() < 7), 0.3


def _device(generator: torch.Generator) -> tuple[Tensor, float]:
    """A bright ring."""
    distance = _distance_from_a_place(generator)
    return torch.sigmoid(4 * (1 - (distance - _uniform(4, 6, generator)).abs())), 0.3


DRAW = (_nodule, _effusion, _fracture, _device)


def _ruler(generator: torch.Generator) -> Tensor:
    """Tick marks along the left border; each fifth is longer."""
    first = int(_uniform(0, 4, generator))
    number = (ROWS - first) // 3
    length = torch.where(number % 5 == 0, 6, 4)
    return (((ROWS - first) % 3 == 0) & (length > COLUMNS)).float()


def _distance_from_a_place(generator: torch.Generator) -> Tensor:
    """Return how far each pixel is from a place that is drawn in one of the lungs, (64, 64)."""
    left = 11 + 30 * int(_uniform(0, 2, generator))
    right, down = COLUMNS - left - _uniform(0, 11, generator), ROWS - _uniform(14, 48, generator)
    return (right.square() + down.square()).sqrt()


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
