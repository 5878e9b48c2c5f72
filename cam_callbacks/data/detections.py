"""Batches in the form of torchvision's detectors: a list of images, and for each a mapping of its boxes and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.data.labels import IGNORED
from cam_callbacks.data.masks import inside_boxes
from cam_callbacks.data.plain import as_numbers, plain

SNIPPET = (
    'lambda b: {"images": torch.stack(b[0]), "labels": torch.stack([t["labels"][0] for t in b[1]]), '
    '"boxes": torch.stack([t["boxes"][0] for t in b[1]])}'
)
"""A `batch_fn` for batches of this form, of the first object of each image."""


def are_detections(batch: Any) -> bool:
    """Check whether a batch has this form: images, and as many mappings with `boxes` and `labels`."""
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        return False
    images, found = batch
    if not isinstance(images, (list, tuple, Tensor)) or not isinstance(found, (list, tuple)) or not found:
        return False
    is_of_objects = all(isinstance(each, Mapping) and "boxes" in each and "labels" in each for each in found)
    return is_of_objects and len(images) == len(found) and all(_is_image(each) for each in images)


def largest_objects(batch: Sequence[Any]) -> dict[str, Tensor]:
    """Return images, labels and masks of a batch of this form; of each image the object that has the largest box.

    Images without a box have a label that is passed over, and an empty mask.

    Args:
        batch: Images (C, H, W), and for each a mapping of `boxes` (M, 4), left, top, right and bottom in pixels, and
            `labels` (M,).

    Returns:
        images (N, C, H, W), labels (N,) int64, and masks (N, H, W) bool, True within the box.

    Raises:
        ValueError: The images are of several sizes, or the boxes or labels are not of this form.
    """
    given, found = batch
    images = [plain(each) for each in given]
    shapes = sorted({tuple(each.shape) for each in images})
    if len(shapes) > 1:
        raise ValueError(
            f"its images have several sizes, such as {shapes[0]} and {shapes[-1]}, and the audit needs one: "
            "resize them, with their boxes, in the data set or in batch_fn"
        )
    objects = [_largest_of(each) for each in found]
    boxes = torch.stack([box for box, _ in objects])
    stacked = torch.stack(images)
    labels = torch.tensor([label for _, label in objects], device=stacked.device)
    return {"images": stacked, "labels": labels, "masks": inside_boxes(boxes, stacked)}


def _is_image(given: Any) -> bool:
    return isinstance(given, Tensor) and given.ndim == 3


def _largest_of(objects: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return the largest box (4,) of an image, and its label."""
    labels = as_numbers(objects["labels"])
    boxes = _corners(objects["boxes"])
    if not len(boxes):
        return boxes.new_zeros(4), IGNORED
    if labels is None or labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise ValueError("its labels are not whole numbers, one for each box")
    sides = boxes[:, 2:] - boxes[:, :2]
    if not bool((sides > 0).all()):
        raise ValueError("its boxes are not left, top, right, bottom, in pixels")
    largest = int(sides.prod(dim=1).argmax())
    return boxes[largest], int(labels[largest])


def _corners(given: Any) -> Tensor:
    """Return boxes (M, 4) on the CPU, float32."""
    if isinstance(given, (list, tuple)) and not given:
        return torch.zeros(0, 4)
    boxes, form = as_numbers(given), getattr(getattr(given, "format", None), "name", "XYXY")
    if boxes is not None and not boxes.numel():
        return torch.zeros(0, 4)
    if boxes is None or boxes.ndim != 2 or boxes.shape[1] != 4 or form != "XYXY":
        raise ValueError("its boxes are not (M, 4), left, top, right, bottom, in pixels")
    return boxes.float().cpu()
