"""Reservoir: a random sample of the images of a whole pass, balanced over the classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from cam_callbacks.data.balancing import BalancedChoice, Candidate, class_key
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet

_MAX_FORMS = 4  # of images that are kept until it is known which are the most
_AT_ONCE = 32  # images of a batch, among which is chosen together with those that are there


class Form(NamedTuple):
    """What images must have in common to be put into one batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    has_masks: bool
    has_groups: bool
    annotations: tuple[int, ...] | None = None

    @classmethod
    def of(cls, samples: Samples | ProbeSet) -> Form:
        """Return that of images; estimated masks were not with them."""
        has_masks = samples.masks is not None and not getattr(samples, "masks_estimated", False)
        given = None if samples.annotations is None else tuple(samples.annotations.shape[1:])
        return cls(tuple(samples.images.shape[1:]), samples.images.dtype, has_masks, samples.groups is not None, given)

    def difference(self, other: Form) -> str:
        """Say how images of this form differ from those of another."""
        if self.shape != other.shape:
            return "of another size"
        if self.dtype != other.dtype:
            return "of another type"
        if self.annotations != other.annotations:
            return "with labels of another kind"
        part = "masks" if self.has_masks != other.has_masks else "groups"
        return f"with {part}" if getattr(self, f"has_{part}") else f"without {part}"


@dataclass(frozen=True)
class Found:
    """What one process has found of one form.

    Attributes:
        seen: How many images have come; of batches that were passed over, none is counted.
        is_whole: Whether all of them are among the candidates.
        candidates: The best of them, as `balanced` chooses.
    """

    seen: int
    is_whole: bool
    candidates: list[Candidate]


