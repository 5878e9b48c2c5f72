"""Photos in a folder, read as a model is fed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cam_callbacks._checks import check_positive, is_list
from cam_callbacks._warnings import warn_user
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.normalization import Normalization, as_normalization
from cam_callbacks.data.picking import ImagePicker

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_MAX_NAMED = 5  # of the photos that cannot be read
_WHITE_OF_16_BITS = 65535


def class_folders(folder: Path) -> list[str]:
    """Return the names of the subfolders, sorted; each is the name of a class. Empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path))


def pick_photos(
    folder: Path,
    size: Sequence[int],
    normalization: Any = None,
    class_names: Sequence[str] = (),
    count: int | None = None,
    channels: int = 3,
) -> Samples:
    """Read the photos of a folder, as `ProbeSet.from_folder` describes.

    Args:
        folder: The folder.
        size: The height and width that the model is fed.
        normalization: Anything that `as_normalization` takes.
        class_names: The names of the classes in the order of their indices. Each subfolder must be among them.
        count: How many photos to pick, balanced over the classes; None for all.
        channels: 3 for photos in color, 1 for photos in gray.

    Returns:
        `images` (N, channels, *size) float32, and `labels` if there are subfolders.

    Raises:
        TypeError: `size` is not a pair.
        ValueError: The folder cannot be read as described, or another argument is out of range.
    """
    if not folder.is_dir():
        raise ValueError(f"probes={str(folder)!r} is not a folder; looked at {str(folder.absolute())!r}")
    if not is_list(size) or len(size) != 2:
        raise TypeError(f"size={size!r} must be a pair, the height and width that the model is fed")
    check_positive("num_probes", count, or_none=True)
    if channels not in (1, 3):
        raise ValueError(f"photos have 1 or 3 channels, and the model is fed {channels}: give ProbeSet(images)")
    mean_and_std = as_normalization(normalization)
    if mean_and_std is not None and len(mean_and_std[0]) not in (1, channels):
        raise ValueError(f"normalization={normalization!r} does not have {channels} channels")
    subfolders = class_folders(folder)
    unknown = [name for name in subfolders if name not in class_names]
    if unknown:
        raise ValueError(
            f"the subfolders {unknown} of probes={str(folder)!r} are not among the classes {list(class_names)}"
        )
    paths = _photo_paths([folder / name for name in subfolders] or [folder])
    if not paths:
        raise ValueError(f"probes={str(folder)!r} holds no photos ({', '.join(sorted(_SUFFIXES))})")
    picker = ImagePicker(count or len(paths))
    unread = []
    for path in paths:
        label = torch.tensor([class_names.index(path.parent.name)]) if subfolders else None
        try:
            image = _read_photo(path, size, mean_and_std, channels)
        except Exception as error:  # decoders raise errors of many types
            unread.append(f"{path} ({error})")
            continue
        picker.offer(Samples(image.unsqueeze(0), label, None))
    if len(unread) == len(paths):
        raise ValueError(f"none of the photos of probes={str(folder)!r} can be read: {'; '.join(unread[:3])}")
    if unread:
        more = f"; and {len(unread) - _MAX_NAMED} more" if len(unread) > _MAX_NAMED else ""
        warn_user(f"photos that cannot be read are left out: {'; '.join(unread[:_MAX_NAMED])}{more}")
    return picker.picked()


def _photo_paths(folders: Sequence[Path]) -> list[Path]:
    paths = sorted(path for folder in folders for path in folder.iterdir() if not _is_hidden(path))
    return [path for path in paths if path.suffix.lower() in _SUFFIXES]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _read_photo(path: Path, size: Sequence[int], normalization: Normalization | None, channels: int) -> Tensor:
    """Return a photo (channels, *size) float32: resized by its shorter side, cropped at the center, normalized.

    Raises:
        OSError: The file is cut off, or no photo.
        ValueError: It is not known which of its values is white.
    """
    from torchvision.transforms.v2 import functional as transforms  # takes seconds, and only photos need it

    with Image.open(path) as file:
        photo = _in_unit_range(ImageOps.exif_transpose(file), channels)
    height, width = photo.shape[1:]
    scale = max(size[0] / height, size[1] / width)
    # Not smaller than asked for: rounding may take a pixel.
    resized = [max(round(side * scale), least) for side, least in zip((height, width), size, strict=True)]
    image = transforms.center_crop(transforms.resize(photo, resized, antialias=True), list(size)).clamp(0, 1)
    if normalization is not None:
        image = transforms.normalize(image, *map(list, normalization))
    return torch.as_tensor(image)


def _in_unit_range(photo: Image.Image, channels: int) -> Tensor:
    """Return the pixels of a photo as (channels, H, W) float32 in [0, 1]. Transparency is dropped, as most loaders do.

    Raises:
        ValueError: It is not known which of its values is white.
    """
    if photo.mode == "F" or photo.mode.startswith("I"):
        gray = torch.from_numpy(np.array(photo).astype(np.float32))
        if photo.mode != "F":
            gray = gray / _WHITE_OF_16_BITS
        if not bool(((gray >= 0) & (gray <= 1)).all()):
            low, high = float(gray.min()), float(gray.max())
            raise ValueError(f"its values go from {low:g} to {high:g}: which of them is white is not known")
        return gray.expand(channels, -1, -1)
    if photo.mode == "P" and "transparency" in photo.info:
        photo = photo.convert("RGBA")
    pixels = torch.from_numpy(np.array(photo.convert("RGB" if channels == 3 else "L"))).float() / 255
    return pixels.movedim(-1, 0) if channels == 3 else pixels.unsqueeze(0)
