"""Masks of the objects, as a batch has them: as masks, or as boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.data.plain import as_numbers, describe

_MAX_VALUES = 16
"""Masks with more values are not maps of labels but e.g. of depth, and are not used."""
_IGNORED_BYTE = 255
_HALF_A_PIXEL = 0.5  # what rounding may add to a box
_BOX_REMEDY = "give them in pixels as left, top, right, bottom, or as torchvision.tv_tensors.BoundingBoxes"


def are_meant_as_masks(masks: Any, images: Tensor, is_named: bool) -> bool:
    """Check whether masks that are not understood are meant as such: the third part of a tuple may be anything."""
    if not isinstance(masks, Tensor):
        return is_named and isinstance(masks, (list, tuple))
    shape = masks.shape
    if is_named:
        return len(shape) >= images.ndim - 1
    has_size = shape[:1] + shape[-(images.ndim - 2) :] == images.shape[:1] + images.shape[2:]
    return has_size and (len(shape) == images.ndim - 1 or (len(shape) == images.ndim and shape[1] == 1))


def object_masks(
    given: Any, images: Tensor, foreground_values: Sequence[int] | None
) -> tuple[Tensor | None, str | None]:
    """Return masks of the size of the images, True on the object, and a note for the user; None for anything else."""
    masks = as_numbers(given) if isinstance(given, Tensor) else None
    if masks is None or masks.ndim == 0 or len(masks) != len(images):
        return None, None
    if masks.ndim == images.ndim and masks.shape[1] == 1:
        masks = masks.squeeze(1)
    if masks.ndim != images.ndim - 1:
        return None, None
    values = torch.unique(masks).tolist()
    # What is ignored is not the object. Beside 0 and 1 alone, 255 and negative numbers mean that.
    counted = [value for value in values if value >= 0 and not (value == _IGNORED_BYTE and 1 in values)]
    if foreground_values is not None:
        on_object = torch.isin(masks, torch.tensor(list(foreground_values), device=masks.device, dtype=masks.dtype))
    elif set(counted) <= {0, 1} and len(counted) < len(values):
        on_object = masks == 1
    elif len(values) == 2:
        on_object = masks == values[-1]
    elif len(values) <= 1:
        on_object = masks > 0
    elif len(values) > _MAX_VALUES:
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


def masks_of_boxes(given: Any, images: Tensor) -> tuple[Tensor | None, str | None]:
    """Return masks that are True within boxes, and a note for the user.

    Boxes that say their format (`BoundingBoxes` of torchvision) are read in it. Of others the order is found out: that
    is used in which all boxes of the batch are possible, if there is only one.
    """
    boxes = as_numbers(given)
    if boxes is None:
        why = f"the boxes of the batch are not used: {describe(given)} is not a tensor"
        return None, None if given is None else why
    boxes = boxes.float()
    if boxes.shape == (len(images), 1, 4):
        boxes = boxes.squeeze(1)
    if boxes.shape != (len(images), 4) or images.ndim != 4:
        return None, f"the boxes of the batch are not used: {describe(given)} is not one for each image, (N, 4)"
    height, width = images.shape[2:]
    name, canvas = getattr(getattr(given, "format", None), "name", None), getattr(given, "canvas_size", None)
    if name is not None:
        if name not in _READINGS or tuple(canvas or (height, width)) != (height, width):
            return None, (
                f"the boxes of the batch are not used: they have the format {name} for images of size {canvas}, and "
                f"the images have size {(height, width)}; {_BOX_REMEDY}"
            )
        return inside_boxes(_READINGS[name](boxes), images), None
    if bool((boxes.abs() <= 1).all()) and min(height, width) > 1:
        boxes = boxes * boxes.new_tensor([width, height, width, height])
    possible = [name for name in _READINGS if _is_possible(name, boxes, width, height)]
    masks = [inside_boxes(_READINGS[name](boxes), images) for name in possible]
    if masks and all(torch.equal(mask, masks[0]) for mask in masks):
        return masks[0], None
    found = f"they can be read as {' and as '.join(possible)}" if possible else "they are not boxes within the images"
    return None, f"the boxes of the batch are not used: {found}; {_BOX_REMEDY}"


def _corners_of_xywh(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _corners_of_cxcywh(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


_READINGS = {"XYXY": lambda boxes: boxes, "XYWH": _corners_of_xywh, "CXCYWH": _corners_of_cxcywh}


def _is_possible(name: str, boxes: Tensor, width: int, height: int) -> bool:
    """Check whether all boxes (N, 4) can be meant in this order.

    Boxes given by their corners may leave the image, as those of cropped images do.
    """
    left, top, right, bottom = _READINGS[name](boxes).unbind(dim=1)
    is_possible = (right > left) & (bottom > top)
    if name != "XYXY":
        is_possible &= (left >= -_HALF_A_PIXEL) & (top >= -_HALF_A_PIXEL)
        is_possible &= (right <= width + _HALF_A_PIXEL) & (bottom <= height + _HALF_A_PIXEL)
    return bool(is_possible.all())


def inside_boxes(boxes: Tensor, images: Tensor) -> Tensor:
    """Return (N, H, W) bool, True within the box (left, top, right, bottom) of each image."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=boxes.device).view(1, -1, 1) + 0.5
    columns = torch.arange(width, device=boxes.device).view(1, 1, -1) + 0.5
    left, top, right, bottom = boxes.view(-1, 4, 1, 1).unbind(dim=1)
    inside: Tensor = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    return inside.to(images.device)
