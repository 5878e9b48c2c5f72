"""Ask data sets and models for the names of the classes and for the normalization.

What is asked is other people's code: an error in it is an answer like any other, that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization

_NAMES = ("classes", "class_names", "class_to_idx", "idx_to_class", "id2label")
_MAX_WRAPPERS = 8  # data sets may wrap themselves
_MAX_DEPTH = 4  # of transforms in transforms
_NORMALIZES = ("torchvision", "kornia", "albumentations")  # packages whose modules named Normalize do that


def class_names(dataset: Any) -> ClassNames | None:
    """Return the names of the classes; None if the data set does not have them."""
    for each in _unwrapped(dataset):
        for name in _NAMES:
            names = _as_names(_ask(each, name))
            if names is not None and not _are_labels(names, each):
                return names
        names = _hub_names(each)
        if names is not None:
            return names
    return None


def class_names_of_model(model: nn.Module | None) -> ClassNames | None:
    """Return the names of the classes of a Hugging Face model, or of one within the model; None if it has none.

    Names that it only numbers (LABEL_0) are not names.
    """
    for module in () if model is None else model.modules():
        names = _as_names(_ask(_ask(module, "config"), "id2label"))
        if names is not None and any(name != f"LABEL_{index}" for index, name in enumerate(names)):
            return names
    return None


def _ask(owner: Any, name: str) -> Any:
    """Return an attribute; None if there is none, or if it fails."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def _as_names(value: Any) -> ClassNames | None:
    """Return the names of classes in whatever holds them, in the order of their indices; None for anything else."""
    try:
        names = _listed(value)
        return ClassNames([_name(each) for each in names]) if names else None
    except Exception:
        return None


def _listed(value: Any) -> list[Any] | None:
    """Return names as a list.

    Args:
        value: A list or tuple, a NumPy array, a tensor, an index, a categorical or a series of pandas, or a mapping of
            indices to names or of names to indices.
    """
    if isinstance(value, Mapping):
        return _in_order(dict(value))
    categories = _ask(_ask(value, "cat"), "categories")  # of a series
    value = next((each for each in (categories, _ask(value, "categories")) if each is not None), value)
    if isinstance(value, (np.ndarray, Tensor)) or (not isinstance(value, Sequence) and hasattr(value, "tolist")):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def _in_order(names: dict[Any, Any]) -> list[Any] | None:
    """Return the names of a mapping in the order of their indices, which are 0, 1, ..., count - 1; else None."""
    by_index = {
        index: name for index, name in ((_index(key), name) for key, name in names.items()) if index is not None
    }
    by_value = {
        index: key for index, key in ((_index(value), key) for key, value in names.items()) if index is not None
    }
    readings = [each for each in (by_index, by_value) if sorted(each) == list(range(len(names)))]
    if len(readings) == 2 and readings[0] != readings[1]:
        return None
    return [readings[0][index] for index in range(len(names))] if readings else None


