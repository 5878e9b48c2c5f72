"""Labels in whatever form a batch has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cam_callbacks.data.plain import as_numbers, describe

LabelKind = Literal["class", "multi-label", "soft", "dense", "value"]
"""What labels say of an image: its one class; its classes; a probability of each class; the class of each pixel; or
numbers, as in regression."""

IGNORED = -100
"""The class of what is not to be counted, an image or a pixel."""

IGNORED_BYTE = 255
"""The mark of ignored pixels and images in labels of one byte."""

_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of N images.

    Attributes:
        kind: What they say of an image; None if that is not known.
        classes: (N,) int64, the class of each image, negative where it is to be ignored; None if they have not one
            class each.
        annotations: The labels as they came, unless they came as one number for each image that is its class:
            `"multi-label"` (N, classes) float32 in {0, 1}, NaN where it is not known; `"soft"` (N, classes) float32,
            each row sums to 1; `"dense"` (N, *spatial) int64, -100 where it is to be ignored; `"value"` (N, outputs)
            float32; `"class"` the one-hot rows (N, classes) float32, or None.
        note: For the user: why labels are not used; None if there is nothing to say.
    """

    kind: LabelKind | None = None
    classes: Tensor | None = None
    annotations: Tensor | None = None
    note: str | None = None


def read_labels(given: Any, shape: torch.Size, class_names: Sequence[str] = ()) -> Labels:
    """Read labels of images of this shape (N, C, *spatial), on the device where they are.

    Args:
        given: Labels of any form, or None.
        shape: The shape of the images.
        class_names: The names of the classes, for labels that are names; empty if they are not known.
    """
    if given is None:
        return Labels()
    numbers = as_numbers(_indices_of_names(given, class_names))
    if numbers is None or numbers.is_complex() or not numbers.ndim or len(numbers) != shape[0]:
        return _not_understood(given)
    if not numbers.is_floating_point() and numbers.dtype != torch.bool:
        numbers = numbers.long()  # little can be done with unsigned numbers of 16 bits
    while numbers.ndim > 1 and numbers.shape[-1] == 1 and numbers[0].numel() == 1:
        numbers = numbers.squeeze(-1)
    if numbers.ndim == 1:
        return _one_number_each(numbers)
    if _has_a_value_for_each_pixel(numbers, shape):
        of_pixels = _class_of_each_pixel(numbers, shape, len(class_names))
        of_image = _rows(numbers) if numbers.ndim == 2 else Labels()
        if of_image.kind == "class" or of_pixels.kind is None:
            return of_image if of_image.kind is not None else _not_understood(given)
        if of_image.kind is None:
            return of_pixels
        return _not_understood(given)  # a row for each image could be about its classes, or about its positions
    found = _rows(numbers) if numbers.ndim == 2 else Labels()
    return found if found.kind is not None else _not_understood(given)


def _not_understood(given: Any) -> Labels:
    return Labels(note=f"the labels of the batch are not used: it is not clear what {describe(given)} says")


def _indices_of_names(given: Any, class_names: Sequence[str]) -> Any:
    """Replace names of classes by their indices; return anything else as it is."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "USO":
        given = given.tolist()
    if not isinstance(given, (list, tuple)) or not all(isinstance(name, (str, bytes)) for name in given):
        return given
    names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in given]
    places = {name: index for index, name in enumerate(class_names) if list(class_names).count(name) == 1}
    return [places[name] for name in names] if all(name in places for name in names) else given


def _one_number_each(numbers: Tensor) -> Labels:
    """Read (N,) numbers: whole ones are classes, others are values."""
    if not bool((numbers == numbers.long()).all()):
        return Labels("value", annotations=numbers.float().unsqueeze(1))
    return Labels("class", numbers.long())


def _rows(numbers: Tensor) -> Labels:
    """Read (N, K) numbers."""
    known = numbers >= 0  # negative entries and NaN are the usual marks of what is not known
    is_binary = bool(((numbers == 0) | (numbers == 1)).all())
    rows = numbers.float()
    if is_binary and bool((rows.sum(dim=1) == 1).all()):
        return Labels("class", rows.argmax(dim=1), rows)
    if is_binary:
        return Labels("multi-label", annotations=rows)
    is_mark = rows.isnan() | ((rows < 0) & (rows == rows.round()))
    if numbers.shape[1] > 1 and bool(((rows == 0) | (rows == 1) | is_mark).all()) and bool((rows == 0).any()):
        return Labels("multi-label", annotations=rows.masked_fill(~known, torch.nan))
    if not numbers.is_floating_point():
        return Labels()  # other whole numbers may be anything
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        return Labels("value", annotations=rows)
    # Numbers in [0, 1] that do not sum to 1 may be coordinates as well as smoothed labels.
    sums_to_one = bool(((rows.sum(dim=1) - 1).abs() < _ROUNDING * max(1, rows.shape[1] ** 0.5)).all())
    return Labels("soft", annotations=rows) if sums_to_one else Labels()


def _has_a_value_for_each_pixel(numbers: Tensor, shape: torch.Size) -> bool:
    return numbers.shape[-len(shape[2:]) :] == shape[2:] and numbers.ndim in (len(shape) - 1, len(shape))


def _class_of_each_pixel(numbers: Tensor, shape: torch.Size, count: int) -> Labels:
    """Read (N, *spatial), (N, 1, *spatial), or one-hot (N, classes, *spatial)."""
    if numbers.ndim == len(shape):
        is_one_hot = bool(((numbers == 0) | (numbers == 1)).all() and (numbers.sum(dim=1) == 1).all())
        if numbers.shape[1] > 1 and not is_one_hot:
            return Labels()
        numbers = numbers.squeeze(1) if numbers.shape[1] == 1 else numbers.long().argmax(dim=1)
    if not bool((numbers == numbers.long()).all()):
        return Labels()
    classes = numbers.long()
    values = set(classes.flatten().tolist())
    ignored = classes < 0
    if IGNORED_BYTE in values and count <= IGNORED_BYTE:
        if not count and values <= {0, IGNORED_BYTE}:
            return Labels()  # the object of a mask in black and white, or what is to be ignored
        ignored |= classes == IGNORED_BYTE
    return Labels("dense", annotations=torch.where(ignored, IGNORED, classes))
