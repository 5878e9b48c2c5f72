"""Weights, optimizer state and metrics are those of a run without the monitor, with the audit beside Score-CAM.

`test_faults.py` has the same for runs in which something goes wrong, `test_nothing_stays.py` what a module looks like
afterwards.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning_runs import Squares, TinyModule, fit, loader, scalars
from torch import Tensor
from torchmetrics import MeanMetric

from cam_callbacks import CAM, Audit, CAMMonitor, GradCAM, Method, ScoreCAM, tags

PLAIN: dict[str, Any] = {"max_epochs": 2}
OPTIONS = {
    "one optimizer step a batch": PLAIN,
    "gradients accumulated over three batches": PLAIN | {"accumulate_grad_batches": 3},
    "several validations an epoch": {"max_epochs": 1, "val_check_interval": 2},
    "validations inside an accumulation": {"max_epochs": 1, "accumulate_grad_batches": 3, "val_check_interval": 1},
    "no sanity check": PLAIN | {"num_sanity_val_steps": 0},
    "bf16-mixed, accumulated": PLAIN | {"precision": "bf16-mixed", "accumulate_grad_batches": 3},
    "validate between two fits": {"max_epochs": 1} | {"validate_between": True},
    "Monte-Carlo dropout": PLAIN | {"module": "KeepsDropoutOn", "accumulate_grad_batches": 3},
    "masks in the batches": PLAIN | {"masks": True},
    "workers": {"max_epochs": 1, "num_workers": 2},
}
WITH_GRADIENTS = ("bf16-mixed, accumulated", "validate between two fits")
CASES: list[tuple[str, Method]] = [
    *((options, ScoreCAM()) for options in OPTIONS),
    *((options, method) for options in WITH_GRADIENTS for method in (GradCAM(), CAM())),
]


class KeepsDropoutOn(TinyModule):
    """Monte-Carlo dropout: its validation is random, and uses the global generator."""

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.features[5].train()


class Noisy(Squares):
    """Squares with noise from each of the global generators, and a mask of the upper half where that is asked for."""

    def __init__(self, count: int, masks: bool = False, seed: int = 0) -> None:
        super().__init__(count, seed=seed)
        self.masks = masks

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, target = super().__getitem__(index)
        noise = torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002 - it is what may be disturbed
        item = (image * (1 - 0.1 * noise), target)
        return (*item, torch.arange(16).view(16, 1).expand(16, 16) < 8) if self.masks else item


@dataclass
class Trained:
    """What a run leaves: weights, optimizer state, and the scalars that were logged."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    logged: dict[str, list[tuple[int, float]]]


def trained(
    folder: Path,
    monitor: CAMMonitor | None,
    max_epochs: int,
    module: str = "TinyModule",
    num_workers: int = 0,
    masks: bool = False,
    validate_between: bool = False,
    **options: Any,
) -> Trained:
    """Train on 16 images and validate on 12 others, both shuffled; with `validate()` in the middle if asked for."""
    seed_everything(3)
    net = {"TinyModule": TinyModule, "KeepsDropoutOn": KeepsDropoutOn}[module]()
    train = loader(Noisy(16, masks), shuffle=True, num_workers=num_workers)
    val = loader(Noisy(12, masks, seed=1), shuffle=True, num_workers=num_workers)
    trainer = fit(folder, monitor, net, train, val, max_epochs=max_epochs, **options)
    if validate_between:
        trainer.validate(net, val, verbose=False)
        trainer.fit_loop.max_epochs = 2 * max_epochs
        trainer.fit(net, train, val)
    return Trained(net.state_dict(), trainer.optimizers[0].state_dict(), scalars(folder))


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """The runs without the monitor, by their options; each is made once."""

    @cache
    def run(options: str) -> Trained:
        return trained(tmp_path_factory.mktemp("unwatched"), None, **OPTIONS[options])

    return run


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, (list, tuple)):
        return [leaf for part in state for leaf in flat(part)]
    return [state]


def assert_identical(a: Any, b: Any) -> None:
    for mine, theirs in zip(flat(a), flat(b), strict=True):
        if isinstance(mine, Tensor):
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


def assert_trained_alike(watched: Trained, unwatched: Trained) -> None:
    assert_identical(watched.weights, unwatched.weights)
    assert_identical(watched.optimizer, unwatched.optimizer)
    assert {"train_loss", "val_loss"} <= unwatched.logged.keys()
    for tag in unwatched.logged.keys() - {"epoch"}:  # of which there is one with all that is logged
        # Event files of one second are read in any order.
        assert sorted(watched.logged[tag]) == sorted(unwatched.logged[tag]), tag


@pytest.mark.parametrize(("options", "method"), CASES, ids=[f"{options}, {m.name}" for options, m in CASES])
def test_weights_optimizer_and_metrics_are_those_without_the_monitor(
    tmp_path: Path, options: str, method: Method, unwatched: Callable[[str], Trained]
) -> None:
    audit = Audit(num_images=12) if isinstance(method, ScoreCAM) else None
    monitor = CAMMonitor(num_probes=4, audit=audit, method=method, on_error="raise")
    watched = trained(tmp_path, monitor, **OPTIONS[options])
    assert_trained_alike(watched, unwatched(options))
    validations = len(watched.logged["val_loss"])
    assert validations >= OPTIONS[options]["max_epochs"]
    assert len(watched.logged["cam/passes"]) == validations
    if audit is not None:
        assert monitor.audit_result is not None
        gap = tags.measure("bg_gap", is_estimated=monitor.audit_result.mask_source == "estimated")
        assert len(watched.logged[f"cam/{gap}"]) == validations


