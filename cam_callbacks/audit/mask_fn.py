"""Masks by a function of the user's: what it is given, and what it may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain.isolation import random_state_kept

MaskFn = Callable[[Tensor], Any]
"""Called as `mask_fn(images)` with images (N, C, *spatial) as the model is fed them, on the CPU. It returns masks
(N, *spatial): bool, True on the object, or numbers in [0, 1], above 0.5 on the object."""


def masks_by(mask_fn: MaskFn, images: Tensor) -> Tensor:
    """Return the masks that a function makes of images; neither the images nor random numbers are changed by it.

    Args:
        mask_fn: The function. It may return a tensor on any device, or an array; a dimension of one channel is allowed.
        images: (N, C, *spatial), as the model is fed.

    Returns:
        (N, *spatial) bool on the CPU.

    Raises:
        ValueError: It fails, or what it returns is not masks of these images.
    """
    size = (len(images), *images.shape[2:])
    try:
        with torch.no_grad(), random_state_kept():
            returned = mask_fn(images.detach().clone())
            found = torch.as_tensor(returned).detach().cpu()
    except Exception as error:
        shape = tuple(images.shape)
        raise ValueError(f"Audit(masks=...) fails on images {shape}: {type(error).__name__}: {error}") from error
    if found.shape == (size[0], 1, *size[1:]):
        found = found.squeeze(1)
    if found.shape != size:
        raise ValueError(
            f"Audit(masks=...) returns shape {tuple(found.shape)}; images {tuple(images.shape)} need {size}"
        )
    if found.dtype == torch.bool:
        return found
    if found.is_complex() or not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError("Audit(masks=...) must return bool, or numbers in [0, 1]; of logits take the sigmoid")
    return found > 0.5
