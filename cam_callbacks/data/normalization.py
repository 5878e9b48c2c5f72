"""How the images that a model is fed are normalized, and how that is undone for display."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""The mean and the standard deviation of each channel, for images in [0, 1]."""

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_TOLERANCE = 0.05
"""How far interpolation and rounding may take an image out of [0, 1]."""


def as_normalization(given: Any) -> Normalization | None:
    """Return the mean and the standard deviation from what a user gave: a pair, `"imagenet"`, or None.

    Raises:
        ValueError: `given` is none of these.
    """
    if given is None:
        return None
    if isinstance(given, str) and given == "imagenet":
        return IMAGENET
    try:
        mean, std = (tuple(map(float, part)) for part in (() if isinstance(given, str) else given))
    except (TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != len(std) or not mean or not all(each > 0 for each in std):
        raise ValueError(
            f"normalization={given!r} must be 'imagenet', or a pair: the means and the standard deviations (> 0), one "
            "of each for every channel"
        )
    return mean, std


def as_floats(images: Tensor) -> Tensor:
    """Return images of whole numbers as float32, those of one byte in [0, 1]; floating point as it is.

    What range other whole numbers have is not known: they keep their values.
    """
    if images.is_floating_point():
        return images
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def denormalized(images: Tensor, normalization: Normalization | None) -> Tensor:
    """Undo the normalization of images (N, C, *spatial); return them as float32 on the CPU.

    Images of whole numbers are not normalized, so that nothing is undone.
    """
    shown = as_floats(images.detach()).float().cpu()
    if normalization is None or not images.is_floating_point():
        return shown
    # (C,) -> (C, 1, 1)
    mean, std = (torch.tensor(part).view(-1, *[1] * (images.ndim - 2)) for part in normalization)
    return shown * std + mean


def is_displayable(images: Tensor, normalization: Normalization | None) -> bool:
    """Check whether undoing the normalization brings images (N, C, *spatial) into [0, 1].

    Signals (N, C, T) are drawn as curves and need not be in [0, 1].
    """
    if normalization is not None and len(normalization[0]) not in (1, images.shape[1]):
        return False
    return images.ndim == 3 or in_display_range(denormalized(images, normalization))


def in_display_range(images: Tensor) -> bool:
    """Check whether images are in [0, 1], give or take what interpolation and rounding add."""
    return bool(images.min() >= -_TOLERANCE and images.max() <= 1 + _TOLERANCE)
