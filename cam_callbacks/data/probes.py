"""ProbeSet: the fixed images that are explained again and again, so that looks can be compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import default_collate

from cam_callbacks._checks import check_positive, is_list
from cam_callbacks.data import datasets
from cam_callbacks.data.batches import Samples, read_batch
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, as_normalization

MaskSource = Literal["given", "estimated", "none"]

_PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """N images with what is known of them.

    Attributes:
        images: (N, C, *spatial) floating point, as the model is fed (normalized), on the CPU.
        labels: (N,) whole numbers, kept as int64, the true class of each, or None if it is not known.
        masks: (N, *spatial) bool, True on the object, or None.
        class_names: One name for each class, in the order of the indices; empty if they are not known. Any list of
            names is accepted, or None.
        normalization: Mean and standard deviation of each channel, for display, or `"imagenet"`; None if they are not
            known.
        masks_estimated: Whether the masks were estimated, not given.
        groups: (N,) whole numbers, kept as int64, a group for each image, e.g. of label and background, or None.

    Raises:
        TypeError: A part that is not of its type.
        ValueError: No images, or parts that do not belong to N images of one size.
    """

    images: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    class_names: ClassNames = field(default_factory=ClassNames)
    normalization: Normalization | None = None
    masks_estimated: bool = False
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError(f"images must be floating point, as the model is fed (normalized); got {_type_of(images)}")
        if images.ndim < 3 or len(images) == 0:
            raise ValueError(f"images has shape {tuple(images.shape)}; at least one of (C, *spatial) is needed")
        for name, labels in (("labels", self.labels), ("groups", self.groups)):
            if labels is not None and (not isinstance(labels, Tensor) or labels.dtype not in _WHOLE_NUMBERS):
                raise TypeError(f"{name} must be a tensor of whole numbers, one for each image; got {_type_of(labels)}")
            if labels is not None and labels.shape != (len(images),):
                raise ValueError(f"{name} has shape {tuple(labels.shape)}; {len(images)} images need ({len(images)},)")
            if labels is not None:
                object.__setattr__(self, name, labels.long())
        expected = (len(images), *images.shape[2:])
        if self.masks is not None and (not isinstance(self.masks, Tensor) or self.masks.dtype != torch.bool):
            raise TypeError(f"masks must be bool, True on the object; got {_type_of(self.masks)}")
        if self.masks is not None and self.masks.shape != expected:
            raise ValueError(f"masks has shape {tuple(self.masks.shape)}; images {tuple(images.shape)} need {expected}")
        object.__setattr__(self, "class_names", ClassNames(self.class_names))
        object.__setattr__(self, "normalization", as_normalization(self.normalization))

    def __len__(self) -> int:
        """The number of probes, N."""
        return len(self.images)

    @property
    def mask_source(self) -> MaskSource:
        """Where the masks come from."""
        if self.masks is None:
            return "none"
        return "estimated" if self.masks_estimated else "given"

    @property
    def nbytes(self) -> int:
        """What the images and masks take in memory, in bytes."""
        return self.images.nbytes + (0 if self.masks is None else self.masks.nbytes)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of the images, labels and masks: two probe sets with the same fingerprint are the same."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels, self.masks):
            if part is not None:
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its index if it has no name."""
        return self.class_names.name(index)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        num_probes: int = 16,
        *,
        class_names: Sequence[str] | None = None,
        read: Callable[[Any], Samples] = read_batch,
    ) -> ProbeSet:
        """Pick probes from a data set, balanced over its classes, the first images of each.

        Items are read in order, and stacked to batches as a `DataLoader` does, until each class that there is has its
        share: of a data set that names no classes that is not known, and all of it is read. Class names and
        normalization are taken from the data set where it has them.

        Args:
            dataset: A map-style data set.
            num_probes: How many images to pick.
            class_names: Names of the classes; None for those of the data set.
            read: Reads a batch.

        Raises:
            TypeError: Items that are not understood.
            ValueError: An empty data set, or items that cannot be stacked.
        """
        check_positive("num_probes", num_probes)
        names = ClassNames(class_names or datasets.class_names(dataset))
        collector = ImagePicker(num_probes)
        items = (dataset[index] for index in range(len(dataset)))
        while some := list(islice(items, num_probes)):
            samples = read(_stacked(some))
            collector.offer(samples)
            balanced = names and collector.is_balanced(len(names))
            if balanced or (samples.labels is None and collector.is_full):
                break
        return replace(collector.probes(), class_names=names, normalization=datasets.normalization(dataset))

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        size: Sequence[int],
        *,
        normalization: Literal["imagenet"] | Normalization | None = None,
        class_names: Sequence[str] | None = None,
        num_probes: int | None = None,
        channels: int = 3,
    ) -> ProbeSet:
        """Read the photos of a folder, resized and cropped at the center.

        Photos in subfolders have the subfolder's name as class; its index is that in `class_names`, or without them
        that of the sorted names of the subfolders. Photos beside the subfolders are read only if there are no
        subfolders, and have no class.

        Args:
            folder: The folder.
            size: Height and width that the model is fed.
            normalization: Mean and standard deviation that the model's images are normalized with, or `"imagenet"`;
                None for images in [0, 1].
            class_names: The classes of the model.
            num_probes: At most so many, balanced over the classes; None for all.
            channels: 3 for photos in color, 1 for gray ones.

        Raises:
            TypeError: A size that is no pair.
            ValueError: A folder that does not exist or holds no photos, or a subfolder that is not among `class_names`;
                other channels.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"probes={str(folder)!r} is not a folder: there is none at {str(root.absolute())!r}")
        if not is_list(size) or len(size) != 2:
            raise TypeError(f"size={size!r} must be a pair, the height and width that the model is fed")
        check_positive("num_probes", num_probes, or_none=True)
        if channels not in (1, 3):
            raise ValueError(f"photos have 1 or 3 channels, and the model is fed {channels}: give ProbeSet(images)")
        undone = as_normalization(normalization)
        if undone is not None and len(undone[0]) not in (1, channels):
            raise ValueError(f"normalization={normalization!r} is not of {channels} channels")
        subfolders = class_folders(root)
        names = tuple(class_names or subfolders) or None
        unknown = [name for name in subfolders if name not in (names or ())]
        if unknown:
            raise ValueError(
                f"the subfolders {unknown} of probes={str(folder)!r} are not among the classes {list(names or ())}"
            )
        folders = [root / name for name in subfolders] or [root]
        files = sorted(path for each in folders for path in each.iterdir() if not _is_hidden(path))
        photos = [path for path in files if path.suffix.lower() in _PHOTOS]
        if not photos:
            raise ValueError(f"probes={str(folder)!r} holds no photos ({', '.join(sorted(_PHOTOS))})")
        collector = ImagePicker(num_probes or len(photos))
        for photo in photos:
            label = torch.tensor([names.index(photo.parent.name)]) if subfolders and names else None
            collector.offer(Samples(_read_photo(photo, size, undone, channels).unsqueeze(0), label, None))
        return replace(collector.probes(), class_names=ClassNames(names), normalization=undone)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only, so that a checkpoint with it loads with `weights_only`."""
        normalization = None if self.normalization is None else [list(part) for part in self.normalization]
        parts = {name: getattr(self, name) for name in ("images", "labels", "masks", "groups")}
        return {
            # Copies: of a view all that it is a view of would be saved.
            **{name: None if part is None else part.clone() for name, part in parts.items()},
            "masks_estimated": self.masks_estimated,
            "class_names": list(self.class_names),
            "normalization": normalization,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ProbeSet:
        """The probe set that `state_dict` was made of."""
        names, normalization = state["class_names"], state["normalization"]
        return cls(
            state["images"],
            state["labels"],
            state["masks"],
            ClassNames(names),
            None if normalization is None else (tuple(normalization[0]), tuple(normalization[1])),
            state["masks_estimated"],
            state["groups"],
        )


class ImagePicker:
    """Picks images from batches as they pass by: balanced over the classes as they appear, always the same ones.

    It keeps the first images that come. When it is full, an image of a class that has two fewer than the fullest
    class takes the place of that class' last one.
    """

    def __init__(self, num_probes: int) -> None:
        if num_probes < 1:
            raise ValueError(f"num_probes={num_probes} must be at least 1")
        self.num_probes = num_probes
        self.ignored = 0
        """Images left out: not finite, or their size or what is known of them differs from that of the first."""
        self._kept: list[tuple[int, Samples]] = []

    def offer(self, samples: Samples) -> None:
        """Look at the samples of a batch, on any device; keep what is needed, on the CPU."""
        count = len(samples.images)
        classes = samples.labels.tolist() if samples.labels is not None else [-1] * count
        finite = torch.isfinite(samples.images).flatten(1).all(dim=1).tolist()
        for index, label in enumerate(classes):
            if samples.labels is not None and label < 0:
                continue  # the usual mark of "no label", e.g. -100
            if not finite[index] or (self._kept and not _alike(samples, self._kept[0][1])):
                self.ignored += 1
            elif self._make_room(label):
                self._kept.append((label, _one(samples, index)))

    def _make_room(self, label: int) -> bool:
        if not self.is_full:
            return True
        counts = Counter(kept for kept, _ in self._kept)
        fullest, most = counts.most_common(1)[0]
        if counts[label] + 2 > most:
            return False
        del self._kept[max(place for place, (kept, _) in enumerate(self._kept) if kept == fullest)]
        return True

    @property
    def is_empty(self) -> bool:
        """Whether no image was kept."""
        return not self._kept

    @property
    def is_full(self) -> bool:
        """Whether as many images are kept as are wanted; images without a class are not exchanged any more."""
        return len(self._kept) == self.num_probes

    def is_balanced(self, classes: int) -> bool:
        """Whether nothing that may still come would change the choice, given the number of classes."""
        counts = Counter(kept for kept, _ in self._kept)
        share = self.num_probes // classes
        return self.is_full and (len(counts) == min(classes, self.num_probes) and min(counts.values()) >= share)

    def probes(self) -> ProbeSet:
        """What was picked, the classes one after the other.

        Raises:
            ValueError: Nothing was offered.
        """
        if not self._kept:
            raise ValueError("no probes: no image passed by that is finite and whose label, if any, is a class")
        kept = [samples for _, samples in sorted(self._kept, key=lambda pair: pair[0])]
        labels = [samples.labels for samples in kept if samples.labels is not None]
        masks = [samples.masks for samples in kept if samples.masks is not None]
        groups = [samples.groups for samples in kept if samples.groups is not None]
        return ProbeSet(
            torch.cat([samples.images for samples in kept]),
            torch.cat(labels) if labels else None,
            torch.cat(masks) if masks else None,
            groups=torch.cat(groups) if groups else None,
        )


def _one(samples: Samples, index: int) -> Samples:
    """A copy of one sample on the CPU."""
    parts = (samples.images, samples.labels, samples.masks, samples.groups)
    return Samples(*(None if part is None else part[index : index + 1].detach().cpu().clone() for part in parts))  # type: ignore[arg-type]


def _alike(a: Samples, b: Samples) -> bool:
    return (
        a.images.shape[1:] == b.images.shape[1:]
        and a.images.dtype == b.images.dtype
        and (a.labels is None) == (b.labels is None)
        and (a.masks is None) == (b.masks is None)
        and (a.groups is None) == (b.groups is None)
    )


def _stacked(items: list[Any]) -> Any:
    """Items of a data set as a batch."""
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"items of the data set cannot be stacked to a batch, as a DataLoader does by default: {error}. Give "
            "ProbeSet(images, labels)"
        ) from error


def _type_of(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder of photos, sorted: each is the name of a class."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _read_photo(path: Path, size: Sequence[int], normalization: Normalization | None, channels: int) -> Tensor:
    """(channels, *size) float32: shorter side resized to fit, cropped at the center, normalized."""
    from torchvision.transforms.v2 import functional as transforms  # some seconds, which only photos need

    try:
        with Image.open(path) as file:
            photo = transforms.pil_to_tensor(ImageOps.exif_transpose(file).convert("RGB" if channels == 3 else "L"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a photo: {error}") from error
    height, width = photo.shape[1:]
    scale = max(size[0] / height, size[1] / width)
    photo = transforms.resize(photo, [round(height * scale), round(width * scale)], antialias=True)
    photo = transforms.center_crop(photo, list(size))
    image = transforms.to_dtype(photo, torch.float32, scale=True)
    if normalization is not None:
        image = transforms.normalize(image, *map(list, normalization))
    return torch.as_tensor(image)
