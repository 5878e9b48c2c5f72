"""The question of a regression: how large is this number?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cam_callbacks.audit.classes import only_known
from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.question import AuditTask, Question, Readings, generator_of
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader
from cam_callbacks.explain.targets import RegressionTarget, Targets

_LEAST_DIFFERENCE = 0.1  # of the range of most numbers: donors that differ by less tell nothing
_MOST = (0.05, 0.95)  # quantiles
_TO_BE_STRANGE, _FOLLOWS = 10, 0.7  # images; a correlation


class Numbers(Question):
    """Each image is asked for one of its numbers.

    One kind of donors has nearly the same number; the other kind is half of all images away. The gap is the slope of
    the answer on the donor's number, at the same object: 0, the background is not used; 1, it decides.

    How right an answer is, the skill: 1 minus its error, divided by the mean error of always answering the median.

    Args:
        probes: Images with `annotations` (N, outputs) floating point.

    Raises:
        ValueError: There are none, or all images have the same numbers.
    """

    task: ClassVar[AuditTask] = "regression"
    endings: ClassVar[tuple[str, ...]] = ("",)
    is_counted: ClassVar[bool] = False
    reads_classes: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet) -> None:
        numbers = probes.annotations
        if numbers is None or not numbers.is_floating_point():
            raise ValueError("probes have no numbers; give ProbeSet(images, annotations=...), (N, outputs)")
        self._numbers = numbers.float().where(torch.isfinite(numbers), torch.nan)
        low, high = self._numbers.nanquantile(torch.tensor(_MOST), dim=0)
        differing = (high > low).nonzero().flatten()
        if not len(differing):
            raise ValueError(f"all {len(probes)} probes have the same numbers; the audit compares different ones")
        turns = torch.randperm(len(numbers), generator=generator_of(probes))
        super().__init__(probes, differing[turns % len(differing)])
        self.truth = self._numbers.gather(1, self.about.unsqueeze(1)).squeeze(1)
        self.is_asked = torch.isfinite(self.truth)
        middle = self._numbers.nanmedian(dim=0).values
        self._middle = middle[self.about]
        self._mean_error = (self._numbers - middle).abs().nanmean(dim=0)[self.about]
        self._least = _LEAST_DIFFERENCE * (high - low)[self.about]

    @property
    def names(self) -> ClassNames:
        """Those that are given, else "number 0", and so on; of a single one "the number"."""
        count = self._numbers.shape[1]
        return super().names or ClassNames(["the number"] if count == 1 else [f"number {i}" for i in range(count)])

    @property
    def truths(self) -> list[str]:
        """The number."""
        return [f"{number:.3g}" for number in self.truth.tolist()]

    @property
    def chance(self) -> Tensor:
        """That of always answering the median: 0, or more if some numbers are so far off that it is cut off at -1."""
        return self._skill(self._middle)

    def _skill(self, answers: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (n,) how right answers are to the images at `rows` (n,), all if None."""
        truth, mean_error = self.truth.to(answers.device), self._mean_error.to(answers.device)
        if rows is not None:
            rows = rows.to(answers.device)
            truth, mean_error = truth[rows], mean_error[rows]
        return (1 - (answers - truth).abs() / mean_error).clamp_min(-1)

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images with nearly the same number, and images half of all images away."""
        same, other = (torch.full((len(self.about), count), -1) for _ in range(2))
        for index in sorted(set(self.about.tolist())):
            numbers = self._numbers[:, index]
            known = (usable & torch.isfinite(numbers)).nonzero().flatten()
            order = known[numbers[known].argsort(stable=True)]
            if len(order) <= 2 * count:
                continue
            asked = self.about[order] == index
            same[order[asked]] = _neighbors(order, count)[asked]
            shifts = len(order) // 2 + torch.arange(count) - count // 2
            places = (torch.arange(len(order)).unsqueeze(1) + shifts) % len(order)
            other[order[asked]] = order[places][asked]
        return Donors(same, other)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return the skill of the answers, at least -1, and the numbers themselves.

        Raises:
            ValueError: The model does not return as many numbers.
        """
        found = outputs.columns(output).detach().float()
        rows, count = rows.cpu(), self._numbers.shape[1]
        if found.ndim != 2 or found.shape[1] != count:
            raise ValueError(f"the model returned {tuple(found.shape)}; of an image {count} numbers are known")
        answer = found.gather(1, self.about[rows].to(found.device).unsqueeze(1)).squeeze(1)
        return only_known(torch.stack([self._skill(answer, rows), answer]), answer.unsqueeze(1))

    def gaps(self, same: Readings, other: Readings, donors: Donors) -> Mapping[str, Tensor]:
        """Return the slope (N, K) of the answer on the donor's number, within [-1, 1]."""
        numbers = [self._number_of(each[:, : same.shape[2]]) for each in (donors.same, donors.other)]
        step = numbers[1] - numbers[0]
        step = step.where(step.abs() >= self._least[: len(step)].unsqueeze(1), torch.nan)
        return {"": ((other[1] - same[1]) / step).clamp(-1, 1)}

    def _number_of(self, images: Tensor) -> Tensor:
        """Return the numbers of donors (N, K): those that the images which they give to are asked for."""
        numbers = self._numbers[images.clamp_min(0), self.about[: len(images)].unsqueeze(1)]
        return numbers.where(images >= 0, torch.nan)

    def targets(self, rows: Tensor) -> Targets:
        """Return the number that each image is asked for."""
        targets: Sequence[RegressionTarget] = [RegressionTarget(index) for index in self.about[rows].tolist()]
        return targets

    def remarks(self, readings: Readings, rows: Tensor) -> Iterator[str]:
        """Yield numbers that answers follow without being better than their median: they are in other units."""
        skill, answers = readings[:2].double()
        for index in sorted(set(self.about.tolist())):
            own = (self.about[rows] == index) & skill.isfinite()
            pair = torch.stack([answers[own], self.truth[rows][own].double()])
            if own.sum() >= _TO_BE_STRANGE and skill[own].mean() <= 0 and pair.corrcoef()[0, 1] > _FOLLOWS:
                yield (
                    f"the answers are far from {self.names.name(index)}, but rise with it (correlation "
                    f"{pair.corrcoef()[0, 1]:.2f}), as in other units. Return them in those of the labels: "
                    "forward_fn=lambda module, images: module(images) * std + mean"
                )

    def sides(self, index: int) -> Tensor:
        """Return which images have a number above the median."""
        numbers = self._numbers[:, index]
        return (numbers > numbers.nanmedian()).long()

    @property
    def told(self) -> Tensor:
        """Return the numbers of the images, (N, numbers)."""
        return self._numbers


def _neighbors(order: Tensor, count: int) -> Tensor:
    """Return (n, `count`) others that are near in an order (n,), of which each is given as often as the others."""
    size = count + 1
    starts = range(0, len(order) - len(order) % size, size)
    found = torch.empty(len(order), count, dtype=torch.long)
    for start in starts:
        stop = len(order) if start == starts[-1] else start + size
        block = order[start:stop]
        found[start:stop] = torch.stack([block.roll(turn + 1) for turn in range(count)], dim=1)
    return found
