"""Which images are picked from batches that pass by, and from data sets."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from typing import Any

import pytest
import torch
from lightning_runs import CLASSES, Squares
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cam_callbacks.data.batches import Samples, read_batch
from cam_callbacks.data.picking import ImagePicker
from cam_callbacks.data.probes import ProbeSet


def samples(labels: list[int], value: float = 0.0, size: int = 4) -> Samples:
    """One image for each label, the k-th filled with `value` + k."""
    images = torch.stack([torch.full((3, size, size), value + k) for k in range(len(labels))])
    return Samples(images, torch.tensor(labels), None)


def picked(count: int, *batches: list[int]) -> list[int]:
    picker = ImagePicker(count)
    for batch in batches:
        picker.offer(samples(batch))
    labels = picker.picked().labels
    assert labels is not None
    return labels.tolist()


class TestImagePicker:
    @pytest.mark.parametrize(
        ("batches", "expected"),
        [
            ([[0, 1, 2], [0, 1, 2], [0, 1, 2]], [0, 0, 1, 1, 2, 2]),
            ([[0] * 9, [1] * 9, [2] * 9], [0, 0, 1, 1, 2, 2]),
            ([[0] * 9, [1], [2] * 9], [0, 0, 0, 1, 2, 2]),
            ([[0] * 9], [0] * 6),
            ([[0, 1]], [0, 1]),
            ([[5, 4, 3, 2, 1, 0], [6, 7, 8]], [0, 1, 2, 3, 4, 5]),
        ],
        ids=["in turn", "one class after the other", "a rare class", "one class", "few", "more classes than images"],
    )
    def test_images_are_balanced_over_the_classes_as_they_come(
        self, batches: list[list[int]], expected: list[int]
    ) -> None:
        assert picked(6, *batches) == expected

    def test_the_first_images_of_each_class_are_kept(self) -> None:
        picker = ImagePicker(4)
        for number in range(6):
            picker.offer(samples([0, 1], value=10.0 * number))
        assert picker.picked().images[:, 0, 0, 0].tolist() == [0.0, 10.0, 1.0, 11.0]

    def test_masks_and_groups_stay_with_their_images(self) -> None:
        picker = ImagePicker(2)
        masks = torch.stack([torch.full((4, 4), k == 1) for k in range(3)])
        picker.offer(Samples(torch.rand(3, 3, 4, 4), torch.tensor([1, 0, 1]), masks, torch.tensor([7, 8, 9])))
        found = picker.picked()
        assert found.masks is not None
        assert found.groups is not None
        assert found.masks.flatten(1).all(dim=1).tolist() == [True, False]
        assert found.groups.tolist() == [8, 7]

    def test_images_marked_as_unlabeled_are_passed_over(self) -> None:
        assert picked(6, [-100, 0, -1, 1]) == [0, 1]

    def test_nothing_to_pick_from_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no probes: there was no finite image"):
            picked(6, [-100])

    def test_fewer_than_one_image_cannot_be_asked_for(self) -> None:
        with pytest.raises(ValueError, match="count=0 must be a whole number of at least 1"):
            ImagePicker(0)

    def test_images_without_labels_are_taken_as_they_come(self) -> None:
        picker = ImagePicker(3)
        picker.offer(Samples(torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 4), None, None))
        found = picker.picked()
        assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2]
        assert found.labels is None

    def test_images_unlike_most_are_left_out_and_counted(self) -> None:
        picker = ImagePicker(6)
        picker.offer(Samples(torch.rand(1, 3, 4, 4), None, None))
        picker.offer(samples([0, 1, 2], size=5))
        picker.offer(Samples(torch.rand(1, 3, 4, 4), torch.tensor([1]), torch.ones(1, 4, 4).bool()))
        picker.offer(samples([0, 1]))
        picker.offer(samples([2, 1]))
        picker.offer(samples([2, 1], size=9))
        found = picker.picked()
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, 1, 2]
        assert picker.left_out == {
            "of another size": 3,
            "with labels of another kind": 1,
            "with other masks": 1,
            "of yet other kinds": 2,
        }

    def test_of_several_loaders_each_gives_its_share(self) -> None:
        picker = ImagePicker(8)
        for loader in range(3):
            for _ in range(4):
                picker.offer(samples([0, 1], value=10.0 * loader), loader)
        found = picker.picked()
        assert found.labels is not None
        assert found.labels.tolist() == [0] * 4 + [1] * 4
        origins = (found.images[:, 0, 0, 0] // 10).int()
        assert sorted(origins.tolist().count(origin) for origin in range(3)) == [2, 2, 4]

    @pytest.mark.parametrize(("kind", "labels"), [("multi-label", None), ("soft", [0, 0, 1, 1])])
    def test_rows_that_are_one_hot_by_chance_are_read_as_the_others(self, kind: Any, labels: Any) -> None:
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        other = torch.full((2, 2), 1.0 if kind == "multi-label" else 0.5)
        one_hot = Samples(torch.rand(2, 3, 4, 4), torch.tensor([0, 1]), None, label_kind="class", annotations=rows)
        of_kind = torch.tensor([0, 1]) if labels else None
        several = Samples(torch.rand(2, 3, 4, 4), of_kind, None, label_kind=kind, annotations=other)
        for order in ([one_hot, several], [several, one_hot]):
            picker = ImagePicker(8)
            for each in order:
                picker.offer(each)
            found = picker.picked()
            assert found.label_kind == kind
            assert (None if found.labels is None else found.labels.tolist()) == labels
            assert found.annotations is not None
            assert len(found.annotations) == 4
            assert picker.ignored == 0

    def test_images_that_are_not_finite_are_left_out_and_counted(self) -> None:
        picker = ImagePicker(4)
        images = torch.rand(3, 1, 4, 4)
        images[1, 0, 0, 0] = torch.nan
        picker.offer(Samples(images, torch.tensor([0, 1, 2]), None))
        labels = picker.picked().labels
        assert labels is not None
        assert labels.tolist() == [0, 2]
        assert picker.ignored == 1

    def test_picked_images_are_plain_copies(self) -> None:
        """They hold no gradient, are not of inference mode, and do not change with the batch."""
        picker = ImagePicker(2)
        with torch.inference_mode():
            batch = torch.rand(1, 3, 4, 4)
            picker.offer(Samples(batch, torch.tensor([0]), None))
            before = batch.clone()
            batch.zero_()
        picker.offer(Samples(torch.rand(1, 3, 4, 4, requires_grad=True), torch.tensor([1]), None))
        images = picker.picked().images
        assert not images.is_inference()
        assert not images.requires_grad
        assert torch.equal(images[:1], before)


class Trimaps(Dataset[Any]):
    """Items that are mappings, with a trimap whose middle is the object, its rim missing in every other item."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        trimap = torch.full((8, 8), 2)
        trimap[2:6, 2:6] = 3 if index % 2 else 1
        trimap[3:5, 3:5] = 1
        return UserDict(image=torch.rand(3, 8, 8), label=index % 2, mask=trimap)