def test_the_options_are_what_they_are_called(unwatched: Callable[[str], Trained]) -> None:
    """Runs that differ in what they are about do differ: the comparison could fail."""
    losses = {name: unwatched(name).logged["train_loss"][-1][1] for name in OPTIONS}
    plain, accumulated = losses["one optimizer step a batch"], losses["gradients accumulated over three batches"]
    assert accumulated != plain
    assert losses["no sanity check"] == plain  # Lightning puts the generators back after it
    for name in ("bf16-mixed, accumulated", "Monte-Carlo dropout"):
        assert losses[name] not in (plain, accumulated), name


class LogsInForward(TinyModule):
    """As those do who watch a feature: every forward counts."""

    def forward(self, images: torch.Tensor) -> Any:
        if self._trainer is not None and not self.training:
            self.log("brightness", images.mean(), on_epoch=True)
        return super().forward(images)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_module_logs_in_its_forward_is_of_its_own_steps_only(
    tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # code in C++ takes seconds
    method, options = ScoreCAM(compile=compiled, tolerance=0), {"audit": Audit(num_images=12, randomization=True)}
    for name, monitor in (("without", None), ("with", CAMMonitor(method=method, num_probes=4, **options))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path / name, monitor, LogsInForward())
        assert not [warning for warning in caught if "self.log" in str(warning.message)]
    assert scalars(tmp_path / "without")["brightness"] == scalars(tmp_path / "with")["brightness"]


class CountsInForward(TinyModule):
    """Keeps a metric, a buffer and numbers of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = MeanMetric()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, images: torch.Tensor) -> Any:
        self.metric.update(images.mean())
        self.seen += len(images)
        self.calls += 1
        return super().forward(images)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"metric": self.metric, "seen": self.seen, "calls": float(self.calls)})


def test_what_the_module_keeps_of_its_inputs_is_of_its_own_steps_only(tmp_path: Path) -> None:
    fit(tmp_path / "without", None, CountsInForward(), max_epochs=2)
    fit(tmp_path / "with", CAMMonitor(num_probes=4, audit=Audit(num_images=12)), CountsInForward(), max_epochs=2)
    without, watched = scalars(tmp_path / "without"), scalars(tmp_path / "with")
    for tag in ("metric", "seen", "calls"):
        assert watched[tag] == without[tag]


class KeepsAnAverage(TinyModule):
    """Every forward, also in evaluation, moves an averaged head and a center, which the answer depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.head).requires_grad_(False)
        self.center, self.draws = torch.zeros(()), torch.Generator()

    def forward(self, images: Tensor) -> Any:
        for old, new in zip(self.average.parameters(), self.head.parameters(), strict=True):
            old.data.mul_(0.9).add_(new.data, alpha=0.1)
        self.center.mul_(0.9).add_(images.mean().detach() + torch.rand((), generator=self.draws))
        answer = super().forward(images - self.center)
        return answer * (1 + self.average.weight.mean())


def test_what_a_forward_writes_in_place_changes_no_weight(tmp_path: Path) -> None:
    left = []
    for name, monitor in (("without", None), ("with", CAMMonitor(num_probes=4, audit=None, on_error="raise"))):
        module = KeepsAnAverage()
        fit(tmp_path / name, monitor, module, max_epochs=2)
        left.append(module.state_dict() | {"center": module.center})
    assert_identical(*left)


class DrawsWithOpenCV(Noisy):
    """Its noise is of OpenCV's generator, and its images have no masks: their foregrounds are estimated."""

    def __getitem__(self, index: int) -> Any:
        image, target = Squares.__getitem__(self, index)
        noise = cv2.randn(np.zeros((1, image.numel())), 0, 0.1)
        return image + torch.from_numpy(noise).view_as(image).float(), target


def test_estimating_foregrounds_leaves_the_generator_of_opencv_alone(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    weights = []
    for name in ("without", "with"):
        cv2.setRNGSeed(5)
        monitor = CAMMonitor(num_probes=4, audit=Audit(num_images=12)) if name == "with" else None
        module, data = TinyModule(), DrawsWithOpenCV(12)
        fit(tmp_path / name, monitor, module, loader(data), loader(data), max_epochs=2)
        weights.append(module.state_dict())
    assert monitor is not None
    assert monitor.audit_result is not None
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])


def test_a_batch_fn_that_draws_random_numbers_changes_no_weight(tmp_path: Path) -> None:
    def draws(batch: Any) -> Any:
        torch.rand(3)
        return batch

    weights = []
    for name, monitor in (("without", None), ("with", CAMMonitor(num_probes=4, batch_fn=draws, audit=None))):
        module = TinyModule()
        fit(tmp_path / name, monitor, module, max_epochs=2)
        weights.append(module.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
