"""What was seen at one look, and what of it is logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cam_callbacks import records
from cam_callbacks.explanation import Explanation, Upsampling, concatenated, min_max, upsample
from cam_callbacks.history import PastLook
from cam_callbacks.pictures import channels_picture, class_mean_picture, heatmaps_picture, history_picture, scaled
from cam_callbacks.probes import ProbeSet
from cam_callbacks.render import Picture, Style
from cam_callbacks.targets import TargetFn

Explain = Callable[[Tensor, int | Tensor | TargetFn | None], Explanation]
"""Explains targets for images, on the CPU."""


@dataclass(frozen=True, eq=False)
class LookShare:
    """What one of several processes has seen of the probes.

    Attributes:
        rows: (n,) the numbers of the probes that it looked at.
        explanation: Of them; None where n is 0. Its heatmaps are at the resolution of the layer, to be sent.
        mistaken: (m,) the numbers of those whose predicted class is not the explained one.
        of_predicted: Of these m, the predicted class explained; None where that was not asked for, or m is 0.
        seconds: What it took.
    """

    rows: Tensor
    explanation: Explanation | None
    mistaken: Tensor
    of_predicted: Explanation | None
    seconds: float

    @classmethod
    def of(
        cls,
        probes: ProbeSet,
        rows: Tensor,
        targets: int | Tensor | TargetFn | None,
        explain: Explain,
        predicted_too: bool,
    ) -> LookShare:
        """Look at some of the probes.

        Args:
            probes: All of them.
            rows: (n,) the numbers of those to look at.
            targets: What to explain of all of them, as in `Method.__call__`.
            explain: Explains images.
            predicted_too: Also explain the predicted class where it is another.
        """
        began = time.perf_counter()
        explanation, mistaken, of_predicted = None, rows[:0], None
        if len(rows):
            images = probes.images[rows]
            explanation = _coarse(explain(images, targets[rows] if isinstance(targets, Tensor) else targets))
            if predicted_too and explanation.predicted is not None:
                differ = (explanation.predicted != explanation.targets) & ~explanation.skipped
                mistaken = rows[differ]
                if len(mistaken):
                    of_predicted = _coarse(explain(images[differ], explanation.predicted[differ]))
        return cls(rows, explanation, mistaken, of_predicted, time.perf_counter() - began)


def _coarse(explanation: Explanation) -> Explanation:
    return replace(explanation, heatmaps=explanation.raw)


@dataclass(frozen=True, eq=False)
class Looked:
    """One look.

    Attributes:
        probes: The images.
        explanation: Of them.
        mistaken: (m,) the numbers of the probes whose predicted class is not the explained one.
        of_predicted: Of these m, the predicted class explained; None where that was not asked for, or m is 0.
        seconds: What it took, of several processes the slowest.
    """

    probes: ProbeSet
    explanation: Explanation
    mistaken: Tensor
    of_predicted: Explanation | None
    seconds: float

    @classmethod
    def of(cls, probes: ProbeSet, shares: Sequence[LookShare], upsampling: Upsampling) -> Looked:
        """Put together what the processes have seen.

        Args:
            probes: The images.
            shares: Each image is in one of them.
            upsampling: Of the method.
        """

        def joined(parts: list[Explanation], rows: Tensor) -> Explanation:
            whole = concatenated(parts)[rows.argsort()]
            heatmaps = min_max(upsample(whole.raw, probes.images.shape[2:], upsampling))
            heatmaps[whole.skipped] = torch.nan
            return replace(whole, heatmaps=heatmaps)

        rows, mistaken = (torch.cat([getattr(share, name) for share in shares]) for name in ("rows", "mistaken"))
        of_predicted = [share.of_predicted for share in shares if share.of_predicted is not None]
        return cls(
            probes,
            joined([share.explanation for share in shares if share.explanation is not None], rows),
            mistaken.sort().values,
            joined(of_predicted, mistaken) if of_predicted else None,
            max(share.seconds for share in shares),
        )

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
