"""Question: what a model is asked about each image of an audit, when it is right, and whose background it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from cam_callbacks.audit.attention import is_informative
from cam_callbacks.audit.donors import Donors
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader
from cam_callbacks.explain.targets import Targets

AuditTask = Literal["single-label", "multi-label", "regression", "segmentation", "detection", "embedding"]
"""What a model is trained to answer, as far as it can be audited."""

Readings: TypeAlias = Tensor
"""(R, n) float32: R numbers read from the answer to each of n images; NaN where there is no answer."""

Read: TypeAlias = Callable[[Any, Tensor, OutputReader], Readings]


class Question(ABC):
    """What a model is asked about each of N images. One subclass for each task.

    Attributes:
        task: The task.
        endings: What follows the name of a gap in each of its forms: nothing, the gap in right answers; the others vary
            less.
        is_counted: Whether an answer is right or wrong, and nothing between.
        asks_for_place: Whether an answer says where the object is.
        reads_classes: Whether class scores are read, of which it has to be found out whether they are probabilities.
        multi_label: Whether classes do not exclude each other.
        probes: The images, with the masks that the task has.
        about: (N,) int64, what an image is asked about: its class, one of the labels, one of the numbers. Each is
            tested by itself.
        is_there: (N,) bool, whether the image has what it is asked about.
        is_asked: (N,) bool, whether the image is asked at all.
    """

    task: ClassVar[AuditTask]
    endings: ClassVar[tuple[str, ...]] = ("", "_probability")
    is_counted: ClassVar[bool] = True
    asks_for_place: ClassVar[bool] = False
    reads_classes: ClassVar[bool] = True
    multi_label: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet, about: Tensor) -> None:
        self.probes, self.about = probes, about
        self.is_there = torch.ones_like(about, dtype=torch.bool)
        self.is_asked = self.is_there

    @property
    def names(self) -> ClassNames:
        """The names of what images are asked about; empty if they are not known."""
        return self.probes.class_names

    @property
    def truths(self) -> list[str]:
        """What is true of each image, in a few words."""
        return [self.names.name(index) for index in self.about.tolist()]

    @property
    @abstractmethod
    def chance(self) -> Tensor | float:
        """How right the best answer is that ignores the image: of each image, (N,), or the mean of all."""

    @abstractmethod
    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose donors whose background goes with the right answer, and donors whose background does not.

        Args:
            usable: (N,) bool, which images have a background to give.
            count: How many of each kind an image has.
        """

    @abstractmethod
    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Read how right the answers are, and after that the other numbers that gaps are made from.

        Args:
            output: What the model returned for n images.
            rows: (n,) which of the N images each is, or was made from.
            outputs: Reads scores out of it.
        """

    def prepare(self, ask: Callable[[Read], Readings]) -> None:
        """Find out what has to be known of the unchanged images; `ask` reads something from the answers to all."""
        return

    def usable(self, masks: Tensor | None, are_given: bool) -> Tensor:
        """Return (N,) which images have a background that can be exchanged.

        Args:
            masks: (N, *spatial) bool; None if there are none.
            are_given: Whether they are true, and not estimated.
        """
        return self.is_asked if masks is None else self.is_asked & is_informative(masks)

    def targets(self, rows: Tensor) -> Targets:
        """Return what heatmaps of the images at `rows` (n,) explain; None if no heatmap is about the answer."""
        return self.about[rows]

    def remarks(self, readings: Readings, rows: Tensor) -> Iterator[str]:
        """Yield what is strange about the answers to the unchanged images at `rows` (n,), if anything is."""
        yield from ()

    def sides(self, index: int) -> Tensor:
        """Return (N,) int64, the groups that simple properties of the images may tell apart; `index` as in `about`."""
        return self.about

    @property
    def told(self) -> Tensor:
        """What simple properties of the images may tell, as `data_properties` takes it; here (N,) classes."""
        return self.about

    def gaps(self, same: Readings, other: Readings, donors: Donors) -> Mapping[str, Tensor]:
        """Return the gaps (N, K) by their ending, between answers with donors of both kinds, (R, N, K) each."""
        return dict(zip(self.endings, same - other, strict=False))


def generator_of(probes: ProbeSet) -> torch.Generator:
    """Return a generator that is the same for the same images."""
    return torch.Generator().manual_seed(int(probes.fingerprint[:15], 16))


def most_frequent_share(labels: Tensor) -> float:
    """Return the share of the most frequent of the labels (N,)."""
    return float(labels.bincount().max() / len(labels))


def check_labels(probes: ProbeSet) -> Tensor:
    """Return the labels (N,) of images of at least two classes.

    Raises:
        ValueError: There are no labels, or all images are of one class.
    """
    if probes.labels is None:
        raise ValueError("probes have no labels; the audit compares classes: give ProbeSet(images, labels)")
    if len(set(probes.labels.tolist())) < 2:
        raise ValueError(f"all {len(probes)} probes are of one class; the audit compares classes, two are needed")
    return probes.labels
