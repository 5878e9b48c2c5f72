"""Audit of one evaluation: from its images to numbers, a verdict and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cam_callbacks import tags
from cam_callbacks._checks import is_list
from cam_callbacks.audit.judge import judge
from cam_callbacks.audit.measuring import measures_of
from cam_callbacks.audit.observations import Observations
from cam_callbacks.audit.registry import intervention
from cam_callbacks.audit.settings import Audit
from cam_callbacks.audit.statistics import Measure, measure
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.audit_images import AuditSet
from cam_callbacks.callback.loggers import Media
from cam_callbacks.callback.stage import MonitorParts, Stage
from cam_callbacks.callback.task import audited_task
from cam_callbacks.explain.forwarding import of_rows
from cam_callbacks.explain.score_cam import ScoreCAM
from cam_callbacks.explain.trust import measure_trust
from cam_callbacks.figures.logged import audit_pictures
from cam_callbacks.snapshot import AuditShare, AuditSnapshot, Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_MOST_PASSES = 17  # an image of the audit: its mask, fifteen answers, and the heat
_PASSES_OF_FAITHFULNESS = 2  # an image
_PASSES_OF_EXCHANGE = 2  # with an image of the same class, and with one of another class
_CLASS_AGNOSTIC = 0.95
_CLASS_AGNOSTIC_MAPS = (
    "CAMMonitor: the heatmaps are nearly the plain mean of the layer's channels (their correlation with it is above "
    f"{_CLASS_AGNOSTIC}). They show where the layer is active. It matters if you compare the maps of two classes, "
    'or if an image shows both: ReciproCAM("evidence") and GradCAM() tell classes apart'
)


class AuditStage(Stage):
    """Audits the model, and judges.

    Args:
        parts: The long-lived parts of the monitor.
        trainer: The trainer of either Lightning.
        pl_module: The module that it trains.
        audit: What the user wants.
    """

    def __init__(self, parts: MonitorParts, trainer: Trainer, pl_module: LightningModule, audit: Audit) -> None:
        super().__init__(parts, trainer, pl_module)
        self._audit = audit
        self._began = time.perf_counter()

    def observe(self, images: AuditSet, snapshot: Snapshot | None) -> AuditSnapshot:
        """Run the model on the images and on what becomes of them, and judge; ranks that can split the work do so.

        Raises:
            StepFailedError: Where it fails on any rank.
        """
        observations = self.agreed(
            Observations,
            images.images,
            goes_by_masks=self._went_by_masks,
            further=self._audit.interventions,
            goes_on=True,
            task=audited_task(self._audit, self.memory.task) or "auto",
            num_asked=images.num_asked,
            rivals=images.rivals,
        )
        share = self.agreed(self._observe_share, observations, snapshot)
        return self.agreed(self._join, images, observations, share, snapshot)

    @property
    def _went_by_masks(self) -> bool | None:
        """Whether the look before went by masks: gaps of the background and of the ring are not pooled."""
        before = self.memory.previous_verdict
        if not of_trainer.is_fitting(self.trainer) or before is None or before.evidence is None:
            return None
        return "bg_gap" in before.evidence.values

    def log(self, found: AuditSnapshot) -> Media:
        """Log the numbers, stop at an alarm if that is wanted, and return pictures and text by name: on the first rank.

        Raises:
            StepFailedError: Where it fails on any rank.
        """
        scalars = self.largest(lambda: self._scalars(found))
        return self.agreed(self._log, found, scalars)

    def _observe_share(self, observations: Observations, snapshot: Snapshot | None) -> AuditShare:
        """Run the model on this rank's share of the images, and on that of the probes."""
        method, forward_fn = self.memory.method, self.forward_fn
        # Several layers that a method has chosen are those that it reads, not those of a map by Grad-CAM.
        reads_several = self.settings.target_layer is None and is_list(self.memory.layer)
        rows = self.rows_of_rank(len(observations.labels))
        # Measures of the probes' heatmaps are of those of classes.
        has_trust = snapshot is not None and snapshot.explanation.logits is not None
        probe_rows = self.rows_of_rank(len(snapshot.probes) if snapshot is not None and has_trust else 0)
        answers, trust = None, {}
        if len(rows):
            answers = observations.observe(
                self.pl_module,
                rows,
                None if reads_several else self.memory.layer,
                forward_fn,
                method.multi_label,
                method.batch_size,
                method.outputs,
            )
        if snapshot is not None and len(probe_rows):
            trust = measure_trust(
                self.pl_module,
                snapshot.probes.images[probe_rows],
                snapshot.explanation[probe_rows],
                of_rows(forward_fn, probe_rows),
                method.multi_label,
                method.batch_size,
            )
        return AuditShare(answers, probe_rows, trust)

    def _join(
        self, images: AuditSet, observations: Observations, share: AuditShare, snapshot: Snapshot | None
    ) -> AuditSnapshot:
        """Join the shares of all ranks, and judge, on all of them."""
        shares = self.gather(share)
        answers = [each.answers for each in shares if each.answers is not None]
        result = measures_of(observations, answers, images.drawn_for)
        # Outside of a fit the weights are those of the last look: finding the same again would tell nothing.
        is_fitting = of_trainer.is_fitting(self.trainer)
        verdict = judge(result, self.memory.previous_verdict if is_fitting else None, self._audit.threshold)
        if is_fitting:
            self.memory.previous_verdict = verdict
        trust = {} if snapshot is None else _joined_trust(shares, snapshot)
        passes = result.passes + _PASSES_OF_FAITHFULNESS * sum(len(each.probe_rows) for each in shares)
        return AuditSnapshot(observations.probes, result, verdict, trust, passes, images.is_fixed)

    def _scalars(self, found: AuditSnapshot) -> dict[str, float]:
        return found.scalars() | {tags.AUDIT_SECONDS: time.perf_counter() - self._began}

    def _log(self, found: AuditSnapshot, scalars: dict[str, float]) -> Media:
        before = None if self.memory.audit is None else self.memory.audit.verdict
        self.memory.audit, self.memory.is_audit_new = found, True
        self.log_scalars(scalars)
        self._announce(found, before)
        media: Media = {}
        if self.draws_pictures:
            media = {**audit_pictures(found), tags.VERDICT: found.verdict.text}
        if found.verdict.state == "alarm" and self._audit.on_alarm == "stop":
            self.trainer.should_stop = True
        return media

    def _announce(self, found: AuditSnapshot, before: Verdict | None) -> None:
        """Say what has changed since the look before, and once that maps tell no classes apart."""
        verdict = found.verdict
        similarity = found.trust.get("mean_activation_correlation")
        has_learned = verdict.state != "not learned"
        method = self.memory.method
        is_agnostic = isinstance(method, ScoreCAM) and method.weighting != "contrast"  # as others may be, and see
        if is_agnostic and has_learned and similarity is not None and similarity.overall.value > _CLASS_AGNOSTIC:
            self.notices.inform_once(_CLASS_AGNOSTIC_MAPS)
        known = _what_is_said_of(before)
        if known != _what_is_said_of(verdict):
            headline = verdict.text.split("\n")[0].replace("**", "")
            self.notices.announce(
                f"CAMMonitor, epoch {self.trainer.current_epoch}: {headline}",
                is_warning=verdict.state in ("alarm", "warning"),
            )


def most_passes(audit: Audit) -> int:
    """Return how many passes an image of the audit takes at most."""
    further = [intervention(each) for each in audit.interventions]
    return _MOST_PASSES + sum(_PASSES_OF_EXCHANGE * (1 + (each.placebo is not None)) for each in further)


def _what_is_said_of(verdict: Verdict | None) -> tuple[Any, ...]:
    if verdict is None:
        return ("not learned", False, (), ())
    return (verdict.state, verdict.overall, verdict.classes, verdict.findings)


def _joined_trust(shares: Sequence[AuditShare], snapshot: Snapshot) -> dict[str, Measure]:
    """Return the measures of the probes' heatmaps, by name."""
    targets = snapshot.explanation.targets
    order = torch.cat([share.probe_rows for share in shares]).argsort()
    parts = [share.trust for share in shares if share.trust]
    if targets is None or not parts:
        return {}
    return {name: measure(torch.cat([part[name] for part in parts])[order], targets) for name in parts[0]}
