"""A balanced choice among images of which only a random key, the class and the source are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Candidate:
    """An image that may be chosen.

    Attributes:
        key: In [0, 1), random: the smallest ones are chosen.
        label: Its class.
        source: Where it comes from, such as one of several loaders.
        digest: Its content, hashed: images of the same content count once.
        rank: The process that holds it.
    """

    key: float
    label: int
    source: int
    digest: bytes
    rank: int

    @property
    def group(self) -> tuple[int, int]:
        """The images among which it takes its turn."""
        return self.label, self.source


@dataclass(frozen=True)
class _InTurn:
    """A candidate with its turn in its group, and the images of its class that are taken already."""

    candidate: Candidate
    turn: int
    taken: int

    @property
    def order(self) -> tuple[int, int, float]:
        return self.turn, self.taken, self.candidate.key


def balanced(candidates: Iterable[Candidate], count: int, taken: Mapping[int, int]) -> list[Candidate]:
    """Choose at most `count`, the best first, balanced over classes and sources.

    Each group gives its image of the smallest key, then each gives the next, until there are enough. In the last round
    those go first of whose class the fewest are taken, then those of the smallest keys.

    The best of several sets of candidates are among the best of each: the choice can be made part by part.

    Args:
        candidates: What to choose from.
        count: How many to choose.
        taken: How many images of each class are taken already; of the others none.
    """
    return [each.candidate for each in _in_order(candidates, taken)[:count]]


def _in_order(candidates: Iterable[Candidate], taken: Mapping[int, int]) -> list[_InTurn]:
    turns: Counter[tuple[int, int]] = Counter()
    known: set[bytes] = set()
    found = []
    for each in sorted(candidates, key=lambda candidate: candidate.key):
        if each.digest not in known:
            known.add(each.digest)
            found.append(_InTurn(each, turns[each.group], taken.get(each.label, 0)))
            turns[each.group] += 1
    return sorted(found, key=lambda each: each.order)


class BalancedChoice:
    """The balanced choice among candidates that come one after the other.

    Args:
        count: How many to choose.
        taken: How many images of each class are taken already.

    Attributes:
        chosen: Those that are chosen now, the best first.
    """

    def __init__(self, count: int, taken: Mapping[int, int]) -> None:
        self.count, self._taken = count, taken
        self.chosen: list[Candidate] = []
        self._last: _InTurn | None = None  # the worst that is chosen, once there are enough
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._largest: dict[tuple[int, int], float] = {}  # key of each group

    def add(self, candidate: Candidate) -> None:
        """Choose among those that are chosen and this one."""
        found = _in_order([*self.chosen, candidate], self._taken)[: self.count]
        self.chosen = [each.candidate for each in found]
        self._last = found[-1] if len(found) == self.count else None
        self._sizes = Counter(each.group for each in self.chosen)
        self._largest = {each.group: each.key for each in sorted(self.chosen, key=lambda candidate: candidate.key)}

    def limit(self, label: int, source: int) -> float:
        """Return the key below which a candidate of this class and source would be chosen; infinity for any key."""
        if self._last is None:
            return inf
        size, largest = self._sizes[label, source], self._largest.get((label, source), 0.0)
        mine, of_last = (size, self._taken.get(label, 0)), (self._last.turn, self._last.taken)
        if mine == of_last:
            return max(largest, self._last.candidate.key)
        return inf if mine < of_last else largest

    def limit_of_source(self, source: int, classes: int | None) -> float:
        """Return the key below which a candidate of this source may be chosen, whatever its class.

        Args:
            source: Where it comes from.
            classes: How many classes there are; None if that is not known.
        """
        labels = [label for label, of in self._sizes if of == source]
        limits = [self.limit(label, source) for label in labels]
        if classes is None or len(labels) < classes:
            limits.append(self._limit_of_new_group())
        return max(limits, default=0.0)

    def _limit_of_new_group(self) -> float:
        """Return that of a group of which none is chosen, in case none of its class is taken."""
        if self._last is None or (self._last.turn, self._last.taken) > (0, 0):
            return inf
        return self._last.candidate.key