def _index(value: Any) -> int | None:
    """Return a whole number, also if it is written in digits as in JSON; None for anything else."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _name(value: Any) -> str:
    """Return a name as text; the first of several synonyms.

    Raises:
        TypeError: It is not one.
    """
    if isinstance(value, (list, tuple)):
        return _name(value[0])
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if not isinstance(value, (str, int, float, np.generic)):
        raise TypeError(f"a class name cannot be of type {type(value).__name__}")
    return str(value)


def _are_labels(names: ClassNames, dataset: Any) -> bool:
    """Check whether what a data set calls its classes is the class of each of its images."""
    if len(set(names)) == len(names):
        return False
    try:
        return len(dataset) == len(names)
    except Exception:
        return False


def _hub_names(dataset: Any) -> ClassNames | None:
    """Return the names of the labels of a Hugging Face data set."""
    features = _ask(dataset, "features")
    if not isinstance(features, Mapping):
        return None
    found = {key: names for key in features if (names := _as_names(_ask(features[key], "names"))) is not None}
    named = next((found[key] for key in ("label", "labels") if key in found), None)
    return named or (next(iter(found.values())) if len(found) == 1 else None)


def normalization(dataset: Any) -> Normalization | None:
    """Return the mean and standard deviation of the last normalizing step in its transforms; None if there is none."""
    for each in _unwrapped(dataset):
        for name in ("transform", "transforms"):
            for step in reversed(list(_steps(_ask(each, name)))):
                found = _normalization_of(step)
                if found is not None:
                    return found
    return None


def normalizations_within(owner: Any) -> list[Normalization]:
    """Return the means and standard deviations, each once, of the modules that normalize within a model or an object.

    Such a module is a `Normalize` of torchvision, Kornia or Albumentations. It may normalize within the forward, or in
    `on_after_batch_transfer`: only in the latter case are the images of a batch normalized. Buffers of a model that are
    called `mean` and `std` prove nothing.
    """
    values = [owner] if isinstance(owner, nn.Module) else (_ask(owner, "__dict__") or {}).values()
    held = [module for value in values if isinstance(value, nn.Module) for module in value.modules()]
    found = [_normalization_of(module) for module in held if _is_normalize(module)]
    return list(dict.fromkeys(each for each in found if each is not None))


def _is_normalize(step: Any) -> bool:
    kind = type(step)
    return kind.__name__ == "Normalize" and kind.__module__.split(".")[0] in _NORMALIZES


def _unwrapped(dataset: Any) -> Iterator[Any]:
    """Yield the data set and those it wraps: `Subset.dataset`, the first of `ConcatDataset.datasets`."""
    for _ in range(_MAX_WRAPPERS):
        if dataset is None:
            return
        yield dataset
        parts = _ask(dataset, "datasets")
        dataset = parts[0] if isinstance(parts, (list, tuple)) and parts else _ask(dataset, "dataset")


def _steps(transform: Any, depth: int = _MAX_DEPTH) -> Iterator[Any]:
    """Yield the steps of a transform, through `Compose`, `Sequential` and torchvision's `StandardTransform`."""
    if transform is None:
        return
    parts = _ask(transform, "transforms")
    if parts is None and isinstance(transform, nn.Module):
        parts = list(transform.children())
    if parts is None and not callable(_ask(type(transform), "transform")):
        parts = [_ask(transform, "transform")]
    yield transform
    if depth > 0 and isinstance(parts, Sequence) and not isinstance(parts, str):
        try:
            inner = list(parts)
        except Exception:
            return
        for part in inner:
            yield from _steps(part, depth - 1)


def _normalization_of(step: Any) -> Normalization | None:
    """Return the mean and standard deviation of a step that has one of each for every channel, else None.

    One number for all channels is enough only for a step that is known to normalize: noise has such a mean, too.
    """
    flags = _ask(step, "flags")  # where Kornia's augmentations keep them
    given = flags if isinstance(flags, Mapping) and "mean" in flags else {name: _ask(step, name) for name in _MOMENTS}
    moments: list[Any] = [given.get(name) for name in _MOMENTS]
    if _is_normalize(step):
        moments = [[each] if _is_number(each) else each for each in moments]
    mean, std = map(_one_for_each_channel, moments)
    if mean is None or std is None or len(mean) != len(std) or not all(each > 0 for each in std):
        return None
    return mean, std


_MOMENTS = ("mean", "std")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)


def _one_for_each_channel(value: Any) -> tuple[float, ...] | None:
    """Return numbers of shape (C,), (C, 1, 1) or the like; None for anything else, such as a mean image."""
    if value is None or isinstance(value, str):
        return None
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except Exception:
        return None
    is_a_row = numbers.ndim > 0 and numbers.numel() == max(numbers.shape)
    is_finite = bool(torch.isfinite(numbers).all())
    return tuple(numbers.flatten().tolist()) if is_a_row and is_finite and numbers.numel() else None