def labels_of(probes: ProbeSet) -> list[int]:
    assert probes.labels is not None
    return probes.labels.tolist()


class TestFromDataset:
    def test_no_more_is_read_than_is_needed(self) -> None:
        read = []

        class Reads(Squares):
            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                read.append(index)
                return super().__getitem__(index)

        probes = ProbeSet.from_dataset(Reads(300), 6)
        assert max(read) == 5
        assert probes.class_names == CLASSES

    @pytest.mark.parametrize(
        "as_item", [lambda i, t: (i, t), lambda i, t: (i, int(t)), lambda i, t: {"image": i, "label": t}]
    )
    def test_items_are_read_as_batches_are(self, as_item: Any) -> None:
        data = [as_item(*item) for item in Squares(9)]  # type: ignore[attr-defined]
        probes = ProbeSet.from_dataset(data, 3)
        assert labels_of(probes) == [0, 1, 2]
        assert probes.images.shape == (3, 3, 16, 16)

    def test_items_are_read_by_the_function_that_is_given(self) -> None:
        probes = ProbeSet.from_dataset(Trimaps(), 4, read=partial(read_batch, foreground_values=(1,)))
        assert labels_of(probes) == [0, 0, 1, 1]
        assert probes.masks is not None
        assert probes.masks.flatten(1).sum(dim=1).tolist() == [16, 16, 4, 4]

    def test_it_is_read_to_its_end_if_a_class_is_missing(self) -> None:
        data = Squares(30)
        probes = ProbeSet.from_dataset(Subset(data, [index for index in range(30) if index % 3]), 4)
        assert labels_of(probes) == [1, 1, 2, 2]

    def test_of_more_sorted_classes_than_probes_each_gives_one(self) -> None:
        class Sorted(Dataset[Any]):
            classes = tuple(map(str, range(20)))

            def __len__(self) -> int:
                return 200

            def __getitem__(self, index: int) -> Any:
                return torch.full((1, 4, 4), index / 200), index // 10

        assert labels_of(ProbeSet.from_dataset(Sorted(), num_probes=16)) == list(range(16))

    def test_an_empty_data_set_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no probes"):
            ProbeSet.from_dataset([], 4)

    def test_items_that_cannot_be_stacked_are_an_error_with_a_remedy(self) -> None:
        sizes = [(torch.rand(3, 8 + index, 8), index) for index in range(2)]
        with pytest.raises(ValueError, match=r"cannot be stacked into a batch.* Give ProbeSet\(images, labels\)"):
            ProbeSet.from_dataset(sizes, 2)

    def test_fewer_than_one_probe_cannot_be_asked_for(self) -> None:
        with pytest.raises(ValueError, match="num_probes=0 must be a whole number of at least 1"):
            ProbeSet.from_dataset(Squares(4), 0)
