"""What fails three times in a row is given up."""

from __future__ import annotations

from collections import Counter

_MOST = 3


class Retries:
    """Counts how often something has failed in a row, by a name for it."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    def add(self, what: str) -> int:
        """Count one more failure; how many there are in a row."""
        self._in_a_row[what] += 1
        return self._in_a_row[what]

    def forget(self, what: str | None = None) -> None:
        """Begin anew, after a success; of everything, where nothing is named."""
        if what is None:
            self._in_a_row.clear()
        else:
            self._in_a_row.pop(what, None)

    def is_disabled(self, what: str) -> bool:
        """Whether it has failed so often that it is not tried again."""
        return self.is_disabled_at(self._in_a_row[what])

    @staticmethod
    def is_disabled_at(times: int) -> bool:
        """Whether it is not tried again after so many failures in a row."""
        return times >= _MOST
