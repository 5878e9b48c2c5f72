"""GivenBatch: what a step was given, for models and steps that change the images of their batch in place."""

from __future__ import annotations

import copy
from collections import UserDict
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_MAX_DEPTH = 3  # of containers that torch does not know, in one another


class GivenBatch:
    """A batch before a step, with copies of whatever may be images: of tensors of three dimensions and more.

    Args:
        batch: The batch; it is left as it is. Its containers are rebuilt, so that the copy can be read as it is.
    """

    def __init__(self, batch: Any) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self.batch = self._copied(batch, _MAX_DEPTH)

    @property
    def was_changed(self) -> bool:
        """Whether any of the tensors has other values now than it had then."""
        return not all(_are_same(*pair) for pair in self._pairs)

    def _copied(self, batch: Any, depth: int) -> Any:
        return tree_map(lambda leaf: self._of_leaf(leaf, depth), batch)

    def _of_leaf(self, leaf: Any, depth: int) -> Any:
        if isinstance(leaf, Tensor):
            return self._of_tensor(leaf)
        if depth and is_dataclass(leaf) and not isinstance(leaf, type):
            copied = copy.copy(leaf)
            for field in fields(leaf):
                if hasattr(leaf, field.name):
                    object.__setattr__(copied, field.name, self._copied(getattr(leaf, field.name), depth - 1))
            return copied
        if depth and isinstance(leaf, (dict, UserDict)):
            entries = copy.copy(leaf)
            for key, value in leaf.items():
                entries[key] = self._copied(value, depth - 1)
            return entries
        if depth and isinstance(leaf, (list, tuple)):
            return [self._copied(value, depth - 1) for value in leaf]
        if depth and hasattr(leaf, "keys") and hasattr(leaf, "__getitem__"):
            # Such as a TensorDict; what a copy of its kind would share with it is not known.
            return {key: self._copied(leaf[key], depth - 1) for key in leaf.keys()}  # noqa: SIM118
        return leaf

    def _of_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.ndim < 3 or tensor.layout != torch.strided:
            return tensor
        kept = tensor.detach().clone()
        self._pairs.append((tensor, kept))
        return kept


def _are_same(now: Tensor, then: Tensor) -> bool:
    if now.shape != then.shape or now.dtype != then.dtype:
        return False
    if torch.equal(now, then):
        return True
    if not now.is_floating_point():
        return False
    return bool(((now == then) | (now.isnan() & then.isnan())).all())
