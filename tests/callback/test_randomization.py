"""The comparison of heatmaps with those of random weights, at the end of a fit."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from lightning_runs import TinyModule, fit, infos, own_warnings
from torch import Tensor

from cam_callbacks import Audit, CAMMonitor, GradCAM, RegressionTarget, ScoreCAM

SIZE, OBJECT = 24, 10


def test_on_request_heatmaps_are_compared_with_those_of_random_weights(tmp_path: Path) -> None:
    module = TinyModule()
    monitor = CAMMonitor(num_probes=6, audit=Audit(randomization=True), on_error="raise")
    with infos() as told:
        fit(tmp_path, monitor, module, max_epochs=2)
    weights = {key: value.clone() for key, value in module.state_dict().items()}
    assert -1 <= monitor.randomization <= 1
    assert len([text for text in told if "those of a copy with random weights" in text]) == 1
    without = TinyModule()
    fit(tmp_path / "without", None, without, max_epochs=2)
    assert all(torch.equal(weights[key], value) for key, value in without.state_dict().items())


def test_maps_of_a_number_are_compared_with_those_of_random_weights_too(tmp_path: Path) -> None:
    options = {"num_probes": 4, "audit": Audit(randomization=True), "on_error": "raise"}
    monitor = CAMMonitor("features", ScoreCAM(), explain=RegressionTarget(2), **options)
    fit(tmp_path, monitor, TinyModule())
    assert -1 <= monitor.randomization <= 1


class Deaf(TinyModule):
    """Its answers depend on no position of the images."""

    def forward(self, images: Tensor) -> Tensor:
        return 0 * super().forward(images)


def test_without_contrast_there_is_nothing_to_compare(tmp_path: Path) -> None:
    options = {"num_probes": 4, "audit": Audit(randomization=True), "on_error": "raise"}
    monitor = CAMMonitor(method=GradCAM(), **options)
    with infos() as told:
        fit(tmp_path, monitor, Deaf())
    assert monitor.randomization is not None
    assert math.isnan(monitor.randomization)
    assert [text for text in told if "is not defined: no image has" in text]


class KeepsALock(TinyModule):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_model_that_cannot_be_copied_ends_no_run(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=Audit(randomization=True))
    with own_warnings() as said:
        trainer = fit(tmp_path, monitor, KeepsALock())
    assert trainer.state.finished
    assert monitor.randomization is None
    (warning,) = said
    assert warning.startswith("CAMMonitor could not check randomization.\nTraceback")


def test_those_who_want_it_get_the_error_of_a_model_that_cannot_be_copied(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=Audit(randomization=True), on_error="raise")
    with pytest.raises(TypeError, match="lock"):
        fit(tmp_path, monitor, KeepsALock())
