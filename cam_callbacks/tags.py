"""The names under which scalars, pictures and texts are logged. Imports nothing."""

HEATMAPS = "heatmaps"
"""Image: one cell a probe, the image beside its overlay, labels and predictions under them."""

HISTORY = "history"
"""Image: the same probes at the first, some middle and the current look."""

CLASS_MEAN = "class_mean"
"""Image: the mean heatmap of each class."""

CHANNELS = "channels"
"""Image: of a few probes the channels of largest weight, as feature maps and as masked images."""

SWAPS = "swaps"
"""Image: of the audit's images the most affected, each beside its object on two other backgrounds."""

HEAT_OVER_CHANCE = "heat_over_chance"
"""Image: of each class a histogram of the heat on the object minus its chance level."""

VERDICT = "verdict"
"""Text: what the audit found."""

DETECTABLE = "detectable"
"""Scalar, behind the name of the gap: `bg_gap_detectable`, the smallest gap that four of five such looks would find."""

ALARM = "alarm"
"""Scalar: 1 where the verdict is an alarm, else 0. All other numbers of the audit are scalars by their own names."""

AUDIT_PASSES = "audit_passes"
"""Scalar: forward samples spent on the audit, without its heatmaps."""

AUDIT_SECONDS = "audit_seconds"
"""Scalar: wall-clock seconds of the audit until the verdict, without pictures; of several ranks, the slowest's."""

PASSES = "passes"
"""Scalar: forward samples spent on the heatmaps."""

SECONDS = "seconds"
"""Scalar: wall-clock seconds of the heatmaps, without the audit; of several ranks, those of the slowest."""

BLANK = "blank"
"""Scalar: probes whose map has no contrast."""

SKIPPED = "skipped"
"""Scalar: probes without a map, because activations or scores were not finite."""


def tag(name: str, record: str, testing: bool = False) -> str:
    """Return the full tag of a record of the monitor `name`: `cam/heatmaps`, in a test run `cam_test/heatmaps`."""
    return f"{name}_test/{record}" if testing else f"{name}/{record}"


def measure(name: str, is_estimated: bool) -> str:
    """Return the name under which a measure of the audit is logged, given whether it stands on estimated masks."""
    return f"{name}_estimated" if is_estimated else name


def by_class(name: str, label: str) -> str:
    """Return the name under which the values of one class are logged: `bg_gap_by_class/cat`."""
    return f"{name}_by_class/{label}"
