"""A balanced choice among images of which only a random key, the class and the source are known.

Classes have equal shares. Of more classes than there is room for, some take part and others not: a class of which a
single image is chosen has nothing to be compared with. Some classes may be followed: they come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from random import Random
from types import MappingProxyType

_TOGETHER = 2  # images of a class that takes part
_FEW_CLASSES = 8  # all of which take part
_NONE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True)
class Candidate:
    """An image that may be chosen.

    Attributes:
        key: In [0, 1), random: the smallest ones are chosen.
        label: Its class.
        source: Where it comes from, such as one of several loaders.
        digest: Its content, hashed: images of the same content count once.
        rank: The process that holds it.
        class_key: In [0, 1), random: where there are too many classes, those of the smallest take part.
    """

    key: float
    label: int
    source: int
    digest: bytes
    rank: int
    class_key: float = 0.0

    @property
    def group(self) -> tuple[int, int]:
        """The images among which it takes its turn."""
        return self.label, self.source


_Order = tuple[int, int, float, int]


@dataclass(frozen=True)
class _InTurn:
    """A candidate, and the order in which it is chosen; of the same order those of the smallest keys go first."""

    candidate: Candidate
    order: _Order


@lru_cache(maxsize=2**14)
def class_key(stream: str, label: int) -> float:
    """Return the `Candidate.class_key` of a class, which differs from stream to stream."""
    return Random(f"{stream}, class {label}").random()


def balanced(
    candidates: Iterable[Candidate],
    count: int,
    taken: Mapping[int, int],
    followed: Mapping[int, int] = _NONE,
    giving: Mapping[int, int] = _NONE,
) -> list[Candidate]:
    """Choose at most `count`, the best first, balanced over classes and sources.

    Each group gives its image of the smallest key, then each gives the next, until there are enough. In the last round
    those go first of whose class the fewest are taken, then those of the smallest keys. But of more classes than have
    room for two images each, only so many take part: those of which the fewest are taken, then those of the smallest
    class keys. They are eight at least.

    The best of several sets of candidates are among the best of each: the choice can be made part by part.

    Args:
        candidates: What to choose from.
        count: How many to choose.
        taken: How many images of each class are taken already; of the others none.
        followed: How many images of some classes are chosen before all others, instead of their turn.
        giving: How many of some are chosen before all others on top of their turn.
    """
    return [each.candidate for each in _in_order(candidates, _Rule(count, taken, followed, giving))[:count]]


@dataclass(frozen=True)
class _Rule:
    """What the order of candidates follows from, as in `balanced`."""

    count: int
    taken: Mapping[int, int]
    followed: Mapping[int, int]
    giving: Mapping[int, int]

    def order(self, label: int, turn: int, of_class: int, key: float) -> _Order:
        """Return when an image is chosen.

        Args:
            label: Its class.
            turn: How many others of its class and source come before it.
            of_class: How many others of its class.
            key: That of its class.
        """
        extra, taken = self.giving.get(label, 0), self.taken.get(label, 0)
        if of_class < self.followed.get(label, 0) + extra:
            return -1, of_class, 0.0, 0
        turn, of_class = max(turn - extra, 0), of_class - extra
        together = max(1, min(_TOGETHER, self.count // _FEW_CLASSES))
        if together == 1:
            return turn, taken, 0.0, 0
        if of_class < together:
            return 0, taken, key, of_class
        return 1 + turn, taken, 0.0, 0


def _in_order(candidates: Iterable[Candidate], rule: _Rule) -> list[_InTurn]:
    turns: Counter[tuple[int, int]] = Counter()
    known: set[bytes] = set()
    found: list[tuple[int, Candidate]] = []
    for each in sorted(candidates, key=lambda candidate: candidate.key):
        if each.digest not in known:
            known.add(each.digest)
            found.append((turns[each.group], each))
            turns[each.group] += 1
    of_class: Counter[int] = Counter()
    in_turn = []
    for turn, each in sorted(found, key=lambda pair: (pair[0], pair[1].key)):
        in_turn.append(_InTurn(each, rule.order(each.label, turn, of_class[each.label], each.class_key)))
        of_class[each.label] += 1
    return sorted(in_turn, key=lambda each: (each.order, each.candidate.key))


class BalancedChoice:
    """The balanced choice among candidates that come one after the other.

    Args:
        count: How many to choose.
        taken: How many images of each class are taken already.
        stream: What the class keys of the candidates follow from.
        followed: As in `balanced`.
        giving: As in `balanced`.

    Attributes:
        chosen: Those that are chosen now, the best first.
    """

    def __init__(
        self,
        count: int,
        taken: Mapping[int, int],
        stream: str,
        followed: Mapping[int, int] = _NONE,
        giving: Mapping[int, int] = _NONE,
    ) -> None:
        self.count, self._stream, self._rule = count, stream, _Rule(count, taken, followed, giving)
        self.chosen: list[Candidate] = []
        self._last: _InTurn | None = None  # the worst that is chosen, once there are enough
        self._sizes: dict[int, Counter[int]] = {}  # of each class, by source
        self._limits: dict[tuple[int, int], float] = {}  # of each class and source, as far as asked for
        self._limits_of_sources: dict[tuple[int, int | None], float] = {}
        self._largest: dict[tuple[int, int], float] = {}  # key of each group
        self._turns: list[int] = []

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Choose among those that are chosen and these."""
        found = _in_order([*self.chosen, *candidates], self._rule)[: self.count]
        self.chosen = [each.candidate for each in found]
        self._last = found[-1] if len(found) == self.count else None
        self._sizes = {}
        for each in self.chosen:
            self._sizes.setdefault(each.label, Counter())[each.source] += 1
        self._limits, self._limits_of_sources = {}, {}
        self._largest = {each.group: each.key for each in sorted(self.chosen, key=lambda candidate: candidate.key)}

    def limit(self, label: int, source: int) -> float:
        """Return the key below which a candidate of this class and source would be chosen; infinity for any key."""
        if self._last is None:
            return inf
        if (label, source) not in self._limits:
            self._limits[label, source] = self._limit(label, source, self._last)
        return self._limits[label, source]

    def _limit(self, label: int, source: int, last: _InTurn) -> float:
        largest = self._largest.get((label, source), 0.0)
        sizes = self._sizes.get(label, Counter[int]())
        turn = sizes[source]
        before = sum(min(turn, size) for size in sizes.values())  # at least
        mine = self._rule.order(label, turn, before, class_key(self._stream, label))
        if mine == last.order:
            return max(largest, last.candidate.key)
        return inf if mine < last.order else largest

    def limit_of_source(self, source: int, classes: int | None) -> float:
        """Return the key below which a candidate of this source may be chosen, whatever its class.

        Args:
            source: Where it comes from.
            classes: How many classes there are; None if that is not known.
        """
        if (source, classes) not in self._limits_of_sources:
            self._limits_of_sources[source, classes] = self._limit_of_source(source, classes)
        return self._limits_of_sources[source, classes]

    def _limit_of_source(self, source: int, classes: int | None) -> float:
        known = {label for label, sizes in self._sizes.items() if source in sizes}
        limits = [self.limit(label, source) for label in known]
        if classes is None:
            last = self._last
            limits.append(last.candidate.key if last is not None and last.order == (0, 0, 0.0, 0) else inf)
        else:  # of those of which none is chosen, that whose turn is next
            following = next((label for label in self._in_turn(classes) if label not in known), None)
            limits += [] if following is None else [self.limit(following, source)]
        return max(limits, default=0.0)

    def _in_turn(self, classes: int) -> list[int]:
        """Return all classes in the order in which they take part."""
        if len(self._turns) != classes:
            self._turns = sorted(
                range(classes), key=lambda label: self._rule.order(label, 0, 0, class_key(self._stream, label))
            )
        return self._turns
