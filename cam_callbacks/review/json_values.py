"""Python values in the form that JSON has: numbers with a few digits, settings in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.review.schema import Readable

_DIGITS = 4
_MAX_SETTING_LENGTH = 200


def as_json(value: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def number(value: float | None) -> float | None:
    """Round a number to the digits that people read; None if it is not finite."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def readable(settings: Mapping[str, Any]) -> dict[str, Readable]:
    """Return settings of any kind in a form that JSON has and people can read; never raise an error."""
    return {name: _readable(value) for name, value in settings.items()}


def _readable(value: Any) -> Readable:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _truncated(value if isinstance(value, str) else in_words(value))


def in_words(value: Any) -> str:
    """Describe a value, without the addresses in memory that `repr` shows for functions and plain objects."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, ProbeSet):
        return f"ProbeSet of {len(value)} images"
    name = getattr(value, "__qualname__", None)
    if callable(value) and isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"
    try:
        text = repr(value)
    except Exception:  # of the user's own class
        return type(value).__name__
    if " at 0x" not in text:
        return text
    if is_dataclass(value):
        parts = [f"{field.name}={in_words(getattr(value, field.name))}" for field in fields(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    return type(value).__name__


def _truncated(text: str) -> str:
    return text if len(text) <= _MAX_SETTING_LENGTH else text[: _MAX_SETTING_LENGTH - 3] + "..."
