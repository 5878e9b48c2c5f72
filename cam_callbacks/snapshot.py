"""Snapshot: what one look has found - probes, explanation, audit - and how the shares of several ranks are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks.audit.observations import Answers
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Estimate, Measure
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation, concatenated

MAX_CLASSES = 20
"""With more classes than these, no measure is logged for each of them."""


@dataclass(frozen=True, eq=False)
class SnapshotShare:
    """What one rank has found about the probes.

    Attributes:
        rows: (n,) int64, the indices of the probes that it explained.
        explanation: The explanation of these n probes; None where n is 0.
        of_rivals: The same probes, their rival classes explained; None where that was not asked for, or n is 0.
        seconds: Time that it took.
    """

    rows: Tensor
    explanation: Explanation | None
    of_rivals: Explanation | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The heatmaps of one look.

    Attributes:
        probes: N images.
        explanation: The explanation of the N images.
        of_rivals: The same images, of each its rival explained: the most probable class beside the explained one, which
            is the predicted class of a mistake. None where that was not asked for.
        seconds: Time that it took; of several ranks, that of the slowest.
    """

    probes: ProbeSet
    explanation: Explanation
    of_rivals: Explanation | None
    seconds: float

    @classmethod
    def joined(cls, probes: ProbeSet, shares: Sequence[SnapshotShare]) -> Snapshot:
        """Join the shares of all ranks; each probe is in one of them."""
        order = torch.cat([share.rows for share in shares]).argsort()
        explanations = [share.explanation for share in shares if share.explanation is not None]
        of_rivals = [share.of_rivals for share in shares if share.of_rivals is not None]
        return cls(
            probes,
            concatenated(explanations)[order],
            concatenated(of_rivals)[order] if of_rivals else None,
            max(share.seconds for share in shares),
        )

    @property
    def passes(self) -> int:
        """Forward samples spent on all heatmaps."""
        more = 0 if self.of_rivals is None else int(self.of_rivals.passes.sum())
        return int(self.explanation.passes.sum()) + more

    def scalars(self) -> dict[str, float]:
        """Return the numbers that are logged, by name."""
        return {
            tags.PASSES: float(self.passes),
            tags.SECONDS: self.seconds,
            tags.BLANK: float(self.explanation.blank.sum()),
            tags.SKIPPED: float(self.explanation.skipped.sum()),
        }


@dataclass(frozen=True, eq=False)
class AuditShare:
    """What one rank has found in its share of an audit.

    Attributes:
        answers: The model's answers to its share of the audited images; None where that is empty.
        probe_rows: (n,) int64, its share of the probes.
        trust: Faithfulness measures of their heatmaps, by name, (n,) each.
    """

    answers: Answers | None
    probe_rows: Tensor
    trust: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class AuditSnapshot:
    """The audit of one look.

    Attributes:
        images: The audited images.
        result: The numbers.
        verdict: What they mean.
        trust: Faithfulness measures of the probes' heatmaps, by name.
        passes: Forward samples spent on all of it, without the audit's own heatmaps.
        is_fixed: Of each image, whether it is of those that all looks share; the others were drawn for this one.
    """

    images: ProbeSet
    result: AuditResult
    verdict: Verdict
    trust: dict[str, Measure]
    passes: int
    is_fixed: Tensor

    def scalars(self) -> dict[str, float]:
        """Return the numbers that are logged, by name; those that are not known are left out.

        Measures that need masks are called so where these were estimated: `bg_gap_estimated`. Some have bounds, a
        chance level, and values for each class.
        """
        found: dict[str, float] = {}
        for name, measured in {**self.result.measures, **self.trust}.items():
            spec = self.result.spec_of(name)
            tag = tags.measure(name, is_estimated=spec.depends_on_masks and self.result.mask_source == "estimated")
            found |= _with_bounds(tag, measured.overall, bounds=spec.has_interval)
            if spec.is_logged_per_class and len(measured.per_class) <= MAX_CLASSES:
                for index, estimate in measured.per_class.items():
                    label = self.result.class_names.tag(index)
                    found |= _with_bounds(tags.by_class(tag, label), estimate, bounds=True)
        gap = tags.measure(self.result.gap_name, is_estimated=self.result.mask_source == "estimated")
        found[f"{gap}_{tags.DETECTABLE}"] = self.verdict.detectable
        found[tags.ALARM] = float(self.verdict.state == "alarm")
        found[tags.AUDIT_PASSES] = float(self.passes)
        return {name: value for name, value in found.items() if not isnan(value)}


def _with_bounds(name: str, estimate: Estimate, bounds: bool) -> dict[str, float]:
    """Return a number with its bounds and its chance level; nothing where it is not known."""
    if not estimate.count:
        return {}
    found = {name: estimate.value}
    if bounds:
        found |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if estimate.chance:  # 0 needs no line of its own
        found[f"{name}_chance"] = estimate.chance
    return found
