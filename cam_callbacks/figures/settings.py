"""How the logged pictures are drawn, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from cam_callbacks._checks import check_bool, check_choice, check_index, check_list, errors_of

OverlayStyle = Literal["blend", "color", "jet", "heatmap"]
HeatScale = Literal["image", "run"]


@dataclass(frozen=True)
class Figures:
    """How `CAMMonitor` draws its pictures.

    Args:
        overlay_style: How heatmaps are laid over images: `"blend"`, over the photo in gray and darkened;
            `"color"`, over the photo in color; `"jet"` or `"heatmap"`, as in `cam_callbacks.overlay`.
        heat_scale: `"image"`: scale each map to its own minimum and maximum. `"run"`: scale all maps to the largest
            value of all looks so far, so that magnitudes can be compared within `cam/history`; `cam/class_mean` is
            always scaled by image.
        channels: Also log `cam/channels`: the channels of largest weight, for one probe of each class; of a method that
            weighs channels, as `ScoreCAM` and `GradCAM` do and the default does not.
        bands: Which channels of the images become red, green and blue, counted from 0, such as `(3, 2, 1)` of satellite
            images; one alone becomes gray. None: the first three.

    Raises:
        ValueError: An unknown style or scale; `bands` that are not one or three channels.
        TypeError: `channels` is not a bool, or `bands` is not a list.

    Example::

        from cam_callbacks import CAMMonitor, Figures, GradCAM

        CAMMonitor(method=GradCAM(), figures=Figures(overlay_style="jet", channels=True))
    """

    overlay_style: OverlayStyle = "blend"
    heat_scale: HeatScale = "image"
    channels: bool = False
    bands: Sequence[int] | None = None

    def __post_init__(self) -> None:
        with errors_of("Figures(...)"):
            check_choice("overlay_style", self.overlay_style, get_args(OverlayStyle))
            check_choice("heat_scale", self.heat_scale, get_args(HeatScale))
            check_bool("channels", self.channels)
            check_bands(self.bands)


def check_bands(bands: Sequence[int] | None) -> None:
    """Raise an error unless `bands` are None, or one or three channels."""
    check_list("bands", bands, Integral, "one or three channels, such as (3, 2, 1)")
    if bands is None:
        return
    for band in bands:
        check_index("bands", band)
    if len(bands) not in (1, 3):
        raise ValueError(f"bands={bands!r} must be one channel, shown in gray, or three: red, green and blue")
