"""What was seen at one look, and what of it is logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cam_callbacks import records
from cam_callbacks.explanation import Explanation, Upsampling
from cam_callbacks.history import PastLook
from cam_callbacks.pictures import channels_picture, class_mean_picture, heatmaps_picture, history_picture, scaled
from cam_callbacks.probes import ProbeSet
from cam_callbacks.render import Picture, Style


@dataclass(frozen=True, eq=False)
class Looked:
    """One look.

    Attributes:
        probes: The images.
        explanation: Of them.
        mistaken: (n,) the numbers of the probes whose predicted class is not the explained one.
        of_predicted: Of these n, the predicted class explained; None where that was not asked for, or n is 0.
        seconds: What it took.
    """

    probes: ProbeSet
    explanation: Explanation
    mistaken: Tensor
    of_predicted: Explanation | None
    seconds: float

    def scalars(self) -> dict[str, float]:
        """The numbers that are logged, by record."""
        more = 0 if self.of_predicted is None else int(self.of_predicted.passes.sum())
        return {
            records.PASSES: float(int(self.explanation.passes.sum()) + more),
            records.SECONDS: self.seconds,
            records.BLANK: float(self.explanation.blank.sum()),
            records.SKIPPED: float(self.explanation.skipped.sum()),
        }

    def pictures(
        self, past: Sequence[PastLook], style: Style, brightest: float | None, upsampling: Upsampling, channels: bool
    ) -> dict[str, Picture]:
        """The pictures that are logged, by record.

        Args:
            past: The looks of the history picture, this one the last; empty for none.
            style: How overlays are drawn.
            brightest: As in `cam_callbacks.pictures.scaled`.
            upsampling: Of the method.
            channels: Whether to show what the heatmaps are made of.
        """
        probes, explanation = self.probes, self.explanation
        size = probes.images.shape[2:]
        shown = scaled(explanation.raw, size, brightest, upsampling)
        of_predicted = {}
        if self.of_predicted is not None:
            maps = scaled(self.of_predicted.raw, size, brightest, upsampling)
            of_predicted = dict(zip(self.mistaken.tolist(), maps, strict=True))
        pictures = {records.HEATMAPS: heatmaps_picture(probes, explanation, shown, style, of_predicted)}
        if explanation.targets is not None and len(set(explanation.targets.tolist())) < len(probes):
            alike = scaled(explanation.raw, size, None, upsampling)
            pictures[records.CLASS_MEAN] = class_mean_picture(probes, explanation, alike, style)
        if past:
            pictures[records.HISTORY] = history_picture(probes, past, style, brightest, upsampling)
        if channels and explanation.channels is not None:
            pictures[records.CHANNELS] = channels_picture(probes, explanation)
        return pictures
