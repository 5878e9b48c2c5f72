"""Overhead: the time that looks take, and whether there is time for one more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Overhead:
    """Keeps looks within a share of the time of a training.

    Attributes:
        last_look: The seconds of the last look, by what they went to; empty before the first.

    Args:
        most: The share, above 0 and up to 1; None for no limit.
        now: The time in seconds.
    """

    def __init__(self, most: float | None, now: Callable[[], float] = time.perf_counter) -> None:
        self._most, self._now = most, now
        self.begin()

    def begin(self) -> None:
        """Begin with a new training, whose first look is always had."""
        self._began = self._now()
        self._spent = 0.0
        self.last_look: Mapping[str, float] = {}

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._most is not None

    @property
    def allows_a_look(self) -> bool:
        """Whether the share is kept if the next look takes as long as the last."""
        elapsed, last = self._now() - self._began, sum(self.last_look.values())
        return self._most is None or self._spent + last <= self._most * (elapsed + last)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the time of a look, by what it went to."""
        self._spent += sum(seconds.values())
        self.last_look = dict(seconds)


class Stopwatch:
    """Measures the time of several things, by name, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the time that is spent inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def __str__(self) -> str:
        """Return the sum, and what it is made of: `"0.6 s: heatmaps 0.2, audit 0.3, pictures 0.1"`."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s: {parts}"
