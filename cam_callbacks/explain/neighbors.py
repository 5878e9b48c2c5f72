"""Neighbors: whether the images of a batch influence each other's answers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cam_callbacks._warnings import warn_user

_TOLERANCE = 1e-2  # relative: rounding depends a little on the size of the batch

_SAID: weakref.WeakSet[nn.Module] = weakref.WeakSet()

_FOUND: weakref.WeakKeyDictionary[nn.Module, tuple[object, Influence]] = weakref.WeakKeyDictionary()


class Influence(IntEnum):
    """What an answer to an image depends on beside it."""

    NOTHING = 0
    NEIGHBORS = 1
    CHANCE = 2


_WORDS = {
    Influence.NEIGHBORS: "answers an image differently if another one is beside it in the batch, as a batch norm "
    "without running statistics does: each image is forwarded alone, which is slow, and its answer may differ from "
    "that in a batch",
    Influence.CHANCE: "answers the same image differently from pass to pass, as a dropout does that is on in eval "
    "mode, too (F.dropout without training=self.training): a heatmap shows chance as well",
}


def remembered(model: nn.Module, images: Tensor, find: Callable[[], Influence]) -> Influence:
    """Return what `find` returns, or has returned for this model, its weights as they are, and images of this shape.

    It is found again once the weights have changed: what is multiplied by 0 before the training shows only later.
    """
    key = state_of(model, images)
    known = _FOUND.get(model)
    if key is None or known is None or known[0] != key:
        known = _FOUND[model] = (key, find())
    return known[1]


def state_of(model: nn.Module, images: Tensor) -> object:
    """Return what stays the same while weights and the shape of images do; None if that cannot be told."""
    tensors = [*model.parameters(), *model.buffers()]
    try:
        versions = sum(tensor._version for tensor in tensors)
        return versions, [tensor.data_ptr() for tensor in tensors[:1]], tuple(images.shape[1:])
    except RuntimeError:  # made in inference mode, or without memory of their own
        return None


def influence(run: Callable[[Tensor], object], images: Tensor) -> Influence:
    """Find what the answer to an image depends on beside it, by a pass with another image before it.

    The image is the first that is not the same everywhere. The other one is noise of its smallest and its largest
    value: as unlike it as can be, and nothing that the model is never fed. A model that cannot be run so is taken for
    one that depends on nothing else.

    Args:
        run: Runs the model on images.
        images: (N, C, *spatial).

    Raises:
        ValueError: The model needs other images beside each.
    """
    values = images.flatten(1)
    varies = (values != values[:, :1]).any(dim=1)
    image = images[varies.int().argmax()].unsqueeze(0)
    try:
        alone, together = run(image), run(torch.cat([_extreme(image), image]))
        if not _differ(alone, together):
            return Influence.NOTHING
        return Influence.CHANCE if _differ(alone, run(image)) else Influence.NEIGHBORS
    except NeedsOthersError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError):
        # What it cannot do, such as take another size of the batch, it says when that is needed.
        return Influence.NOTHING


def _extreme(image: Tensor) -> Tensor:
    """Return noise of the shape of an image, each value of which is the image's smallest or its largest."""
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(image.device) > 0.5
    return torch.where(noise, image.amax(), image.amin())


class NeedsOthersError(ValueError):
    """A model cannot answer one image alone, because it takes statistics of the batch."""


def _differ(alone: object, others: object) -> bool:
    """Whether the last row of any tensor in two answers differs, the first of which is of one image."""
    if _has_entries(alone, 1) and _has_entries(others, 2):  # one for each image, as detectors return
        pairs = zip(_tensors(alone[0]), _tensors(others[1]), strict=False)
        return any(not _close(one, two) for one, two in pairs if one.shape == two.shape)
    return any(
        not _close(one[0], two[-1])
        for one, two in zip(_tensors(alone), _tensors(others), strict=False)
        if one.shape[1:] == two.shape[1:] and one.ndim and len(one) == 1 and len(two) in (1, 2)
    )


def _has_entries(answer: object, count: int) -> TypeGuard[Sequence[object]]:
    return isinstance(answer, (list, tuple)) and len(answer) == count


def say_once(model: nn.Module, found: Influence) -> None:
    """Warn of what answers depend on beside the image, unless something was said of this model before."""
    if found in _WORDS and model not in _SAID:
        _SAID.add(model)
        warn_user(f"{type(model).__name__} {_WORDS[found]}")


def known_of_copy(model: nn.Module, copied: nn.Module) -> None:
    """Let what was said of a model be said of its copy, too."""
    if model in _SAID:
        _SAID.add(copied)


def _tensors(output: object) -> list[Tensor]:
    held = getattr(output, "__dict__", output)
    leaves = tree_leaves(output if isinstance(output, (Tensor, tuple, list, dict)) else held)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(a: Tensor, b: Tensor) -> bool:
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return bool((a.isfinite() == b.isfinite()).all())
    return bool((a.float() - b.float()).norm() <= _TOLERANCE * a.float().norm())
