"""CAMMonitor: the callback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import Dataset

from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.settings import Audit
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.before_fit import check_before_fit
from cam_callbacks.callback.cross_check import contradiction
from cam_callbacks.callback.end_of_fit import EndOfFit
from cam_callbacks.callback.evaluation import Evaluation
from cam_callbacks.callback.memory import Memory
from cam_callbacks.callback.settings import DEFAULT_METHOD, MonitorSettings
from cam_callbacks.callback.stage import MonitorParts
from cam_callbacks.callback.trainer import CallbackBase, Misconfiguration
from cam_callbacks.data.batches import BatchFn
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import layers
from cam_callbacks.explain.explanation import Explanation
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.targets import Target, TargetFn
from cam_callbacks.figures.settings import Figures
from cam_callbacks.history import PastMaps

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_PUT_ON_BY_LIGHTNING = ("log", "log_dict")  # methods of the model


class CAMMonitor(CallbackBase):
    """Show where the model looks, and whether it is right for the wrong reasons, after each validation.

    It picks a few images from the validation batches, the *probes*, explains the same ones at every *look*, and logs
    with the trainer's logger:

    - `cam/heatmaps`: each probe beside its heatmap, with its label and the three most probable classes; mistakes are
      framed;
    - `cam/history`: the same probes at the first, some middle and the current look;
    - `cam/class_mean`: the mean heatmap of each class;
    - `cam/channels`, if asked for: what the heatmaps are made of;
    - `cam/passes`, `cam/seconds`: the cost of the heatmaps, in images forwarded and in seconds; `cam/blank`,
      `cam/skipped`: maps without contrast, and probes without a map because activations or scores were not finite;
    - from the audit: its numbers, such as `cam/bg_gap`, the pictures `cam/swaps` and `cam/heat_over_chance`, and the
      text `cam/verdict`.

    Other callbacks can monitor the numbers if every validation has a look, as it has by default.

    It uses the weights that produced this validation's metrics, averaged ones included, at the last validation batch.
    The weights after training are bit for bit those of a run without it.

    An error in it never ends a training that has begun. But a callback that monitors one of its numbers, such as
    `EarlyStopping(monitor="cam/bg_gap")`, ends the run itself if that number is missing because a look has failed.

    Args:
        target_layer: Dotted name of the layer whose activations are used, or several names, whose maps are averaged.
            None chooses the last layer with at least 6 x 6 positions that the output depends on (of signals 6, of
            volumes 6 x 6 x 6), or else the finest; for `CAM()`, the last with any positions.
        method: How heatmaps are computed: `ReciproCAM("evidence")`, the default, `GradCAM()`, `ScoreCAM()`, or another
            `Method`, also one of your own.
        probes: The images to explain. None picks them from the validation batches. A folder of photos, a data set (its
            first images of each class; all of it is read if the names of its classes are not known), or a `ProbeSet`.
        num_probes: How many images to pick.
        explain: `"label"`: what is true of each image, the best choice for comparing looks: its class; of several, the
            one with the highest score; the largest of a segmentation; the number of a regression. `"prediction"`: the
            predicted class. `"both"`: beside the true class its rival, the most probable other one. A number: that
            class. A callable: what it reads from the model's output; see `cam_callbacks.explain.targets`.
        every_n_epochs: Look after the validations of every n-th epoch of `fit`. `validate()` and `test()` always look.
        max_overhead: The share of the time of a `fit` that looks may take, such as 0.05. After the first, a validation
            has a look only once there is time for it. None: no limit.
        audit: Measure at each look how much the answers depend on the background, and give a verdict; its settings are
            those of `Audit`. None or False turns it off. There is none if `explain` is a callable; but the
            masks' `foreground_values` and the check of `randomization` hold there too.
        figures: How pictures are drawn, see `Figures`.
        class_names: Names of the classes. None takes them from the data set or the datamodule, if they have them.
        normalization: Mean and standard deviation per channel that the images were normalized with, or `"imagenet"`.
            None takes them from the data set's transforms or a module, if they can be found.
        batch_fn: Called as `batch_fn(batch)` on every batch, for batches that are not understood without it. It returns
            `(images, labels)`, `(images, labels, masks)`, or a mapping with the keys of
            `cam_callbacks.data.batches.read_batch`.
        forward_fn: Called as `forward_fn(pl_module, images)` in place of `pl_module(images)`, or with `rows` (N,),
            which images these are, if it takes a third argument; returns logits (N, classes).
        outputs: What the model returns: `"logits"` or `"probabilities"`, instead of what `method` says. `"auto"` leaves
            it to `method`, which decides at each look unless told; what it took is said once.
        report: At the end of `fit`, write `cam_report.html` beside TensorBoard's event files: all looks in one file
            that can be shared, as `cam-callbacks report` does.
        on_error: What to do with an error once training has started. `"warn"`: give one warning with the traceback, and
            retry at the next validation; after three failures in a row, stop looking. `"raise"`: end the run.
        name: First part of the tags. Monitors of one trainer need different names.

    Raises:
        MisconfigurationException: An argument is out of range; at the start of `fit` or in its sanity check: a layer, a
            class or a method that is stated does not fit the model, or a function that is given fails. What is not
            understood otherwise ends no run: one warning says what is not shown, and which argument would change it.

    Example::

        from pytorch_lightning import Trainer
        from cam_callbacks import CAMMonitor

        trainer = Trainer(callbacks=[CAMMonitor()])
    """

    def __init__(
        self,
        target_layer: str | Sequence[str] | None = None,
        method: Method = DEFAULT_METHOD,
        probes: str | Path | ProbeSet | Dataset[Any] | None = None,
        *,
        num_probes: int = 16,
        explain: Literal["label", "prediction", "both"] | int | Target | TargetFn = "label",
        every_n_epochs: int = 1,
        max_overhead: float | None = None,
        audit: Audit | Literal[False] | None = Audit(),  # noqa: B008 - a frozen value
        figures: Figures = Figures(),  # noqa: B008 - a frozen value
        class_names: Sequence[str] | None = None,
        normalization: Literal["imagenet"] | tuple[Sequence[float], Sequence[float]] | None = None,
        batch_fn: BatchFn | None = None,
        forward_fn: ForwardFn | None = None,
        outputs: Outputs = "auto",
        report: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        name: str = "cam",
    ) -> None:
        super().__init__()
        self.settings = MonitorSettings.of(
            target_layer=target_layer,
            method=method,
            probes=probes,
            num_probes=num_probes,
            explain=explain,
            every_n_epochs=every_n_epochs,
            max_overhead=max_overhead,
            audit=audit,
            figures=figures,
            class_names=class_names,
            normalization=normalization,
            batch_fn=batch_fn,
            forward_fn=forward_fn,
            outputs=outputs,
            report=report,
            on_error=on_error,
            name=name,
        )
        self._parts = MonitorParts.of(self.settings)
        self._evaluation: Evaluation | None = None
        self._randomization: float | None = None

    @property
    def _memory(self) -> Memory:
        return self._parts.memory

    @property
    def probes(self) -> ProbeSet | None:
        """The images that are explained, once they are picked."""
        return self._memory.probes.images

    @property
    def audit_images(self) -> ProbeSet | None:
        """The images of the last audit; before it, those that a checkpoint held."""
        memory = self._memory
        kept = None if memory.audit_images is None else memory.audit_images.images
        return kept if memory.audit is None else memory.audit.images

    @property
    def explanation(self) -> Explanation | None:
        """The heatmaps of the last look, on the CPU."""
        return None if self._memory.snapshot is None else self._memory.snapshot.explanation

    @property
    def audit_result(self) -> AuditResult | None:
        """The numbers of the last audit."""
        return None if self._memory.audit is None else self._memory.audit.result

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of the last audit."""
        return None if self._memory.audit is None else self._memory.audit.verdict

    @property
    def history(self) -> Sequence[PastMaps]:
        """Maps of the looks of `fit`, oldest first, at the resolution of the layer."""
        return tuple(self._memory.history.looks)

    @property
    def randomization(self) -> float | None:
        """Mean rank correlation of the heatmaps with those of random weights; NaN if no image has contrast in both.

        It is known after a `fit` with `Audit(randomization=True)`.
        """
        return self._randomization

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, unique to the name."""
        return self._generate_state_key(name=self.settings.name)

    def state_dict(self) -> dict[str, Any]:
        """Return layer, probes, maps of earlier looks, images of the audit and the last verdict, in at most 10 MB."""
        return self._memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what an earlier run saved."""
        self._memory.load_state_dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset failure counts; check the strategy, and that no other monitor writes to the same tags."""
        self._parts.retries.reset()
        self._memory.begin_run()
        of_trainer.check_strategy(trainer)
        name = self.settings.name
        monitors = [other for other in trainer.callbacks if isinstance(other, CAMMonitor)]  # type: ignore[attr-defined]
        if sum(other.settings.name == name for other in monitors) > 1:
            raise Misconfiguration(
                f"two CAMMonitors have name={name!r} and would write to the same tags; give one another name"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before the first batch."""
        self._parts.overhead.begin()
        self._check_layer(pl_module)
        check_before_fit(self.settings, trainer, pl_module, self._parts.notices)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an evaluation."""
        self._start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an evaluation, with probes of its own."""
        self._start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the images as the step is given them, while probes are picked."""
        if self._evaluation is not None:
            self._evaluation.begin_batch(batch, dataloader_idx)

    on_test_batch_start = on_validation_batch_start

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
        self._after_batch(trainer, batch, dataloader_idx)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, if the loader has given fewer batches than its length says."""
        self._end_early()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the audit's accuracy with the one that was logged."""
        result = self.audit_result
        if result is not None and self._memory.is_audit_new:
            found = contradiction(trainer.callback_metrics, result, self.settings.name)
            if found is not None:
                self._parts.notices.warn_once(found, subject="accuracy")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, if the loader has given fewer batches than its length says."""
        self._end_early()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the last heatmaps with those of random weights, if asked to."""
        audit, snapshot = self.settings.audit, self._memory.snapshot
        if audit is not None and audit.randomization and snapshot is not None:
            end = EndOfFit(self._parts, trainer, pl_module)
            self._randomization = end.compare_with_random_weights(snapshot)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, if asked to."""
        has_looked = self._memory.snapshot is not None or self._memory.audit is not None
        if self.settings.report and has_looked and of_trainer.logs_to_tensorboard(trainer):
            EndOfFit(self._parts, trainer, pl_module).write_report()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop every reference to the model."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop every reference to the model; Lightning calls this instead of `teardown` when a run fails."""
        self._release()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not of_trainer.is_fitting(trainer):
            self._check_layer(pl_module)
        self._evaluation = Evaluation(self._parts, trainer, pl_module)

    def _after_batch(self, trainer: Trainer, batch: Any, dataloader_idx: int) -> None:
        evaluation = self._evaluation
        if evaluation is None:
            return
        evaluation.collect(batch, dataloader_idx)
        if of_trainer.is_last_batch(trainer):
            self._evaluation = None
            evaluation.finish()

    def _end_early(self) -> None:
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is not None:
            evaluation.finish_early()

    def _check_layer(self, pl_module: LightningModule) -> None:
        """Check that the layer exists: the user's, or that of an earlier run, which is chosen anew if it is gone."""
        layer = self._memory.layer
        try:
            for name in [layer] if isinstance(layer, str) else layer or ():
                layers.find(pl_module, name)
        except ValueError as error:
            if self.settings.target_layer is not None:
                raise Misconfiguration(str(error)) from error
            self._parts.notices.warn_once(
                f"The target layer of the earlier run no longer exists ({error}); choosing another one"
            )
            self._memory.layer = None

    def _release(self) -> None:
        """Drop what holds the model: an evaluation, a compiled copy, and what Lightning puts on each callback."""
        self._evaluation = None
        self._memory.compiled.release()
        for name in _PUT_ON_BY_LIGHTNING:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are made without the model."""
        dropped = (*_PUT_ON_BY_LIGHTNING, "_evaluation")
        return {name: value for name, value in self.__dict__.items() if name not in dropped} | {"_evaluation": None}
