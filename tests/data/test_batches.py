"""Which batches are understood, and what the user is told about the others."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes

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


@pytest.mark.parametrize("mark", [-1.0, -100.0, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_labels_that_are_not_known_are_left_out(mark: float, dtype: torch.dtype) -> None:
    if dtype == torch.int64 and mark != mark:
        mark = -1
    rows = torch.tensor([[1.0, 0.0, mark], [mark, 1.0, 1.0], [0.0, 0.0, 0.0]]).to(dtype)
    found = read_batch((IMAGES, rows))
    assert found.label_kind == "multi-label"
    assert found.annotations is not None
    assert torch.equal(found.annotations.isnan(), ~(rows >= 0))
    assert torch.equal(found.annotations == 1, rows == 1)


@pytest.mark.parametrize("first", [torch.tensor([30, 41, 12]), torch.rand(3), torch.eye(3), torch.rand(3, 2)])
def test_what_else_may_be_the_labels_is_said(first: Tensor) -> None:
    for labels in (LABELS, LABELS.unsqueeze(1), LABELS.float(), LABELS.tolist()):
        note = read_batch((IMAGES, first, labels)).note
        assert note is not None
        assert "may be their labels" in note
    assert read_batch((IMAGES, LABELS, torch.arange(3))).note is None
    assert read_batch((IMAGES, LABELS, MASKS)).note is None
    assert read_batch((IMAGES, LABELS, torch.rand(3))).note is None


@pytest.mark.parametrize("ignored", [255, -1, -100])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_what_is_ignored_in_a_mask_is_not_the_object(ignored: int, dtype: torch.dtype) -> None:
    if dtype == torch.uint8 and ignored < 0:
        ignored = 255
    masks = MASKS.to(dtype)
    masks[:, 0, :2] = ignored
    expected = MASKS.clone()
    expected[:, 0, :2] = False
    assert_read(read_batch({"image": IMAGES, "label": LABELS, "mask": masks}), masks=expected)


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


def test_what_batch_fn_returns_is_read_like_a_batch() -> None:
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
        ([IMAGES[0], IMAGES[1]], "list.Tensor"),
        ((list(IMAGES), [{"labels": LABELS}] * 3), "list of 3 Tensor"),
        ((MASKS.long().unsqueeze(1), IMAGES), "Tensor int64"),
        (Photos(IMAGES, ["cat"]), r"Photos\(pixels=Tensor float32 \(3, 3, 8, 8\), kinds=list\(str\)\)\. Give batch_fn"),
    ],
)
def test_batches_that_are_not_understood_are_described(batch: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        read_batch(batch)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (LABELS[:2], None),
        (LABELS + 0.5, "value"),
        (torch.tensor([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]]), "soft"),
        (torch.tensor([[0.3, 0.3], [0.5, 0.5], [1.0, 0.0]]), None),
        (torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]), "multi-label"),
        (torch.randint(0, 5, (3, 8, 8)), "dense"),
        (torch.rand(3, 8, 8), None),
        (torch.tensor(1), None),
        (["cat", "dog", "owl"], None),
    ],
    ids=["too few", "fractions", "shares", "unclear", "several", "pixels", "maps", "scalar", "words"],
)
def test_labels_that_are_not_one_class_keep_their_form(labels: Any, kind: str | None) -> None:
    samples = read_batch((IMAGES, labels))
    assert_read(samples, labels=None)
    assert samples.label_kind == kind
    assert (samples.annotations is None) == (samples.label_note is not None) == (kind is None)


@pytest.mark.parametrize(
    "batch",
    [
        (LABELS, IMAGES),
        ([IMAGES, IMAGES * 2], LABELS),
        (torch.arange(3), IMAGES, LABELS),
        (IMAGES, LABELS, torch.arange(3), ["a", "b", "c"]),
        [{"data": IMAGES, "label": LABELS.view(-1, 1)}],
        {"jpg": IMAGES, "cls": LABELS, "__key__": ["a", "b", "c"]},
        {"sample": {"image": IMAGES}, "label": LABELS},
        (IMAGES, {"label": LABELS}),
        [(IMAGES, LABELS), (IMAGES * 2, LABELS)],
        (IMAGES, [torch.tensor(label) for label in LABELS.tolist()]),
        (IMAGES, LABELS.numpy()),
    ],
)
def test_images_and_labels_are_found_in_other_containers(batch: Any) -> None:
    assert_read(read_batch(batch))


def test_names_become_indices_and_numbers_beyond_them_stay() -> None:
    samples = read_batch((IMAGES, ["owl", "cat", "dog"]), class_names=("cat", "dog", "owl"))
    assert_read(samples)
    beyond = read_batch((IMAGES, torch.tensor([2, 0, 255])), class_names=("cat", "dog", "owl"))
    assert_read(beyond, labels=torch.tensor([2, 0, 255]))


def test_integer_images_keep_their_type() -> None:
    assert read_batch(((IMAGES * 255).byte(), LABELS)).images.dtype == torch.uint8


class Sliceless(Tensor):
    """A tensor whose subclass fails when it is sliced, as one with metadata for each entry may."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            raise ValueError("inconsistent metadata")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_of_subclasses_become_plain() -> None:
    samples = read_batch(
        {"image": IMAGES.as_subclass(Sliceless), "label": LABELS.as_subclass(Sliceless), "mask": MASKS}
    )
    assert samples.labels is not None
    assert type(samples.images) is type(samples.labels) is Tensor


