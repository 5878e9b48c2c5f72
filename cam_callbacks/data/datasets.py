"""What a data set says of itself: the names of its classes, and how its transforms normalize."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization

ALL = -1
"""In the place of the index of a class: all classes together."""


def class_names(dataset: Any) -> ClassNames | None:
    """Return the names of the classes; None if the data set does not have them."""
    for layer in _unwrapped(dataset):
        names = getattr(layer, "classes", None) or getattr(layer, "class_names", None) or _hub_names(layer)
        if isinstance(names, Sequence) and not isinstance(names, str) and names:
            return ClassNames(names)
    return None


def _hub_names(dataset: Any) -> Any:
    """The label names of a Hugging Face data set."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    return next((features[key].names for key in ("label", "labels") if hasattr(features.get(key), "names")), None)


def normalization(dataset: Any) -> Normalization | None:
    """Mean and standard deviation of the last normalizing step in the transforms of a data set, if one can be found."""
    for layer in _unwrapped(dataset):
        for name in ("transform", "transforms"):
            for step in reversed(list(_steps(getattr(layer, name, None)))):
                found = _normalization_of(step)
                if found is not None:
                    return found
    return None


def _unwrapped(dataset: Any) -> Iterator[Any]:
    """The data set and those it wraps: `Subset.dataset`, the first of `ConcatDataset.datasets`."""
    for _ in range(8):
        if dataset is None:
            return
        yield dataset
        parts = getattr(dataset, "datasets", None)
        dataset = parts[0] if isinstance(parts, Sequence) and parts else getattr(dataset, "dataset", None)


def _steps(transform: Any, depth: int = 4) -> Iterator[Any]:
    """The steps of a transform in order, through `Compose`, `Sequential` and torchvision's `StandardTransform`."""
    parts = getattr(transform, "transforms", None)
    if parts is None and hasattr(transform, "children"):
        parts = list(transform.children())
    if parts is None and not callable(getattr(type(transform), "transform", None)):
        parts = [getattr(transform, "transform", None)]
    yield transform
    if depth > 0 and isinstance(parts, Sequence):
        for part in parts:
            yield from _steps(part, depth - 1)


def _normalization_of(step: Any) -> Normalization | None:
    mean, std = getattr(step, "mean", None), getattr(step, "std", None)
    try:
        pair = tuple(float(v) for v in mean), tuple(float(v) for v in std)  # type: ignore[union-attr]
    except TypeError:
        return None
    return pair if pair[0] and len(pair[0]) == len(pair[1]) and all(s > 0 for s in pair[1]) else None
