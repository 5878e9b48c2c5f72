"""Probes of one evaluation: picked out of its batches, agreed on by all ranks; and the task that they tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cam_callbacks.audit.words import words_of
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.answer import SeveralAnswersError, recognize_entry
from cam_callbacks.callback.notices import IMAGES_LEFT_OUT
from cam_callbacks.callback.stage import NotUnderstoodError, Stage, StepFailedError
from cam_callbacks.callback.task import NothingToExplainError, Task, recognize
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.forwarding import ForwardFn, of_entry
from cam_callbacks.explain.network import first_columns, score_entries
from cam_callbacks.explain.runner import Options

_FEW_PROBES = 8  # whose outputs tell the task


class ProbeStage(Stage):
    """Settles the probes, and what the model is trained to answer."""

    def settle(self, errors: Sequence[Exception]) -> ProbeSet:
        """Return the probes of this evaluation, the same on all ranks; the first one chooses.

        Args:
            errors: Of the batches that this rank could not read.

        Raises:
            StepFailedError: There are none, or they cannot be described; with `NotUnderstoodError` if what the model
                returns is neither classes nor numbers.
        """
        watched = self.memory.probes
        probes = self.agreed(self._broadcast_probes, self.agreed(self._choose_probes, errors))
        if not watched.is_settled or self.memory.task is None:
            self._settle_task(probes)
        if watched.is_picking:
            probes = self._with_known_classes(probes)
        if self.trainer.sanity_checking or self.trainer.testing or watched.is_settled:
            return probes
        if not watched.keep(probes):
            self.memory.history.clear()
            self.notices.warn_once("The probes are not those of the earlier run: starting a new history")
        return probes

    def _choose_probes(self, errors: Sequence[Exception]) -> ProbeSet | None:
        watched = self.memory.probes
        if not watched.is_picking:
            if watched.images is None and errors:
                raise self.stated(errors[0])  # the probes that are given cannot be read
            return watched.images
        picked = watched.picked
        is_strict = self.trainer.sanity_checking or self.settings.on_error == "raise"
        if errors and self.settings.batch_fn is not None and (picked is None or is_strict):
            raise self.stated(errors[0])
        if not self.trainer.is_global_zero:
            return None
        if picked is None:
            reason = str(errors[0]) if errors else "no batch had a finite image with a valid label"
            raise NotUnderstoodError(f"CAMMonitor shows nothing: {reason}")
        if errors:
            self.notices.warn_once(f"CAMMonitor left out batches, {len(errors)} of this validation: {errors[0]}")
        if watched.ignored:
            self.notices.warn_once(
                f"CAMMonitor left out {watched.ignored} images that are not finite, or whose size, labels or masks are "
                f"unlike those of most, {tuple(picked.images.shape[1:])}: {watched.reasons}",
                IMAGES_LEFT_OUT,
            )
        return self.parts.data.described(ProbeSet.of(picked), self.trainer)

    def _broadcast_probes(self, probes: ProbeSet | None) -> ProbeSet:
        if not self.memory.probes.is_settled:
            probes = of_trainer.broadcast(self.trainer, probes)
        if probes is None:
            raise ValueError("no probes: the first rank has none")
        return probes

    def _settle_task(self, probes: ProbeSet) -> None:
        """Recognize what the model is trained to answer, on all ranks; a model that fails is diagnosed later.

        Raises:
            StepFailedError: With `NotUnderstoodError` if it answers nothing that could be explained.
        """
        explain, audit = self.settings.explain, self.settings.audit
        if callable(explain):
            return
        why = "" if audit is None or audit.task is None else words_of(audit.task).no_heatmaps
        if audit is not None and why:
            self.memory.no_heatmaps = why
            self.notices.inform_once(f"CAMMonitor: audits the {audit.task}, which has no heatmaps (Audit(task=...))")
            return
        try:
            found = self.agreed(self._recognized, probes)
            found = self.agreed(of_trainer.broadcast, self.trainer, found)
        except StepFailedError:
            return
        if isinstance(found, Task):
            self.memory.task = found
        elif found is not None:
            raise StepFailedError(found)

    def _recognized(self, probes: ProbeSet) -> Task | NotUnderstoodError | None:
        """Return the task, or why there is none; None where the user says what to explain all the same."""
        method, forward_fn, signs = self.settings.method, self.whole_forward_fn, self.parts.data.signs
        few = probes.images[: min(_FEW_PROBES, method.batch_size or _FEW_PROBES)]

        def columns(of: ForwardFn) -> Tensor:
            return first_columns(self.pl_module, few, of, Options(method.batch_size))

        places: list[int] = []
        if self.settings.forward_fn is None:
            places, last = score_entries(self.pl_module, few, forward_fn)
        try:
            if len(places) < 2:
                return recognize(probes, columns(forward_fn), self.pl_module, signs)
            entries = {place: columns(of_entry(forward_fn, place)) for place in places}
            return recognize_entry(probes, entries, last, self.pl_module, signs)
        except NothingToExplainError as error:
            if self.settings.explain not in ("label", "both") and not isinstance(error, SeveralAnswersError):
                return None
            missing = "" if signs.missing_labels is None else f". {signs.missing_labels}"
            module = type(self.pl_module).__name__
            return NotUnderstoodError(f"CAMMonitor shows nothing: {module} returns {error}{missing}")

    def _with_known_classes(self, probes: ProbeSet) -> ProbeSet:
        """Return the probes without those whose label is none of the model's classes."""
        task = self.memory.task
        if task is None or task.kind != "single-label" or probes.labels is None:
            return probes
        return self.parts.data.with_known_classes(probes, task.outputs)
