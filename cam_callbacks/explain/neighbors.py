"""Neighbors: whether the images of a batch influence each other's answers."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from cam_callbacks._warnings import warn_user

_TOLERANCE = 1e-2  # relative: rounding depends a little on the size of the batch

_SAID: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def may_mix(model: nn.Module) -> bool:
    """Whether the model has a batch norm without running statistics, so that it takes those of each batch."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules())


def mixes(run: Callable[[Tensor], object], images: Tensor) -> bool:
    """Whether the model's answer to the first image changes with a black image beside it.

    Args:
        run: Runs the model on images.
        images: (N, C, *spatial).
    """
    alone = run(images[:1])
    together = run(torch.cat([images[:1], torch.zeros_like(images[:1])]))
    return any(
        not _close(one[0], two[0])
        for one, two in zip(_tensors(alone), _tensors(together), strict=False)
        if one.shape[1:] == two.shape[1:] and one.ndim and len(one) == 1 and len(two) == 2
    )


def say_once(model: nn.Module) -> None:
    """Warn that the images of a batch influence each other, unless that was said of this model before."""
    if model in _SAID:
        return
    _SAID.add(model)
    warn_user(
        f"{type(model).__name__} has a batch norm without running statistics, so that the answer to an image depends "
        "on the others of its batch: each image is forwarded alone, which is slow, and its answer may differ from that "
        "in a batch"
    )


def known_of_copy(model: nn.Module, copied: nn.Module) -> None:
    """Let what was said of a model be said of its copy, too."""
    if model in _SAID:
        _SAID.add(copied)


def _tensors(output: object) -> list[Tensor]:
    leaves = tree_leaves(output if isinstance(output, (Tensor, tuple, list, dict)) else vars(output))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a.float() - b.float()).norm() <= _TOLERANCE * a.float().norm())
