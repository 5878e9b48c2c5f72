"""The format of what is written for the tab and the report: records in event files, and the JSON in them.

The standard library only: the tab and the reader work without torch.
"""

from __future__ import annotations

from typing import Literal, TypedDict

PLUGIN = "cam_callbacks"
"""The name of the plugin that owns the records in event files. Each record is a blob sequence of one blob."""

TAB_SETTINGS = "tab_settings"
"""`SettingsJson`, at the first look of a process."""

TAB_PHOTOS = "tab_photos"
"""PNGs, at the first look of a process and when the probes change: each probe as it is shown, in color or gray, at
most 256 pixels on its longer side. Several PNGs in one blob follow each other: each says where it ends."""

TAB_MAPS = "tab_maps"
"""PNGs, at each look: the heatmap of each probe, gray, at the resolution of the layer, scaled to its own minimum and
maximum. A blank one is black, a skipped one a single black pixel."""

TAB_RIVALS = "tab_rivals"
"""PNGs, at each look where rivals are explained: of each probe the heatmap of its rival, as in `TAB_MAPS`."""

TAB_CHANNELS = "tab_channels"
"""PNGs, at each look: the channels of largest weight, at most four per probe, as in `TAB_MAPS`; probe after probe.
Missing if no probe has any."""

TAB_PROBES = "tab_probes"
"""`LookJson`, at each look, written after its other records."""

TAB_AUDIT = "tab_audit"
"""`AuditJson`, at each look with an audit. A step with this record or with `TAB_PROBES` is a look."""

TAB_SWAPS = "tab_swaps"
"""PNG, at each look with an audit in which something could be swapped: the picture of `cam_callbacks.tags.SWAPS`."""

RECORDS = (TAB_SETTINGS, TAB_PHOTOS, TAB_MAPS, TAB_RIVALS, TAB_CHANNELS, TAB_PROBES, TAB_AUDIT, TAB_SWAPS)

Readable = str | float | bool | None
"""A setting in a form that JSON has and people can read."""


class SettingsJson(TypedDict):
    """What the monitor was made with."""

    version: str
    """The version of this package."""
    versions: dict[str, str | None]
    """Of torch, lightning and python."""
    settings: dict[str, Readable]
    """By argument of `CAMMonitor`."""


class RivalJson(TypedDict):
    """The most probable class of a probe beside the explained one, whose heatmap is in `TAB_RIVALS`."""

    label: int
    probability: float | None
    blank: bool
    largest: float
    """As in `ProbeJson`."""


class ProbeJson(TypedDict):
    """A probe at one look. Numbers that are unknown or not finite are null."""

    label: int | None
    """The true class."""
    truth: str | None
    """What is true in words, where that is not one class: its classes, its numbers; missing in earlier versions."""
    explained: int | None
    """The class of the heatmap."""
    predicted: int | None
    """The most probable class."""
    probability_label: float | None
    probability_predicted: float | None
    score: float | None
    """The score that was explained."""
    largest: float | None
    """The largest value of the map before scaling, in units of the activations."""
    error: float | None
    """Estimated error against the exact map."""
    passes: int
    blank: bool
    skipped: bool
    heat_on_object: float | None
    """A share in [0, 1]; null without a mask."""
    heat_on_object_chance: float | None
    """The same with the masks of the other probes of the class."""
    rival: RivalJson | None
    """None of a skipped probe; missing in what earlier versions wrote."""
    channels: list[tuple[int, float | None]]
    """Index and weight, one for each PNG in `TAB_CHANNELS`."""


class LookJson(TypedDict):
    """A look, without its pictures."""

    epoch: int | None
    layer: str
    signals: bool
    """Whether the images are signals, whose photos are drawings: curves above a strip for the heat."""
    coarse: str
    """What is to be said of maps that are coarse; empty if they are not."""
    method: str
    score: str
    """What the scores of the probes are called; missing in what earlier versions wrote."""
    class_names: list[str] | None
    seconds: float | None
    """Spent on the heatmaps."""
    passes: int
    """Forward samples spent on the heatmaps."""
    probes: list[ProbeJson]


class EstimateJson(TypedDict):
    """A number with its interval, how many images it is from and how many were skipped, and its chance level."""

    value: float | None
    low: float | None
    high: float | None
    count: int
    skipped: int
    chance: float | None


