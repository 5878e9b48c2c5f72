"""Evidence: what the looks of a run have found so far, image by image, and what follows from them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.measure_spec import FORMS
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Measure, standard_error, student_t_quantile, student_t_tail

_NUM_LOOKS = 5  # that are pooled: the model changes from look to look
_WORST = -1.0  # what is assumed of one more image, that nobody has seen
_POWER = 0.8
_TAIL = 0.025
_PRIOR = 2  # images without a gap that are imagined of each class
_INDICES = ("looks", "images", "labels", "donors", "turns")
_GAPS = ("bg_gap", "outline_gap", "ring_gap")  # judged in all their forms
_OTHERS = ("bg_gap_larger_masks", "bg_gap_smaller_masks", "recolor_gap", "blur_loss")
_OF_BACKGROUND = {*_OTHERS, *(f"{gap}{ending}" for gap in _GAPS for ending in ("", "_probability", *FORMS))}


@dataclass(frozen=True)
class Pooled:
    """A mean over images that were seen at several looks.

    Attributes:
        observed: The mean.
        mean: The mean, with one more image whose value speaks against a gap as much as it can: -1.
        error: Its standard error. Answers to the same image, and to images with the same donor, depend on each other.
        freedom: The degrees of freedom of the error.
    """

    observed: float
    mean: float
    error: float
    freedom: int

    def interval(self, number: int = 1) -> tuple[float, float]:
        """Return the interval of the mean, within [-1, 1], of which 95% hold for so many means at once."""
        half = student_t_quantile(_TAIL / number, self.freedom) * self.error
        return max(self.observed - half, -1.0), min(self.observed + half, 1.0)

    def p_value(self, threshold: float) -> float:
        """Return how probable such a mean, or a larger one, is at most if the true one is not above the threshold."""
        return student_t_tail((self.mean - threshold) / self.error, self.freedom)

    def detectable(self, threshold: float, level: float) -> float:
        """Return the smallest true mean of which four in five are found to be above the threshold."""
        beyond = student_t_quantile(level, self.freedom) + student_t_quantile(1 - _POWER, self.freedom)
        return threshold + beyond * self.error


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the last looks have found: M answers, each to an image with one of its donors of both kinds.

    Those to an image at a look follow each other, donor after donor.

    Attributes:
        num_looks: How many looks of the run were judged, those that are forgotten included.
        looks: (M,) int64, the number of the look, from 1.
        images: (M,) int64, which image it was: `ProbeSet.image_ids`.
        labels: (M,) int64, its class.
        donors: (2, M) int64, which images gave a background of the same class, and of another one; -1 for none.
        turns: (M,) int64, how many answers to the image at the look come before.
        drawn_for: (M,) bool, whether the image was drawn because its class was followed: such answers count for their
            class alone, and others for all classes together.
        task: What the model is trained to answer.
        followed: Where there are too many classes to have images of all: those that were followed, each with the images
            that made it suspect, which do not count for it; None where all classes are judged.
        rivals: By class, those that were most often the most probable beside it when it was last seen:
            `AuditResult.rivals`.
        values: By measure, (M,) float32; NaN where it is not defined, or was not measured with these donors.
    """

    num_looks: int
    looks: Tensor
    images: Tensor
    labels: Tensor
    donors: Tensor
    turns: Tensor
    drawn_for: Tensor
    task: str
    values: Mapping[str, Tensor]
    followed: Mapping[int, Sequence[int]] | None = None
    rivals: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, result: AuditResult) -> Evidence:
        """Take the evidence from the result of a first look."""
        same, other = (_ids_of(donors, result.image_ids) for donors in (result.donors.same, result.donors.other))
        times = same.shape[1]
        return cls(
            1,
            torch.ones(same.numel(), dtype=torch.long),
            result.image_ids[: len(same)].repeat_interleave(times),
            result.labels.repeat_interleave(times),
            torch.stack([same.flatten(), other.flatten()]),
            torch.arange(times).repeat(len(same)),
            torch.zeros(same.numel(), dtype=torch.bool)
            if result.drawn_for is None
            else result.drawn_for.repeat_interleave(times),
            result.task,
            {name: _by_donor(result[name], times).flatten() for name in _kept(result) if name in result},
            None if result.drawn_for is None else {},
            {} if result.drawn_for is None else result.rivals,
        )

    def followed_by(self, result: AuditResult) -> Evidence:
        """Add the next look, and forget the one that is too long ago.

        If the background is measured in another way, all evidence is forgotten; of other measures that of those alone.
        """
        last = Evidence.of(result)
        number = self.num_looks + 1
        is_alike = self.task == last.task and (self.followed is None) == (last.followed is None)
        if not is_alike or self.values.keys() & _OF_BACKGROUND != last.values.keys() & _OF_BACKGROUND:
            return replace(last, num_looks=number, looks=torch.full_like(last.looks, number))
        kept = self.looks > number - _NUM_LOOKS
        unknown = torch.full_like(self.looks, torch.nan, dtype=torch.float32)
        before = {name: self.values.get(name, unknown) for name in last.values}
        return Evidence(
            number,
            torch.cat([self.looks[kept], torch.full_like(last.looks, number)]),
            torch.cat([self.images[kept], last.images]),
            torch.cat([self.labels[kept], last.labels]),
            torch.cat([self.donors[:, kept], last.donors], dim=1),
            torch.cat([self.turns[kept], last.turns]),
            torch.cat([self.drawn_for[kept], last.drawn_for]),
            self.task,
            {name: torch.cat([before[name][kept], values]) for name, values in last.values.items()},
            self.followed,
            {**self.rivals, **last.rivals},
        )

    def following(self, classes: Iterable[int]) -> Evidence:
        """Return the same evidence, after which these classes are followed, too."""
        assert self.followed is not None
        seen = {label: self.images[self.labels == label].unique().tolist() for label in classes}  # type: ignore[no-untyped-call]
        return replace(self, followed={**seen, **self.followed})

    def seen(self) -> Counter[int]:
        """Return how many images of each class there were."""
        pairs = zip(self.images.tolist(), self.labels.tolist(), strict=True)
        return Counter(label for _, label in set(pairs))

    def scores(self, name: str) -> dict[int, float]:
        """Return how suspect each class is by all that was seen of it: a mean, nearer to 0 the fewer images there are.

        It tells which classes are worth more images, and nothing else.
        """
        values = self.values[name].double()
        known = ~values.isnan()
        found = {}
        for label in set(self.labels[known].tolist()):
            members = known & (self.labels == label)
            count = len(self.images[members].unique())  # type: ignore[no-untyped-call]
            found[label] = float(values[members].mean()) * count / (count + _PRIOR)
        return found

    def count(self, name: str, label: int | None = None) -> int:
        """Return how many images have a measure, of a class or of all."""
        return len(self.images[self._known(name, label)].unique())  # type: ignore[no-untyped-call]

    def _known(self, name: str, label: int | None) -> Tensor:
        known = ~self.values[name].isnan()
        if label is None:
            return known & ~self.drawn_for
        known = known & (self.labels == label)
        if self.followed is None:
            return known
        return (
            known
            & self.drawn_for
            & ~torch.isin(self.images, torch.tensor(self.followed.get(label, ()), dtype=torch.long))
        )

    def pooled(self, name: str, label: int | None = None, minus: str | None = None) -> Pooled:
        """Pool a measure over the looks: each image counts once, by the mean of its answers.

        Args:
            name: The measure.
            label: The class; None for all.
            minus: Another measure, which is subtracted: with the same donors, or with the first ones of the image if it
                was not measured with others.
        """
        values, givers = self.values[name].double(), list(self.donors)
        if minus is not None:
            first = torch.arange(len(values)) - self.turns
            subtracted = self.values[minus].double()
            if self.turns.any() and bool(subtracted[self.turns > 0].isnan().all()):
                subtracted = subtracted[first]
                givers += list(self.donors[:, first])
            values = values - subtracted
        known = self._known(name, label) & ~values.isnan()
        _, image, times = torch.unique(self.images[known], return_inverse=True, return_counts=True)
        count = len(times)
        # One more image, of its own donors.
        kinds = [torch.cat([each[known], torch.tensor([_NOBODY])]) for each in (self.images, *givers)]
        shares = 1 / times.double()[image]
        observed = float((shares * values[known]).sum() / count)
        values = torch.cat([values[known], torch.tensor([_WORST], dtype=torch.float64)])
        weights = torch.cat([shares, torch.ones(1, dtype=torch.float64)]) / (count + 1)
        mean = float((weights * values).sum())
        freedom = min(len(set(each.tolist())) for each in kinds) - 1
        return Pooled(observed, mean, standard_error(weights * (values - mean), kinds), max(freedom, 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the evidence as primitives."""
        parts: dict[str, Any] = {name: getattr(self, name).tolist() for name in _INDICES}
        followed = None if self.followed is None else {label: list(ids) for label, ids in self.followed.items()}
        rivals = {label: list(others) for label, others in self.rivals.items()}
        parts |= {"drawn_for": self.drawn_for.tolist(), "followed": followed, "rivals": rivals, "task": self.task}
        values = {
            name: [None if value != value else value for value in each.tolist()] for name, each in self.values.items()
        }
        return {"num_looks": self.num_looks, **parts, "values": values}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Evidence:
        """Make evidence from its `state_dict`."""
        parts = {name: torch.tensor(state[name], dtype=torch.long) for name in _INDICES}
        values = {name: _with_nan(each) for name, each in state["values"].items()}
        drawn_for = torch.tensor(state.get("drawn_for", [False] * len(parts["looks"])), dtype=torch.bool)
        task: str = state.get("task", "single-label")
        followed = None if state.get("followed") is None else _by_class(state["followed"])
        return cls(
            state["num_looks"],
            **parts,
            drawn_for=drawn_for,
            task=task,
            values=values,
            followed=followed,
            rivals=_by_class(state.get("rivals", {})),
        )


def _kept(result: AuditResult) -> Iterator[str]:
    """Yield the names of the measures that are judged."""
    yield from _OTHERS
    for gap in _GAPS:
        yield from result.forms_of(gap)
    for each in result.further:
        for name in (each.gap, each.placebo):
            if name is not None:
                yield from result.forms_of(name)


_NOBODY = -2  # the identity of the image that nobody has seen


def _ids_of(rows: Tensor, ids: Tensor) -> Tensor:
    """Return who the images at `rows` (N, K) are; -1 for none."""
    return torch.where(rows >= 0, ids[rows.clamp_min(0)], -1)


def _by_donor(measured: Measure, count: int) -> Tensor:
    """Return (N, `count`) the values with each donor, NaN for those not tried; without donors each value repeated."""
    if measured.by_donor is None:
        return measured.values.unsqueeze(1).expand(-1, count)
    return F.pad(measured.by_donor, (0, count - measured.by_donor.shape[1]), value=torch.nan)


def _by_class(given: Mapping[Any, Sequence[int]]) -> dict[int, Sequence[int]]:
    """Return what is known by class, whose numbers are strings where they were keys of JSON."""
    return {int(label): each for label, each in given.items()}


def _with_nan(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float32)
