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
from cam_callbacks.data.labels import LabelKind

_UNLABELED = -1
_PARTS = ("images", "labels", "masks", "groups", "annotations")
_MAX_KINDS = 4  # of images that are kept until it is known which are the most


class ImagePicker:
    """Pick images from batches as they pass by, balanced over the classes; the same batches give the same images.

    The first images are kept. When the picker is full, an image of a class that has at least two images fewer than the
    largest class replaces the last image of that class. Images that cannot be put into one batch, because their size or
    what is known about them differs, are picked apart; those that came most often are the choice.

    Args:
        count: How many images to pick.

    Raises:
        ValueError: `count` is not at least 1.
    """

    def __init__(self, count: int) -> None:
        check_positive("count", count)
        self.count = count
        self._not_finite = 0
        self._kinds: list[_Alike] = []  # one at least from the first image on
        self._of_more_kinds = 0

    def offer(self, samples: Samples, source: int = 0) -> None:
        """Consider the images of a batch, on any device; keep copies of those that are needed on the CPU.

        Images with a negative label, the usual mark of "no label", are passed over.

        Args:
            samples: The images.
            source: Where they come from, such as one of several loaders: the choice is balanced over these, too.
        """
        labels = [_UNLABELED] * len(samples.images) if samples.labels is None else samples.labels.tolist()
        is_finite = torch.isfinite(samples.images).flatten(1).all(dim=1).tolist()
        rows = [row for row, label in enumerate(labels) if samples.labels is None or label >= 0]
        finite = [row for row in rows if is_finite[row]]
        self._not_finite += len(rows) - len(finite)
        alike = next((each for each in self._kinds if _difference(samples, each.first) is None), None)
        if alike is None and finite and len(self._kinds) < _MAX_KINDS:
            alike = _Alike(self.count, samples.row(finite[0]))
            self._kinds.append(alike)
        if alike is None:
            self._of_more_kinds += len(finite)
            return
        for row in finite:
            alike.offer(samples, row, (labels[row], source))

    @property
    def _most(self) -> _Alike | None:
        return max(self._kinds, key=lambda each: each.seen, default=None)

    @property
    def left_out(self) -> Counter[str]:
        """How many images were left out, by reason: not finite, or unlike the others."""
        found, most = Counter({"not finite": self._not_finite, "of yet other kinds": self._of_more_kinds}), self._most
        for each in self._kinds:
            if most is not None and each is not most:
                found[_difference(each.first, most.first) or ""] += each.seen
        return +found

    @property
    def ignored(self) -> int:
        """How many images were left out."""
        return self.left_out.total()

    def __len__(self) -> int:
        """Return how many images would be picked now."""
        return 0 if self._most is None else sum(self._most.sizes().values())

    @property
    def is_empty(self) -> bool:
        """Whether no image has been kept."""
        return not self._kinds

    @property
    def is_full(self) -> bool:
        """Whether `count` images have been kept; unlabeled ones are final from then on."""
        return self._most is not None and self._most.is_full

    def is_balanced(self, classes: int) -> bool:
        """Check whether no image that may still come would change the choice, given the number of classes."""
        if self._most is None:
            return False
        sizes = self._most.sizes()
        has_all_classes = len(sizes) == min(classes, self.count)
        return self.is_full and has_all_classes and min(sizes.values()) >= self.count // classes

    def picked(self) -> Samples:
        """Return the images that were picked, sorted by class.

        Raises:
            ValueError: Nothing was picked.
        """
        if self._most is None:
            raise ValueError("no probes: there was no finite image whose label, if it has one, is a class")
        return self._most.joined()


class _Alike:
    """Images that can be put into one batch.

    Args:
        count: How many to keep.
        first: The first of them.

    Attributes:
        seen: How many have come.
    """

    def __init__(self, count: int, first: Samples) -> None:
        self.count, self.first, self.seen = count, first, 0
        self._kept: list[tuple[tuple[int, int], Samples]] = []  # class and source, and the one image
        self._label_kinds: set[LabelKind | None] = set()

    @property
    def is_full(self) -> bool:
        return len(self._kept) == self.count

    def sizes(self) -> Counter[tuple[int, int]]:
        """Return how many images of each class and source are kept."""
        return Counter(key for key, _ in self._kept)

    def offer(self, samples: Samples, row: int, key: tuple[int, int]) -> None:
        """Consider one image of a batch."""
        self.seen += 1
        self._label_kinds.add(samples.label_kind)
        if self._make_room(key):
            self._kept.append((key, samples.row(row)))

    def _make_room(self, key: tuple[int, int]) -> bool:
        """Return whether an image of this class is to be kept; if there is no room, drop another one for it."""
        if not self.is_full:
            return True
        counts = self.sizes()
        largest, size = counts.most_common(1)[0]
        if counts[key] + 2 > size:
            return False
        del self._kept[max(place for place, (kept, _) in enumerate(self._kept) if kept == largest)]
        return True

    def joined(self) -> Samples:
        """Return the images that are kept, sorted by class.

        Rows that are one-hot in some batches are read as those of the others, which mark several classes, or shares.
        """
        kept = [samples for _, samples in sorted(self._kept, key=lambda pair: pair[0])]
        images = torch.cat([samples.images for samples in kept])
        labels, masks, groups, annotations = (_joined(kept, name) for name in _PARTS[1:])
        kind = next((kind for kind in ("soft", "multi-label") if kind in self._label_kinds), self.first.label_kind)
        return Samples(
            images,
            None if kind == "multi-label" else labels,
            masks,
            groups,
            label_kind=kind,
            annotations=annotations,
        )


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


def _difference(samples: Samples, first: Samples) -> str | None:
    """Say why samples cannot be put into one batch with others, of which this is the first; None if they can."""
    if samples.images.shape[1:] != first.images.shape[1:]:
        return "of another size"
    if samples.images.dtype != first.images.dtype:
        return "of another type"
    if _form_of_labels(samples) != _form_of_labels(first):
        return "with labels of another kind"
    for name in ("masks", "groups", "annotations"):
        part, of_first = getattr(samples, name), getattr(first, name)
        if (part is None) != (of_first is None) or (part is not None and part.shape[1:] != of_first.shape[1:]):
            return f"with other {name}" if part is not None else f"without {name}"
    return None


def _form_of_labels(samples: Samples) -> tuple[str | None, bool]:
    """Return what labels must have in common; rows of several classes, or of shares, may be one-hot by chance."""
    if samples.annotations is not None and samples.label_kind in ("class", "multi-label", "soft"):
        return "rows", True
    return samples.label_kind, samples.labels is not None


def _stacked(items: list[Any]) -> Any:
    """Stack items of a data set into a batch."""
    try:
        return default_collate(items)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"items of the data set cannot be stacked into a batch, as a DataLoader does by default: {error}. Give "
            "ProbeSet(images, labels)"
        ) from error
