"""CAMMonitor: when to look, what to log. The only file that knows Lightning's hook methods."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from cam_callbacks import tags
from cam_callbacks.audit.foreground import can_estimate
from cam_callbacks.audit.result import AuditResult, Verdict
from cam_callbacks.audit.statistics import bootstrap
from cam_callbacks.callback import trainer as lightning
from cam_callbacks.callback.arguments import check_arguments
from cam_callbacks.callback.auditor import Auditor
from cam_callbacks.callback.data_source import Reader
from cam_callbacks.callback.loggers import MediaLogger
from cam_callbacks.callback.prober import Prober
from cam_callbacks.callback.retries import Retries
from cam_callbacks.callback.trainer import CallbackBase, Misconfiguration
from cam_callbacks.data.batches import LABEL_KEYS, BatchFn, LabelUse
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import as_normalization
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import layers, progress, sharding
from cam_callbacks.explain.compilation import CompiledModel
from cam_callbacks.explain.explanation import Explanation
from cam_callbacks.explain.faithfulness import randomization
from cam_callbacks.explain.isolation import random_state_kept
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import ForwardFn
from cam_callbacks.explain.score_cam import ScoreCAM
from cam_callbacks.explain.targets import Target, TargetFn
from cam_callbacks.figures.drawing import Picture
from cam_callbacks.figures.logged import audit_pictures, snapshot_pictures
from cam_callbacks.figures.settings import Figures, OverlayStyle
from cam_callbacks.history import History, PastMaps
from cam_callbacks.review.json_values import readable
from cam_callbacks.review.report import write_report
from cam_callbacks.review.writer import TabWriter
from cam_callbacks.snapshot import AuditShare, AuditSnapshot, Snapshot, SnapshotShare

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_LOOKS_IN_HISTORY = 5
_COARSE = 16
_MOST_ALIKE = 0.95
_PUT_ON_BY_LIGHTNING = ("log", "log_dict")  # methods of the model
_BYTES_IN_CHECKPOINT = 10 * 2**20

_NOTHING_ELSE = "Whatever else is logged is there, and CAMMonitor leaves the run alone."
_ALIKE = (
    "CAMMonitor: the heatmaps are nearly the plain mean of the layer's channels (their correlation with it is above "
    f"{_MOST_ALIKE}). They show where the layer is active, and those of two classes hardly differ; where that matters, "
    'GradCAM() and ScoreCAM("increase") tell classes apart better'
)
# What may fail, in the words of a warning.
_LOOKING, _AUDITING, _SENDING = "CAMMonitor failed", "CAMMonitor failed to audit", "CAMMonitor failed to log"


class CAMMonitor(CallbackBase):
    r"""Shows where the model looks, after each validation, in the trainer's logger.

    It picks a few images from the validation batches that pass by, explains the same ones at every look, and logs:

    - `cam/heatmaps`: each image beside its overlay, with its label and the three most probable classes; mistakes are
      framed;
    - `cam/history`: the same images at the first, some middle and the current look;
    - `cam/class_mean`: the mean heatmap of each class;
    - `cam/channels`, if asked for: what the heatmaps are made of;
    - `cam/passes`, `cam/seconds`: what the heatmaps cost, in forward samples and in seconds; `cam/blank`,
      `cam/skipped`: maps without contrast, and images without a map because activations or scores were not finite;
    - of the audit: its numbers, such as `cam/bg_gap`, the pictures `cam/swaps` and `cam/heat_over_chance`, and the text
      `cam/verdict`.

    Scalars can be monitored by other callbacks if every validation has a look (`every_n_epochs=1`).

    It uses the weights that produced this validation's metrics, averaged ones included, at the last validation batch.
    Weights after training are bit for bit those of a run without it.

    An error in it never ends a training that has begun (one exception: an error on a single rank where the weights are
    spread by `fully_shard`). But a callback that monitors one of its numbers, such as
    `EarlyStopping(monitor="cam/bg_gap")`, ends the run itself where that number is missing after a look that failed.

    Args:
        target_layer: Dotted name of the layer whose activations are used, or several names, whose maps are averaged;
            None chooses the last layer that still has spatial positions and that the output depends on.
        method: How heatmaps are computed: `ScoreCAM()`, `GradCAM()`, `CAM()`, or a `Method` of your own.
        probes: The images to explain: None picks them from the validation batches; a folder of photos; a data set, of
            which the first images of each class are taken (all of it is read if the names of its classes are not
            known); or a `ProbeSet`.
        num_probes: How many images are picked.
        explain: `"true"`: the true class of each image, the best choice for comparing looks. `"predicted"`: the
            predicted class. `"both"`: the true class, and beside it the predicted one where they differ. A number: that
            class. A callable: what it reads from the model's output, see `cam_callbacks.explain.targets`; for models that are
            not classifiers, e.g. `RegressionTarget()` or `SegmentationTarget(class_index)`.
        every_n_epochs: Look after the validations of every n-th epoch of `fit`. `validate()` and `test()` always look.
        class_names: Names of the classes; None takes them from the data set or the datamodule, if they have them.
        normalization: Mean and standard deviation per channel with which the images were normalized, or `"imagenet"`;
            None takes them from the data set's transforms if they can be found.
        batch_fn: Called as `batch_fn(batch)` on every batch, for those that are not understood without it; returns
            `(images, targets)`, `(images, targets, masks)`, or a mapping with the keys of
            `cam_callbacks.data.batches.read_batch`.
        forward_fn: Called as `forward_fn(pl_module, images)` in place of `pl_module(images)`; returns logits
            (N, classes).
        style: How overlays are drawn: `"blend"`, `"jet"` or `"heatmap"`, see `cam_callbacks.figures.drawing.overlay`.
        heat_scale: `"image"`: each map is scaled to its own minimum and maximum. `"run"`: to the largest value of all
            looks so far, so that magnitudes can be compared within `cam/history`; `cam/class_mean` is always by image.
        log_channels: Log `cam/channels` too: the channels of largest weight, for one probe of each class.
        audit: Measure at each look, on labeled validation images, how far the answers depend on the background, and
            give a verdict (`cam_callbacks.audit`): logged as scalars, `cam/swaps`, `cam/heat_over_chance` and
            `cam/verdict`. There is none where `explain` is a callable.
        num_audit_images: How many images the audit uses, balanced over the classes; allow at least 30 per class.
        foreground_values: The values of the batches' masks that mean object, e.g. of a trimap; None for masks of two
            values, the larger of which is the object.
        alarm_threshold: What the lower bound of a gap in accuracy has to exceed to be suspect, as in
            `cam_callbacks.audit.judge`.
        check_randomization: At the end of `fit`, compare the heatmaps with those of a copy of the model with random
            weights (Adebayo et al. 2018), and report their rank correlation: near 0 means that the maps depend on what
            was learned.
        on_alarm: What an alarm does: `"warn"`, when the verdict changes; `"stop"` the training after this validation;
            or a callable, called with the `Verdict` on every rank at each look in alarm.
        report: At the end of `fit`, write `cam_report.html` beside TensorBoard's event files: all looks in one file to
            hand over, as `cam-callbacks report` does.
        on_error: What an error does once training has started. `"warn"`: one warning with the traceback, and no
            look until the next validation; after three failures in a row no more looks. `"raise"`: it ends the run.
        name: First part of the tags; monitors in one trainer need different ones.

    Attributes:
        probes: The images, once they are picked.
        explanation: Of the last look; its tensors on the CPU.
        audit_result: The numbers of the last look's audit.
        verdict: What it found.
        randomization: Mean rank correlation of the heatmaps with those of random weights, if asked for; NaN if
            there is no image of which both have contrast.

    Raises:
        MisconfigurationException: An argument out of range; at the start of `fit`, or in its sanity check: a layer
            that does not exist, a batch or an output that is not understood, and whatever else can be known by then.

    Example::

        from pytorch_lightning import Trainer
        from cam_callbacks import CAMMonitor

        trainer = Trainer(callbacks=[CAMMonitor()])
    """

    def __init__(
        self,
        target_layer: str | Sequence[str] | None = None,
        method: Method = ScoreCAM(),  # noqa: B008 - a frozen value
        probes: str | Path | ProbeSet | Dataset[Any] | None = None,
        *,
        num_probes: int = 16,
        explain: Literal["true", "predicted", "both"] | int | Target | TargetFn = "true",
        every_n_epochs: int = 1,
        class_names: Sequence[str] | None = None,
        normalization: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None = None,
        batch_fn: BatchFn | None = None,
        forward_fn: ForwardFn | None = None,
        style: OverlayStyle = "blend",
        heat_scale: Literal["image", "run"] = "image",
        log_channels: bool = False,
        audit: bool = True,
        num_audit_images: int = 128,
        foreground_values: Sequence[int] | None = None,
        alarm_threshold: float = 0.05,
        check_randomization: bool = False,
        on_alarm: Literal["warn", "stop"] | Callable[[Verdict], Any] = "warn",
        report: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        name: str = "cam",
    ) -> None:
        arguments = {argument: value for argument, value in locals().items() if argument not in ("self", "__class__")}
        super().__init__()
        check_arguments(arguments)
        self.target_layer = target_layer if isinstance(target_layer, (str, type(None))) else tuple(target_layer)
        self.method = method
        self.explain = int(explain) if isinstance(explain, Integral) else explain
        self.num_probes = num_probes
        self.every_n_epochs = every_n_epochs
        self.class_names = ClassNames(class_names)
        self.normalization = as_normalization(normalization)
        self.batch_fn = batch_fn
        self.forward_fn = forward_fn
        self.style = style
        self.heat_scale = heat_scale
        self.log_channels = log_channels
        self.num_audit_images = num_audit_images
        self.alarm_threshold = alarm_threshold
        self.foreground_values = None if foreground_values is None else list(foreground_values)
        self.check_randomization = check_randomization
        self.on_alarm = on_alarm
        self.report = report
        self.on_error = on_error
        self.name = name

        self.explanation: Explanation | None = None
        self.audit_result: AuditResult | None = None
        self.verdict: Verdict | None = None
        self.randomization: float | None = None
        self._prober = Prober(probes, num_probes)
        self._auditor = Auditor(num_audit_images, alarm_threshold) if audit and not callable(explain) else None
        self._layer: str | Sequence[str] | None = self.target_layer
        self._history = History()
        self._compiled = CompiledModel()
        self._failures = Retries()
        self._log_out = MediaLogger(self._failures)
        self._tab = TabWriter(name, readable(arguments))
        self._said: set[str] = set()
        # Of the evaluation that is going on:
        self._picked: ProbeSet | None = None
        self._share_of_look: SnapshotShare | None = None
        self._to_send: dict[str, Picture | str] = {}  # by record
        self._folder = ""
        self._looked: Snapshot | None = None
        self._audit_images: ProbeSet | None = None
        self._share_of_audit: AuditShare | None = None
        self._audited: AuditSnapshot | None = None
        self._audit_began = 0.0
        self._error: Exception | None = None

    @property
    def probes(self) -> ProbeSet | None:
        """The images that are explained, once they are picked."""
        return self._prober.probes

    @property
    def state_key(self) -> str:
        """Unique to the name, so that several monitors can be saved in one checkpoint."""
        return f"CAMMonitor[{self.name}]"

    def state_dict(self) -> dict[str, Any]:
        """Layer, probes, maps of earlier looks, images of the audit, as far as they fit into 10 MB; and suspicions.

        Tensors and primitives only, so that it can be loaded with `weights_only`.
        """
        room = _BYTES_IN_CHECKPOINT
        probes = self._prober.state_dict(room)
        room -= 0 if probes is None or self.probes is None else self.probes.nbytes
        history = self._history.state_dict(room)
        room -= sum(look["layer_maps"].nbytes for look in history["looks"])
        return {
            "layer": self._layer,
            "probes": probes,
            "history": history,
            "audit": None if self._auditor is None else self._auditor.state_dict(room),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same layer, the same probes and their history."""
        if self.target_layer is None:
            self._layer = state_dict["layer"]
        self._prober.load_state_dict(state_dict["probes"])
        self._history.load_state_dict(state_dict["history"])
        if self._auditor is not None and state_dict["audit"] is not None:
            self._auditor.load_state_dict(state_dict["audit"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with no failures; check the strategy, and that no other monitor writes to the same tags."""
        self._failures.forget()
        if self._auditor is not None:
            self._auditor.is_disabled = False
        lightning.check_strategy(trainer)
        names = [other.name for other in trainer.callbacks if isinstance(other, CAMMonitor)]  # type: ignore[attr-defined]
        if names.count(self.name) > 1:
            raise Misconfiguration(
                f"two CAMMonitors have name={self.name!r} and would write to the same tags; give one another name"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before the first batch."""
        self._check_layer(pl_module)
        if self.check_randomization and sharding.device_mesh(pl_module) is not None:
            raise Misconfiguration(
                "check_randomization=True needs a copy of the model, but its weights are spread over processes; leave "
                "it out, and check on one device"
            )
        if self.report and not (trainer.fast_dev_run or trainer.barebones or lightning.logs_to_tensorboard(trainer)):  # type: ignore[attr-defined]
            raise Misconfiguration(
                "report=True makes a report of what is in TensorBoard's event files, but the trainer has no "
                "TensorBoardLogger; give it one, or leave report out"
            )
        if not lightning.will_validate(trainer):
            self._warn_once(
                "CAMMonitor looks after each validation, but this fit has none: it will show nothing. It needs a "
                "validation loader, a validation_step and limit_val_batches above 0"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to pick probes, if there are none yet."""
        self._begin(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to pick probes from the test batches."""
        self._begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pick probes from the batch; after the last batch, look."""
        self._batch_end(trainer, pl_module, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Pick probes from the batch; after the last batch, look."""
        self._batch_end(trainer, pl_module, batch, dataloader_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the model; Lightning calls this, not `teardown`, when a run fails."""
        self._let_go()

    def _let_go(self) -> None:
        """Of the model, which an error, a compiled copy, and what Lightning puts on each callback would keep."""
        self._error = None
        self._compiled.release()
        for name in _PUT_ON_BY_LIGHTNING:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are made without the model."""
        return {name: value for name, value in self.__dict__.items() if name not in _PUT_ON_BY_LIGHTNING}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the last heatmaps with those of random weights, if asked to."""
        if self.check_randomization and self._looked is not None:
            self._at_the_end("check randomization", self._randomize, trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, if asked to."""
        if self.report and self._looked is not None and lightning.logs_to_tensorboard(trainer):
            self._at_the_end("write the report", self._write_report, trainer, pl_module)

    def _at_the_end(self, what: str, act: Callable[..., None], trainer: Trainer, pl_module: LightningModule) -> None:
        """Act once on all ranks, when training is over; an error ends the run only if the user wants that."""
        if self._run([act], trainer, pl_module):
            return
        error, self._error = self._error, None
        if self.on_error == "raise":
            raise error or RuntimeError(f"CAMMonitor could not {what} on another rank")
        if error is not None:
            warnings.warn(f"CAMMonitor could not {what}.\n{_trace(error)}", stacklevel=2)

    def _write_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folders = self._tab.flush(trainer.loggers) if trainer.is_global_zero else []
        if folders:
            path = folders[0] / "cam_report.html"
            write_report(folders, path)
            rank_zero_info(f"CAMMonitor: the report of all looks is {path}")

    def _randomize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._looked is not None
        probes, explanation = self._looked.probes, self._looked.explanation
        alike = randomization(
            pl_module,
            probes.images,
            explanation,
            self.method,
            self._layer,
            self._targets(probes),
            lightning.forward_in_precision(trainer, self.forward_fn),
        )
        known = alike[~alike.isnan()]
        self.randomization = float(known.mean())
        low, high = bootstrap(known)
        found = (
            f"{self.randomization:.2f} [{low:.2f}, {high:.2f}] over {len(known)} images; near 0 they read the model, "
            "near 1 they would be the same whatever it has learned"
        )
        unknown = "not defined: no image has a heatmap with contrast both before and after"
        rank_zero_info(
            "CAMMonitor: with random weights in the model the heatmaps' rank correlation with those shown is "
            f"{found if len(known) else unknown}"
        )

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._error, self._audited, self._to_send = None, None, {}
        if not lightning.is_fitting(trainer):
            self._check_layer(pl_module)
        self._prober.begin(trainer.testing)
        if self._auditor is not None:
            self._auditor.begin(trainer.testing)

    def _batch_end(self, trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int) -> None:
        if self._failures.is_disabled(_LOOKING):
            return
        if dataloader_idx == 0:
            self._attempt(self._collect, trainer, batch)
        if not lightning.is_last_batch(trainer):
            return
        looks = not trainer.sanity_checking and self._due(trainer)
        stages = [self._pick, self._share]
        if trainer.sanity_checking:
            stages += [self._check]
        elif looks:
            # Without a sanity check the layer is settled only now: by all ranks from the same images.
            stages += [*([self._check] if self._layer is None else []), self._look, self._gather, self._log]
        if not self._run(stages, trainer, pl_module):
            self._fail(trainer, _LOOKING, "CAMMonitor leaves the run alone.")
            return
        if not looks:
            return
        self._failures.forget(_LOOKING)
        if self._auditor is not None and not self._failures.is_disabled(_AUDITING):
            stages = [self._audit_pick, self._audit_share, self._audit_look, self._audit_gather, self._audit_log]
            if self._run(stages, trainer, pl_module):
                self._failures.forget(_AUDITING)
            else:
                self._fail(trainer, _AUDITING, "Heatmaps are shown all the same.")
        if self._failures.is_disabled(_SENDING):
            return
        if self._run([self._send], trainer, pl_module):
            self._failures.forget(_SENDING)
        else:
            self._fail(trainer, _SENDING, "CAMMonitor leaves the run alone.")

    def _run(self, stages: Sequence[Callable[..., None]], trainer: Trainer, pl_module: LightningModule) -> bool:
        """Run stages on all ranks; False as soon as one has failed on any.

        The ranks send to each other in the stages: none goes on where another one has failed.
        """
        for stage in stages:
            self._attempt(stage, trainer, pl_module)
            if not lightning.all_ranks_ok(trainer, self._error is None):
                return False
        return True

    def _due(self, trainer: Trainer) -> bool:
        if not lightning.is_fitting(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _attempt(self, act: Callable[..., None], *args: Any) -> None:
        """Act, unless something has failed in this evaluation; keep the error."""
        if self._error is not None:
            return
        try:
            # What is kept from `validate()` must serve in a later `fit`: no inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                act(*args)
        except Exception as error:
            self._error = error

    def _fail(self, trainer: Trainer, what: str, going_on: str) -> None:
        """On all ranks: raise where an error may end the run, else say what happened."""
        times = self._failures.add(what)
        own = self._error is not None
        error = self._error or RuntimeError(f"{what} on another rank")
        self._error = None
        if trainer.sanity_checking and isinstance(error, (TypeError, ValueError)):
            raise Misconfiguration(f"CAMMonitor: {error}") from error
        if trainer.sanity_checking or self.on_error == "raise":
            raise error
        if own or trainer.is_global_zero:
            self._say_failed(trainer, error, what, times, going_on)

    def _say_failed(self, trainer: Trainer, error: Exception, what: str, times: int, going_on: str) -> None:
        at = f"at the evaluation of epoch {trainer.current_epoch}, step {lightning.step(trainer)}"
        then = (
            "three times in a row: it gives up"
            if self._failures.is_disabled_at(times)
            else "it tries again at the next one"
        )
        warnings.warn(f"{what} {at}, {then}. {going_on}\n{_trace(error)}", stacklevel=2)

    # The stages of an evaluation: collect at every batch; after the last one pick and share, then check, or look and
    # log.

    def _collect(self, trainer: Trainer, batch: Any) -> None:
        reader = self._reader
        self._prober.read(lambda source, count: reader.probes(source, count, trainer, batch))
        audits = self._auditor is not None and self._auditor.collects
        if not self._prober.collects and not audits:
            return
        try:
            samples = reader.samples(batch)
        except (TypeError, ValueError) as error:
            if self._prober.collects:
                raise
            assert self._auditor is not None  # the probes were given: nothing else depends on the batches
            self._warn_once(f"CAMMonitor audits nothing: {error}")
            self._auditor.give_up()
            return
        self._prober.offer(samples)
        if self._auditor is not None:
            self._auditor.offer(samples)

    @property
    def _reader(self) -> Reader:
        label_use: LabelUse = "required" if self.explain in ("true", "both") else "optional"
        return Reader(
            self.batch_fn,
            "ignored" if callable(self.explain) else label_use,
            self.foreground_values,
            self.class_names,
            self.normalization,
            self._warn_once,
        )

    def _pick(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the probes of this evaluation; the first rank chooses for all."""
        if self._prober.settled:
            self._picked = self.probes
        elif trainer.is_global_zero:
            chosen, ignored = self._prober.chosen()
            if ignored:
                self._warn_once(
                    f"CAMMonitor left out {ignored} images that are not finite, or whose size, labels or masks are not "
                    f"like those of the first, {tuple(chosen.images.shape[1:])}"
                )
            self._picked = self._reader.described(chosen, trainer)

    def _share(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the probes to all ranks."""
        if self._prober.settled:
            return
        self._picked = lightning.broadcast(trainer, self._picked)
        if self._picked is not None and not (trainer.sanity_checking or trainer.testing):
            self._prober.keep(self._picked)
            if not self._history.reset_if_changed("probes", self._picked.fingerprint):
                self._warn_once("The probes are not those of the earlier run: their history begins anew")

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise on bad input what a look would raise, without the passes of one."""
        probes = self._picked
        assert probes is not None
        forward_fn = lightning.forward_in_precision(trainer, self.forward_fn)
        layer = self.method.check(pl_module, probes.images, self._layer, self._targets(probes), forward_fn=forward_fn)
        self._settle_layer(layer)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Explain this rank's share of the probes."""
        probes = self._picked
        assert probes is not None
        forward_fn = lightning.forward_in_precision(trainer, self.forward_fn)
        with lightning.shown_progress(trainer, self.method.name) as show, progress.shown(show):

            def explain(images: Tensor, targets: int | Tensor | TargetFn | None) -> Explanation:
                return self.method(
                    pl_module, images, self._layer, targets, forward_fn=forward_fn, compiled=self._compiled
                ).to("cpu")

            rows = lightning.indices_of_rank(trainer, pl_module, len(probes))
            self._share_of_look = SnapshotShare.of(probes, rows, self._targets(probes), explain, self.explain == "both")

    def _gather(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the shares of all ranks together, on all of them."""
        probes, share = self._picked, self._share_of_look
        assert probes is not None
        assert share is not None
        shares = lightning.gather(trainer, pl_module, share)
        looked = Snapshot.of(probes, shares)
        explanation = looked.explanation
        if explanation.layer_maps[0].numel() < _COARSE and probes.images.ndim > 3:
            self._warn_once(
                f"The layer {explanation.target_layer!r} has only {tuple(explanation.layer_maps.shape[1:])} positions: "
                "its maps are coarse; an earlier target_layer shows more"
            )
        if explanation.logits is not None:
            looked = replace(looked, probes=self._with_fitting_names(probes, explanation.logits.shape[1]))
        self._looked, self.explanation = looked, explanation

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scalars on all ranks, so that all can monitor them; pictures from the first."""
        assert self._looked is not None
        looked, explanation = self._looked, self._looked.explanation
        self._log_scalars(trainer, pl_module, looked.scalars())
        self._folder = lightning.folder(trainer)  # asked for on all ranks
        now = PastMaps(lightning.step(trainer), trainer.current_epoch, explanation.layer_maps)
        if lightning.is_fitting(trainer):
            how = f"{self.method.name} of {explanation.target_layer}"
            if not self._history.reset_if_changed("maps", how):
                self._warn_once("The heatmaps of the earlier run were made in another way: their history begins anew")
            self._history.add(now)
        past = [] if trainer.testing else self._history.selected(_LOOKS_IN_HISTORY, now)
        brightest = None
        if self.heat_scale == "run":
            brightest = max(self._history.brightest(), float(explanation.layer_maps.nan_to_num().max()))
        if trainer.is_global_zero and not trainer.barebones:
            figures = Figures(self.style, self.heat_scale, self.log_channels)
            self._to_send |= snapshot_pictures(looked, past, figures, brightest)

    def _audit_pick(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images to audit on; the first rank chooses for all."""
        assert self._auditor is not None
        self._audit_began = time.perf_counter()
        self._audit_images = None if trainer.testing else self._auditor.images
        if self._audit_images is not None or not trainer.is_global_zero:
            return
        self._audit_images = picked = self._auditor.pick(lambda images: self._reader.described(images, trainer))
        if picked is None and not self._auditor.is_disabled:
            self._warn_once(
                "CAMMonitor audits nothing: no labels of two or more classes came with the images; "
                "audit=False says that none is wanted"
            )
        if picked is not None and picked.masks is None and picked.images.ndim == 4 and not can_estimate():
            self._warn_once(
                "CAMMonitor: no masks came with the images, and without OpenCV none are estimated: the audit exchanges "
                "only the outer ring, a weak test that never gives an alarm. Give masks, or "
                "pip install opencv-python-headless"
            )

    def _audit_share(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send them to all ranks."""
        assert self._auditor is not None
        if trainer.testing or self._auditor.images is None:
            self._audit_images = lightning.broadcast(trainer, self._audit_images)
        if not trainer.testing and not self._auditor.keep(self._audit_images):
            self._warn_once("The images of the audit are not those of the earlier run: suspicions begin anew")

    def _audit_look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the model on this rank's share of the audit."""
        self._share_of_audit = None
        if self._audit_images is None:
            return
        assert self._auditor is not None
        assert self._looked is not None
        self._share_of_audit = self._auditor.observe(
            pl_module,
            self._audit_images,
            self._layer,
            lightning.forward_in_precision(trainer, self.forward_fn),
            self.method,
            self._looked.probes.images,
            self._looked.explanation,
            lambda count: lightning.indices_of_rank(trainer, pl_module, count),
        )

    def _audit_gather(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the shares of all ranks together, and judge, on all of them."""
        self._audited = None
        if self._audit_images is None:
            return
        assert self._auditor is not None
        assert self._looked is not None
        shares = lightning.gather(trainer, pl_module, self._share_of_audit)
        self._audited = self._auditor.conclude(
            self._audit_images,
            [share for share in shares if share is not None],
            self._looked.explanation,
            remember=lightning.is_fitting(trainer),
        )

    def _audit_log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Numbers on all ranks; pictures and text from the first; what an alarm calls for."""
        if self._audited is None:
            return
        audited, before = self._audited, self.verdict
        self.audit_result, self.verdict = audited.result, audited.verdict
        seconds = {tags.AUDIT_SECONDS: time.perf_counter() - self._audit_began}
        self._log_scalars(trainer, pl_module, audited.scalars() | seconds)
        if trainer.is_global_zero and not trainer.barebones:
            self._to_send |= audit_pictures(audited) | {tags.VERDICT: self.verdict.text}
        self._say_if_maps_are_of_no_class(audited)
        said = ("not learned", (), False) if before is None else (before.state, before.classes, before.overall)
        if said != (self.verdict.state, self.verdict.classes, self.verdict.overall):
            say = rank_zero_warn if self.verdict.state in ("alarm", "warning") else rank_zero_info
            say(f"CAMMonitor, epoch {trainer.current_epoch}: {self.verdict.text.split(chr(10))[0].replace('**', '')}")
        if self.verdict.state == "alarm":
            if self.on_alarm == "stop":
                trainer.should_stop = True
            elif callable(self.on_alarm):
                with random_state_kept():
                    self.on_alarm(self.verdict)

    def _say_if_maps_are_of_no_class(self, audited: AuditSnapshot) -> None:
        measured = audited.trust.get("mean_activation_correlation")
        learned = audited.verdict.state != "not learned"
        if learned and measured is not None and measured.overall.value > _MOST_ALIKE:
            self._warn_once(_ALIKE, rank_zero_info)

    def _send(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send pictures, texts and the tab's data to the loggers; one that fails costs the others nothing."""
        if not self._to_send:
            return
        tagged = {tags.tag(self.name, record, trainer.testing): sent for record, sent in self._to_send.items()}
        failed = self._log_out.log(trainer.loggers, self._folder, tagged, lightning.step(trainer))
        failed += self._log_out.attempt("writing for the CAM tab", lambda: self._write_for_tab(trainer))
        self._to_send = {}
        for each in failed:
            if self.on_error == "raise":
                raise each.error
            self._say_failed(trainer, each.error, f"CAMMonitor: {each.what} failed", each.times, _NOTHING_ELSE)

    def _write_for_tab(self, trainer: Trainer) -> None:
        assert self._looked is not None
        loggers, step, testing = trainer.loggers, lightning.step(trainer), trainer.testing
        epoch, method = trainer.current_epoch, self.method.name
        self._tab.write_look(loggers, step, self._looked, epoch=epoch, method=method, testing=testing)
        if self._audited is not None:
            swaps = self._to_send.get(tags.SWAPS)
            assert not isinstance(swaps, str)
            self._tab.write_audit(loggers, step, self._audited, swaps, testing=testing)

    def _log_scalars(self, trainer: Trainer, pl_module: LightningModule, scalars: dict[str, float]) -> None:
        """Log numbers, by record, on all ranks, so that all callbacks can monitor them."""
        if trainer.barebones:
            return
        for record, value in scalars.items():
            pl_module.log(
                tags.tag(self.name, record, trainer.testing),
                value,
                on_step=False,
                on_epoch=True,
                batch_size=1,
                add_dataloader_idx=False,
                sync_dist=trainer.world_size > 1,
            )

    def _targets(self, probes: ProbeSet) -> int | Tensor | TargetFn | None:
        if isinstance(self.explain, int) or callable(self.explain):
            return self.explain
        if self.explain == "predicted":
            return None
        if probes.labels is None:
            raise ValueError(
                f"explain={self.explain!r} needs to know the true classes, but no labels came with the images (in a "
                f"mapping they are found under {', '.join(map(repr, LABEL_KEYS))}; in a folder, by subfolders named "
                'like the classes); give explain="predicted", ProbeSet(images, targets), or batch_fn, a callable '
                "(batch) -> (images, targets)"
            )
        return probes.labels

    def _with_fitting_names(self, probes: ProbeSet, classes: int) -> ProbeSet:
        if len(probes.class_names) in (0, classes):
            return probes
        self._warn_once(
            f"the class names that were found or given are {len(probes.class_names)}, but the model has {classes} "
            "classes: they are shown by number. Give CAMMonitor(class_names=...)"
        )
        return replace(probes, class_names=ClassNames())

    def _check_layer(self, pl_module: LightningModule) -> None:
        if self._layer is None:
            return
        try:
            for name in [self._layer] if isinstance(self._layer, str) else self._layer:
                layers.find(pl_module, name)
        except ValueError as error:
            if self.target_layer is not None:
                raise Misconfiguration(str(error)) from error
            self._warn_once(f"The layer of the earlier run is gone ({error}): CAMMonitor chooses anew")
            self._layer = None

    def _settle_layer(self, layer: str | tuple[str, ...]) -> None:
        if self._layer is None:
            self._layer = layer
            rank_zero_info(
                f"CAMMonitor explains the layer {layer!r}, the last with positions; target_layer overrides it"
            )

    def _warn_once(self, message: str, say: Callable[[str], None] = rank_zero_warn) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
