"""Batches of detections, as torchvision's detectors are given them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes

from cam_callbacks.data.batches import read_batch
from cam_callbacks.data.detections import SNIPPET

IMAGES = torch.rand(3, 3, 8, 8)
BOXES = [[0.0, 0, 2, 2], [1.0, 2, 5, 7], [6.0, 6, 8, 8]]


def found(*rows: int, labels: list[int] | None = None) -> dict[str, Tensor]:
    """The objects of an image: those of BOXES at these rows, labeled by their row."""
    boxes = torch.tensor([BOXES[row] for row in rows]).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels or list(rows), dtype=torch.long)}


def test_of_each_image_the_object_with_the_largest_box_is_read() -> None:
    for given in (list(IMAGES), tuple(IMAGES), IMAGES):
        samples = read_batch((given, [found(0, 1, 2), found(2), found(1)]), is_detection=True)
        assert torch.equal(samples.images, IMAGES)
        assert samples.label_kind == "class"
        assert samples.labels is not None
        assert samples.labels.tolist() == [1, 2, 1]
        assert samples.masks is not None
        assert samples.masks[0].nonzero().min(dim=0).values.tolist() == [2, 1]
        assert samples.masks.flatten(1).sum(dim=1).tolist() == [20, 4, 20]


def test_images_without_a_box_are_passed_over() -> None:
    empty: dict[str, Any] = {"boxes": [], "labels": []}
    samples = read_batch((list(IMAGES), [found(1), found(), empty]), is_detection=True)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, -100, -100]
    assert samples.masks is not None
    assert samples.masks.flatten(1).any(dim=1).tolist() == [True, False, False]


def test_boxes_of_torchvision_that_are_corners_are_read() -> None:
    boxes = BoundingBoxes(torch.tensor(BOXES), format="XYXY", canvas_size=(8, 8))
    samples = read_batch(([IMAGES[0]], [{"boxes": boxes, "labels": torch.arange(3)}]), is_detection=True)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("images", "objects", "words"),
    [
        ([IMAGES[0], IMAGES[1, :, :4]], [found(0)] * 2, r"several sizes, such as \(3, 4, 8\) and \(3, 8, 8\)"),
        ([IMAGES[0]], [{"boxes": torch.tensor([[4.0, 4, 2, 2]]), "labels": torch.tensor([1])}], "left, top, right"),
        ([IMAGES[0]], [{"boxes": torch.rand(2, 5), "labels": torch.tensor([1, 1])}], r"not \(M, 4\)"),
        ([IMAGES[0]], [found(0, labels=[1, 2])], "one for each box"),
        ([IMAGES[0]], [found(0), found(1)], "not understood"),
    ],
)
def test_what_is_not_understood_says_why_and_how_to_read_it(images: Any, objects: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words) as raised:
        read_batch((images, objects), is_detection=True)
    assert SNIPPET in str(raised.value)


def test_boxes_of_another_format_are_not_taken_for_corners() -> None:
    boxes = BoundingBoxes(torch.tensor(BOXES), format="XYWH", canvas_size=(8, 8))
    with pytest.raises(TypeError, match="left, top, right, bottom"):
        read_batch(([IMAGES[0]], [{"boxes": boxes, "labels": torch.arange(3)}]), is_detection=True)


def test_the_snippet_of_the_message_reads_the_first_objects() -> None:
    batch = (list(IMAGES), [found(1, 0), found(2), found(0)])
    samples = read_batch(batch, eval(SNIPPET, {"torch": torch}), is_detection=True)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 2, 0]
    assert samples.masks is not None
    assert samples.masks.flatten(1).sum(dim=1).tolist() == [20, 4, 4]


def test_without_the_task_the_message_names_it() -> None:
    with pytest.raises(TypeError, match=r"Audit\(task='detection'\) reads batches of this form"):
        read_batch((list(IMAGES), [found(0)] * 3))
