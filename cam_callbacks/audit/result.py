"""AuditResult: the numbers of one look."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from cam_callbacks._checks import check_type
from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.measure_spec import FORMS, Masks, MeasureSpec, of_exchange
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.audit.properties import DataProperty
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.statistics import Measure
from cam_callbacks.audit.words import words_of
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.probes import MaskSource

MIN_IMAGES = 30
"""The fewest images that are judged, all classes together; also what each class needs for reliable numbers."""

MIN_PER_CLASS = 10
"""The fewest images of a class that is judged by itself."""

FAIR_COST, MAX_COST = 0.1, 0.2
"""What an exchange with an image of the same class may cost of the accuracy to be a fair test, and a test at all."""


@dataclass(frozen=True)
class Further:
    """What was exchanged besides the background.

    Attributes:
        title: What answers would depend on, in words.
        gap: The name of its measure.
        placebo: The name of the measure of its placebo; None if it has none.
        cost: Right answers lost by the exchange with an image of the same class: by the exchange itself; NaN if it is
            not known.
        masks: Whether it uses masks, as in `Intervention`.
        lacks_masks: Whether it uses masks, and they are estimated, or there are none.
        warns_only: Whether it gives no alarm, because it changes something else, too.
    """

    title: str
    gap: str
    placebo: str | None
    cost: float
    masks: Masks
    lacks_masks: bool
    warns_only: bool


@dataclass(frozen=True)
class Confusion:
    """What the images of a class are most often answered as if their background is one of another class.

    Attributes:
        answer: The class that is answered.
        background: The class whose background it is.
        count: How many answers become that.
        changed: Of how many answers that are right before a background of the same class, and wrong before another.
    """

    answer: int
    background: int
    count: int
    changed: int


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The numbers of one look.

    `result["bg_gap"]` is a measure by its name; a KeyError says why it is missing.

    Attributes:
        measures: The measures by name; `docs/audit.md` defines each. Those that could not be computed are not there.
        mask_source: Where the foregrounds come from: `"given"` with the images, `"estimated"` by GrabCut or by
            `Audit(masks=...)`, or `"none"`.
        labels: (N,) int64, what each image was asked about: its class; one of several labels; one of the numbers of a
            regression.
        class_names: Their names; empty if they are not known. Any list of names is accepted, or None.
        swap_answers: (N, 3) the probability of what is true, or what stands in its place (`words_of`): as the image is,
            on a background of the same class, and on one of another class (without masks: ring); NaN without a donor.
            The first donor of each kind is meant.
        donors: The images that gave backgrounds.
        image_ids: (M,) int64, which images they are: `ProbeSet.image_ids`. If more than N, the others only gave
            backgrounds.
        heat_method: The name of the method that made the heatmaps, or None if no method applies or the maps are coarse.
        heat_chance_distribution: By class, (200,) means of `heat_on_object` with the masks of other images.
        heat_shifted_distribution: By class, (200,) means of `heat_on_object` with masks that are shifted at random.
        notes: What was left out, and why.
        remarks: What is strange about the answers, and what to do about it, if nothing can be judged by them.
        passes: Forward samples spent, without the heatmaps.
        further: What else was exchanged.
        data: What simple properties of the images give away of their classes, labels or numbers: first those that the
            object has no part in, the most telling first.
        task: What the model is trained to answer.
        endings: What follows the name of a gap in each of its forms.
        truths: What is true of each image, in a few words.
        confusions: By class, what its images are answered as before the backgrounds of which other class; of one class
            for each image only.
        rivals: By class, at most two others, which are most often the most probable beside it for images as they are,
            the most frequent first; of one class for each image only.
        drawn_for: (N,) bool, where there are too many classes to judge all of them at once: which images were drawn
            because their class is followed, and so do not count in `Measure.overall`; else None.
    """

    measures: Mapping[str, Measure]
    mask_source: MaskSource
    labels: Tensor
    class_names: ClassNames
    swap_answers: Tensor
    donors: Donors
    image_ids: Tensor
    heat_method: str | None = None
    heat_chance_distribution: Mapping[int, Tensor] = field(default_factory=dict)
    heat_shifted_distribution: Mapping[int, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    passes: int = 0
    further: tuple[Further, ...] = ()
    data: tuple[DataProperty, ...] = ()
    task: AuditTask = "single-label"
    endings: tuple[str, ...] = ("", "_probability")
    truths: tuple[str, ...] = ()
    confusions: Mapping[int, Confusion] = field(default_factory=dict)
    rivals: Mapping[int, Sequence[int]] = field(default_factory=dict)
    drawn_for: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", ClassNames(self.class_names))
        if not self.truths:
            object.__setattr__(self, "truths", tuple(map(self.class_names.name, self.labels.tolist())))

    def __getitem__(self, name: str) -> Measure:
        """Return a measure by its name.

        Raises:
            KeyError: The name is unknown, or the measure could not be computed; the message says which.
            TypeError: The name is not a string.
        """
        check_type("name", name, str, "the name of a measure")
        if name not in self.measures:
            raise KeyError(f"{name!r} is not in this result: {self._why_missing(name)}")
        return self.measures[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a measure of that name."""
        return name in self.measures

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the measures."""
        return iter(self.measures)

    def spec_of(self, name: str) -> MeasureSpec:
        """Return what is known of a measure; of one of a user's intervention, what is true of all of them."""
        for ending, form in FORMS.items():
            if name.endswith(ending):
                spec = self.spec_of(f"{name.removesuffix(ending)}_probability")
                title = spec.title.replace("probability", form.title)
                return replace(spec, name=name, title=title, definition=form.definition)
        if name in MEASURES:
            return MEASURES[name]
        own = {
            spec.name: spec
            for each in self.further
            for spec in of_exchange(
                each.gap.removesuffix("_gap"),
                f"Of an intervention of your own: {each.title}.",
                "Of its placebo." if each.placebo else "",
                each.masks,
                "yours",
            )
        }
        return own[name]

    def _why_missing(self, name: str) -> str:
        if name not in MEASURES:
            return f"no measure has this name; the nearest are {difflib.get_close_matches(name, MEASURES, 3, 0)}"
        if name == "accuracy":
            return f"right answers of the task {self.task!r} are measured as {words_of(self.task).right!r}"
        if MEASURES[name].task not in ("", self.task):
            return f"it is of the task {MEASURES[name].task!r}, and this one is {self.task!r}"
        if MEASURES[name].intervention:
            return f"interventions=[{MEASURES[name].intervention!r}] asks for it; if it was, `notes` may say why"
        if MEASURES[name].needs_masks and self.mask_source == "none":
            return "it needs masks, which were neither given nor estimated"
        if MEASURES[name].masks == "excluded" and self.mask_source != "none":
            return f"it is measured only without masks; {self.gap_name!r} takes its place"
        if MEASURES[name].masks == "estimated":
            return "it is measured only where OpenCV has estimated the masks"
        return "it could not be measured on these images; `notes` may say why"

    @property
    def gap_name(self) -> str:
        """The name of the gap that the verdict stands on: `"bg_gap"`, or without masks `"ring_gap"`."""
        return "ring_gap" if self.mask_source == "none" else "bg_gap"

    @property
    def gap(self) -> Measure:
        """The gap that the verdict stands on."""
        return self[self.gap_name]

    @property
    def right(self) -> Measure:
        """How right answers are: `"accuracy"`, or what the task has in its place."""
        return self[words_of(self.task).right]

    def forms_of(self, gap: str) -> tuple[str, ...]:
        """Return the names of a gap in all of its forms: of right answers, and others that vary less."""
        return tuple(f"{gap}{ending}" for ending in self.endings)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each measure and class, e.g. for `pandas.DataFrame`; the class of all images is "all"."""
        found = []
        for name, measured in self.measures.items():
            per_class = [(self.class_names.name(index), estimate) for index, estimate in measured.per_class.items()]
            for label, estimate in [("all", measured.overall), *per_class]:
                found.append({"measure": name, "class": label, **vars(estimate)})
        return found
