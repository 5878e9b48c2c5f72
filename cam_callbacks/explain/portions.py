"""Portions: a few images at a time, so that what is made of them takes little memory, however large they are."""

from __future__ import annotations

from torch import Tensor

_VALUES = 2**22  # 16 MiB in 32 bits


def few(images: Tensor) -> int:
    """Return how many of images (N, *shape) go into a portion, at least 1."""
    return max(1, _VALUES // max(1, images.shape[1:].numel()))


def in_portions(rows: Tensor, images: Tensor) -> tuple[Tensor, ...]:
    """Divide rows (n, ...), one for each of some images (N, *shape), into those of a few images each."""
    portions: tuple[Tensor, ...] = rows.split(few(images))  # type: ignore[no-untyped-call]
    return portions
