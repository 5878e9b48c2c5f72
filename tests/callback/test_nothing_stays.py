"""Right after each look all is as right before it; after a run the monitor knows the model no more."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning_runs import Squares, TinyModule, fit, loader, looks, quiet
from states import state_of
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, Metric, MetricCollection
from traces import around, assert_equal

from cam_callbacks import CAM, Audit, CAMMonitor, GradCAM, Method, ScoreCAM

METHODS: dict[str, Method] = {"Score-CAM": ScoreCAM(), "Grad-CAM": GradCAM(), "CAM": CAM()}
by_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def small(method: Method = METHODS["Score-CAM"], **arguments: Any) -> CAMMonitor:
    """A monitor of four probes; with another method than Score-CAM it audits only where that is asked for."""
    audit = Audit(num_images=12) if isinstance(method, ScoreCAM) else None
    return CAMMonitor(**({"method": method, "num_probes": 4, "audit": audit} | arguments))


class InTraining(TinyModule):
    """As in the middle of a training: flags are mixed, weights frozen, hooks in place, gradients accumulated."""

    def __init__(self) -> None:
        super().__init__()
        self.features[0].bias.requires_grad_(False)
        self.features[3].register_forward_hook(self._hook)
        self.features[4].register_full_backward_hook(self._hook)
        self.calls = 0

    def _hook(self, *_: Any) -> None:
        pass

    def on_validation_model_zero_grad(self) -> None:
        """The gradients so far stay, as they do inside an accumulation."""

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.features[5].train()


@by_method
def test_right_after_a_look_all_is_as_right_before_it(tmp_path: Path, method: Method) -> None:
    callbacks, before, after = around(small(method=method))
    module = InTraining()
    fit(tmp_path, callbacks, module, max_epochs=2, accumulate_grad_batches=2)
    assert looks(tmp_path) == 2
    assert after.states == before.states
    last = after.states[-1]
    assert any(gradient is not None for gradient in last["gradients"].values())
    assert set(last["train flags"].values()) == {True, False}
    assert set(last["requires_grad"].values()) == {True, False}


class MetersInContainers(TinyModule):
    """Its forward updates metrics that are no parts of the module: they lie in a list, a dictionary, a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [MeanMetric(), CatMetric()]
        self.named = {"mean": MeanMetric(), "some": (MeanMetric(), MetricCollection([MeanMetric(), CatMetric()]))}

    @property
    def meters(self) -> list[Metric]:
        mean, collection = self.named["some"]
        return [*self.listed, self.named["mean"], mean, *collection.values()]

    def forward(self, images: Tensor) -> Any:
        scores = super().forward(images)
        for meter in self.meters:
            meter.update(scores.detach().mean())
        return scores


class ReadsMeters(Callback):
    """Keeps what the metrics hold, and say, at the end of each batch of a validation."""

    def __init__(self) -> None:
        self.read: list[list[Any]] = []

    @property
    def state_key(self) -> str:
        return f"ReadsMeters {id(self)}"

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        meters = pl_module.meters
        states = [{name: copy.deepcopy(getattr(meter, name)) for name in meter._defaults} for meter in meters]
        self.read.append([states, [meter.update_count for meter in meters], [meter._computed for meter in meters]])


def test_metrics_in_lists_and_dictionaries_count_no_pass_of_a_look(tmp_path: Path) -> None:
    before, after, module = ReadsMeters(), ReadsMeters(), MetersInContainers()
    fit(tmp_path, [before, small(), after], module)
    assert looks(tmp_path) == 1
    assert_equal(after.read, before.read)
    batches = 2 + 3 + 3  # of the sanity check, the training and the validation
    assert [meter.update_count for meter in module.meters] == [batches] * 6


def validate_and_test(folder: Path, module: nn.Module, callbacks: list[Callback], inference_mode: bool) -> None:
    torch.manual_seed(0)
    trainer = Trainer(callbacks=callbacks, inference_mode=inference_mode, **quiet(folder))
    trainer.validate(module, loader(Squares(12)), verbose=False)
    trainer.test(module, loader(Squares(12)), verbose=False)


def lasting(module: nn.Module) -> dict[str, Any]:
    """The state of a module that can be compared with that of another one, whose hooks have other numbers."""
    state = state_of(module)
    return state | {"hooks": {name: [len(those) for those in hooks] for name, hooks in state["hooks"].items()}}


