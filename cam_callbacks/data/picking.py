"""ImagePicker: a balanced choice of images from batches that pass by, or from a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from cam_callbacks._checks import check_positive
from cam_callbacks.data.batches import Samples

_UNLABELED = -1
_PARTS = ("images", "labels", "masks", "groups", "annotations")


class ImagePicker:
    """Pick images from batches as they pass by, balanced over the classes; the same batches give the same images.

    The first images are kept. When the picker is full, an image of a class that has at least two images fewer than the
    largest class replaces the last image of that class.

    Args:
        count: How many images to pick.

    Raises:
        ValueError: `count` is not at least 1.
    """

    def __init__(self, count: int) -> None:
        check_positive("count", count)
        self.count = count
        self.left_out: Counter[str] = Counter()
        """How many images were left out, by reason: not finite, or unlike the first one."""
        self._kept: list[tuple[int, Samples]] = []  # class, and the one image

    def offer(self, samples: Samples) -> None:
        """Consider the images of a batch, on any device; keep copies of those that are needed on the CPU.

        Images with a negative label, the usual mark of "no label", are passed over.
        """
        samples = self._like_the_first(samples)
        labels = [_UNLABELED] * len(samples.images) if samples.labels is None else samples.labels.tolist()
        is_finite = torch.isfinite(samples.images).flatten(1).all(dim=1).tolist()
        difference = _difference(samples, self._kept[0][1]) if self._kept else None
        for index, label in enumerate(labels):
            if samples.labels is not None and label < 0:
                continue
            if not is_finite[index]:
                self.left_out["not finite"] += 1
                continue
            if difference is not None:
                self.left_out[difference] += 1
            elif self._make_room(label):
                self._kept.append((label, _one(samples, index)))

    def _like_the_first(self, samples: Samples) -> Samples:
        """Read rows that are one-hot by chance as those of the first images, which have several classes or shares."""
        kind = self._kept[0][1].label_kind if self._kept else None
        if kind in ("multi-label", "soft") and samples.label_kind == "class" and samples.annotations is not None:
            return replace(samples, labels=samples.labels if kind == "soft" else None, label_kind=kind)
        return samples

    @property
    def ignored(self) -> int:
        """How many images were left out."""
        return self.left_out.total()

    def _make_room(self, label: int) -> bool:
        """Return whether an image of this class is to be kept; if the picker is full, drop another one for it."""
        if not self.is_full:
            return True
        counts = Counter(kept for kept, _ in self._kept)
        largest, size = counts.most_common(1)[0]
        if counts[label] + 2 > size:
            return False
        del self._kept[max(place for place, (kept, _) in enumerate(self._kept) if kept == largest)]
        return True

    @property
    def is_empty(self) -> bool:
        """Whether no image has been kept."""
        return not self._kept

    @property
    def is_full(self) -> bool:
        """Whether `count` images have been kept; unlabeled ones are final from then on."""
        return len(self._kept) == self.count

    def is_balanced(self, classes: int) -> bool:
        """Check whether no image that may still come would change the choice, given the number of classes."""
        sizes = Counter(kept for kept, _ in self._kept)
        has_all_classes = len(sizes) == min(classes, self.count)
        return self.is_full and has_all_classes and min(sizes.values()) >= self.count // classes

    def picked(self) -> Samples:
        """Return the images that were picked, sorted by class.

        Raises:
            ValueError: Nothing was picked.
        """
        if not self._kept:
            raise ValueError("no probes: there was no finite image whose label, if it has one, is a class")
        kept = [samples for _, samples in sorted(self._kept, key=lambda pair: pair[0])]
        images = torch.cat([samples.images for samples in kept])
        labels, masks, groups, annotations = (_joined(kept, name) for name in _PARTS[1:])
        return Samples(images, labels, masks, groups, label_kind=kept[0].label_kind, annotations=annotations)


def pick_from_dataset(dataset: Any, count: int, classes: int, read: Callable[[Any], Samples]) -> Samples:
    """Pick images from a data set in its order, reading no further than needed.

    Args:
        dataset: A map-style data set. Items are stacked into batches as a `DataLoader` does.
        count: How many images to pick.
        classes: The number of classes; 0 if it is not known: the whole data set is read then, if it has labels.
        read: Reads a batch.

    Raises:
        TypeError: The items are not understood.
        ValueError: The data set is empty, or its items cannot be stacked.
    """
    picker = ImagePicker(count)
    items = (dataset[index] for index in range(len(dataset)))
    while some := list(islice(items, count)):
        samples = read(_stacked(some))
        picker.offer(samples)
        is_unlabeled = samples.labels is None
        if (is_unlabeled and picker.is_full) or (classes and picker.is_balanced(classes)):
            break
    return picker.picked()


def _joined(parts: list[Samples], name: str) -> Tensor | None:
    tensors = [tensor for part in parts if (tensor := getattr(part, name)) is not None]
    return torch.cat(tensors) if tensors else None


def _one(samples: Samples, index: int) -> Samples:
    """Copy one sample to the CPU."""
    parts = (getattr(samples, name) for name in _PARTS)
    copies = [None if part is None else part[index : index + 1].detach().cpu().clone() for part in parts]
    images, labels, masks, groups, annotations = copies
    assert images is not None
    return Samples(images, labels, masks, groups, label_kind=samples.label_kind, annotations=annotations)


def _difference(samples: Samples, first: Samples) -> str | None:
    """Say why samples cannot be put into one batch with the first; None if they can."""
    if samples.images.shape[1:] != first.images.shape[1:]:
        return "of another size than the first"
    if samples.images.dtype != first.images.dtype:
        return "of another type than the first"
    if samples.label_kind != first.label_kind or (samples.labels is None) != (first.labels is None):
        return "with labels of another kind than the first"
    for name in ("masks", "groups", "annotations"):
        part, of_first = getattr(samples, name), getattr(first, name)
        if (part is None) != (of_first is None) or (part is not None and part.shape[1:] != of_first.shape[1:]):
            return f"with {name} unlike those of the first"
    return None


def _stacked(items: list[Any]) -> Any:
    """Stack items of a data set into a batch."""
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"items of the data set cannot be stacked into a batch, as a DataLoader does by default: {error}. Give "
            "ProbeSet(images, labels)"
        ) from error
