"""How the logged pictures are drawn, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cam_callbacks._checks import check_bool, check_choice, errors_of

OverlayStyle = Literal["blend", "jet", "heatmap"]
HeatScale = Literal["image", "run"]


@dataclass(frozen=True)
class Figures:
    """How `CAMMonitor` draws its pictures.

    Args:
        overlay_style: How heatmaps are laid over images: `"blend"`, `"jet"` or `"heatmap"`, as in
            `cam_callbacks.overlay`.
        heat_scale: `"image"`: scale each map to its own minimum and maximum. `"run"`: scale all maps to the largest
            value of all looks so far, so that magnitudes can be compared within `cam/history`; `cam/class_mean` is
            always scaled by image.
        channels: Also log `cam/channels`: the channels of largest weight, for one probe of each class.

    Raises:
        ValueError: An unknown style or scale.
        TypeError: `channels` is not a bool.

    Example::

        from cam_callbacks import CAMMonitor, Figures

        CAMMonitor(figures=Figures(overlay_style="jet", channels=True))
    """

    overlay_style: OverlayStyle = "blend"
    heat_scale: HeatScale = "image"
    channels: bool = False

    def __post_init__(self) -> None:
        with errors_of("Figures(...)"):
            check_choice("overlay_style", self.overlay_style, get_args(OverlayStyle))
            check_choice("heat_scale", self.heat_scale, get_args(HeatScale))
            check_bool("channels", self.channels)
