"""AuditImages: the images of the audit, of which one half stays, and the other is drawn anew at each look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cam_callbacks.audit.drawing import as_drawn
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.callback.audit_offers import Choice, Kept, Offer, chosen, half
from cam_callbacks.callback.kept_images import KeptImages
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.data.reservoir import Form, Reservoir, digest_of


@dataclass(frozen=True, eq=False)
class AuditSet:
    """The images of one audit.

    Attributes:
        images: N images, sorted by class.
        is_fixed: (N,) bool, whether an image is of the half that all looks share.
    """

    images: ProbeSet
    is_fixed: Tensor

    @classmethod
    def of(cls, fixed: ProbeSet | None, fresh: ProbeSet | None) -> AuditSet | None:
        """Put both halves together; None where both are missing."""
        parts = [part for part in (fixed, fresh) if part is not None]
        if not parts:
            return None
        images = ProbeSet.joined(parts)
        assert images.labels is not None
        order = images.labels.argsort(stable=True)
        return cls(images.subset(order), order < (0 if fixed is None else len(fixed)))


class AuditImages(KeptImages):
    """Draws the images of the audit from whole passes over the validation set; `images` are those that stay.

    At the first look all are drawn. Half of them stay from then on, so that looks can be compared; the others are
    drawn anew at each look, so that a run sees more of the data. Of a data set without more images, all stay.

    Args:
        count: How many images an audit has.

    Attributes:
        is_first: Whether those that stay are not known yet, or not wanted, so that all are drawn.
        are_all: Whether the images that stay are all that there are.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.are_all = False
        self.is_first = True
        self._is_anew = False
        self._reservoirs: tuple[Reservoir, ...] = ()  # at the first look one for each half, then one for the fresh half
        self._kept: Kept | None = None

    def begin(self, look: str, rank: int, classes: int | None, anew: bool) -> None:
        """Begin to draw images.

        Args:
            look: A name. Another one draws other images anew.
            rank: This process.
            classes: How many classes the model has; None if it is not known.
            anew: Draw all of them, and keep none, as for each test: its images are not those of the validation.
        """
        self._is_anew, self.is_first = anew, anew or self.images is None
        self._reservoirs = ()
        known: dict[str, Any] = {"rank": rank, "classes": classes}
        if self.images is None or anew:  # as `is_first`
            self._reservoirs = (
                Reservoir(half(self.count), "fixed", **known),
                Reservoir(self.count, f"look {look}", **known),
            )
        elif not self.are_all and len(self.images) < self.count:
            kept = self.kept
            assert kept is not None
            known |= {"form": Form.of(self.images), "taken": kept.classes, "excluded": kept.digests}
            self._reservoirs = (Reservoir(self.count - len(self.images), f"look {look}", **known),)

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
        return chosen(offers, self.count, None if self.is_first else self.kept, classes)

    def drawn(self, choice: Choice, rank: int) -> dict[bytes, Samples]:
        """Return those of the images chosen that this rank holds, by digest."""
        held: dict[bytes, Samples] = {}
        for each in self._reservoirs:
            held |= each.held(choice.form)
        return {each.digest: held[each.digest] for each in choice if each.rank == rank}

    def __len__(self) -> int:
        """Return how many there are now, or would be drawn now on this rank."""
        kept = 0 if self.images is None or self.is_first else len(self.images)
        return kept + (len(self._reservoirs[-1]) if self._reservoirs else 0)

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

    def sync(self, images: ProbeSet | None, are_all: bool) -> None:
        """Take what stays from the first rank."""
        if images is not None:
            self.keep(images, are_all)
            self.is_first = self._is_anew

    def state_dict(self, room: int) -> dict[str, Any]:
        """Return tensors and primitives; with the half that stays if it fits into `room` bytes, else without."""
        return super().state_dict(room) | {"are_all": self.are_all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the half that stayed in an earlier run, unless another number is wanted."""
        before = self.images
        super().load_state_dict(state)
        self._kept = None
        if self.images is not before:
            self.are_all = state.get("are_all", False)
