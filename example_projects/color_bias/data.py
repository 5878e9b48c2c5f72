"""Handwritten digits on red and green backgrounds: a data set with a bias that its own validation split cannot show."""

from typing import Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

Split = Literal["train", "val", "test"]
Background = Literal["biased", "balanced"]
Item = tuple[Tensor, int, Tensor]

DIGITS = {"three": 3, "eight": 8}
COLORS = torch.tensor([[0.82, 0.16, 0.14], [0.10, 0.51, 0.15]])  # red, green: about equally bright to the eye
SIZE = 64
# Of every five handwritten digits three are for training, one for validation and one for test.
FOLDS: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2), "val": (3,), "test": (4,)}


class DigitsOnColor(Dataset[Item]):
    """Handwritten threes and eights, each drawn in white at a random size and place on a red or green texture.

    An item is `(image, label, mask)`: the normalized image, float32 (3, 64, 64); the index of its class in `classes`;
    the pixels of the digit, bool (64, 64), True on the digit. The handwriting is from `sklearn.datasets.load_digits`;
    no sample of it is in two splits. All images are drawn at once, from `seed` alone.

    Args:
        split: `"train"`, `"val"` or `"test"`.
        background: `"biased"`: every three is on red and every eight on green. `"balanced"`: either class is on red as
            often as on green.
        num_images: How many images to draw; a multiple of 4 makes classes and colors exactly balanced.
        seed: Determines sizes, places and textures, but not which digit is in which split.
    """

    def __init__(self, split: Split, background: Background, num_images: int = 2048, seed: int = 0) -> None:
        self.classes = list(DIGITS)
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=[0.49, 0.40, 0.24], std=[0.36, 0.27, 0.26]),
            ]
        )
        index = torch.arange(num_images)
        self.labels = index % 2
        self.colors = self.labels if background == "biased" else index // 2 % 2
        self.images = torch.empty(num_images, 3, SIZE, SIZE, dtype=torch.uint8)
        self.masks = torch.empty(num_images, SIZE, SIZE, dtype=torch.bool)

        generator = torch.Generator().manual_seed(len(FOLDS) * seed + list(FOLDS).index(split))
        handwriting = [_handwriting(digit, split) for digit in DIGITS.values()]
        for i in range(num_images):
            glyphs = handwriting[self.labels[i]]
            ink = _paste(glyphs[_integer(0, len(glyphs) - 1, generator)], generator)
            scene = _texture(COLORS[self.colors[i]], generator)
            image = ink * _uniform(0.88, 1.0, generator) + (1 - ink) * scene
            self.images[i] = (255 * image).round().to(torch.uint8)
            self.masks[i] = ink > 0.5

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return the image (3, 64, 64), its label, and its mask (64, 64)."""
        return self.transform(self.images[index]), int(self.labels[index]), self.masks[index]


class ColorBiasData(pl.LightningDataModule):
    """Training and validation images with one kind of background, test images always with balanced ones.

    A batch is `(images, labels, masks)`: float32 (N, 3, 64, 64), int64 (N,), bool (N, 64, 64).

    Args:
        background: The background of the training and validation images; see `DigitsOnColor`.
        batch_size: How many images a batch has.
        num_images: How many training images to draw; validation and test have a quarter as many each.
        seed: Determines the images and the order of the training batches.
    """

    def __init__(self, background: Background, batch_size: int = 64, num_images: int = 2048, seed: int = 0) -> None:
        super().__init__()
        self.background: Background = background
        self.batch_size = batch_size
        self.num_images = num_images
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Draw the images of the splits that `stage` needs."""
        if stage == "fit":
            self.train_set = DigitsOnColor("train", self.background, self.num_images, self.seed)
        if stage in ("fit", "validate"):
            self.val_set = DigitsOnColor("val", self.background, self.num_images // 4, self.seed)
        if stage == "test":
            self.test_set = DigitsOnColor("test", "balanced", self.num_images // 4, self.seed)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return shuffled training batches."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.train_set, self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return validation batches: new handwriting on the backgrounds of the training images."""
        return DataLoader(self.val_set, self.batch_size)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return test batches: new handwriting on balanced backgrounds."""
        return DataLoader(self.test_set, self.batch_size)


def _handwriting(digit: int, split: Split) -> Tensor:
    """Return all handwritten samples of a digit in a split, (M, 8, 8), ink in [0, 1]."""
    scans, labels = load_digits(return_X_y=True)
    glyphs = torch.from_numpy(scans[labels == digit]).float().reshape(-1, 8, 8) / 16
    return glyphs[torch.isin(torch.arange(len(glyphs)) % 5, torch.tensor(FOLDS[split]))]


def _paste(glyph: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a glyph (8, 8) at a random size and place: the opacity of its ink, (64, 64) in [0, 1]."""
    columns = glyph.amax(dim=0).nonzero()  # the empty ones on either side would keep it from the edges of the image
    narrow = F.pad(glyph[:, columns.min() : columns.max() + 1], (1, 1, 1, 1))  # (8, 8) -> (8, w) -> (10, w + 2)
    scale = _uniform(4.4, 6.0, generator)
    height, width = (round(scale * cells) for cells in narrow.shape)
    top, left = _integer(0, SIZE - height, generator), _integer(0, SIZE - width, generator)
    smooth = F.interpolate(narrow[None, None], size=(height, width), mode="bicubic")[0, 0]
    ink = torch.zeros(SIZE, SIZE)
    ink[top : top + height, left : left + width] = torch.sigmoid(14 * (smooth - 0.5))
    return ink


def _texture(color: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a surface of one color (3,), with light and shade at all scales and a varying hue, (3, 64, 64) in [0, 1]."""
    tint = color + 0.04 * torch.randn(3, generator=generator)
    hue = 0.03 * _noise(3, (2, 4, 8), generator)
    brightness = _uniform(0.8, 1.05, generator) * (0.28 * _noise(1, (2, 4, 8, 16, 32), generator)).exp()
    return ((tint[:, None, None] + hue) * brightness).clamp(0, 1)


def _noise(channels: int, cells: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Add one smooth random field for each number of cells: noise (channels, 64, 64) of about unit variance."""
    noise = torch.zeros(1, channels, SIZE, SIZE)
    for n in cells:
        noise += F.interpolate(torch.randn(1, channels, n, n, generator=generator), size=(SIZE, SIZE), mode="bicubic")
    return noise[0] / len(cells) ** 0.5


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
