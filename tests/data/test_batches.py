"""Which batches are understood, and what is said of the others."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cam_callbacks.data.batches import Samples, describe, read_batch

IMAGES = torch.rand(3, 3, 8, 8)
LABELS = torch.tensor([2, 0, 1])
MASKS = IMAGES.mean(dim=1) > 0.5

Pair = namedtuple("Pair", "first second")


@dataclass
class Photos:
    pixels: Tensor
    kinds: list[str]


def assert_read(samples: Samples, labels: Tensor | None = LABELS, masks: Tensor | None = None) -> None:
    assert samples.images is IMAGES
    for found, expected in ((samples.labels, labels), (samples.masks, masks)):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        Pair(IMAGES, LABELS),
        (IMAGES, LABELS, ["a.png", "b.png", "c.png"]),
        (IMAGES, LABELS, torch.tensor([10, 11, 12])),
        (IMAGES, LABELS, torch.rand(3, 8, 8)),
        (IMAGES, LABELS, MASKS[:2], "something else"),
        {"image": IMAGES, "label": LABELS},
        {"pixel_values": IMAGES, "labels": LABELS, "path": ["a", "b", "c"]},
        OrderedDict(x=IMAGES, y=LABELS),
        (IMAGES, LABELS.tolist()),
    ],
    ids=[
        "tuple", "list", "named tuple", "file names", "numbers", "depth", "masks of others", "mapping", "hugging face",
        "ordered", "list of numbers",
    ],
)  # fmt: skip
def test_images_and_labels_are_found(batch: Any) -> None:
    assert_read(read_batch(batch))


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES,), [IMAGES], {"image": IMAGES}, (IMAGES, None)])
def test_images_without_labels_are_found(batch: Any) -> None:
    assert_read(read_batch(batch), labels=None)


@pytest.mark.parametrize("masks", [MASKS, MASKS.unsqueeze(1), MASKS.long(), MASKS.float() * 255])
def test_masks_of_two_values_are_found(masks: Tensor) -> None:
    assert_read(read_batch((IMAGES, LABELS, masks)), masks=MASKS)
    assert_read(read_batch({"img": IMAGES, "target": LABELS, "mask": masks}), masks=MASKS)


def test_masks_without_labels_are_found_in_a_mapping() -> None:
    assert_read(read_batch({"image": IMAGES, "mask": MASKS}), labels=None, masks=MASKS)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.unsqueeze(1),
        LABELS.float(),
        LABELS.float().unsqueeze(1),
        LABELS.to(torch.int32),
        torch.nn.functional.one_hot(LABELS, 5),
        torch.nn.functional.one_hot(LABELS, 5).float(),
    ],
    ids=["column", "floats", "column of floats", "int32", "one-hot", "one-hot floats"],
)
def test_labels_in_other_forms_become_class_indices(labels: Tensor) -> None:
    assert_read(read_batch((IMAGES, labels)))


def test_one_hot_rows_of_two_classes_are_not_taken_for_masks() -> None:
    rows = torch.tensor([[1, 0], [0, 1], [0, 1]])
    assert_read(read_batch((IMAGES, rows)), labels=torch.tensor([0, 1, 1]))


def test_the_batch_fn_is_asked_first_and_its_answer_is_read_like_a_batch() -> None:
    batch = {"left": IMAGES, "right": IMAGES * 2, "kind": LABELS}
    assert_read(read_batch(batch, lambda batch: (batch["left"], batch["kind"], MASKS)), masks=MASKS)
    assert_read(read_batch(batch, lambda batch: batch["left"]), labels=None)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ("text", r"the batch is not understood: str\. Give batch_fn"),
        (None, "NoneType"),
        ((), "tuple"),
        ({}, "dict"),
        ({"picture": IMAGES}, r"dict\('picture': Tensor float32 \(3, 3, 8, 8\)\)"),
        ((LABELS, IMAGES), r"tuple\(Tensor int64 \(3,\), Tensor float32 \(3, 3, 8, 8\)\)"),
        (((IMAGES, IMAGES), LABELS), r"tuple\(tuple\(Tensor float32 \(3, 3, 8, 8\), "),
        (((IMAGES * 255).byte(), LABELS), "torch.uint8, not floating point"),
        (Photos(IMAGES, ["cat"]), r"Photos\(pixels=Tensor float32 \(3, 3, 8, 8\), kinds=list\(str\)\)\. Give batch_fn"),
    ],
)
def test_batches_that_are_not_understood_are_described(batch: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        read_batch(batch)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:2],
        LABELS + 0.5,
        torch.tensor([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]]),
        torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]),
        torch.rand(3, 8, 8),
        torch.tensor(1),
        ["cat", "dog", "owl"],
    ],
    ids=["too few", "fractions", "mixed labels", "several labels", "maps", "scalar", "words"],
)
def test_labels_that_are_not_one_class_an_image_are_refused_with_a_remedy(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"not one class per image: tuple\(Tensor float32 .*Give batch_fn"):
        read_batch((IMAGES, labels))


@dataclass(slots=True)
class Fields:
    images: torch.Tensor


@dataclass
class HalfMade:
    images: torch.Tensor
    labels: torch.Tensor = field(init=False)


def test_a_description_names_types_and_shapes_and_stays_short() -> None:
    assert describe((IMAGES, "a", 3)) == "tuple(Tensor float32 (3, 3, 8, 8), str, int)"
    assert describe([[[[IMAGES]]]]) == "list(list(list(list)))"
    assert describe({"a": LABELS, "b": None}) == "dict('a': Tensor int64 (3,), 'b': NoneType)"
    assert describe(Fields(IMAGES)) == "Fields(images=Tensor float32 (3, 3, 8, 8))"
    assert describe(HalfMade(IMAGES)) == "HalfMade(images=Tensor float32 (3, 3, 8, 8), labels=NoneType)"
    assert len(describe([IMAGES] * 1000)) < 400


class TestMasksOfOtherKinds:
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])

    @pytest.mark.parametrize(
        "masks",
        [torch.rand(2, 8, 8), torch.ones(2, 3, 8, 8), [torch.ones(8, 8)] * 2, torch.ones(3, 8, 8)],
        ids=["soft", "three channels", "a list", "too few images"],
    )
    def test_masks_that_are_not_understood_are_not_used_and_said(self, masks):
        batches = [{"image": self.images, "label": self.labels, "mask": masks}]
        if isinstance(masks, torch.Tensor) and masks.shape == (2, 8, 8):
            batches.append((self.images, self.labels, masks))
        for batch in batches:
            samples = read_batch(batch)
            assert samples.masks is None
            assert "are not used: one of the size of the image is needed for each" in samples.note

    @pytest.mark.parametrize(
        "third",
        [
            torch.tensor(0.5),
            torch.arange(2),
            torch.rand(2, 4),
            torch.rand(2, 20, 8),
            torch.rand(2, 3, 8, 8),
            "names",
            [7, 8],
        ],
        ids=["number", "numbers", "vectors", "tokens", "other images", "text", "list"],
    )
    def test_a_third_entry_that_is_something_else_is_no_mask_and_nothing_is_said(self, third):
        samples = read_batch((self.images, self.labels, third))
        assert samples.masks is samples.note is None

    def test_boxes_are_filled_and_cut_off_at_the_edge(self):
        boxes = torch.tensor([[1.0, 2.0, 4.0, 7.0], [-5.0, -5.0, 2.0, 3.0]])
        masks = read_batch({"image": self.images, "label": self.labels, "boxes": boxes}).masks
        assert masks[0].nonzero().amin(dim=0).tolist() == [2, 1]
        assert masks[0].nonzero().amax(dim=0).tolist() == [6, 3]
        assert masks[1].sum() == 2 * 3

    def test_a_box_outside_the_image_is_an_empty_mask(self):
        boxes = torch.tensor([[20.0, 20.0, 30.0, 30.0], [0.0, 0.0, 8.0, 8.0]])
        masks = read_batch({"image": self.images, "label": self.labels, "boxes": boxes}).masks
        assert not masks[0].any()
        assert masks[1].all()

    def test_of_a_trimap_the_user_says_which_values_are_the_object(self):
        trimap = torch.tensor([[1, 2, 3, 2]]).repeat(8, 2).expand(2, 8, 8)
        unused = read_batch((self.images, self.labels, trimap))
        assert unused.masks is None
        assert "have 3 values (1, 2, 3) and are not used; give foreground_values" in unused.note
        masks = read_batch((self.images, self.labels, trimap), foreground_values=[1, 3]).masks
        assert torch.equal(masks, trimap != 2)

    def test_of_another_size_are_resized_and_this_is_said(self):
        small = torch.zeros(2, 4, 4)
        small[:, :2] = 1
        samples = read_batch((self.images, self.labels, small))
        assert samples.masks[:, :4].all()
        assert not samples.masks[:, 4:].any()
        assert samples.note == "the masks of the batch are (4, 4): resized to (8, 8)"

    def test_groups_are_read_from_mappings(self):
        groups = torch.tensor([3, 1])
        assert torch.equal(read_batch({"x": self.images, "y": self.labels, "group": groups}).groups, groups)
        assert read_batch({"x": self.images, "y": self.labels, "group": groups.float()}).groups is None

    def test_of_two_values_the_larger_is_the_object(self):
        masks = torch.ones(2, 8, 8)
        masks[:, 2:5] = 2
        assert torch.equal(read_batch((self.images, self.labels, masks)).masks, masks == 2)

    def test_boxes_that_are_not_in_pixels_or_not_one_an_image_are_not_used(self):
        within = read_batch({"image": self.images, "label": self.labels, "boxes": torch.rand(2, 4)})
        assert within.masks is None
        assert "not in pixels, but all within 1" in within.note
        several = read_batch({"image": self.images, "label": self.labels, "boxes": torch.rand(2, 3, 4)})
        assert several.masks is None
        assert "are not one for each image (N, 4): they are not used" in several.note

    def test_four_numbers_an_image_in_a_tuple_are_no_boxes(self):
        assert read_batch((self.images, self.labels, torch.randn(2, 4))).masks is None


def test_a_batch_fn_that_fails_is_named_with_what_it_was_given() -> None:
    with pytest.raises(
        ValueError, match=r"batch_fn fails on tuple\(Tensor .*\): TypeError: .* indices must be integers"
    ):
        read_batch((IMAGES, LABELS), lambda batch: batch["image"])
