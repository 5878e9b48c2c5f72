"""What was seen at one look, and what of it is logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.audit.observations import Answers
from cam_callbacks.audit.result import AuditResult, Verdict
from cam_callbacks.audit.statistics import Estimate, Measure
from cam_callbacks.data.probes import MaskSource, ProbeSet
from cam_callbacks.explain.explanation import Explanation, concatenated
from cam_callbacks.explain.targets import TargetFn

Explain = Callable[[Tensor, int | Tensor | TargetFn | None], Explanation]
"""Explains targets for images, on the CPU."""


@dataclass(frozen=True, eq=False)
class SnapshotShare:
    """What one of several processes has seen of the probes.

    Attributes:
        rows: (n,) the numbers of the probes that it looked at.
        explanation: Of them; None where n is 0.
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
    ) -> SnapshotShare:
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
            explanation = explain(images, targets[rows] if isinstance(targets, Tensor) else targets)
            if predicted_too and explanation.predicted is not None:
                differ = (explanation.predicted != explanation.targets) & ~explanation.skipped
                mistaken = rows[differ]
                if len(mistaken):
                    of_predicted = explain(images[differ], explanation.predicted[differ])
        return cls(rows, explanation, mistaken, of_predicted, time.perf_counter() - began)


@dataclass(frozen=True, eq=False)
class Snapshot:
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
    def of(cls, probes: ProbeSet, shares: Sequence[SnapshotShare]) -> Snapshot:
        """Put together what the processes have seen.

        Args:
            probes: The images.
            shares: Each image is in one of them.
        """

        def joined(parts: list[Explanation], rows: Tensor) -> Explanation:
            return concatenated(parts)[rows.argsort()]

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
            tags.PASSES: float(int(self.explanation.passes.sum()) + more),
            tags.SECONDS: self.seconds,
            tags.BLANK: float(self.explanation.blank.sum()),
            tags.SKIPPED: float(self.explanation.skipped.sum()),
        }


MOST_CLASSES = 20
"""Where there are more classes, measures are not logged per class."""


@dataclass(frozen=True, eq=False)
class AuditSnapshot:
    """The audit of one look."""

    images: ProbeSet
    result: AuditResult
    verdict: Verdict
    trust: dict[str, Measure]
    """Faithfulness measures of the probes' heatmaps, by name."""
    passes: int
    """Forward samples spent on all of it, without the audit's own heatmaps."""

    def scalars(self) -> dict[str, float]:
        """What is logged, by record: each measure, bounds of the gaps, chance levels; of the main ones per class."""
        found: dict[str, float] = {}
        for name, measured in self.result.measures.items():
            spec, tag = MEASURES[name], measure_tag(name, self.result.mask_source)
            found |= _with_bounds(tag, measured.overall, bounds=spec.has_interval)
            if spec.is_logged_per_class and len(measured.per_class) <= MOST_CLASSES:
                for index, estimate in measured.per_class.items():
                    label = self.result.class_names.tag(index)
                    found |= _with_bounds(f"{tag}_by_class/{label}", estimate, bounds=True)
        found |= {name: measured.overall.value for name, measured in self.trust.items()}
        found[tags.ALARM] = float(self.verdict.state == "alarm")
        found[tags.AUDIT_PASSES] = float(self.passes)
        return {name: value for name, value in found.items() if value == value}


def measure_tag(name: str, mask_source: MaskSource) -> str:
    """Return the name under which a measure is logged: it says so if the measure stands on estimated masks."""
    return f"{name}_estimated" if mask_source == "estimated" and MEASURES[name].depends_on_masks else name


def _with_bounds(name: str, estimate: Estimate, bounds: bool) -> dict[str, float]:
    """A number with what belongs to it; nothing where it is not known."""
    if not estimate.count:
        return {}
    found = {name: estimate.value}
    if bounds:
        found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if estimate.chance:  # 0 needs no line of its own
        found[f"{name}_chance"] = estimate.chance
    return found


@dataclass(frozen=True, eq=False)
class AuditShare:
    """What one of several processes has seen of its share of the images."""

    audited: Answers | None
    """Of the images to audit on; None where its share was empty."""
    probe_rows: Tensor
    """(n,) int64, its share of the probes."""
    trust: dict[str, Tensor]
    """Faithfulness measures of their heatmaps, by name, (n,) each."""
