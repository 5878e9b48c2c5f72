"""ImagePicker: a balanced choice of images from batches that pass by, or from a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from cam_callbacks._checks import check_positive
from cam_callbacks.data.batches import Samples

_UNLABELED = -1


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
        self.ignored = 0
        """Images left out: not finite, or unlike the first in size, type, or in whether labels and masks are known."""
        self._kept: list[tuple[int, Samples]] = []  # class, and the one image

    def offer(self, samples: Samples) -> None:
        """Consider the images of a batch, on any device; keep copies of those that are needed on the CPU.

        Images with a negative label, the usual mark of "no label", are passed over.
        """
        labels = [_UNLABELED] * len(samples.images) if samples.labels is None else samples.labels.tolist()
        is_finite = torch.isfinite(samples.images).flatten(1).all(dim=1).tolist()
        for index, label in enumerate(labels):
            if samples.labels is not None and label < 0:
                continue
            if not is_finite[index] or (self._kept and not _match(samples, self._kept[0][1])):
                self.ignored += 1
            elif self._make_room(label):
                self._kept.append((label, _one(samples, index)))

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
        labels, masks, groups = (_joined(kept, name) for name in ("labels", "masks", "groups"))
        return Samples(images, labels, masks, groups)


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
    parts = (samples.images, samples.labels, samples.masks, samples.groups)
    return Samples(*(None if part is None else part[index : index + 1].detach().cpu().clone() for part in parts))  # type: ignore[arg-type]


def _match(a: Samples, b: Samples) -> bool:
    """Check whether samples can be put into one batch."""
    is_same_kind = a.images.shape[1:] == b.images.shape[1:] and a.images.dtype == b.images.dtype
    return is_same_kind and all(
        (getattr(a, name) is None) == (getattr(b, name) is None) for name in ("labels", "masks", "groups")
    )


def _stacked(items: list[Any]) -> Any:
    """Stack items of a data set into a batch."""
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"items of the data set cannot be stacked into a batch, as a DataLoader does by default: {error}. Give "
            "ProbeSet(images, labels)"
        ) from error
