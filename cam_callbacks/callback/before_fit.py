"""What can be known to be wrong before the first batch of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.notices import Notices
from cam_callbacks.callback.settings import MonitorSettings
from cam_callbacks.callback.trainer import Misconfiguration
from cam_callbacks.explain.sharding import device_mesh

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


def check_before_fit(settings: MonitorSettings, trainer: Trainer, pl_module: LightningModule, notices: Notices) -> None:
    """Refuse settings that this fit cannot meet, and warn if it never validates.

    Raises:
        MisconfigurationException: The check of randomization for sharded weights, or a report without TensorBoard.
    """
    if settings.audit is not None and settings.audit.randomization and device_mesh(pl_module) is not None:
        raise Misconfiguration(
            "Audit(randomization=True) needs a copy of the model, but its weights are sharded across ranks; leave "
            "it out, and check on one device"
        )
    writes_events = trainer.fast_dev_run or trainer.barebones or of_trainer.logs_to_tensorboard(trainer)  # type: ignore[attr-defined]
    if settings.report and not writes_events:
        raise Misconfiguration(
            "report=True makes a report of what is in TensorBoard's event files, but the trainer has no "
            "TensorBoardLogger; give it one, or leave report out"
        )
    if not of_trainer.will_validate(trainer):
        notices.warn_once(
            "CAMMonitor looks after each validation, but this fit has none: it will show nothing. It needs a "
            "validation loader, a validation_step and limit_val_batches above 0"
        )
