"""AuditImages: the images of the audit, of which one half stays, and the other is drawn anew at each look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.audit.drawing import as_drawn
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.callback.audit_offers import (
    NOTHING_KNOWN,
    Choice,
    Draw,
    Kept,
    Offer,
    are_many,
    chosen,
    num_stay,
    room,
)
from cam_callbacks.callback.kept_images import KeptImages
from cam_callbacks.data.balancing import class_key
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.data.reservoir import Form, Reservoir, digest_of


@dataclass(frozen=True, eq=False)
class AuditSet:
    """The images of one audit.

    Attributes:
        images: The images; first those that are asked about, sorted by class, then those that only give backgrounds.
        is_fixed: Of each, whether it is of the half that all looks share.
        num_asked: How many are asked about.
        drawn_for: (n,) bool, of those asked about, which were drawn because their class is followed; None where all
            classes are judged.
        rivals: By class, those whose images give half of its backgrounds of another class.
    """

    images: ProbeSet
    is_fixed: Tensor
    num_asked: int
    drawn_for: Tensor | None = None
    rivals: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        fixed: ProbeSet | None,
        fresh: ProbeSet | None,
        count: int,
        classes: int | None = None,
        draw: Draw = NOTHING_KNOWN,
    ) -> AuditSet | None:
        """Put both halves together; None where both are missing.

        Args:
            fixed: The half that stays.
            fresh: The half that was drawn for this look.
            count: How many images are asked about at most.
            classes: How many classes the model has; None if it is not known.
            draw: What earlier looks said when the half that is fresh was drawn.
        """
        parts = [part for part in (fixed, fresh) if part is not None]
        if not parts:
            return None
        images, num_fixed = ProbeSet.joined(parts), 0 if fixed is None else len(fixed)
        labels = images.labels
        assert labels is not None
        asked = torch.arange(num_fixed)
        if fresh is not None:
            asked = torch.arange(0)
            if fixed is not None:
                asked = _asked(fixed, num_stay(count, classes), NOTHING_KNOWN)
            asked = torch.cat([asked, num_fixed + _asked(fresh, count - len(asked), draw)])
        asked = asked[:count]
        asked = asked[labels[asked].argsort(stable=True)]
        order = torch.cat([asked, _partners(labels, asked, draw)])
        drawn_for = None
        if are_many(classes, count):
            is_followed = torch.isin(labels[asked], torch.tensor(list(draw.followed), dtype=torch.long))
            drawn_for = is_followed & (asked >= num_fixed)
        return cls(images.subset(order), order < num_fixed, len(asked), drawn_for, draw.rivals)


def _asked(images: ProbeSet, count: int, draw: Draw) -> Tensor:
    """Return which images (n,) are asked about, n at most `count`: those of followed classes, then classes in turn.

    The order of classes is that of a hash, so that none comes first at each look. Those that were drawn only to give
    their background come last.
    """
    turns: Counter[int] = Counter()
    keys, giving = [], draw.giving
    assert images.labels is not None
    for row, label in enumerate(images.labels.tolist()):
        turn = turns[label] - giving[label]
        is_followed = turn < draw.followed.get(label, 0)
        keys.append((turn < 0, not is_followed, turn, class_key(images.fingerprint, label), row))
        turns[label] += 1
    return torch.tensor([row for *_, row in sorted(keys)[:count]], dtype=torch.long)


def _partners(labels: Tensor, asked: Tensor, draw: Draw) -> Tensor:
    """Return the images that only give their background.

    One is of the class of each image that is alone of it among those asked about; others are of rivals.
    """
    sizes = Counter(labels[asked].tolist())
    wanted = Counter({label: 1 for label, size in sizes.items() if size == 1}) | draw.giving
    found = []
    for row in sorted(set(range(len(labels))) - set(asked.tolist())):
        if wanted[int(labels[row])]:
            wanted[int(labels[row])] -= 1
            found.append(row)
    return torch.tensor(found, dtype=torch.long)


class AuditImages(KeptImages):
    """Draws the images of the audit from whole passes over the validation set; `images` are those that stay.

    At the first look all are drawn. Half of them stay from then on, so that looks can be compared; the others are
    drawn anew at each look, so that a run sees more of the data. Of a data set without more images, all stay.

    Args:
        count: How many images an audit has.

    Attributes:
        is_first: Whether those that stay are not known yet, or not wanted, so that all are drawn.
        are_all: Whether the images that stay are all that there are.
        classes: Of how many classes there were images at the first look; None before it.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.are_all = False
        self.is_first = True
        self._is_anew = False
        self._reservoirs: tuple[Reservoir, ...] = ()  # at the first look one for each half, then one for the fresh half
        self._kept: Kept | None = None
        self.draw = NOTHING_KNOWN
        self.classes: int | None = None

    def begin(self, look: str, rank: int, classes: int | None, anew: bool, draw: Draw = NOTHING_KNOWN) -> None:
        """Begin to draw images.

        Args:
            look: A name. Another one draws other images anew.
            rank: This process.
            classes: How many classes the model has; None if it is not known.
            anew: Draw all of them, and keep none, as for each test: its images are not those of the validation.
            draw: What earlier looks say of the half that is drawn anew.
        """
        self.draw = draw
        self._is_anew, self.is_first = anew, anew or self.images is None
        self._reservoirs = ()
        known: dict[str, Any] = {"rank": rank, "classes": classes}
        if self.images is None or anew:  # as `is_first`
            self._reservoirs = (
                Reservoir(room(num_stay(self.count, None), classes), "fixed", **known),
                Reservoir(room(self.count, classes), f"look {look}", **known),
            )
        elif not self.are_all:
            kept = self.kept
            assert kept is not None
            known |= {"form": Form.of(self.images), "excluded": kept.digests}
            known |= {"taken": draw.seen or kept.classes, "followed": draw.followed, "giving": draw.giving}
            fresh = self.count - min(len(self.images), num_stay(self.count, self.classes))
            self._reservoirs = (Reservoir(draw.room(fresh, self.classes), f"look {look}", **known),)

    def rest(self) -> None:
        """Draw none, where this evaluation is not audited."""
        self._reservoirs = ()

    def wants_next(self, loader: int) -> bool:
        """Return whether an image of the next batch of a loader may be drawn. Call it once for each batch."""
        return any([each.wants_next(loader) for each in self._reservoirs])  # noqa: C419 - each draws its keys

    def offer(self, samples: Samples, loader: int, task: AuditTask | None = None, has_background: bool = True) -> None:
        """Consider the samples of a batch of one of the loaders.

        Args:
            samples: The samples.
            loader: Which of the loaders.
            task: What the model is trained to answer; None for what the labels say.
            has_background: Whether class 0 of a segmentation is the background.
        """
        drawn = as_drawn(samples, task, has_background) if self._reservoirs else None
        if drawn is not None:
            for each in self._reservoirs:
                each.offer(drawn, loader)

    def offered(self) -> Offer:
        """Return what this rank has drawn."""
        if not self._reservoirs:
            return Offer()
        *fixed, fresh = self._reservoirs
        return Offer(fixed[0].found() if fixed else {}, fresh.found(), fresh.unknown_labels, fresh.left_out)

    def choose(self, offers: Sequence[Offer], classes: int | None) -> Choice:
        """Choose from what all ranks offer, in their order; each of them comes to the same choice."""
        seen = None if self.is_first else self.classes
        choice = chosen(offers, self.count, None if self.is_first else self.kept, classes, self.draw, seen)
        if not self._is_anew:
            self.classes = choice.classes
        return choice

    def drawn(self, choice: Choice, rank: int) -> dict[bytes, Samples]:
        """Return those of the images chosen that this rank holds, by digest."""
        held: dict[bytes, Samples] = {}
        for each in self._reservoirs:
            held |= each.held(choice.form)
        return {each.digest: held[each.digest] for each in choice if each.rank == rank}

    def __len__(self) -> int:
        """Return how many there are now, or would be drawn now on this rank."""
        kept = 0 if self.images is None or self.is_first else len(self.images)
        return min(kept + (len(self._reservoirs[-1]) if self._reservoirs else 0), self.count)

    @property
    def kept(self) -> Kept | None:
        """What is known of the half that stays; None where it is not known yet."""
        if self._kept is None and self.images is not None and self.images.labels is not None:
            labels = self.images.labels.tolist()
            pairs = zip(self.images.images, labels, strict=True)
            self._kept = Kept({digest_of(*pair) for pair in pairs}, Counter(labels))
        return self._kept

    def keep(self, images: ProbeSet, are_all: bool = False) -> bool:
        """Keep the half that stays, or all images that there are, once all ranks have them.

        Returns:
            Whether they are those that were kept before, or the first.
        """
        self._kept, self.are_all = None, are_all
        return super().keep(images)

    def sync(self, images: ProbeSet | None, are_all: bool, classes: int | None) -> None:
        """Take what stays from the first rank."""
        self.classes = classes
        if images is not None:
            self.keep(images, are_all)
            self.is_first = self._is_anew

    def state_dict(self, room: int) -> dict[str, Any]:
        """Return tensors and primitives; with the half that stays if it fits into `room` bytes, else without."""
        return super().state_dict(room) | {"are_all": self.are_all, "classes": self.classes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the half that stayed in an earlier run, unless another number is wanted."""
        before = self.images
        super().load_state_dict(state)
        self._kept, self.classes = None, state.get("classes")
        if self.images is not before:
            self.are_all = state.get("are_all", False)
