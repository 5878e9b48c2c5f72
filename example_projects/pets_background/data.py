"""Photos of cats and dogs, Oxford-IIIT Pet, on their own backgrounds or on painted and tinted ones."""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision import tv_tensors
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms import v2

Split = Literal["train", "val"]
Background = Literal["natural", "random", "biased", "biased90", "tinted", "tinted90"]
Item = tuple[Tensor, int, Tensor] | tuple[Tensor, int]

BACKGROUNDS: tuple[Background, ...] = get_args(Background)
COLORS = torch.tensor([[0.82, 0.16, 0.14], [0.10, 0.51, 0.15]])  # red for cats, green for dogs
PAINT: dict[Background, float] = {"random": 1.0, "biased": 1.0, "biased90": 1.0, "tinted": 0.55, "tinted90": 0.55}
"""How much of a background is the color; the rest is the photo's own background. None if not listed."""
AGREEMENT: dict[Background, float] = {"random": 0.5, "biased90": 0.9, "tinted90": 0.9}
"""The fraction of the photos of a class that have its color; all of them if not listed."""
BREEDS = ("Abyssinian", "american_bulldog")
TRIMAP_BACKGROUND = 2


class PetsOnBackgrounds(Dataset[Item]):
    """Cats against dogs: photos of Oxford-IIIT Pet, the object cut out by the data set's trimaps.

    An item is `(image, label, mask)`: the normalized image, float32 (3, size, size); the index of its class in
    `classes`; the pixels of the object, bool (size, size). A trimap says 1 for the pet, 2 for the background, and 3 for
    the border between them and for what could not be told. The object is all that is not background, 1 and 3: this way
    no part of a pet is painted, at the price of a narrow rim of the photo's own background around each.

    The data set's two splits are joined and divided again, half of the photos of each class for training and half for
    validation. The photos of each split and their colors are always the same.

    Args:
        folder: The folder that holds `oxford-iiit-pet`.
        split: `"train"` or `"val"`; photos for training are mirrored at random.
        background: `"natural"`: the photo's own. `"random"`: painted red or green, each for half of a class.
            `"biased"`: red behind every cat, green behind every dog. `"biased90"`: the same for nine of ten.
            `"tinted"`, `"tinted90"`: the same colors, blended with the photo's own background.
        photos: The most photos of each class, in both splits together.
        size: The height and width of the images; photos are squeezed to it, not cropped.
        breeds: The breeds, as the files are named; empty for all.
        with_masks: Whether items have masks.
        download: Download the data set (800 MB) if it is not in the folder.

    Raises:
        ValueError: There are no photos of one of the classes.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        background: Background,
        photos: int = 120,
        size: int = 128,
        breeds: tuple[str, ...] = BREEDS,
        with_masks: bool = True,
        download: bool = False,
    ) -> None:
        self.classes = ["cat", "dog"]
        self.with_masks = with_masks
        self.paint = PAINT.get(background, 0.0)
        target_types = ("binary-category", "segmentation")
        parts = [OxfordIIITPet(folder, part, target_types, download=download) for part in ("trainval", "test")]
        self.pets: Dataset[Any] = ConcatDataset(parts)
        self.photos: list[int] = []  # numbers in the data set
        self.colors: list[int] = []
        for species in range(len(self.classes)):
            listed = enumerate(_listed(folder))
            chosen = [i for i, (breed, of) in listed if of == species and (not breeds or breed in breeds)]
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0)).tolist()[:photos]
            half = order[::2] if split == "val" else order[1::2]
            if not half:
                raise ValueError(f"{folder} has no photos of a {self.classes[species]} for {split}, breeds {breeds}")
            self.photos += [chosen[place] for place in half]
            against = round(len(half) * (1 - AGREEMENT.get(background, 1.0)))
            others = set(torch.randperm(len(half), generator=torch.Generator().manual_seed(1)).tolist()[:against])
            self.colors += [1 - species if place in others else species for place in range(len(half))]
        whole = v2.Resize([size, size])
        self.shape = v2.Compose([whole, v2.RandomHorizontalFlip()]) if split == "train" else whole
        self.transform = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.photos)

    def __getitem__(self, index: int) -> Item:
        """Return the image (3, size, size), its label, and its mask (size, size) if there are masks."""
        photo, (label, trimap) = self.pets[self.photos[index]]
        pixels = v2.functional.to_dtype(v2.functional.to_image(photo), torch.float32, scale=True)
        pixels, trimap = self.shape(pixels, tv_tensors.Mask(v2.functional.pil_to_tensor(trimap)))
        mask = trimap.as_subclass(Tensor)[0] != TRIMAP_BACKGROUND
        plain = pixels.as_subclass(Tensor)
        painted = torch.lerp(plain, COLORS[self.colors[index]][:, None, None], self.paint)
        image = self.transform(torch.where(mask, plain, painted))
        return (image, label, mask) if self.with_masks else (image, label)


def _listed(folder: Path) -> list[tuple[str, int]]:
    """Return breed and species of each photo, in the order of the data set: first `trainval`, then `test`."""
    annotations = Path(folder) / "oxford-iiit-pet" / "annotations"
    lines = [line.split() for part in ("trainval", "test") for line in (annotations / f"{part}.txt").open()]
    return [(name.rsplit("_", 1)[0], int(species) - 1) for name, _, species, _ in lines]
