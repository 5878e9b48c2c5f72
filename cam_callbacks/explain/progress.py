"""Progress: code that works reports how much there is to do and how much is done, without knowing who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Show = Callable[[int, int], None]
"""Called as `show(done, total)` with units of work: forward samples, and masks that are estimated. `total` is the most
that may be needed; it grows as more work turns up, and never shrinks."""


class _Tally:
    """What is done of what is expected."""

    def __init__(self, show: Show) -> None:
        self.show = show
        self.done = 0
        self.total = 0
        self.reserved = 0  # of the total, for work that nobody has expected yet


_CURRENT: ContextVar[_Tally | None] = ContextVar("progress", default=None)


@contextmanager
def shown(show: Show) -> Iterator[None]:
    """Call `show(done, total)` whenever the work inside advances. An inner context takes over from an outer one."""
    token = _CURRENT.set(_Tally(show))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def reserve(count: int) -> None:
    """Add `count` units to the total for work that comes later, so that the total does not jump when it begins."""
    tally = _CURRENT.get()
    if tally is not None:
        tally.total += count
        tally.reserved += count


def expect(count: int) -> None:
    """Add `count` units of work to the total, unless they are in what was reserved."""
    tally = _CURRENT.get()
    if tally is not None:
        covered = min(count, tally.reserved)
        tally.reserved -= covered
        tally.total += count - covered


def advance(count: int) -> None:
    """Report `count` more units as done; those that turned out not to be needed count as done too."""
    tally = _CURRENT.get()
    if tally is not None and count > 0:
        tally.done += count
        tally.total = max(tally.total, tally.done)
        tally.show(tally.done, tally.total)