class Reservoir:
    """Draws a random sample from the images that pass by, the same one from the same batches.

    Each image gets a random key, and of each class those with the smallest keys stay (`balanced`). The keys follow
    from the stream, the process, and the place of the batch alone. So a batch none of whose keys is small enough need
    not be read, and only images that stay are copied.

    Args:
        count: How many images to draw.
        stream: A name. Another one draws other images.
        rank: This process, of several that draw together.
        classes: How many classes there are, so that larger labels are passed over; None if it is not known.
        form: The form of the images that are wanted; None for that of most.
        taken: How many images of each class are taken already, for the balance.
        followed: How many images of some classes are drawn before all others, as in `balanced`.
        giving: How many are on top of their turn, as in `balanced`.
        excluded: Digests of images that are not wanted.

    Attributes:
        unknown_labels: Labels of images that were passed over, because there is no such class.
        left_out: How many images were left out, by reason.
    """

    def __init__(
        self,
        count: int,
        stream: str,
        *,
        rank: int = 0,
        classes: int | None = None,
        form: Form | None = None,
        taken: Mapping[int, int] | None = None,
        followed: Mapping[int, int] | None = None,
        giving: Mapping[int, int] | None = None,
        excluded: Container[bytes] = (),
    ) -> None:
        self.count, self.unknown_labels, self.left_out = count, set[int](), Counter[str]()
        self._stream, self._rank, self._classes, self._form = stream, rank, classes, form
        self._excluded = excluded
        self._choice = partial(BalancedChoice, count, taken or {}, stream, followed or {}, giving or {})
        self._kept: dict[Form, _OfOneForm] = {}
        self._batches: Counter[int] = Counter()  # of each source, so far
        self._sizes: dict[int, int] = {}  # of the last batch of each source that was read
        self._draw: Random | None = None  # of the keys of the next batch
        self._keys: list[float] = []
        self._is_wanted = True

    def wants_next(self, source: int) -> bool:
        """Draw the keys of the next batch of a source, and return whether an image of it may stay.

        It is taken to be as large as the one before. Without this call `offer` does it.
        """
        self._draw = Random(f"{self._stream}, rank {self._rank}, source {source}, batch {self._batches[source]}")
        self._batches[source] += 1
        size = self._sizes.get(source)
        self._keys = [self._draw.random() for _ in range(size or 0)]
        limits = [kept.choice.limit_of_source(source, self._classes) for kept in self._kept.values()]
        self._is_wanted = size is None or min(self._keys, default=1.0) < max(limits, default=inf)
        if not self._is_wanted:
            for kept in self._kept.values():
                kept.is_whole = False
        return self._is_wanted

    def offer(self, samples: Samples, source: int = 0) -> None:
        """Consider the images of a batch, on any device; keep copies of those that stay on the CPU.

        Images with a negative label, the usual mark of "no label", are passed over.

        Args:
            samples: The images, with labels.
            source: Where they come from, such as one of several loaders: the choice is balanced over these, too.
        """
        assert samples.labels is not None
        if self._draw is None:
            self.wants_next(source)
        if not self._is_wanted:
            self._draw = None
            return
        assert self._draw is not None
        keys = self._keys + [self._draw.random() for _ in range(len(samples.images) - len(self._keys))]
        self._draw, self._sizes[source] = None, len(samples.images)
        labels: list[int] = samples.labels.tolist()
        form = Form.of(samples)
        kept = self._of_form(form)
        drawn: list[tuple[Candidate, Samples]] = []
        for key, row in sorted(zip(keys, range(len(labels)), strict=False)):
            label = labels[row]
            if label < 0:
                continue
            if self._classes is not None and label >= self._classes:
                self.unknown_labels.add(label)
            elif kept is None:
                self.left_out["of yet other kinds" if self._form is None else form.difference(self._form)] += 1
            elif key >= kept.choice.limit(label, source):
                kept.seen, kept.is_whole = kept.seen + 1, False
            else:
                found = self._drawn(kept, samples.row(row), key, label, source)
                drawn += [] if found is None else [found]
                if len(drawn) == _AT_ONCE:
                    kept.add(drawn)
                    drawn = []
        if kept is not None and drawn:
            kept.add(drawn)

    def found(self) -> dict[Form, Found]:
        """Return what was found, by form."""
        return {form: Found(kept.seen, kept.is_whole, kept.choice.chosen) for form, kept in self._kept.items()}

    def held(self, form: Form | None) -> dict[bytes, Samples]:
        """Return the images of a form that stay now, by digest."""
        return self._kept[form].images if form in self._kept else {}

    def __len__(self) -> int:
        """Return how many images of one form there are at most."""
        return max((len(kept.images) for kept in self._kept.values()), default=0)

    def _of_form(self, form: Form) -> _OfOneForm | None:
        """Return what is kept of a form; None if it is not wanted."""
        is_wanted = form == self._form if self._form is not None else len(self._kept) < _MAX_FORMS
        if form not in self._kept and is_wanted:
            self._kept[form] = _OfOneForm(self._choice())
        return self._kept.get(form)

    def _drawn(
        self, kept: _OfOneForm, one: Samples, key: float, label: int, source: int
    ) -> tuple[Candidate, Samples] | None:
        """Return an image that may stay; None if it is not finite or not wanted."""
        if not torch.isfinite(one.images).all():
            self.left_out["not finite"] += 1
            return None
        digest = digest_of(one.images, label)
        kept.seen += 1
        if digest in self._excluded:
            return None
        return Candidate(key, label, source, digest, self._rank, class_key(self._stream, label)), one


class _OfOneForm:
    """The images of one form that stay.

    Args:
        choice: What chooses among them.

    Attributes:
        images: By digest.
        seen: How many images have come.
        is_whole: Whether all of them have stayed.
    """

    def __init__(self, choice: BalancedChoice) -> None:
        self.choice = choice
        self.images: dict[bytes, Samples] = {}
        self.seen, self.is_whole = 0, True

    def add(self, drawn: Sequence[tuple[Candidate, Samples]]) -> None:
        """Keep of these images and of those that are there the best."""
        self.images |= {candidate.digest: image for candidate, image in drawn}
        self.choice.add([candidate for candidate, _ in drawn])
        gone = self.images.keys() - {each.digest for each in self.choice.chosen}
        for digest in gone:
            del self.images[digest]
        self.is_whole = self.is_whole and not gone


def digest_of(image: Tensor, label: int) -> bytes:
    """Return what tells an image (any shape) and its class from all others."""
    content = image.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(content.data).digest() + label.to_bytes(8, "little", signed=True)