@pytest.fixture(scope="module", params=[True, False], ids=["inference mode", "no_grad"])
def inference_mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def after_validate_and_test(inference_mode: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What these leave in a run without the monitor."""
    module = InTraining()
    validate_and_test(tmp_path_factory.mktemp("without"), module, [], inference_mode)
    return lasting(module)


@by_method
def test_the_same_in_validate_and_in_test(
    tmp_path: Path, method: Method, inference_mode: bool, after_validate_and_test: dict[str, Any]
) -> None:
    callbacks, before, after = around(small(method=method))
    module = InTraining()
    at_first = state_of(module)
    validate_and_test(tmp_path, module, callbacks, inference_mode)
    left = lasting(module)
    assert looks(tmp_path) == looks(tmp_path, "cam_test") == 1
    assert after.states == before.states
    assert left == after_validate_and_test
    assert left["weights and buffers"] == at_first["weights and buffers"]


@pytest.fixture(scope="module")
def after_fit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fit leaves without the monitor."""
    module = InTraining()
    fit(tmp_path_factory.mktemp("without"), None, module)
    return lasting(module)


@by_method
def test_after_fit_the_module_is_that_of_a_run_without_it(
    tmp_path: Path, method: Method, after_fit: dict[str, Any]
) -> None:
    module = InTraining()
    fit(tmp_path, small(method=method, audit=Audit(num_images=12, randomization=True)), module)
    assert lasting(module) == after_fit


class Copies(Callback):
    """Copies and pickles the module and all callbacks, whenever it is called."""

    def __init__(self, weights_of: Callable[[Any], Tensor]) -> None:
        self.weights_of, self.copied = weights_of, 0

    def _copy(self, trainer: Any, module: Any) -> None:
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(self.weights_of(copied), self.weights_of(module))
            self.copied += 1

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._copy(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._copy(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._copy(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._copy(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._copy(trainer, pl_module)


def _head(module: Any) -> Tensor:
    return module.head.weight


@by_method
def test_the_module_can_be_copied_and_pickled_at_any_time(tmp_path: Path, method: Method) -> None:
    copies, module = Copies(_head), InTraining()
    fit(tmp_path, [copies, small(method=method)], module)
    copies._copy(None, module)
    assert looks(tmp_path) == 1
    assert copies.copied >= 2 * 12


class CannotBeCopied(TinyModule):
    """Stands for a model so large that a copy of it must not be made."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise AssertionError("the model is copied or pickled")


class CopiesMonitor(Copies):
    """Copies and pickles the monitor, as ddp_spawn does."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor, self.copied = monitor, 0

    def _copy(self, trainer: Any, module: Any) -> None:
        for copied in (copy.deepcopy(self.monitor), pickle.loads(pickle.dumps(self.monitor))):
            assert copied.settings.method == self.monitor.settings.method
            assert (copied.probes is None) == (self.monitor.probes is None)
            assert (copied.explanation is None) == (self.monitor.explanation is None)
            self.copied += 1


@by_method
def test_a_copied_or_pickled_monitor_does_not_bring_the_model_along(tmp_path: Path, method: Method) -> None:
    monitor = small(method=method)
    copies = CopiesMonitor(monitor)
    fit(tmp_path, [monitor, copies], CannotBeCopied())
    copies._copy(None, None)
    assert looks(tmp_path) == 1


def test_a_copy_of_a_monitor_that_was_used_can_be_used(tmp_path: Path) -> None:
    monitor = small(on_error="raise")
    fit(tmp_path / "first", monitor)
    for name, copied in (("deep", copy.deepcopy(monitor)), ("pickled", pickle.loads(pickle.dumps(monitor)))):
        fit(tmp_path / name, copied)
        assert looks(tmp_path / name) == 1
        assert copied.probes.fingerprint == monitor.probes.fingerprint


def fits(folder: Path, monitor: CAMMonitor | None, module: Any) -> None:
    fit(folder, monitor, module, max_epochs=2)


def validates(folder: Path, monitor: CAMMonitor | None, module: Any) -> None:
    Trainer(callbacks=monitor, **quiet(folder)).validate(module, loader(Squares(12)), verbose=False)


def is_tested(folder: Path, monitor: CAMMonitor | None, module: Any) -> None:
    Trainer(callbacks=monitor, **quiet(folder)).test(module, loader(Squares(12)), verbose=False)


def ends_by_an_error(folder: Path, monitor: CAMMonitor | None, module: Any) -> None:
    module.on_validation_epoch_end = _fails_after_training_began.__get__(module)
    with pytest.raises(OSError, match="disk gone"):
        fit(folder, monitor, module, max_epochs=2)
    del module.on_validation_epoch_end


def _fails_after_training_began(module: Any) -> None:
    if not module.trainer.sanity_checking:
        raise OSError("disk gone")


RUNS = {"fit": fits, "validate": validates, "test": is_tested, "a fit that ends by an error": ends_by_an_error}


def outlives(run: Callable[..., None], folder: Path, monitor: CAMMonitor | None) -> bool:
    """Whether the module is still there after the run, all of whose other owners are gone."""
    module = TinyModule()
    reference = weakref.ref(module)
    run(folder, monitor, module)
    del module
    gc.collect()
    return reference() is not None


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_without_a_monitor_the_module_is_gone_after_its_run(tmp_path: Path, run: Callable[..., None]) -> None:
    assert not outlives(run, tmp_path, None)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_monitor_keeps_no_reference_to_the_model(tmp_path: Path, run: Callable[..., None]) -> None:
    monitor = small()
    alive = outlives(run, tmp_path, monitor)
    assert monitor.explanation is not None
    assert not alive


@pytest.mark.parametrize("method", [GradCAM(), CAM()], ids=["Grad-CAM", "CAM"])
def test_nor_does_it_with_another_method(tmp_path: Path, method: Method) -> None:
    assert not outlives(fits, tmp_path, small(method=method))


@pytest.mark.parametrize("epochs", [(0,), (1,), (0, 1)], ids=str)
def test_nor_after_looks_that_failed(tmp_path: Path, epochs: tuple[int, ...]) -> None:
    def broken(module: Any, images: Tensor) -> Any:
        if not module.trainer.sanity_checking and module.current_epoch in epochs:
            raise OSError("disk gone")  # one that is kept would itself keep the model, in its traceback
        return module(images)

    with pytest.warns(UserWarning, match="disk gone"):
        alive = outlives(fits, tmp_path, small(forward_fn=broken, audit=None))
    assert not alive


@pytest.mark.usefixtures("handler_of_ctrl_c")
def test_nor_after_an_interrupted_one(tmp_path: Path) -> None:
    def interrupted(folder: Path, monitor: CAMMonitor | None, module: Any) -> None:
        with pytest.raises(SystemExit):
            fit(folder, monitor, module)

    def interrupt(module: Any, images: Tensor) -> Any:
        if not module.trainer.sanity_checking:
            raise KeyboardInterrupt
        return module(images)

    assert not outlives(interrupted, tmp_path, small(forward_fn=interrupt))
