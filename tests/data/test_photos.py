"""Folders of photos, read as a model is fed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cam_callbacks.data.photos import class_folders
from cam_callbacks.data.probes import ProbeSet


def write(path: Path, color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (30, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def labels_of(probes: ProbeSet) -> list[int]:
    assert probes.labels is not None
    return probes.labels.tolist()


def test_photos_are_resized_and_cropped_at_the_center(tmp_path: Path) -> None:
    photo = Image.new("RGB", (60, 20), (255, 0, 0))
    photo.paste((0, 255, 0), (20, 0, 40, 20))
    photo.save(tmp_path / "a.png")
    images = ProbeSet.from_folder(tmp_path, (10, 10)).images
    assert images.shape == (1, 3, 10, 10)
    assert torch.allclose(images[0, :, 5, 5], torch.tensor([0.0, 1.0, 0.0]), atol=0.02)
    assert images[0, 1].mean() > 0.95


@pytest.mark.parametrize("size", [(7, 13), (33, 5), (24, 24)])
def test_photos_of_any_size_and_mode_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    for index, (mode, extent) in enumerate([("L", (31, 17)), ("RGBA", (17, 31)), ("RGB", (224, 101)), ("P", (5, 5))]):
        Image.new(mode, extent).save(tmp_path / f"{index}.png")
    Image.new("RGB", (50, 41)).save(tmp_path / "photo.JPG")
    assert ProbeSet.from_folder(tmp_path, size).images.shape == (5, 3, *size)


def test_photos_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), (255, 0, 0))
    photo.paste((0, 0, 255), (0, 0, 20, 20))  # blue on the left
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise: blue comes to the top
    photo.save(tmp_path / "turned.png", exif=turned)
    image = ProbeSet.from_folder(tmp_path, (20, 10)).images[0]
    assert image[2, :8].mean() > 0.9
    assert image[0, -8:].mean() > 0.9


def test_photos_are_normalized_where_the_model_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (255, 0, 0))
    probes = ProbeSet.from_folder(tmp_path, (8, 8), normalization=((0.5, 0.5, 0.5), (0.5, 0.25, 0.1)))
    assert probes.images[0, :, 0, 0].tolist() == pytest.approx([1, -2, -5], abs=0.02)
    assert probes.normalization == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.1))


def test_photos_are_read_in_gray_for_a_model_of_one_channel(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (255, 0, 0))
    probes = ProbeSet.from_folder(tmp_path, (16, 16), channels=1)
    assert probes.images.shape == (1, 1, 16, 16)
    assert probes.images.flatten().tolist() == pytest.approx([76 / 255] * 256)


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("b/1.png", "b/2.png", "a/1.png", "c/1.png", "loose.png"):
        write(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    probes = ProbeSet.from_folder(tmp_path, (8, 8))
    assert probes.class_names == ("a", "b", "c")
    assert labels_of(probes) == [0, 1, 1, 2]
    named = ProbeSet.from_folder(tmp_path, (8, 8), class_names=("c", "x", "b", "a"), num_probes=3)
    assert labels_of(named) == [0, 2, 3]


def test_without_subfolders_photos_have_no_class(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    assert ProbeSet.from_folder(tmp_path, (8, 8)).labels is None
    assert ProbeSet.from_folder(tmp_path, (8, 8), class_names=("cat", "dog")).labels is None


@pytest.mark.parametrize("beside", ["", "cat/"])
def test_hidden_folders_and_files_hold_no_photos(tmp_path: Path, beside: str) -> None:
    for name in (f"{beside}a.png", f"{beside}._a.png", ".thumbnails/a.png"):
        write(tmp_path / name)
    assert len(ProbeSet.from_folder(tmp_path, (8, 8))) == 1


def test_a_folder_that_is_not_there_has_no_classes(tmp_path: Path) -> None:
    assert class_folders(tmp_path / "nowhere") == []


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no photos"):
        ProbeSet.from_folder(tmp_path, (8, 8))
    write(tmp_path / "zebra" / "1.png")
    with pytest.raises(ValueError, match=r"subfolders \['zebra'\].*not among the classes \['cat', 'dog'\]"):
        ProbeSet.from_folder(tmp_path, (8, 8), class_names=("cat", "dog"))
    with pytest.raises(ValueError, match="is not a folder"):
        ProbeSet.from_folder(tmp_path / "zebra" / "1.png", (8, 8))


def test_a_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"none of the photos .*broken\.png"):
        ProbeSet.from_folder(tmp_path, (20, 10))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 32}, r"size=32 must be a pair"),
        ({"num_probes": 0}, "num_probes=0 must be a whole number of at least 1"),
        ({"channels": 4}, r"photos have 1 or 3 channels, and the model is fed 4: give ProbeSet\(images\)"),
        ({"folder": "nowhere"}, r"probes='nowhere' is not a folder; looked at '/.*nowhere'"),
        ({"channels": 1, "normalization": "imagenet"}, "normalization='imagenet' does not have 1 channel"),
        ({"normalization": "12"}, "normalization='12' must be 'imagenet', or a pair"),
    ],
)
def test_the_argument_that_is_wrong_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.png")
    with pytest.raises((TypeError, ValueError), match=message):
        ProbeSet.from_folder(**({"folder": tmp_path, "size": (16, 16)} | changed))


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    ("file", "pixels"),
    [
        ("a.png", (RAMP * 255).astype("uint8")),
        ("a.png", (RAMP * 65535).astype("uint16")),
        ("a.tiff", RAMP.astype("float32")),
        ("a.bmp", (RAMP * 255).astype("uint8")),
        ("A.PNG", (RAMP * 255).astype("uint8")),
    ],
    ids=["8 bits", "16 bits", "float", "bitmap", "capital suffix"],
)
def test_a_ramp_is_as_bright_in_every_kind_of_file(tmp_path: Path, file: str, pixels: Any) -> None:
    Image.fromarray(pixels).save(tmp_path / file)
    photo = ProbeSet.from_folder(tmp_path, (32, 32)).images
    assert abs(float(photo.mean()) - 0.5) < 0.01
    assert float(photo.min()) < 0.05
    assert float(photo.max()) > 0.95


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 and no more"], ids=["empty", "cut off"])
def test_a_broken_file_is_left_out_and_named(tmp_path: Path, content: bytes) -> None:
    Image.fromarray(np.full((64, 64, 3), 128, "uint8")).save(tmp_path / "whole.png")
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.warns(UserWarning, match=r"broken\.jpg"):
        probes = ProbeSet.from_folder(tmp_path, (32, 32))
    assert len(probes) == 1
