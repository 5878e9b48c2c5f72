"""Retries: a part that fails three times in a row is not tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

_MAX_IN_A_ROW = 3


class Retries:
    """Counts how often each part has failed in a row."""

    def __init__(self) -> None:
        self._in_a_row: Counter[Hashable] = Counter()

    @contextmanager
    def attempt(self, part: Hashable) -> Iterator[None]:
        """Count an error inside, and pass it on; start counting anew where there is none."""
        try:
            yield
        except Exception:
            self._in_a_row[part] += 1
            raise
        del self._in_a_row[part]

    def is_disabled(self, part: Hashable) -> bool:
        """Return whether a part has failed so often in a row that it is not tried again."""
        return self._in_a_row[part] >= _MAX_IN_A_ROW

    def disable(self, part: Hashable) -> None:
        """Do not try a part again."""
        self._in_a_row[part] = _MAX_IN_A_ROW

    def outlook(self, part: Hashable) -> str:
        """Say what becomes of a part that has just failed."""
        if self.is_disabled(part):
            return f"{_MAX_IN_A_ROW} failures in a row: disabled for this run"
        return "will retry at the next validation"

    def reset(self) -> None:
        """Forget all failures."""
        self._in_a_row.clear()
