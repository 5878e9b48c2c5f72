"""Find images, labels and masks in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BatchFn = Callable[[Any], Any]
"""Called as `batch_fn(batch)`; returns `(images, labels)`, `(images, labels, masks)`, or `images`."""

_IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")
_MASK_KEYS = ("mask", "masks", "segmentation")
_BOX_KEYS = ("box", "boxes", "bbox", "bboxes")
_GROUP_KEYS = ("group", "groups")
_KEYS = (_IMAGE_KEYS, LABEL_KEYS, (*_MASK_KEYS, *_BOX_KEYS), _GROUP_KEYS)
_MAX_MASK_VALUES = 16
"""Masks with more values are not maps of labels but e.g. of depth, and are not used."""
_REMEDY = "Give batch_fn, a callable that takes the batch and returns (images, labels) or (images, labels, masks)"


@dataclass(frozen=True, eq=False)
class Samples:
    """Images with what is known about each.

    Attributes:
        images: (N, C, *spatial) floating point.
        labels: (N,) int64 class indices, or None.
        masks: (N, *spatial) bool, True on the object, or None.
        groups: (N,) int64, a group for each image, or None.
        note: A message for the user if the masks are not as expected, or None.
    """

    images: Tensor
    labels: Tensor | None
    masks: Tensor | None
    groups: Tensor | None = None
    note: str | None = None


LabelUse = Literal["required", "optional", "ignored"]


def read_batch(
    batch: Any,
    batch_fn: BatchFn | None = None,
    label_use: LabelUse = "required",
    foreground_values: Sequence[int] | None = None,
) -> Samples:
    """Find images, labels and masks in a batch.

    A batch may be images alone, `(images, labels)`, `(images, labels, masks)`, or a mapping with the usual keys. A
    mapping may also hold groups (N,), and in place of masks boxes (N, 4) in pixels: left, top, right, bottom. Labels
    may be class indices (N,) or (N, 1), as integers or as whole-numbered floats, or one-hot rows (N, classes).

    Args:
        batch: The batch, as the loader returns it.
        batch_fn: Called with the batch; what it returns is read instead.
        label_use: What to do with labels that are not one class per image: `"required"` raises an error, `"optional"`
            leaves them out. `"ignored"` leaves out all labels.
        foreground_values: The values of a mask that mean "object", e.g. of a trimap. None: masks have two values, and
            the larger one is the object.

    Raises:
        TypeError: The batch is none of these, or its images are not floating point.
        ValueError: `batch_fn` fails, or the labels are required and do not give one class per image.
    """
    if batch_fn is not None:
        try:
            batch = batch_fn(batch)
        except Exception as error:
            raise ValueError(f"batch_fn fails on {describe(batch)}: {type(error).__name__}: {error}") from error
    images, labels, masks, groups = _parts(batch)
    if not isinstance(images, Tensor) or images.ndim < 3:
        raise TypeError(f"the batch is not understood: {describe(batch)}. {_REMEDY}")
    if not images.is_floating_point():
        raise TypeError(
            f"the images of the batch are {images.dtype}, not floating point: {describe(batch)}. {_REMEDY}, with the "
            "images as the model is fed them"
        )
    indices = None if label_use == "ignored" else _class_indices(labels, images)
    if indices is None and labels is not None and label_use == "required":
        raise ValueError(
            f"the labels of the batch are not one class per image: {describe(batch)}. {_REMEDY}; if images "
            'do not have one class each, as in multi-label problems, give explain="prediction" or a class index'
        )
    is_named = isinstance(batch, Mapping)
    are_boxes = is_named and not any(key in batch for key in _MASK_KEYS)
    on_object, note = _boxes(masks, images) if are_boxes else _object_masks(masks, images, foreground_values)
    if on_object is None and note is None and _are_meant_as_masks(masks, images, is_named):
        note = (
            "the masks of the batch are not used: give one for each image, of its size, (N, H, W), with two values "
            "(such as `masks > 0.5`), or give foreground_values, the values that mean object"
        )
    return Samples(images, indices, on_object, _groups(groups, images), note)


def _parts(batch: Any) -> tuple[Any, Any, Any, Any]:
    """Return images, labels, masks or boxes, and groups; None for those that are missing."""
    if isinstance(batch, Tensor):
        return batch, None, None, None
    if isinstance(batch, Mapping):
        return tuple(next((batch[key] for key in keys if key in batch), None) for keys in _KEYS)  # type: ignore[return-value]
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        images, labels, masks = (*batch[:3], None, None)[:3]
        return images, labels, masks, None
    return None, None, None, None


def _class_indices(labels: Any, images: Tensor) -> Tensor | None:
    """Return labels of any form as (N,) int64; None if they are not one class per image."""
    if isinstance(labels, (list, tuple)) and all(isinstance(label, int) for label in labels):
        labels = torch.tensor(labels)
    if isinstance(labels, Tensor) and labels.ndim and len(labels) == len(images):
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        if labels.ndim == 2 and _one_hot(labels):
            labels = labels.argmax(dim=1)
        indices: Tensor = labels.long()
        if labels.ndim == 1 and bool((labels == indices).all()):
            return indices
    return None


def _one_hot(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(dim=1) == 1).all())


def _are_meant_as_masks(masks: Any, images: Tensor, is_named: bool) -> bool:
    """Check whether masks that are not understood are meant as such: the third part of a tuple may be anything."""
    if not isinstance(masks, Tensor):
        return is_named and isinstance(masks, (list, tuple))
    if is_named:
        return masks.ndim >= images.ndim - 1
    has_size = masks.shape[:1] + masks.shape[-(images.ndim - 2) :] == images.shape[:1] + images.shape[2:]
    return has_size and (masks.ndim == images.ndim - 1 or (masks.ndim == images.ndim and masks.shape[1] == 1))


def _object_masks(
    masks: Any, images: Tensor, foreground_values: Sequence[int] | None
) -> tuple[Tensor | None, str | None]:
    """Return masks of the size of the images, True on the object, and a note for the user; None for anything else."""
    if not isinstance(masks, Tensor) or masks.ndim == 0 or len(masks) != len(images):
        return None, None
    if masks.ndim == images.ndim and masks.shape[1] == 1:
        masks = masks.squeeze(1)
    if masks.ndim != images.ndim - 1:
        return None, None
    values = masks.unique().tolist()
    if foreground_values is not None:
        on_object = torch.isin(masks, torch.tensor(list(foreground_values), device=masks.device, dtype=masks.dtype))
    elif len(values) == 2:
        on_object = masks == values[-1]
    elif len(values) == 1:
        on_object = masks > 0
    elif len(values) > _MAX_MASK_VALUES:
        return None, None
    else:
        shown = ", ".join(f"{value:g}" for value in values)
        return None, (
            f"the masks of the batch have {len(values)} values ({shown}) and are not used; give foreground_values, "
            "the values that mean object"
        )
    if on_object.shape[1:] == images.shape[2:]:
        return on_object, None
    resized = F.interpolate(on_object.unsqueeze(1).float(), images.shape[2:], mode="nearest-exact").squeeze(1) > 0.5
    return (
        resized,
        f"the masks of the batch have size {tuple(masks.shape[1:])} and are resized to {tuple(images.shape[2:])}",
    )


def _boxes(boxes: Any, images: Tensor) -> tuple[Tensor | None, str | None]:
    """Return masks that are True within boxes, and a note for the user."""
    if boxes is None:
        return None, None
    if not isinstance(boxes, Tensor) or boxes.shape != (len(images), 4) or images.ndim != 4:
        return None, f"the boxes of the batch are not used: {describe(boxes)} is not one for each image, (N, 4)"
    if bool((boxes <= 1).all()):
        return None, "the boxes of the batch are not used: they are all within 1, so not in pixels"
    return _inside_boxes(boxes, images), None


def _inside_boxes(boxes: Tensor, images: Tensor) -> Tensor:
    """Return (N, H, W) bool, True within the box (left, top, right, bottom) of each image."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=boxes.device).view(1, -1, 1) + 0.5
    columns = torch.arange(width, device=boxes.device).view(1, 1, -1) + 0.5
    left, top, right, bottom = boxes.float().view(-1, 4, 1, 1).unbind(dim=1)
    inside: Tensor = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    return inside.to(images.device)


def _groups(groups: Any, images: Tensor) -> Tensor | None:
    if isinstance(groups, Tensor) and groups.shape == (len(images),) and not groups.is_floating_point():
        return groups.long()
    return None


def describe(value: Any, depth: int = 3) -> str:
    """Describe the type of a value and its shape or parts: `tuple(Tensor float32 (8, 3, 64, 64), str)`."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"{kind} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if depth == 0 or isinstance(value, str):
        return kind
    if isinstance(value, Mapping):
        return f"{kind}({', '.join(f'{key!r}: {describe(part, depth - 1)}' for key, part in list(value.items())[:8])})"
    if is_dataclass(value):
        parts = [f"{field.name}={describe(getattr(value, field.name, None), depth - 1)}" for field in fields(value)[:8]]
        return f"{kind}({', '.join(parts)})"
    if isinstance(value, Sequence):
        return f"{kind}({', '.join(describe(part, depth - 1) for part in value[:8])})"
    return kind
