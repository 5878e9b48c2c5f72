"""ProbeSet and how its images are picked."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import CLASSES, Squares
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cam_callbacks.data.batches import Samples, read_batch
from cam_callbacks.data.normalization import IMAGENET
from cam_callbacks.data.probes import ImagePicker, ProbeSet


def samples(classes: list[int], value: float = 0.0, size: int = 4) -> Samples:
    """One image a class, the k-th filled with `value` + k."""
    images = torch.stack([torch.full((3, size, size), value + k) for k in range(len(classes))])
    return Samples(images, torch.tensor(classes), None)


def picked(num_probes: int, *batches: list[int]) -> list[int]:
    collector = ImagePicker(num_probes)
    for batch in batches:
        collector.offer(samples(batch))
    labels = collector.probes().labels
    assert labels is not None
    return labels.tolist()


def probe_set(**changes: Any) -> ProbeSet:
    parts: dict[str, Any] = {"images": torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    parts |= {"labels": torch.tensor([0, 1, 1, 2]), "masks": torch.eye(8).bool().expand(4, 8, 8)}
    return ProbeSet(**(parts | changes))


def write(path: Path, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.mark.parametrize(
    ("batches", "chosen"),
    [
        ([[0, 1, 2], [0, 1, 2], [0, 1, 2]], [0, 0, 1, 1, 2, 2]),
        ([[0] * 9, [1] * 9, [2] * 9], [0, 0, 1, 1, 2, 2]),
        ([[0] * 9, [1], [2] * 9], [0, 0, 0, 1, 2, 2]),
        ([[0] * 9], [0] * 6),
        ([[0, 1]], [0, 1]),
        ([[5, 4, 3, 2, 1, 0], [6, 7, 8]], [0, 1, 2, 3, 4, 5]),
    ],
    ids=["in turn", "one class after the other", "a rare class", "one class", "few", "more classes than probes"],
)
def test_images_are_balanced_over_the_classes_as_far_as_they_come(batches: list[list[int]], chosen: list[int]) -> None:
    found = picked(6, *batches)
    assert found == sorted(found)
    if chosen != [0, 0, 0, 1, 2, 2]:
        assert found == chosen
    else:
        assert found.count(1) == 1
        assert len(found) == 6
        assert abs(found.count(0) - found.count(2)) <= 1


def test_of_each_class_the_first_images_are_kept_whatever_the_batches() -> None:
    collector = ImagePicker(4)
    for number in range(6):
        collector.offer(samples([0, 1], value=10.0 * number))
    assert collector.probes().images[:, 0, 0, 0].tolist() == [0.0, 10.0, 1.0, 11.0]


def test_images_marked_as_unlabeled_are_passed_over() -> None:
    assert picked(6, [-100, 0, -1, 1]) == [0, 1]


def test_nothing_to_pick_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image passed by that is finite"):
        picked(6, [-100])


def test_images_without_labels_are_taken_as_they_come() -> None:
    collector = ImagePicker(3)
    collector.offer(Samples(torch.rand(8, 3, 4, 4), None, None))
    probes = collector.probes()
    assert len(probes) == 3
    assert probes.labels is None


def test_images_unlike_the_first_are_left_out_and_counted() -> None:
    collector = ImagePicker(6)
    collector.offer(samples([0, 1]))
    collector.offer(samples([0, 1, 2], size=5))
    collector.offer(Samples(torch.rand(1, 3, 4, 4), None, None))
    collector.offer(Samples(torch.rand(1, 3, 4, 4), torch.tensor([1]), torch.ones(1, 4, 4).bool()))
    assert len(collector.probes()) == 2
    assert collector.ignored == 5


def test_picked_images_are_copies_without_gradient_or_inference_mode() -> None:
    collector = ImagePicker(2)
    with torch.inference_mode():
        batch = torch.rand(1, 3, 4, 4)
        collector.offer(Samples(batch, torch.tensor([0]), None))
        kept = batch.clone()
        batch.zero_()
    collector.offer(Samples(torch.rand(1, 3, 4, 4, requires_grad=True), torch.tensor([1]), None))
    images = collector.probes().images
    assert not images.is_inference()
    assert not images.requires_grad
    assert torch.equal(images[:1], kept)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, TypeError, "floating point.*uint8"),
        ({"images": torch.zeros(0, 3, 8, 8)}, ValueError, r"\(0, 3, 8, 8\)"),
        ({"images": torch.zeros(4, 3)}, ValueError, r"\(4, 3\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"labels has shape \(2,\); 4 images need \(4,\)"),
        ({"masks": torch.ones(4, 4, 4).bool()}, ValueError, r"need \(4, 8, 8\)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        probe_set(**changes)


def test_the_fingerprint_tells_whether_two_sets_are_the_same() -> None:
    probes = probe_set()
    assert probes.fingerprint == probe_set().fingerprint == probe_set(class_names=("a",)).fingerprint
    others = [
        probe_set(images=probes.images + 1e-6),
        probe_set(images=probes.images.double()),
        probe_set(labels=torch.tensor([0, 1, 2, 2])),
        probe_set(labels=None),
        probe_set(masks=None),
    ]
    assert len({probes.fingerprint, *(other.fingerprint for other in others)}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_of_images_of_each_type_and_memory_format_can_be_taken(dtype: torch.dtype) -> None:
    images = probe_set().images.to(dtype)
    last = images.to(memory_format=torch.channels_last)
    assert probe_set(images=images).fingerprint == probe_set(images=last).fingerprint


def test_the_state_gives_the_same_probes_back() -> None:
    probes = probe_set(class_names=("a", "b", "c"), normalization=((0.5,) * 3, (0.2,) * 3))
    for given in (probes, probe_set(labels=None, masks=None)):
        again = ProbeSet.from_state_dict(given.state_dict())
        assert again.fingerprint == given.fingerprint
        assert (again.class_names, again.normalization) == (given.class_names, given.normalization)


def test_no_more_of_a_data_set_is_read_than_is_needed() -> None:
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
def test_items_of_a_data_set_are_read_as_batches_of_one(as_item: Any) -> None:
    data = [as_item(*item) for item in Squares(9)]  # type: ignore[attr-defined]
    probes = ProbeSet.from_dataset(data, 3)
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 1, 2]
    assert probes.images.shape == (3, 3, 16, 16)


def test_a_subset_in_which_a_class_is_missing_is_read_to_its_end() -> None:
    data = Squares(30)
    probes = ProbeSet.from_dataset(Subset(data, [index for index in range(30) if index % 3]), 4)
    assert probes.labels is not None
    assert probes.labels.tolist() == [1, 1, 2, 2]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no probes"):
        ProbeSet.from_dataset([], 4)


def test_photos_are_resized_by_their_shorter_side_and_cropped_at_the_center(tmp_path: Path) -> None:
    photo = Image.new("RGB", (60, 20), (255, 0, 0))
    photo.paste((0, 255, 0), (20, 0, 40, 20))
    photo.save(tmp_path / "a.png")
    images = ProbeSet.from_folder(tmp_path, (10, 10)).images
    assert images.shape == (1, 3, 10, 10)
    assert torch.allclose(images[0, :, 5, 5], torch.tensor([0.0, 1.0, 0.0]), atol=0.02)
    assert images[0, 1].mean() > 0.95


@pytest.mark.parametrize("size", [(7, 13), (33, 5), (24, 24)])
def test_photos_of_any_size_and_mode_fit_what_the_model_is_fed(tmp_path: Path, size: tuple[int, int]) -> None:
    for index, (mode, extent) in enumerate([("L", (31, 17)), ("RGBA", (17, 31)), ("RGB", (224, 101)), ("P", (5, 5))]):
        Image.new(mode, extent).save(tmp_path / f"{index}.png")
    Image.new("RGB", (50, 41)).save(tmp_path / "photo.JPG")
    assert ProbeSet.from_folder(tmp_path, size).images.shape == (5, 3, *size)


def test_photos_are_normalized_where_the_model_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (255, 0, 0))
    probes = ProbeSet.from_folder(tmp_path, (8, 8), normalization=((0.5, 0.5, 0.5), (0.5, 0.25, 0.1)))
    assert probes.images[0, :, 0, 0].tolist() == pytest.approx([1, -2, -5], abs=0.02)
    assert probes.normalization == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.1))


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/2.png", "a/1.png", "c/1.png", "loose.png"):
        write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    probes = ProbeSet.from_folder(tmp_path, (8, 8))
    assert probes.class_names == ("a", "b", "c")
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 1, 1, 2]
    named = ProbeSet.from_folder(tmp_path, (8, 8), class_names=("c", "x", "b", "a"), num_probes=3)
    assert named.labels is not None
    assert named.labels.tolist() == [0, 2, 3]


@pytest.mark.parametrize("beside", ["", "cat/"])
def test_hidden_folders_and_files_hold_no_photos(tmp_path: Path, beside: str) -> None:
    for name in (f"{beside}a.png", f"{beside}._a.png", ".thumbnails/a.png"):
        write(tmp_path / name)
    assert len(ProbeSet.from_folder(tmp_path, (8, 8))) == 1


class Mappings(Dataset):
    """Items that are mappings, with a trimap whose middle is the object, its rim missing in every other item."""

    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        trimap = torch.full((8, 8), 2)
        trimap[2:6, 2:6] = 3 if index % 2 else 1
        trimap[3:5, 3:5] = 1
        return UserDict(image=torch.rand(3, 8, 8), label=index % 2, mask=trimap)


def test_items_that_are_mappings_are_read_as_the_batches_of_a_loader_are() -> None:
    probes = ProbeSet.from_dataset(Mappings(), 4, read=partial(read_batch, foreground_values=(1,)))
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 0, 1, 1]
    assert probes.masks is not None
    assert probes.masks.flatten(1).sum(dim=1).tolist() == [16, 16, 4, 4]


def test_items_that_cannot_be_stacked_are_an_error_with_a_remedy() -> None:
    sizes = [(torch.rand(3, 8 + index, 8), index) for index in range(2)]
    with pytest.raises(ValueError, match=r"cannot be stacked to a batch.* Give ProbeSet\(images, labels\)"):
        ProbeSet.from_dataset(sizes, 2)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"images": [[0.5]]}, "images must be floating point, as the model is fed .*; got list"),
        ({"labels": [0, 1]}, "labels must be a tensor of whole numbers, one for each image; got list"),
        ({"labels": torch.zeros(2)}, "labels must be a tensor of whole numbers.*; got torch.float32"),
        ({"groups": torch.zeros(2)}, "groups must be a tensor of whole numbers"),
        ({"masks": torch.full((2, 8, 8), 255)}, "masks must be bool, True on the object; got torch.int64"),
    ],
)
def test_parts_of_another_type_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ProbeSet(**({"images": torch.zeros(2, 3, 8, 8), "labels": torch.tensor([0, 1])} | parts))


def test_no_probe_at_all_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="num_probes=0 must be a whole number of at least 1"):
        ProbeSet.from_dataset(Squares(4), 0)


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no photos"):
        ProbeSet.from_folder(tmp_path, (8, 8))
    write(tmp_path / "zebra" / "1.png")
    with pytest.raises(ValueError, match=r"subfolders \['zebra'\].*not among the classes \['cat', 'dog'\]"):
        ProbeSet.from_folder(tmp_path, (8, 8), class_names=("cat", "dog"))
    with pytest.raises(ValueError, match="is not a folder"):
        ProbeSet.from_folder(tmp_path / "zebra" / "1.png", (8, 8))


def test_a_sorted_data_set_with_more_classes_than_probes_gives_one_probe_of_each_of_many_classes() -> None:
    class Sorted(Dataset):
        classes = tuple(map(str, range(20)))

        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> Any:
            return torch.full((1, 4, 4), index / 200), index // 10

    probes = ProbeSet.from_dataset(Sorted(), num_probes=16)
    assert probes.labels.tolist() == list(range(16))


def test_images_that_are_not_finite_are_passed_over_and_counted() -> None:
    collector = ImagePicker(4)
    images = torch.rand(3, 1, 4, 4)
    images[1, 0, 0, 0] = torch.nan
    collector.offer(Samples(images, torch.tensor([0, 1, 2]), None))
    assert collector.probes().labels.tolist() == [0, 2]
    assert collector.ignored == 1


def test_photos_are_turned_as_their_camera_says_and_broken_ones_are_named(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), (255, 0, 0))
    photo.paste((0, 0, 255), (0, 0, 20, 20))  # blue on the left
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise: blue comes to the top
    photo.save(tmp_path / "turned.png", exif=turned)
    image = ProbeSet.from_folder(tmp_path, (20, 10)).images[0]
    assert image[2, :8].mean() > 0.9
    assert image[0, -8:].mean() > 0.9
    (tmp_path / "broken.png").write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as a photo"):
        ProbeSet.from_folder(tmp_path, (20, 10))


def test_whole_numbers_of_any_kind_are_kept_as_int64() -> None:
    for dtype in (torch.uint8, torch.int16, torch.int32):
        probes = ProbeSet(
            torch.rand(2, 3, 4, 4), torch.tensor([1, 0], dtype=dtype), groups=torch.tensor([3, 4], dtype=dtype)
        )
        assert probes.labels is not None
        assert probes.groups is not None
        assert (probes.labels.dtype, probes.groups.dtype) == (torch.int64, torch.int64)
        assert (probes.labels.tolist(), probes.groups.tolist()) == ([1, 0], [3, 4])


def test_names_and_normalization_are_checked_and_understood() -> None:
    images = torch.rand(2, 3, 4, 4)
    probes = ProbeSet(images, class_names=["cat", "dog"], normalization="imagenet")
    assert probes.class_names == ("cat", "dog")
    assert probes.normalization == IMAGENET
    with pytest.raises(TypeError, match="class_names='cat' must be a list of names"):
        ProbeSet(images, class_names="cat")
    with pytest.raises(ValueError, match="normalization='imagnet' must be 'imagenet', or a pair"):
        ProbeSet(images, normalization="imagnet")


def test_photos_are_read_in_gray_for_a_model_of_one_channel(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "a.png")
    probes = ProbeSet.from_folder(tmp_path, (16, 16), channels=1)
    assert probes.images.shape == (1, 1, 16, 16)
    assert probes.images.unique().tolist() == pytest.approx([76 / 255])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 32}, r"size=32 must be a pair"),
        ({"num_probes": 0}, "num_probes=0 must be a whole number of at least 1"),
        ({"channels": 4}, r"photos have 1 or 3 channels, and the model is fed 4: give ProbeSet\(images\)"),
        ({"folder": "nowhere"}, r"probes='nowhere' is not a folder: there is none at '/.*nowhere'"),
        ({"channels": 1, "normalization": "imagenet"}, "normalization='imagenet' is not of 1 channels"),
        ({"normalization": "12"}, "normalization='12' must be 'imagenet', or a pair"),
        ({"normalization": ([0.5], [float("nan")])}, "normalization=.* must be 'imagenet', or a pair"),
        ({"normalization": ([0.5], [0])}, "normalization=.* must be 'imagenet', or a pair"),
    ],
)
def test_a_folder_is_refused_with_the_argument_that_is_wrong(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises((TypeError, ValueError), match=message):
        ProbeSet.from_folder(**({"folder": tmp_path, "size": (16, 16)} | changed))
