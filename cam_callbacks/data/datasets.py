"""Ask a data set for the names of its classes, and its transforms for their normalization."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization

_MAX_WRAPPERS = 8  # data sets may wrap themselves
_MAX_DEPTH = 4  # of transforms in transforms


def class_names(dataset: Any) -> ClassNames | None:
    """Return the names of the classes; None if the data set does not have them."""
    for each in _unwrapped(dataset):
        names = getattr(each, "classes", None) or getattr(each, "class_names", None) or _hub_names(each)
        if isinstance(names, Sequence) and not isinstance(names, str) and names:
            return ClassNames(names)
    return None


def _hub_names(dataset: Any) -> Any:
    """Return the names of the labels of a Hugging Face data set."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    return next((features[key].names for key in ("label", "labels") if hasattr(features.get(key), "names")), None)


def normalization(dataset: Any) -> Normalization | None:
    """Return the mean and standard deviation of the last normalizing step in its transforms; None if there is none."""
    for each in _unwrapped(dataset):
        for name in ("transform", "transforms"):
            for step in reversed(list(_steps(getattr(each, name, None)))):
                found = _normalization_of(step)
                if found is not None:
                    return found
    return None


def _unwrapped(dataset: Any) -> Iterator[Any]:
    """Yield the data set and those it wraps: `Subset.dataset`, the first of `ConcatDataset.datasets`."""
    for _ in range(_MAX_WRAPPERS):
        if dataset is None:
            return
        yield dataset
        parts = getattr(dataset, "datasets", None)
        dataset = parts[0] if isinstance(parts, Sequence) and parts else getattr(dataset, "dataset", None)


def _steps(transform: Any, depth: int = _MAX_DEPTH) -> Iterator[Any]:
    """Yield the steps of a transform, through `Compose`, `Sequential` and torchvision's `StandardTransform`."""
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
    """Return the mean and standard deviation of a step that has one of each for every channel, else None."""
    try:
        mean, std = tuple(map(float, step.mean)), tuple(map(float, step.std))
    except (AttributeError, TypeError):
        return None
    return (mean, std) if mean and len(mean) == len(std) and all(each > 0 for each in std) else None
