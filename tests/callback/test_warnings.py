"""Warnings show a line of the user: in a training, that of `trainer.fit`."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning_runs
from lightning_runs import TinyModule, fit, when
from torch import nn

from cam_callbacks import Audit, CAMMonitor


def test_warnings_show_the_line_that_started_the_run(tmp_path: Path) -> None:
    fails = when(lambda module: module.trainer.current_epoch == 1, OSError("gone"))
    monitor = CAMMonitor(num_probes=3, class_names=["cat", "dog"], audit=Audit(num_images=12), forward_fn=fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, monitor, TinyModule(), logger=False, max_epochs=2)
    shown = {str(each.message)[:20]: each.filename for each in caught}
    for beginning in ("there are 2 class na", "the trainer has no l", "CAMMonitor failed at"):
        assert shown[beginning] == lightning_runs.__file__


class OfBatchStatistics(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = module.num_batches_tracked = None


def test_that_images_are_forwarded_alone_is_said_once_a_run(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=3, audit=Audit(num_images=12, randomization=True), on_error="raise")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, monitor, OfBatchStatistics(), max_epochs=3)
    said = [each for each in caught if "each image is forwarded alone" in str(each.message)]
    assert [each.filename for each in said] == [lightning_runs.__file__]
