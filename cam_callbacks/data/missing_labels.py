"""What to say of a batch in which no labels are found, though it has parts under names that are not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cam_callbacks.data.containers import IMAGE_KEYS, KNOWN_KEYS, as_mapping, counts_up, has_entries
from cam_callbacks.data.plain import as_numbers

_MAX_KEYS = 8


def note_on_missing_labels(batch: Any, images: Tensor) -> str | None:
    """Say which names were found in a batch without labels, and how to say which of them the labels have.

    Args:
        batch: The batch.
        images: (N, C, *spatial), those that were found in it.

    Returns:
        Sentences for the user; None if the batch has no names, or none that is not known.
    """
    named = as_mapping(batch)
    if named is None:
        return None
    keys = [key for key, value in named.items() if value is not None]
    unknown = [key for key in keys if key not in KNOWN_KEYS]
    of_images = next((key for key in IMAGE_KEYS if isinstance(named.get(key), Tensor)), None)
    if not unknown:
        return None
    shown = ", ".join(map(str, keys[:_MAX_KEYS])) + ", ..." * (len(keys) > _MAX_KEYS)
    likely = _most_likely({key: named[key] for key in unknown}, len(images))
    remedy = "Give CAMMonitor(batch_fn=...), a callable that takes the batch and returns (images, labels)"
    if likely is not None and of_images is not None:
        both = ", ".join(_part_of(batch, key) for key in (of_images, likely))
        remedy = f"If {likely!r} holds them: CAMMonitor(batch_fn=lambda batch: ({both}))"
    return f"No labels were found in the batch (keys: {shown}). {remedy}"


def _most_likely(parts: Mapping[Any, Any], count: int) -> Any:
    """Return the key of the first that may be labels of so many images, numbers rather than text or an index."""
    with_entries = [key for key, value in parts.items() if _may_be_labels(value, count)]
    numbers = [key for key in with_entries if as_numbers(parts[key]) is not None and not counts_up(parts[key])]
    return next(iter(numbers or with_entries), None)


def _part_of(batch: Any, key: Any) -> str:
    """Return the code that reads a part of a batch: of a mapping by its key, of a dataclass or named tuple by name."""
    return f"batch[{key!r}]" if hasattr(batch, "keys") else f"batch.{key}"


def _may_be_labels(value: Any, count: int) -> bool:
    numbers = as_numbers(value)
    return has_entries(value, count) and (numbers is None or numbers.ndim <= 2)
