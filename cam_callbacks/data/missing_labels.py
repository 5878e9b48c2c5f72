"""What to say of a batch in which no labels are found, though it has parts under names that are not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cam_callbacks.data.containers import IMAGE_KEYS, KNOWN_KEYS, as_mapping, has_entries
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
    return f"No labels were found in the batch (keys: {shown}). {_remedy(named, unknown, of_images, len(images))}"


def _remedy(named: Mapping[Any, Any], unknown: Sequence[Any], of_images: Any, count: int) -> str:
    with_entries = [key for key in unknown if _may_be_labels(named[key], count)]
    numbers = [key for key in with_entries if as_numbers(named[key]) is not None]
    likely = (numbers or with_entries or [None])[0]
    if likely is None or of_images is None:
        return "Give CAMMonitor(batch_fn=...), a callable that takes the batch and returns (images, labels)"
    return f"If {likely!r} holds them: CAMMonitor(batch_fn=lambda batch: (batch[{of_images!r}], batch[{likely!r}]))"


def _may_be_labels(value: Any, count: int) -> bool:
    numbers = as_numbers(value)
    return has_entries(value, count) and (numbers is None or numbers.ndim <= 2)
