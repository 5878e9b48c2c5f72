"""The names of all that is written to a logger, shared by those who write and those who read. Imports nothing."""

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

ALARM = "alarm"
"""Scalar: 1 where the verdict is an alarm, else 0. All other numbers of the audit are scalars by their own names."""

AUDIT_PASSES = "audit_passes"
"""Scalar: forward samples spent on the audit, without its heatmaps."""

AUDIT_SECONDS = "audit_seconds"
"""Scalar: wall-clock seconds of the audit until the verdict, without its pictures; the mean over the processes."""

PASSES = "passes"
"""Scalar: forward samples spent on the heatmaps."""

SECONDS = "seconds"
"""Scalar: wall-clock seconds of the heatmaps, without the audit; of several processes those of the slowest."""

BLANK = "blank"
"""Scalar: probes whose map has no contrast."""

SKIPPED = "skipped"
"""Scalar: probes without a map, because activations or scores were not finite."""

PLUGIN = "cam_callbacks"
"""The name under which the records of the tab are kept in event files. Each is a blob sequence of one blob."""

TAB_SETTINGS = "tab_settings"
"""JSON, at the first look of a process::

    {"version": "0.1.0",                                 of this package
     "versions": {"torch": "2.6.0", "lightning": ..., "python": ...},
     "settings": {argument of CAMMonitor: string, number, true, false or null}}
"""

TAB_PHOTOS = "tab_photos"
"""PNGs, at the first look of a process and when the probes change: each probe as it is shown, in colour or grey, at
most 256 pixels on its longer side. Several PNGs in one blob lie one behind the other: each says where it ends."""

TAB_MAPS = "tab_maps"
"""PNGs, each look: of each probe its heatmap, grey, at the resolution of the layer, scaled to its own minimum and
maximum. A blank one is black, a skipped one a single black pixel."""

TAB_CHANNELS = "tab_channels"
"""PNGs, each look: of each probe the channels of largest weight, four at most, as `TAB_MAPS`; probe after probe. Not
there where no probe has any."""

TAB_PROBES = "tab_probes"
"""JSON, each look, the last of its records to be written. Numbers that are not known or not finite are null::

    {"epoch": 3, "layer": "features", "method": "Score-CAM",
     "class_names": ["cat", ...] or null,
     "seconds": 1.2, "passes": 700,                      of the heatmaps
     "probes": [{"target": 0,                            true class, or null
                 "explained": 0,                         class of the heatmap, or null
                 "predicted": 1,                         most probable class, or null
                 "probability_target": 0.1,              of the true class, or null
                 "probability_predicted": 0.9,           or null
                 "score": 0.1,                           what was explained
                 "largest": 1.3,                         of the map before scaling, in units of the activations
                 "error": 0.01,                          estimated, against the exact map
                 "passes": 45,
                 "blank": false, "skipped": false,
                 "heat_on_object": 0.4,                  share in [0, 1], or null without a mask
                 "heat_on_object_chance": 0.2,           with the masks of the other probes of the class, or null
                 "channels": [[index, weight], ...]},    as many as it has PNGs in `TAB_CHANNELS`
                ...]}
"""

TAB_AUDIT = "tab_audit"
"""JSON, each look with an audit. Numbers that are not known are null::

    {"verdict": {"state": "alarm", "text": Markdown, "classes": [label, ...]},   "all": all classes together
     "gap": "bg_gap",                                    the measure that the verdict stands on
     "threshold": 0.05,                                  what the lower bound of the gap is compared with
     "masks": "given", "estimated" or "none",
     "images": 128,
     "notes": [...],
     "measures": {name: {"overall": {"value", "low", "high", "count", "skipped", "chance"},
                         "per_class": {class label: the same}}}}
"""

TAB_SWAPS = "tab_swaps"
"""PNG, each look with an audit in which something could be exchanged: the picture of `SWAPS`."""


def tag(name: str, record: str, testing: bool = False) -> str:
    """The full tag of a record of the monitor called `name`: `cam/heatmaps`, in a test run `cam_test/heatmaps`."""
    return f"{name}_test/{record}" if testing else f"{name}/{record}"