class MeasureJson(TypedDict):
    """A measure over all images, and by the label of the class."""

    overall: EstimateJson
    per_class: dict[str, EstimateJson]


class VerdictJson(TypedDict):
    """What the audit found."""

    state: str
    text: str
    """Markdown."""
    background: str
    """The state of the background alone."""
    classes: list[str]
    """Labels of the classes whose background it is about."""
    overall: bool
    """Whether it is about the background of all classes together."""


class DependenceJson(TypedDict):
    """What was exchanged, and what came of it, as in `cam_callbacks.audit.dependences.Dependence`."""

    title: str
    gap: str
    placebo: str | None
    cost: float | None
    state: str
    about: str


class PropertyJson(TypedDict):
    """What a property of the images tells, as in `cam_callbacks.audit.properties.DataProperty`.

    The mean color is one, too: it tells all classes, and has no p-value.
    """

    name: str
    where: str
    label: str
    """The name of the class, the label or the number."""
    auc: float | None
    chance: float | None
    p_value: float | None
    count: int
    gives_away: bool
    shows_object: bool


class AuditJson(TypedDict):
    """The audit of one look. Numbers that are unknown are null.

    `epoch`, `no_heatmaps` and `task` are missing in what earlier versions wrote, which audited classes only; so are
    `dependences` and `data`.
    """

    epoch: int
    no_heatmaps: str
    """Why this look has none, in words; empty if it has."""
    task: str
    """What the model is trained to answer, as in `cam_callbacks.audit.words.words_of`."""
    verdict: VerdictJson
    gap: str
    """Name of the measure that the verdict is based on."""
    threshold: float
    """The value that the gap has to exceed, with confidence."""
    masks: Literal["given", "estimated", "none"]
    images: int
    notes: list[str]
    measures: dict[str, MeasureJson]
    dependences: list[DependenceJson]
    """The background first, then what else was exchanged."""
    data: list[PropertyJson]
    """First the mean color, then those that the object has no part in, the most telling first."""


class TermJson(TypedDict):
    """An entry of the glossary."""

    name: str
    definition: str
    chance: str
    """The chance level in words; empty if there is none."""
    by_class: bool
    """Whether it is a measure that the table by class shows."""


class WordsJson(TypedDict):
    """What is said of the task of an audit; the fields are those of `cam_callbacks.audit.words.Words`."""

    one: str
    by: str
    lost: str
    effect: str
    pasted: str
    told_apart: str
    area: str


class ShownAuditJson(AuditJson):
    """An audit, with what is said of its task."""

    words: WordsJson


class TimelineLookJson(TypedDict):
    """A look in the timeline."""

    step: int
    epoch: int | None
    wall_time: float
    heatmaps: bool
    """Whether it has heatmaps; one that has none has an audit."""
    audit: ShownAuditJson | None


class TimelineJson(TypedDict):
    """The looks of one monitor in one run, by step, without their heatmaps."""

    run: str
    monitor: str
    settings: SettingsJson | None
    photos: list[str]
    """Data URIs of the latest photos."""
    looks: list[TimelineLookJson]


class _OfSomeLooks(TypedDict, total=False):
    photos: list[str]
    """Data URIs; only if the probes are not those of the latest photos."""
    no_heatmaps: str
    """Why there are none, in words; only then, and there are no probes."""


class ShownLookJson(LookJson, _OfSomeLooks):
    """A look with its pictures, as data URIs."""

    step: int
    maps: list[str]
    rivals: list[str]
    """Of each probe; none where rivals are not explained."""
    channels: list[list[str]]
    """The channels of each probe."""


class SwapsJson(TypedDict):
    """The picture of swapped backgrounds, as a data URI, if the look has one."""

    swaps: str | None


class SkippedFileJson(TypedDict):
    """An event file that was left out, or from a broken place on."""

    file: str
    why: str
    partly: bool
    """Whether a part of it was read."""


class ReportRunJson(TypedDict):
    """All that the report has of one monitor in one run; looks and swaps by step."""

    timeline: TimelineJson
    looks: dict[str, ShownLookJson]
    swaps: dict[str, str | None]


class ReportJson(TypedDict):
    """The content of a report."""

    runs: list[ReportRunJson]
    skipped: list[SkippedFileJson]
