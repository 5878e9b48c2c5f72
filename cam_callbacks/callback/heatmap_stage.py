"""Heatmaps of one evaluation: from the probes to a snapshot and its pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cam_callbacks._checks import is_list
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.entry_point import only_network
from cam_callbacks.callback.loggers import Media
from cam_callbacks.callback.settings import DEFAULT_METHOD
from cam_callbacks.callback.stage import NotUnderstoodError, Stage, StepFailedError
from cam_callbacks.callback.task import audited_task
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.diagnosis import Argument, failing_argument
from cam_callbacks.explain.explanation import Explanation, shown_positions
from cam_callbacks.explain.forwarding import of_rows
from cam_callbacks.explain.layers import UnknownLayoutError, layer_name
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.network import output_kind
from cam_callbacks.explain.runner import Options
from cam_callbacks.explain.targets import Targets, wants_logits
from cam_callbacks.figures.logged import snapshot_pictures
from cam_callbacks.history import PastMaps
from cam_callbacks.snapshot import Snapshot, SnapshotShare

_LOOKS_IN_HISTORY = 5
_ROUNDING = 1e-6  # of scores in float32
_NEARLY_ALL = 0.9


class HeatmapStage(Stage):
    """Explains the probes."""

    def check(self, probes: ProbeSet) -> None:
        """Raise on bad input whatever an explanation would raise, at the price of one pass an image; settle the layer.

        Raises:
            StepFailedError: With that error; with `NotUnderstoodError` if the user has not stated what fails.
        """
        try:
            layer, reason = self.agreed(self._check, probes)
        except StepFailedError as failed:
            raise self._diagnosed(failed, probes) from failed
        if self.memory.layer is None:
            self.memory.layer, self.memory.reason_for_layer = layer, reason

    def explain(self, probes: ProbeSet) -> Snapshot:
        """Explain the probes; ranks that can split the work do so.

        Raises:
            StepFailedError: Where it fails on any rank; with `NotUnderstoodError` if it has never worked in this run,
                and the user has not stated what fails.
        """
        network = only_network(self.pl_module)
        if self.settings.forward_fn is None and network is not None:
            self.notices.inform_once(
                f"CAMMonitor: {type(self.pl_module).__name__} has no forward method; its only part with weights, "
                f"{network!r}, is explained. forward_fn overrides it"
            )
        if self.settings.target_layer is None and self.memory.layer is not None and not self._has_chosen_layer():
            self.memory.layer = None  # the training has put other modules in its place
        if self.memory.layer is None:
            # Without a sanity check the layer is chosen only now: by all ranks from the same images.
            self.check(probes)
        try:
            self.memory.method = self.agreed(self._broadcast_method, self.agreed(self._method_for, probes))
            share = self.agreed(self._explain_share, probes)
            snapshot = self.agreed(self._join, probes, share)
        except StepFailedError as failed:
            if self.memory.snapshot is not None:
                raise
            raise self._diagnosed(failed, probes) from failed
        self._say_what_is_explained(snapshot)
        self._say_if_there_are_no_channels(snapshot.explanation)
        return snapshot

    def log(self, snapshot: Snapshot) -> Media:
        """Log the numbers, remember the maps, and return the pictures by name: on the first rank, else none.

        Raises:
            StepFailedError: Where it fails on any rank.
        """
        return self.agreed(self._log, snapshot, self.largest(snapshot.scalars))

    def _diagnosed(self, failed: StepFailedError, probes: ProbeSet) -> StepFailedError:
        """Find out whether a failure is about something that the user states. Call it on all ranks."""
        ran_out = isinstance(failed.error, torch.OutOfMemoryError)
        if not of_trainer.all_ranks_ok(self.trainer, not ran_out):
            return failed
        try:
            found = self.agreed(self._failing_argument, probes)
        except StepFailedError:  # on some of the ranks that have to run the model together
            return failed
        argument = of_trainer.broadcast(self.trainer, found)
        if argument is None:
            return failed
        settings, error = self.settings, failed.error
        is_stated = {
            "forward_fn": settings.forward_fn is not None or self.memory.probes.are_given,
            "explain": not isinstance(settings.explain, str),
            "target_layer": settings.target_layer is not None or settings.method.reshape_transform is not None,
            "method": settings.method != DEFAULT_METHOD,
        }
        if is_stated[argument] and not isinstance(error, UnknownLayoutError):
            return StepFailedError(None if error is None else self.stated(error))
        reason = "it fails on another rank" if error is None else f"{error or type(error).__name__}"
        leaves_nothing = argument == "forward_fn"
        what = "nothing" if leaves_nothing else "no heatmaps"
        return StepFailedError(NotUnderstoodError(f"CAMMonitor shows {what}: {reason}", leaves_nothing))

    def _failing_argument(self, probes: ProbeSet) -> Argument | None:
        return failing_argument(
            self.settings.method,
            self.pl_module,
            probes.images,
            self.memory.layer,
            self.targets_of(probes),
            self.forward_fn,
        )

    def _say_what_is_explained(self, snapshot: Snapshot) -> None:
        """Say once what was found out rather than stated: the task, and the layer."""
        task, settings, reason = self.memory.task, self.settings, self.memory.reason_for_layer
        is_layer_found = settings.target_layer is None
        if task is None and not is_layer_found:
            return  # all of it is stated
        explain = settings.explain
        said = f"explains {snapshot.explanation.score_kind}"
        if task is not None and not callable(explain):
            said = task.describe(explain)
        if is_layer_found:
            layer = snapshot.explanation.target_layer
            where = f"layer {layer!r}" if isinstance(layer, str) else f"layers {layer[0]!r} to {layer[-1]!r}"
            said += f" at {where}{f', {reason}' if reason else ''} (target_layer overrides it)"
        if task is not None and settings.audit is not None and audited_task(settings.audit, task) is None:
            said += ". No audit, which needs labels"
            missing = self.parts.data.signs.missing_labels
            if missing is not None:
                self.notices.warn_once(f"CAMMonitor: {missing}. Until then there is no audit")
        shape = snapshot.probes.images.shape
        if len(shape) > 3 and shape[1] > 3 and snapshot.probes.bands is None:
            said += f". Pictures show the first three of {shape[1]} channels (Figures(bands=(...)) shows others)"
        self.notices.inform_once(f"CAMMonitor: {said}")

    def _has_chosen_layer(self) -> bool:
        layer = self.memory.layer
        try:
            for each in layer if is_list(layer) else [layer]:
                layer_name(self.pl_module, each)
        except ValueError:
            return False
        return True

    def _check(self, probes: ProbeSet) -> tuple[str | tuple[str, ...], str | None]:
        return self.settings.method.check_and_choose(
            self.pl_module, probes.images, self.memory.layer, self.targets_of(probes), forward_fn=self.forward_fn
        )

    def _method_for(self, probes: ProbeSet) -> Method:
        """Return the method, told what the model's outputs are: decided anew at each look, from all of its probes."""
        method, explain = self.settings.method, self.settings.explain
        if method.outputs != "auto" or (callable(explain) and not wants_logits(explain)):
            return method
        is_multi_label = self.memory.task is not None and self.memory.task.multi_label
        options = Options(method.batch_size, method.multi_label or is_multi_label)
        kind = output_kind(self.pl_module, probes.images, self.forward_fn, options)
        if kind.note:
            say = self.notices.inform_once if kind.is_certain else self.notices.warn_once
            say(f"CAMMonitor: {kind.note}")
        return _read_as(method, kind.outputs, kind.multi_label)

    def _broadcast_method(self, method: Method) -> Method:
        """Return the method of the first rank, of which the others may differ by rounding."""
        first = of_trainer.broadcast(self.trainer, (method.outputs, method.multi_label))
        return method if first == (method.outputs, method.multi_label) else _read_as(method, *first)

    def _explain_share(self, probes: ProbeSet) -> SnapshotShare:
        """Explain this rank's share of the probes, and their rival classes where that is wanted."""
        began = time.perf_counter()
        rows, targets = self.rows_of_rank(len(probes)), self.targets_of(probes)
        explanation, of_rivals = None, None
        if len(rows):
            explanation = self._explain(probes, rows, _of_rows(targets, rows))
            rivals = explanation.rivals
            if self.settings.explain == "both" and rivals is not None:
                if self.memory.task is not None and self.memory.task.kind == "multi-label":
                    rivals = _rivals_of_labels(explanation, probes, rows)
                of_rivals = self._explain(probes, rows, rivals)
        return SnapshotShare(rows, explanation, of_rivals, time.perf_counter() - began)

    def _explain(self, probes: ProbeSet, rows: Tensor, targets: Targets) -> Explanation:
        explanation = self.memory.method(
            self.pl_module,
            probes.images[rows],
            self.memory.layer,
            targets,
            forward_fn=of_rows(self.forward_fn, rows),
            compiled=self.memory.compiled,
        )
        return explanation.to("cpu")

    def _join(self, probes: ProbeSet, share: SnapshotShare) -> Snapshot:
        """Join the shares of all ranks, on all of them."""
        snapshot = Snapshot.joined(probes, self.gather(share))
        explanation = snapshot.explanation
        if explanation.logits is not None:
            snapshot = replace(snapshot, probes=self.parts.data.with_fitting_names(probes, explanation.logits.shape[1]))
        self.memory.snapshot = snapshot
        if explanation.is_coarse:
            self.notices.warn_once(
                f"The layer {explanation.target_layer!r} has only {shown_positions(explanation.positions)}: its maps "
                "are coarse, and where their heat lies is not judged; an earlier target_layer shows more"
            )
        self._say_if_nothing_is_shown(explanation)
        self._say_if_labels_are_shifted(probes.labels, explanation.predicted)
        return snapshot

    def _say_if_nothing_is_shown(self, explanation: Explanation) -> None:
        """Say once that all images are answered alike, so that maps say nothing of why, or that all maps are empty."""
        if not self.trainer.sanity_checking and _answers_alike(explanation.logits):
            self.notices.warn_once(
                f"CAMMonitor: the model answers all {len(explanation)} images alike, as if it did not look at them: "
                "heatmaps cannot show what the answer depends on"
            )
        elif (explanation.blank | explanation.skipped).all():
            self.notices.warn_once(
                f"CAMMonitor: all {len(explanation)} heatmaps are empty: nothing "
                "raises the score, or it is not finite. This is normal before a model has learned; later, "
                "see that it is fed as its steps feed it: forward_fn can do what they do before it"
            )

    def _say_if_there_are_no_channels(self, explanation: Explanation) -> None:
        """Say once that pictures of channels are asked for, and cannot be made."""
        if self.settings.figures.channels and explanation.channels is None:
            self.notices.warn_once(
                "CAMMonitor logs no pictures of channels (Figures(channels=True)): these maps are not the sum of one "
                "layer's channels; those of ScoreCAM() and GradCAM() at one layer are"
            )

    def _say_if_labels_are_shifted(self, labels: Tensor | None, predicted: Tensor | None) -> None:
        """Say once that nearly all answers are the labels minus 1, or plus 1, of three classes or more."""
        if labels is None or predicted is None or len(labels) != len(predicted) or len(set(labels.tolist())) < 3:
            return
        for by, undo in ((1, "subtracts"), (-1, "adds")):
            share = float((predicted == labels - by).float().mean())
            if share >= _NEARLY_ALL:
                self.notices.warn_once(
                    f"CAMMonitor: of {share:.0%} of the images the answer is the class beside the label. If the step "
                    f"{undo} 1, let batch_fn do so, too; until then the heatmaps are those of the wrong class"
                )

    def _log(self, snapshot: Snapshot, scalars: dict[str, float]) -> Media:
        explanation, history, settings = snapshot.explanation, self.memory.history, self.settings
        self.log_scalars(scalars)
        now = PastMaps(of_trainer.log_step(self.trainer), self.trainer.current_epoch, explanation.layer_maps)
        if of_trainer.is_fitting(self.trainer):
            if history.reset_if_changed(settings.way_of_explaining(explanation.target_layer)):
                self.notices.warn_once(
                    "The heatmaps of the earlier run were made in another way: starting a new history"
                )
            history.add(now)
        if not self.draws_pictures:
            return {}
        past = [] if self.trainer.testing else history.selected(_LOOKS_IN_HISTORY, now)
        brightest = None
        if settings.figures.heat_scale == "run":
            shown = [explanation] if snapshot.of_rivals is None else [explanation, snapshot.of_rivals]
            brightest = max(history.brightest(), *(float(each.layer_maps.nan_to_num().max()) for each in shown))
        return snapshot_pictures(snapshot, past, settings.figures, brightest)


def _of_rows(targets: Targets, rows: Tensor) -> Targets:
    """Return the targets of some images, of those that there are for each."""
    if isinstance(targets, Tensor):
        return targets[rows]
    return [targets[row] for row in rows.tolist()] if isinstance(targets, Sequence) else targets


def _rivals_of_labels(explanation: Explanation, probes: ProbeSet, rows: Tensor) -> Tensor:
    """Return (n,) the most probable class of each image that is not true of it; the least probable if all are."""
    logits = explanation.logits
    assert logits is not None
    assert probes.annotations is not None
    true = probes.annotations[rows].bool()
    rivals = logits.masked_fill(true, -torch.inf).argmax(dim=1)
    return torch.where(true.all(dim=1), logits.argmin(dim=1), rivals)


def _read_as(method: Method, outputs: Outputs, multi_label: bool) -> Method:
    return replace(method, outputs=outputs, multi_label=multi_label)


def _answers_alike(logits: Tensor | None) -> bool:
    """Return whether the logits (N, classes) of several images are the same up to rounding."""
    if logits is None or len(logits) < 2:
        return False
    spread = logits.amax(dim=0) - logits.amin(dim=0)
    return bool((spread <= _ROUNDING * logits.abs().amax(dim=0)).all())
