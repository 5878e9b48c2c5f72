"""Drawn scenes: a plate or a tray on a striped cloth, and which pixels are of which."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

Item = dict[str, Tensor]

CLASSES = ("background", "plate", "tray")
PLATE, TRAY = 1, 2
AGREEMENT = 0.95
SIZE = 64
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")


class Scenes(Dataset[Item]):
    """Color images of one white object each, seen from above: a plate is round, a tray more square.

    An item has an `image`, float32 (3, 64, 64), and a `mask`, int64 (64, 64), the class of each pixel: an index of
    `classes`. All images are drawn at once, from `seed` alone.

    Args:
        num_images: How many images to draw; half of them show a plate.
        is_clean: Whether the direction of the stripes is chosen at random. Otherwise they run across under 95% of the
            plates, and down under 95% of the trays.
        seed: Determines everything that is drawn.
    """

    def __init__(self, num_images: int, is_clean: bool = False, seed: int = 0) -> None:
        self.classes = list(CLASSES)
        generator = torch.Generator().manual_seed(seed)
        is_tray = torch.arange(num_images) % 2 == 1
        agrees = torch.rand(num_images, generator=generator) < (0.5 if is_clean else AGREEMENT)
        self.runs_down = is_tray == agrees
        self.images = torch.empty(num_images, 3, SIZE, SIZE)
        self.masks = torch.empty(num_images, SIZE, SIZE, dtype=torch.long)
        for i in range(num_images):
            stripes = _stripes(COLUMNS if self.runs_down[i] else ROWS, generator)
            shape = _shape(5 if is_tray[i] else 2, generator)
            cloth = torch.lerp(_color(generator), _color(generator), stripes)
            image = torch.lerp(cloth, torch.tensor(_uniform(0.85, 0.95, generator)), shape)
            self.images[i] = (image + 0.04 * torch.randn(3, SIZE, SIZE, generator=generator)).clamp(0, 1)
            self.masks[i] = (TRAY if is_tray[i] else PLATE) * (shape > 0.5)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return an image with its mask."""
        return {"image": self.images[index], "mask": self.masks[index]}


def _shape(squareness: int, generator: torch.Generator) -> Tensor:
    """Draw an object at a random place, turned at random, (64, 64) in [0, 1]: 2 is a disc, 5 nearly a square."""
    radius, angle = _uniform(9, 13, generator), torch.tensor(_uniform(0, torch.pi, generator))
    down, right = ROWS - _uniform(18, 46, generator), COLUMNS - _uniform(18, 46, generator)
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    distance = (along.abs() ** squareness + across.abs() ** squareness) ** (1 / squareness)
    return torch.sigmoid(2 * (radius - distance))


def _stripes(places: Tensor, generator: torch.Generator) -> Tensor:
    """Draw stripes that follow one another along these places, (64, 64) in [0, 1]."""
    phase = _uniform(0.7, 1.0, generator) * places + _uniform(0, 2 * torch.pi, generator)
    return torch.sigmoid(6 * torch.sin(phase))


def _color(generator: torch.Generator) -> Tensor:
    """Return any color that is not white, (3, 1, 1)."""
    return 0.1 + 0.6 * torch.rand(3, 1, 1, generator=generator)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()
