"""The audit in a training: which images, when, what of it is logged. Knows the trainer's data, not its hook methods."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks import records
from cam_callbacks.audit import faithfulness
from cam_callbacks.audit.conclusion import conclude
from cam_callbacks.audit.estimates import Estimate, Measure, measure
from cam_callbacks.audit.foreground import with_estimated_masks
from cam_callbacks.audit.plan import Observed, Plan
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.verdict import Verdict, judge
from cam_callbacks.batches import Samples
from cam_callbacks.explanation import Explanation
from cam_callbacks.methods.method import Method
from cam_callbacks.methods.network import TargetLayer
from cam_callbacks.outputs import ForwardFn
from cam_callbacks.probes import ProbeCollector, ProbeSet

PER_CLASS = ("bg_gap", "recolour_gap", "ring_gap", "heat_on_object")
"""The measures that are logged for each class too."""

MOST_CLASSES = 20
"""Where there are more classes, they are not."""

_PASSES_OF_TRUST = 2  # an image


@dataclass(frozen=True, eq=False)
class Audited:
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
            found |= _with_bounds(name, measured.overall, bounds="_gap" in name)
            if name.removesuffix("_estimated") in PER_CLASS and len(measured.per_class) <= MOST_CLASSES:
                for index, estimate in measured.per_class.items():
                    found |= _with_bounds(f"{name}_by_class/{self._label(index)}", estimate, bounds=True)
        found |= {name: measured.overall.value for name, measured in self.trust.items()}
        found[records.ALARM] = float(self.verdict.state == "alarm")
        found[records.AUDIT_PASSES] = float(self.passes)
        return {name: value for name, value in found.items() if value == value}

    def _label(self, index: int) -> str:
        """The name of a class as a part of a tag: some loggers make files of it, and take ASCII only.

        It ends in the number of the class if another class has that name, or if it ends as names of bounds, of chance
        levels or of numbered classes do.
        """
        names = [re.sub(r"[^\w-]", "_", self.result.class_name(i), flags=re.ASCII) for i in range(index + 1)]
        name = names[index]
        plain = name and names.count(name) == 1 and not re.search(r"_(low|high|chance|\d+)$", name)
        return name if plain else f"{name}_{index}"


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

    audited: Observed | None
    """Of the images to audit on; None where its share was empty."""
    probe_rows: Tensor
    """(n,) int64, its share of the probes."""
    trust: dict[str, Tensor]
    """Faithfulness measures of their heatmaps, by name, (n,) each."""


class Auditor:
    """Picks a fixed set of labelled validation images, audits the model on it at each look, remembers suspicions.

    Args:
        num_images: How many images it picks, balanced over the classes.
        threshold: As in `judge`.
    """

    def __init__(self, num_images: int, threshold: float = 0.05) -> None:
        self.num_images = num_images
        self.threshold = threshold
        self.images: ProbeSet | None = None
        self.suspects: frozenset[int] = frozenset()
        self.gave_up = False
        """Whether the batches are not understood, so that it picks no images."""
        self._fingerprint: str | None = None  # of the images that the suspicions are from
        self._collector: ProbeCollector | None = None

    @property
    def collects(self) -> bool:
        """Whether it is picking images now."""
        return self._collector is not None

    def begin(self, testing: bool) -> None:
        """Begin to pick images, if there are none yet; test images are picked anew for each test."""
        wanted = not self.gave_up and (self.images is None or testing)
        self._collector = ProbeCollector(self.num_images) if wanted else None

    def give_up(self) -> None:
        """Pick no images any more."""
        self.gave_up, self._collector = True, None

    def offer(self, samples: Samples) -> None:
        """Look at the samples of a batch."""
        if self._collector is not None and samples.targets is not None:
            self._collector.offer(samples)

    def pick(self, describe: Callable[[ProbeSet], ProbeSet]) -> ProbeSet | None:
        """The images to audit on; None where there are no labels, or one class only.

        Args:
            describe: Adds class names and normalisation.
        """
        if self._collector is None:
            return self.images
        if self._collector.is_empty:
            return None
        picked = describe(self._collector.probes())
        if picked.targets is None or len(set(picked.targets.tolist())) < 2:
            return None
        return with_estimated_masks(picked)

    def keep(self, images: ProbeSet | None) -> bool:
        """Keep the images for the looks to come; False if they are others than before, whose suspicions are dropped."""
        if images is None:
            return True
        self.images = images
        fingerprint = images.fingerprint
        same = self._fingerprint in (None, fingerprint)
        if not same:
            self.suspects = frozenset()
        self._fingerprint = fingerprint
        return same

    def observe(
        self,
        model: nn.Module,
        images: ProbeSet,
        layer: TargetLayer,
        forward_fn: ForwardFn,
        method: Method,
        probes: Tensor,
        explanation: Explanation,
        share: Callable[[int], Tensor],
    ) -> AuditShare:
        """Run the model on this process' share of the images.

        Args:
            model: The model.
            images: To audit on, all of them.
            layer: Of the heatmaps.
            forward_fn: As in `Method.__call__`.
            method: Of the heatmaps; its `multi_label` and `batch_size` hold here too.
            probes: (N, C, *spatial), the images whose heatmaps are shown.
            explanation: Of these.
            share: From a count of images to the numbers of those that this process sees to.
        """
        rows, probe_rows = share(len(images)), share(len(probes))
        audited, trust = None, {}
        if len(rows):
            audited = Plan(images).observe(model, rows, layer, forward_fn, method.multi_label, method.batch_size)
        if len(probe_rows):
            part = explanation[probe_rows]
            trust = faithfulness.trust(
                model, probes[probe_rows], part, forward_fn, method.multi_label, method.batch_size
            )
        return AuditShare(audited, probe_rows, trust)

    def conclude(
        self, images: ProbeSet, parts: Sequence[AuditShare], explanation: Explanation, remember: bool
    ) -> Audited:
        """Judge, from what all processes have seen.

        Args:
            images: To audit on, all of them.
            parts: Of the processes.
            explanation: Of the probes.
            remember: Whether what is suspect now counts at the next look.
        """
        result = conclude(Plan(images), [part.audited for part in parts if part.audited is not None])
        # Outside of a fit the weights are those of the last look: finding the same again would tell nothing.
        verdict = judge(result, self.suspects if remember else None, self.threshold)
        if remember:
            self.suspects = verdict.suspects
        assert explanation.targets is not None
        order = torch.cat([part.probe_rows for part in parts]).argsort()
        shared = [part.trust for part in parts if part.trust]
        trust = {
            name: measure(torch.cat([part[name] for part in shared])[order], explanation.targets) for name in shared[0]
        }
        return Audited(images, result, verdict, trust, result.passes + _PASSES_OF_TRUST * len(order))

    def state_dict(self, room: int) -> dict[str, Any]:
        """Tensors and primitives only; with the images if they go into `room` bytes, else they are picked again."""
        fits = self.images is not None and self.images.nbytes <= room
        return {
            "suspects": sorted(self.suspects),
            "fingerprint": self._fingerprint,
            "num_images": self.num_images,
            "images": self.images.state_dict() if self.images is not None and fits else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the suspicions of an earlier run, and with its images if it was to pick as many."""
        self.suspects = frozenset(state["suspects"])
        self._fingerprint = state["fingerprint"]
        if state["images"] is not None and state["num_images"] == self.num_images:
            self.images = ProbeSet.from_state_dict(state["images"])


def most_affected(result: AuditResult, count: int) -> Tensor:
    """The images whose true class loses most by another class's background: the worst of each class, then the next.

    Returns:
        (n,) int64, at most `count`.
    """
    lost = result.swaps[:, 1] - result.swaps[:, 2]
    known = (~lost.isnan()).nonzero().flatten().tolist()
    worst_first = sorted(known, key=lambda index: -float(lost[index]))
    seen: Counter[int] = Counter()
    ranks = {}
    for index in worst_first:
        target = int(result.targets[index])
        ranks[index] = seen[target]
        seen[target] += 1
    return torch.tensor(sorted(worst_first, key=lambda index: ranks[index])[:count], dtype=torch.long)
