"""The question of a classifier of several labels: does the image have this label?"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import torch
from torch import Tensor

from cam_callbacks.audit.classes import checked_classes, only_known
from cam_callbacks.audit.donors import Donors, in_turn
from cam_callbacks.audit.question import AuditTask, Question, Readings, generator_of
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader

_FEWEST = 2  # images with a label, and without it


class SeveralLabels(Question):
    """Each image is asked about one label, which it has or does not have; an answer that says so is right.

    One kind of donors agrees with the image in this label, the other does not. So the gap is how much more often the
    label is seen before a background that goes with it, whether it is there or not.

    Labels take turns, and so do images with and without each: rare labels come as often as frequent ones, as far as
    images go.

    Args:
        probes: Images with `annotations` (N, labels) bool.

    Raises:
        ValueError: No label is there in two images, and missing in two.
    """

    task: ClassVar[AuditTask] = "multi-label"
    multi_label: ClassVar[bool] = True

    def __init__(self, probes: ProbeSet) -> None:
        marks = probes.annotations
        if marks is None or marks.dtype != torch.bool:
            raise ValueError("probes have no labels; give ProbeSet(images, annotations=...), (N, labels) bool")
        self._marks = marks
        super().__init__(probes, _asked_about(probes, marks))
        self.is_there = marks.gather(1, self.about.unsqueeze(1)).squeeze(1)

    @property
    def truths(self) -> list[str]:
        """The label, or that it is missing."""
        pairs = zip(super().truths, self.is_there.tolist(), strict=True)
        return [f"{'' if is_there else 'no '}{name}" for name, is_there in pairs]

    @property
    def chance(self) -> float:
        """What is right if each label is always said to be there, or never, whichever is true of more images."""
        sides = Counter(zip(self.about.tolist(), self.is_there.tolist(), strict=True))
        labels = {label for label, _ in sides}
        return sum(max(sides[label, True], sides[label, False]) for label in labels) / len(self.about)

    def usable(self, masks: Tensor | None, are_given: bool) -> Tensor:
        """Return those with an object and a background; an image that is known to have no object is all background."""
        usable = super().usable(masks, are_given)
        if masks is None or not are_given:
            return usable
        return usable | (~masks.flatten(1).any(dim=1) & ~self._marks.any(dim=1))

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images that agree in the label, and images that do not."""
        generator = generator_of(self.probes)
        same, other = (torch.full((len(self.about), count), -1) for _ in range(2))
        for label in sorted(set(self.about.tolist())):
            for is_there in (False, True):
                takers = ((self.about == label) & (self.is_there == is_there)).nonzero().flatten()
                for found, side in ((same, is_there), (other, not is_there)):
                    givers = (usable & (self._marks[:, label] == side)).nonzero().flatten()
                    found[takers] = in_turn(takers, givers, count, generator)
        return Donors(same, other)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return whether answers are right about the label, and the probability that they give to what is true.

        Raises:
            ValueError: The model does not have a label.
        """
        scores = outputs.class_scores(output).probabilities
        if self._marks.shape[1] == 1 and scores.shape[1] == 2:
            scores = scores[:, 1:]  # a single logit is that of the label, and was read as one of two classes
        rows = rows.cpu()
        labels = checked_classes(self.about[rows], scores).to(scores.device)
        is_there = self.is_there[rows].to(scores.device)
        said = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        probability = torch.where(is_there, said, 1 - said)
        return only_known(torch.stack([((said > 0.5) == is_there).float(), probability]), scores)

    def sides(self, index: int) -> Tensor:
        """Return which images have the label."""
        return self._marks[:, index].long()

    @property
    def told(self) -> Tensor:
        """Return which labels the images have, (N, labels)."""
        return self._marks


def _asked_about(probes: ProbeSet, marks: Tensor) -> Tensor:
    """Return (N,) the label that each image is asked about."""
    with_label = marks.sum(dim=0)
    possible = [label for label, count in enumerate(with_label.tolist()) if _FEWEST <= count <= len(marks) - _FEWEST]
    if not possible:
        raise ValueError(
            f"no label is there in {_FEWEST} of the {len(marks)} images and missing in {_FEWEST}, which the audit needs"
        )
    times: Counter[tuple[int, bool]] = Counter()
    about = torch.empty(len(marks), dtype=torch.long)
    for row in torch.randperm(len(marks), generator=generator_of(probes)).tolist():
        sides = {label: bool(marks[row, label]) for label in possible}
        label = min(possible, key=lambda each: (times[each, sides[each]], times[each, not sides[each]]))
        times[label, sides[label]] += 1
        about[row] = label
    return about
