"""What each rank has drawn for the audit, and the choice that all ranks come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from cam_callbacks.data.balancing import Candidate, balanced
from cam_callbacks.data.reservoir import Form, Found

_OF_A_CLASS = 2  # images, to be compared
_MANY = 16  # classes at least
_FEW = 4  # images of a class at a look
_OF_A_RIVAL, _TAKERS = 4, 4  # images at least, that only give their background; one for so many that are followed


@dataclass(frozen=True)
class Draw:
    """What earlier looks say of the images that are drawn anew.

    Attributes:
        seen: How many images of each class there were.
        followed: How many images of some classes are drawn before all others, to be asked about.
        rivals: By class that is followed, those that are most often the most probable beside it.
    """

    seen: Mapping[int, int] = field(default_factory=dict)
    followed: Mapping[int, int] = field(default_factory=dict)
    rivals: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def giving(self) -> Counter[int]:
        """How many images of rivals are drawn that only give their background: each to a few others."""
        found: Counter[int] = Counter()
        for label, rivals in self.rivals.items():
            few = max(self.followed[label] // _TAKERS, _OF_A_RIVAL)
            found.update({rival: few for rival in rivals if rival not in self.followed})
        return found

    def room(self, count: int, classes: int | None) -> int:
        """Return how many images are drawn to ask about `count`, those that only give included."""
        return room(count, classes) + self.giving.total()


NOTHING_KNOWN = Draw()


@dataclass(frozen=True)
class Offer:
    """What one rank has drawn from its batches, without the images.

    Attributes:
        fixed: For the half that stays, where that is not known yet.
        fresh: For the half that is drawn anew; at the first look, enough for both.
        unknown_labels: Labels that no class has.
        left_out: How many images were left out, by reason.
    """

    fixed: dict[Form, Found] = field(default_factory=dict)
    fresh: dict[Form, Found] = field(default_factory=dict)
    unknown_labels: set[int] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Kept:
    """What is known of the half that stays.

    Attributes:
        digests: Of its images.
        classes: How many images of each class it has.
    """

    digests: Set[bytes]
    classes: Mapping[int, int]

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> Kept:
        """Return what is known of these."""
        return cls({each.digest for each in candidates}, Counter(each.label for each in candidates))


@dataclass(frozen=True)
class Choice:
    """Which of the images that all ranks offer are the audit's.

    Attributes:
        form: Their form; None where none was offered.
        fixed: Those that stay from now on; none where these are known already.
        fresh: Those of this look alone.
        are_all: Whether these are all images that there are, so that all stay.
        unknown_labels: Labels that no class has.
        left_out: How many images were left out, by reason.
        classes: Of how many classes there are images.
    """

    form: Form | None
    fixed: list[Candidate]
    fresh: list[Candidate]
    are_all: bool
    unknown_labels: set[int]
    left_out: Counter[str]
    classes: int

    def __iter__(self) -> Iterator[Candidate]:
        """Yield all of them, by class, and then in an order that depends on their content alone."""
        yield from sorted([*self.fixed, *self.fresh], key=lambda each: (each.label, each.digest))


def chosen(
    offers: Sequence[Offer],
    count: int,
    kept: Kept | None,
    classes: int | None,
    draw: Draw = NOTHING_KNOWN,
    seen_classes: int | None = None,
) -> Choice:
    """Choose from what all ranks offer; each of them comes to the same choice.

    Args:
        offers: Of all ranks, in their order.
        count: How many images an audit asks about.
        kept: The half that stays, where it is known already.
        classes: How many classes the model has; None if it is not known.
        draw: What earlier looks say of the half that is drawn anew.
        seen_classes: Of how many classes there are images; None to count them.
    """
    seen: Counter[Form] = Counter()
    left_out: Counter[str] = Counter()
    for offer in offers:
        left_out.update(offer.left_out)
        seen.update({form: found.seen for form, found in offer.fresh.items()})
    form = max(seen, key=lambda each: seen[each], default=None)
    for other in seen:
        if form is not None and other != form and seen[other]:
            left_out[other.difference(form)] += seen[other]
    fixed = [offer.fixed[form] for offer in offers if form in offer.fixed]
    fresh = [offer.fresh[form] for offer in offers if form in offer.fresh]
    labels = {each.label for found in (*fixed, *fresh) for each in found.candidates}
    unknown = {label for label in labels if classes is not None and label >= classes}
    many = seen_classes or len(labels - unknown)

    may_stay, all_fresh = (
        [each for found in part for each in found.candidates if each.label not in unknown] for part in (fixed, fresh)
    )
    stay: list[Candidate] = []
    are_all = False
    if kept is None:
        everything = balanced(all_fresh, len(all_fresh), {})
        are_all = 0 < len(everything) <= count and all(found.is_whole for found in fresh)
        stay = everything if are_all else balanced(may_stay, room(num_stay(count, many), many), {})
        kept = Kept.of(stay)
    others = [each for each in all_fresh if each.digest not in kept.digests]
    asked = min(sum(kept.classes.values()), count if are_all else num_stay(count, many))
    anew = balanced(others, draw.room(count - asked, many), draw.seen or kept.classes, draw.followed, draw.giving)
    unknown = unknown.union(*(offer.unknown_labels for offer in offers))
    return Choice(form, stay, anew, are_all, unknown, left_out, many)


def room(count: int, classes: int | None) -> int:
    """Return how many images are drawn to ask about `count`: twice as many, if classes have less than two of these.

    The second image of a class then only gives its background.
    """
    is_enough = classes is not None and (not are_many(classes, count) or _OF_A_CLASS * classes <= count)
    return count if is_enough else _OF_A_CLASS * count


def are_many(classes: int | None, count: int) -> bool:
    """Return whether there are too many classes for each to have a few of the images that are asked about."""
    return classes is not None and classes >= _MANY and classes * _FEW > count


def num_stay(count: int, classes: int | None) -> int:
    """Return how many of the images stay: half of them, or of many classes a quarter."""
    return (count + 3) // 4 if are_many(classes, count) else (count + 1) // 2
