"""The layout of what is written into event files for the tab and the report, and read back. Standard library only."""

PLUGIN = "cam_callbacks"
"""The name under which the records of the tab are kept in event files. Each is a blob sequence of one blob."""

TAB_SETTINGS = "tab_settings"
"""JSON, at the first look of a process::

    {"version": "0.1.0",                                 of this package
     "versions": {"torch": "2.6.0", "lightning": ..., "python": ...},
     "settings": {argument of CAMMonitor: string, number, true, false or null}}
"""

TAB_PHOTOS = "tab_photos"
"""PNGs, at the first look of a process and when the probes change: each probe as it is shown, in color or gray, at
most 256 pixels on its longer side. Several PNGs in one blob lie one behind the other: each says where it ends."""

TAB_MAPS = "tab_maps"
"""PNGs, each look: of each probe its heatmap, gray, at the resolution of the layer, scaled to its own minimum and
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
"""PNG, each look with an audit in which something could be exchanged: the picture of `swaps` (`cam_callbacks.tags`)."""
