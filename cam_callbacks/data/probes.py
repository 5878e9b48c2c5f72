"""ProbeSet: fixed images that are explained again and again, so that looks can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cam_callbacks._checks import check_positive
from cam_callbacks.data import datasets
from cam_callbacks.data.batches import Samples, read_batch
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.labels import IGNORED, IGNORED_BYTE
from cam_callbacks.data.normalization import Normalization, as_normalization
from cam_callbacks.data.photos import class_folders, pick_photos
from cam_callbacks.data.picking import pick_from_dataset

MaskSource = Literal["given", "estimated", "none"]

_PER_IMAGE = ("images", "labels", "masks", "groups", "annotations", "mask_agreement")
_MAX_LISTED = 3  # of what is true of an image
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, init=False)
class ProbeSet:
    """N images with what is known about them.

    Attributes:
        images: (N, C, *spatial), as the model is fed (normalized), on the CPU: floating point, or whole numbers.
        labels: (N,) integers, kept as int64: the true class of each image; None if it is not known.
        masks: (N, *spatial) bool, True on the object, or None.
        class_names: One name for each class, in the order of the indices; empty if they are not known. Any list of
            names is accepted, or None.
        normalization: The mean and standard deviation of each channel, to undo for display; None if they are not
            known, and for images of whole numbers. `"imagenet"` is accepted.
        masks_estimated: Whether the masks are estimates.
        groups: (N,) integers, kept as int64: a group for each image, e.g. of label and background; None if unknown.
        bands: The channels that pictures show as red, green and blue, counted from 0; None for the first three.
        annotations: What is true of each image where that is not one class: (N, classes) bool, its classes; (N,
            *spatial) integers, kept as int16, the class of each pixel, negative where it is not known, as is 255 in
            bytes; (N, outputs) floating point, the numbers of a regression. None otherwise.
        mask_agreement: (N,) bool, whether several estimates of an image's mask agree; None if there are not several.

    Raises:
        TypeError: A part does not have its type.
        ValueError: There are no images, or a part does not fit N images of this size.
    """

    images: Tensor
    labels: Tensor | None
    masks: Tensor | None
    class_names: ClassNames
    normalization: Normalization | None
    masks_estimated: bool
    groups: Tensor | None
    bands: Sequence[int] | None
    annotations: Tensor | None
    mask_agreement: Tensor | None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        masks: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        normalization: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None = None,
        masks_estimated: bool = False,
        groups: Tensor | None = None,
        bands: Sequence[int] | None = None,
        annotations: Tensor | None = None,
        mask_agreement: Tensor | None = None,
    ) -> None:
        if not isinstance(images, Tensor) or images.is_complex() or images.is_quantized:
            raise TypeError(f"images must be a tensor of numbers, as the model is fed; got {_type_of(images)}")
        if images.ndim < 3 or len(images) == 0:
            raise ValueError(f"images has shape {tuple(images.shape)}; at least one of (C, *spatial) is needed")
        expected = (len(images), *images.shape[2:])
        if masks is not None and (not isinstance(masks, Tensor) or masks.dtype != torch.bool):
            raise TypeError(f"masks must be bool, True on the object; got {_type_of(masks)}")
        if masks is not None and masks.shape != expected:
            raise ValueError(f"masks has shape {tuple(masks.shape)}; images {tuple(images.shape)} need {expected}")
        if mask_agreement is not None and mask_agreement.shape != (len(images),):
            raise ValueError(f"mask_agreement has shape {tuple(mask_agreement.shape)}; it needs ({len(images)},)")
        fields = {
            "images": images,
            "labels": _as_int64("labels", labels, len(images)),
            "masks": masks,
            "class_names": ClassNames(class_names),
            "normalization": as_normalization(normalization) if images.is_floating_point() else None,
            "masks_estimated": masks_estimated,
            "groups": _as_int64("groups", groups, len(images)),
            "bands": None if bands is None else tuple(bands),
            "annotations": _checked_annotations(annotations, images.shape),
            "mask_agreement": mask_agreement,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Return the number of probes, N."""
        return len(self.images)

    def subset(self, rows: Tensor) -> ProbeSet:
        """Return the images at these rows (n,)."""
        given: dict[str, Any] = {name: getattr(self, name) for name in _PER_IMAGE}
        kept: dict[str, Any] = {name: None if part is None else part[rows] for name, part in given.items()}
        return replace(self, **kept)

    @classmethod
    def joined(cls, parts: Sequence[ProbeSet]) -> ProbeSet:
        """Put the images of several sets into one; what is known of all images, such as names, is that of the first.

        Masks, groups and the like are left out where a part has none.
        """

        def of_all(name: str) -> Tensor | None:
            tensors = [getattr(part, name) for part in parts]
            return None if any(tensor is None for tensor in tensors) else torch.cat(tensors)

        joined: dict[str, Any] = {name: of_all(name) for name in _PER_IMAGE}
        return replace(parts[0], **joined)

    @property
    def mask_source(self) -> MaskSource:
        """Where the masks come from: they are `"given"`, `"estimated"`, or there are `"none"`."""
        if self.masks is None:
            return "none"
        return "estimated" if self.masks_estimated else "given"

    @property
    def nbytes(self) -> int:
        """The bytes that the images, masks and annotations take in memory."""
        return sum(part.nbytes for part in (self.images, self.masks, self.annotations) if part is not None)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of images, labels, masks and annotations: probe sets with the same fingerprint are the same."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels, self.masks, self.annotations):
            if part is not None:
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def image_ids(self) -> Tensor:
        """(N,) int64, at least 0: a hash of each image. Equal images have the same one, in every probe set."""
        rows = self.images.cpu().contiguous().flatten(1)
        digests = (hashlib.blake2b(row.view(torch.uint8).numpy().data, digest_size=8).digest() for row in rows)
        return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests])

    def annotation_in_words(self, index: int, name: Callable[[int], str]) -> str | None:
        """Return what is true of an image that has not one class: its classes or numbers; None if it is not known.

        Args:
            index: Which image.
            name: Names a class.
        """
        if self.annotations is None:
            return None
        row = self.annotations[index]
        if self.annotations.dtype == torch.int16:
            said = [name(label) for label in row[row >= 0].unique().tolist()]  # type: ignore[no-untyped-call]
        elif row.dtype == torch.bool:
            said = [name(label) for label in row.nonzero().flatten().tolist()]
        else:
            said = [f"{value:.3g}" for value in row.tolist()]
        listed = ", ".join(said[:_MAX_LISTED]) or "none"
        return f"{listed}, ..." if len(said) > _MAX_LISTED else listed

    @classmethod
    def of(cls, samples: Samples) -> ProbeSet:
        """Make a probe set from samples, such as those of an `ImagePicker`."""
        annotations = samples.annotations
        if samples.label_kind == "multi-label" and annotations is not None:
            annotations = annotations == 1
        elif samples.label_kind not in ("dense", "value"):
            annotations = None
        return cls(samples.images, samples.labels, samples.masks, groups=samples.groups, annotations=annotations)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        num_probes: int = 16,
        *,
        class_names: Sequence[str] | None = None,
        read: Callable[[Any], Samples] = read_batch,
    ) -> ProbeSet:
        """Pick probes from a data set, balanced over its classes: the first images of each class.

        Items are read in order and stacked into batches as a `DataLoader` does, until every class has its share. If
        the names of the classes are not known, neither is their number, and the whole data set is read. Class names
        and normalization are taken from the data set if it has them.

        Args:
            dataset: A map-style data set.
            num_probes: How many images to pick.
            class_names: The names of the classes; None for those of the data set.
            read: Reads a batch, e.g. `functools.partial(read_batch, foreground_values=[1, 3])`.

        Raises:
            TypeError: The items are not understood.
            ValueError: The data set is empty, or its items cannot be stacked.
        """
        check_positive("num_probes", num_probes)
        names = ClassNames(class_names or datasets.class_names(dataset))
        samples = pick_from_dataset(dataset, num_probes, len(names), read)
        return replace(cls.of(samples), class_names=names, normalization=datasets.normalization(dataset))

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

        Photos in a subfolder belong to the class of that name. Its index is its place in `class_names`, or without
        them its place in the sorted names of the subfolders. If there are no subfolders, the photos in the folder
        itself are read, and have no class.

        Args:
            folder: The folder.
            size: The height and width that the model is fed.
            normalization: The mean and the standard deviation with which the model's images are normalized, or
                `"imagenet"`; None for images in [0, 1].
            class_names: The names of the model's classes.
            num_probes: The most photos to pick, balanced over the classes; None for all.
            channels: 3 for photos in color, 1 for photos in gray.

        Raises:
            TypeError: `size` is not a pair.
            ValueError: The folder does not exist or holds no photos, or a subfolder is not among `class_names`; or
                `channels` is neither 1 nor 3.
        """
        names = list(class_names or class_folders(Path(folder)))
        samples = pick_photos(Path(folder), size, normalization, names, num_probes, channels)
        return replace(cls.of(samples), class_names=ClassNames(names), normalization=as_normalization(normalization))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and primitives only, so that a checkpoint that holds them loads with `weights_only`."""
        normalization = None if self.normalization is None else [list(part) for part in self.normalization]
        parts = {name: getattr(self, name) for name in _PER_IMAGE}
        return {
            # Copies: saving a view would save all of the tensor that it views.
            **{name: None if part is None else part.clone() for name, part in parts.items()},
            "masks_estimated": self.masks_estimated,
            "class_names": list(self.class_names),
            "normalization": normalization,
            "bands": None if self.bands is None else list(self.bands),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ProbeSet:
        """Return the probe set that gave this `state_dict`."""
        names, normalization = state["class_names"], state["normalization"]
        return cls(
            state["images"],
            state["labels"],
            state["masks"],
            ClassNames(names),
            None if normalization is None else (tuple(normalization[0]), tuple(normalization[1])),
            state["masks_estimated"],
            state["groups"],
            state.get("bands"),
            state.get("annotations"),
            state.get("mask_agreement"),
        )


def _as_int64(name: str, values: Tensor | None, count: int) -> Tensor | None:
    """Check that there is a whole number for each image, or None."""
    if values is None:
        return None
    if not isinstance(values, Tensor) or values.dtype not in _WHOLE_NUMBERS:
        raise TypeError(f"{name} must be a tensor of whole numbers, one for each image; got {_type_of(values)}")
    if values.shape != (count,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; {count} images need ({count},)")
    return values.long()


def _checked_annotations(given: Tensor | None, shape: torch.Size) -> Tensor | None:
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.is_complex():
        raise TypeError(f"annotations must be a tensor: bool, whole numbers or floating point; got {_type_of(given)}")
    is_dense = given.dtype in _WHOLE_NUMBERS
    fits = given.shape == (shape[0], *shape[2:]) if is_dense else given.ndim == 2 and len(given) == shape[0]
    if not fits:
        raise ValueError(
            f"annotations has shape {tuple(given.shape)}; images {tuple(shape)} need (N, classes) bool, (N, outputs) "
            "floating point, or a whole number for each pixel"
        )
    if not is_dense:
        return given
    pixels = given.to(torch.int16)
    return pixels.masked_fill(given == IGNORED_BYTE, IGNORED) if given.dtype == torch.uint8 else pixels


def _type_of(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
