"""Evaluation: one validation or test, from its batches to what is sent to the loggers, agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cam_callbacks._warnings import warn_in_training
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.audit_choice import AuditChoice
from cam_callbacks.callback.audit_stage import AuditStage, most_passes
from cam_callbacks.callback.heatmap_stage import HeatmapStage
from cam_callbacks.callback.in_place import InPlaceChanges
from cam_callbacks.callback.loggers import Media
from cam_callbacks.callback.overhead import Stopwatch
from cam_callbacks.callback.probe_stage import ProbeStage
from cam_callbacks.callback.progress_bar import has_bar, progress_in_bar
from cam_callbacks.callback.stage import MonitorParts, NotUnderstoodError, Stage, StepFailedError
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import progress
from cam_callbacks.explain.isolation import random_state_kept
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

P = ParamSpec("P")
T = TypeVar("T")

_WEIGHTS_COMPARED = 8
_PICTURES = "pictures and logging"


class Part(Enum):
    """A part of an evaluation that may fail while the others go on; its value says so."""

    PROBES = "CAMMonitor could not pick its probes"
    HEATMAPS = "CAMMonitor failed"
    AUDIT = "CAMMonitor failed to audit"
    LOGGING = "CAMMonitor failed to log"
    ON_ALARM = "CAMMonitor: on_alarm failed"


class Evaluation(Stage):
    """Picks images from the batches; after the last one explains, audits and logs.

    Args:
        parts: The long-lived parts of the monitor.
        trainer: The trainer of either Lightning.
        pl_module: The module that it trains.
    """

    def __init__(self, parts: MonitorParts, trainer: Trainer, pl_module: LightningModule) -> None:
        super().__init__(parts, trainer, pl_module)
        self._errors: list[Exception] = []  # of batches, or probes, that could not be read
        self._weights: list[Tensor] | None = None  # a few of those of the last batch
        self._has_tried_to_read = False  # the probes that are given
        self._changes = InPlaceChanges(parts, trainer, pl_module)
        self._probes = ProbeStage(parts, trainer, pl_module)
        self._heatmaps = HeatmapStage(parts, trainer, pl_module)
        self.notices.are_warnings_kept_back = trainer.sanity_checking
        self._reads_batch = True  # whether images of the batch that runs are wanted
        self._stopwatch = Stopwatch()
        self._is_look = self._decide_on_a_look()
        self.memory.begin(anew=trainer.testing)
        parts.data.begin()
        watched = self.memory.audit_images
        self._audited = None if watched is None else AuditChoice(parts, trainer, pl_module, watched)
        if self._audited is not None:
            self._audited.begin(self._is_look)

    @property
    def _is_disabled(self) -> bool:
        return any(self.parts.retries.is_disabled(part) for part in (Part.PROBES, Part.HEATMAPS))

    def _decide_on_a_look(self) -> bool:
        """Whether this evaluation explains its probes, or only settles them. Call it on all ranks."""
        trainer, overhead = self.trainer, self.parts.overhead
        if trainer.sanity_checking:
            return False
        if not of_trainer.is_fitting(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        if (trainer.current_epoch + 1) % self.settings.every_n_epochs != 0:
            return False
        return not overhead.is_limited or of_trainer.broadcast(trainer, overhead.allows_a_look)

    def begin_batch(self, batch: Any, loader: int) -> None:
        """Keep the images of a batch of one of the loaders as its step is given them, if some may be picked."""
        if not self._is_disabled:
            audit = self.memory.audit_images
            wanted = (self.memory.probes.is_picking, audit is not None and audit.wants_next(loader))
            self._reads_batch = any(wanted)
            if self._reads_batch:
                self._changes.begin(batch)

    def collect(self, batch: Any, loader: int) -> None:
        """Pick images from a batch of one of the loaders; one that is not understood costs no more than itself."""
        self._weights = _few_weights(self.pl_module)
        if self._is_disabled:
            return
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._collect(batch, loader)
        except Exception as error:
            self._errors.append(error)

    def finish_early(self) -> None:
        """Do what `finish` does though the last batch has never come, if the weights are still those of the batches."""
        if self._weights is None:
            return
        pairs = zip(self._weights, _few_weights(self.pl_module), strict=True)
        if of_trainer.all_ranks_ok(self.trainer, all(torch.equal(*pair) for pair in pairs)):
            self.finish()
        else:
            self.notices.warn_once(
                "CAMMonitor: the loader gave fewer batches than its length says, and before that was noticed another "
                "callback has changed the weights: no look. Put CAMMonitor before that callback"
            )

    def finish(self) -> None:
        """After the last batch: explain the probes, audit, and log.

        Raises:
            MisconfigurationException: In the sanity check, if what the user states is wrong.
            Exception: Any, where the user wants errors raised.
        """
        if self._is_disabled:
            return
        probes = self._attempt(Part.PROBES, self._settle_probes)
        if probes is None or not self._is_look:
            return
        self._say_what_is_done(probes)
        audit = self._look(probes)
        self._say_what_it_took()
        if audit is not None and audit.verdict.state == "alarm":
            self._attempt(Part.ON_ALARM, self.agreed, self._call_on_alarm, audit.verdict)

    def _look(self, probes: ProbeSet) -> AuditSnapshot | None:
        """Explain the probes, audit, and log; return what the audit found."""
        snapshot, audit = None, None
        media: Media = {}
        with progress_in_bar(self.trainer):
            if self.memory.audit_images is not None:
                most = 0 if self.settings.audit is None else most_passes(self.settings.audit)
                progress.reserve(most * len(self.rows_of_rank(len(self.memory.audit_images))))
            if not self.memory.are_heatmaps_off:
                explained = self._attempt(Part.HEATMAPS, self._explain, probes)
                if explained is not None:
                    snapshot, media = explained
                elif not self.memory.are_heatmaps_off:
                    return None
            audited = self._attempt(Part.AUDIT, self._audit, snapshot)
            if audited is not None:
                audit, media = audited[0], {**media, **audited[1]}
        if snapshot is not None or audit is not None:
            with self._stopwatch.of(_PICTURES):
                self._attempt(Part.LOGGING, self._send, snapshot, audit, media)
        return audit

    def _say_what_is_done(self, probes: ProbeSet) -> None:
        """Say once what the first look does, where no progress bar says so."""
        if not has_bar(self.trainer):
            count = 0 if self.memory.audit_images is None else len(self.memory.audit_images)
            said = f"explains {len(probes)} probes{f', then audits {count} images' if count else ''}"
            if self.memory.are_heatmaps_off:
                said = f"makes no heatmaps{f'; audits {count} images' if count else ''}"
            self.notices.inform_once(f"CAMMonitor: {said}", "what is done")

    def _say_what_it_took(self) -> None:
        """Add the time of this look to that of the others, and say once what the first has taken."""
        if of_trainer.is_fitting(self.trainer):
            self.parts.overhead.add(self._stopwatch.seconds)
        if _PICTURES in self._stopwatch.seconds:  # else nothing could be shown
            self.notices.inform_once(
                f"CAMMonitor: the first look took {self._stopwatch} (every_n_epochs and max_overhead make looks rarer)",
                "what it took",
            )

    def _collect(self, batch: Any, loader: int) -> None:
        memory, data = self.memory, self.parts.data
        if memory.unread is not None and not self._has_tried_to_read:
            self._has_tried_to_read = True
            memory.probes.give(data.read_probes(memory.unread, self.trainer, batch))
            memory.unread = None
        if not self._reads_batch:
            return
        samples = self._changes.as_the_model_saw_them(data.samples(batch, self.trainer))
        memory.probes.offer(samples, loader)
        if self._audited is not None:
            self._audited.offer(samples, loader)

    def _settle_probes(self) -> ProbeSet:
        probes = self._probes.settle(self._errors)
        if self.trainer.sanity_checking:
            if not self.memory.are_heatmaps_off:
                self._heatmaps.check(probes)
            if self._audited is not None:
                self._audited.check(probes)
        return probes

    def _explain(self, probes: ProbeSet) -> tuple[Snapshot, Media]:
        with self._stopwatch.of("heatmaps"):
            snapshot = self._heatmaps.explain(probes)
        with self._stopwatch.of(_PICTURES):
            return snapshot, self._heatmaps.log(snapshot)

    def _audit(self, snapshot: Snapshot | None) -> tuple[AuditSnapshot, Media] | None:
        if self.settings.audit is None or self._audited is None:
            return None
        with self._stopwatch.of("audit"):
            stage = AuditStage(self.parts, self.trainer, self.pl_module, self.settings.audit)
            images = self._audited.settle(self._errors)
            if images is None:
                return None
            found = stage.observe(images, snapshot)
        with self._stopwatch.of(_PICTURES):
            return found, stage.log(found)

    def _send(self, snapshot: Snapshot | None, audit: AuditSnapshot | None, media: Media) -> None:
        folder = self.agreed(of_trainer.log_folder, self.trainer)
        self.agreed(self._send_from_first_rank, folder, snapshot, audit, media)

    def _send_from_first_rank(
        self, folder: str, snapshot: Snapshot | None, audit: AuditSnapshot | None, media: Media
    ) -> None:
        if not media:
            return
        sent = self.parts.outlet.send(self.trainer, folder, media, snapshot, audit, self.memory.no_heatmaps)
        for failed in sent:
            if self.settings.on_error == "raise":
                raise failed.error
            self._warn(f"CAMMonitor: {failed.what} failed", failed.what, failed.error)

    def _call_on_alarm(self, alarm: Verdict) -> None:
        """Call the user's function, last of all: what was found is logged, whatever becomes of it."""
        audit = self.settings.audit
        if audit is not None and callable(audit.on_alarm):
            with random_state_kept():
                audit.on_alarm(alarm)

    def _attempt(self, part: Part, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Act, unless that has failed three times in a row; on all ranks, raise or say what has failed."""
        retries = self.parts.retries
        if retries.is_disabled(part):
            return None
        try:
            with retries.attempt(part):
                return act(*args, **kwargs)
        except StepFailedError as failed:
            own = failed.error
        if of_trainer.all_ranks_ok(self.trainer, not isinstance(own, NotUnderstoodError)):
            self._fail(part, own)
        else:
            self._leave_out(part, own)
        return None

    def _fail(self, part: Part, own: Exception | None) -> None:
        """Raise or say what has failed. In the sanity check only what the user states is judged, not what comes up."""
        error = own or RuntimeError(f"{part.value} on another rank")
        if self.settings.on_error == "raise" and self.trainer.sanity_checking:
            error = self.stated(error)
        if self.settings.on_error == "raise" or isinstance(error, Misconfiguration):
            raise error
        if not self.trainer.sanity_checking and (own is not None or self.trainer.is_global_zero):
            self._warn(part.value, part, error)

    def _leave_out(self, part: Part, own: Exception | None) -> None:
        """Do without what could not be found out, and say so; the batches of a sanity check are too few to tell."""
        error = own if isinstance(own, NotUnderstoodError) else NotUnderstoodError("CAMMonitor shows nothing")
        if self.settings.on_error == "raise":
            raise Misconfiguration(str(error)) from error
        if self.trainer.sanity_checking:
            return
        if error.leaves_nothing:
            self.parts.retries.disable(part)
        else:
            self.memory.no_heatmaps = f"{str(error).rstrip('.')}."
        if own is not None:
            self.notices.warn_once(str(error))

    def _warn(self, what: str, part: Hashable, error: Exception) -> None:
        at = f"at the evaluation of epoch {self.trainer.current_epoch}, step {of_trainer.log_step(self.trainer)}"
        outlook = self.parts.retries.outlook(part)
        if part is Part.AUDIT:
            rest = "Heatmaps are not affected. "
        elif part is Part.LOGGING:
            rest = "Scalars are logged. "
        else:
            rest = "" if part in (Part.PROBES, Part.HEATMAPS) else "Everything else is logged. "
        warn_in_training(f"{what} {at}; {outlook}. {rest}Training continues.", error)


def _few_weights(module: nn.Module) -> list[Tensor]:
    """Return copies of a few single weights, which tell whether others have been put in their place since."""
    trained = [each for each in module.parameters() if each.requires_grad and not is_lazy(each) and not each.is_meta]
    some = [each.detach() for each in trained[:: max(1, len(trained) // _WEIGHTS_COMPARED)]]
    local = [each.to_local() if hasattr(each, "to_local") else each for each in some]  # where they are sharded
    return [each.reshape(-1)[:1].clone() for each in local if each.layout == torch.strided]