@dataclass(slots=True)
class Fields:
    images: torch.Tensor


@dataclass
class HalfMade:
    images: torch.Tensor
    labels: torch.Tensor = field(init=False)


def test_a_description_names_types_and_shapes_and_stays_short() -> None:
    assert describe([(IMAGES, "a")] * 4) == "list of 4 tuple(Tensor float32 (3, 3, 8, 8), str)"
    assert describe((IMAGES, "a", 3)) == "tuple(Tensor float32 (3, 3, 8, 8), str, int)"
    assert describe([[[[IMAGES]]]]) == "list(list(list(list)))"
    assert describe({"a": LABELS, "b": None}) == "dict('a': Tensor int64 (3,), 'b': NoneType)"
    assert describe(Fields(IMAGES)) == "Fields(images=Tensor float32 (3, 3, 8, 8))"
    assert describe(HalfMade(IMAGES)) == "HalfMade(images=Tensor float32 (3, 3, 8, 8), labels=NoneType)"
    assert len(describe([IMAGES] * 1000)) < 400


def with_masks(masks: Any, **options: Any) -> Samples:
    """What is read from a mapping; its images are 8 pixels wide and high."""
    return read_batch({"image": IMAGES, "label": LABELS, "mask": masks}, **options)


class TestMasksOfOtherKinds:
    @pytest.mark.parametrize(
        "masks",
        [torch.rand(3, 8, 8), torch.ones(3, 3, 8, 8), [torch.ones(8, 8)] * 3, torch.ones(2, 8, 8)],
        ids=["soft", "three channels", "a list", "too few images"],
    )
    def test_masks_that_are_not_understood_give_a_note(self, masks: Any) -> None:
        samples = with_masks(masks)
        assert samples.masks is None
        assert samples.note is not None
        assert "masks of the batch are not used: give one for each image" in samples.note

    @pytest.mark.parametrize("third", [torch.rand(3, 8, 8), torch.rand(3, 1, 8, 8)])
    def test_a_third_part_of_the_size_of_the_images_is_meant_as_masks(self, third: Tensor) -> None:
        samples = read_batch((IMAGES, LABELS, third))
        assert samples.masks is None
        assert samples.note is not None

    @pytest.mark.parametrize(
        "third",
        [
            torch.tensor(0.5),
            torch.arange(3),
            torch.rand(3, 4),
            torch.rand(3, 20, 8),
            torch.rand(3, 3, 8, 8),
            "names",
            [7, 8, 9],
        ],
        ids=["number", "numbers", "vectors", "tokens", "other images", "text", "list"],
    )
    def test_a_third_part_that_is_something_else_gives_no_note(self, third: Any) -> None:
        samples = read_batch((IMAGES, LABELS, third))
        assert samples.masks is samples.note is None

    def test_of_two_values_the_larger_is_the_object(self) -> None:
        masks = torch.ones(3, 8, 8)
        masks[:, 2:5] = 2
        assert_read(with_masks(masks), masks=masks == 2)

    def test_of_a_trimap_the_user_says_which_values_are_the_object(self) -> None:
        trimap = torch.tensor([[1, 2, 3, 2]]).repeat(8, 2).expand(3, 8, 8)
        unused = with_masks(trimap)
        assert unused.masks is None
        assert unused.note is not None
        assert "have 3 values (1, 2, 3) and are not used; give foreground_values" in unused.note
        assert_read(with_masks(trimap, foreground_values=[1, 3]), masks=trimap != 2)

    def test_masks_of_another_size_are_resized_with_a_note(self) -> None:
        small = torch.zeros(3, 4, 4)
        small[:, :2] = 1
        samples = with_masks(small)
        assert samples.masks is not None
        assert samples.masks[:, :4].all()
        assert not samples.masks[:, 4:].any()
        assert samples.note == "the masks of the batch have size (4, 4) and are resized to (8, 8)"


def with_boxes(boxes: Tensor) -> Samples:
    return read_batch({"image": IMAGES[:2], "label": LABELS[:2], "boxes": boxes})


class TestBoxes:
    def test_boxes_are_filled_and_cut_off_at_the_edge(self) -> None:
        masks = with_boxes(torch.tensor([[1.0, 2.0, 4.0, 7.0], [-5.0, -5.0, 2.0, 3.0]])).masks
        assert masks is not None
        assert masks[0].nonzero().amin(dim=0).tolist() == [2, 1]
        assert masks[0].nonzero().amax(dim=0).tolist() == [6, 3]
        assert masks[1].sum() == 2 * 3

    def test_a_box_outside_the_image_is_an_empty_mask(self) -> None:
        masks = with_boxes(torch.tensor([[20.0, 20.0, 30.0, 30.0], [0.0, 0.0, 8.0, 8.0]])).masks
        assert masks is not None
        assert not masks[0].any()
        assert masks[1].all()

    @pytest.mark.parametrize(
        ("boxes", "words"),
        [
            (torch.tensor([[2.0, 2.0, 5.0, 5.0]] * 2), "can be read as XYXY and as XYWH"),
            (torch.rand(2, 3, 4), r"not one for each image, (N, 4)"),
        ],
        ids=["ambiguous", "several an image"],
    )
    def test_boxes_that_are_not_understood_give_a_note(self, boxes: Tensor, words: str) -> None:
        samples = with_boxes(boxes)
        assert samples.masks is None
        assert samples.note is not None
        assert "boxes of the batch are not used" in samples.note
        assert words in samples.note

    @pytest.mark.parametrize("boxes", [[[4.0, 4, 7, 8], [5, 1, 8, 8]], [[4.0, 4, 3, 4], [5, 1, 3, 7]]])
    def test_the_order_that_alone_is_possible_is_used(self, boxes: list[list[float]]) -> None:
        for given in (torch.tensor(boxes), torch.tensor(boxes) / 8, torch.tensor(boxes).unsqueeze(1)):
            masks = with_boxes(given).masks
            assert masks is not None
            assert masks.flatten(1).sum(dim=1).tolist() == [12, 21]

    @pytest.mark.parametrize(
        ("name", "boxes"),
        [
            ("XYXY", [[4, 4, 7, 8], [0, 1, 8, 8]]),
            ("XYWH", [[4, 4, 3, 4], [0, 1, 8, 7]]),
            ("CXCYWH", [[5.5, 6, 3, 4], [4, 4.5, 8, 7]]),
        ],
    )
    def test_boxes_that_say_their_format_are_read_in_it(self, name: str, boxes: list[list[float]]) -> None:
        given = BoundingBoxes(torch.tensor(boxes, dtype=torch.float32), format=name, canvas_size=(8, 8))
        masks = with_boxes(given).masks
        assert masks is not None
        assert masks.flatten(1).sum(dim=1).tolist() == [12, 56]
        elsewhere = BoundingBoxes(torch.tensor(boxes, dtype=torch.float32), format=name, canvas_size=(16, 16))
        assert "for images of size (16, 16)" in str(with_boxes(elsewhere).note)

    def test_four_numbers_an_image_in_a_tuple_are_not_boxes(self) -> None:
        assert read_batch((IMAGES, LABELS, torch.randn(3, 4))).masks is None


def test_groups_are_read_from_mappings() -> None:
    groups = torch.tensor([3, 1, 1])
    found = read_batch({"x": IMAGES, "y": LABELS, "group": groups}).groups
    assert found is not None
    assert torch.equal(found, groups)
    assert read_batch({"x": IMAGES, "y": LABELS, "group": groups.float()}).groups is None


def test_a_batch_fn_that_fails_is_named_with_what_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"batch_fn fails on tuple\(Tensor .*\): TypeError: .* must be integers"):
        read_batch((IMAGES, LABELS), lambda batch: batch["image"])
