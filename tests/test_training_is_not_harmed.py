"""Weights after training are those of a run without the monitor; an error in it never ends a run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_runs import Squares, TinyModule, fit, hooks_left, loader, looks, own_warnings, scalars, when

from cam_callbacks import CAMMonitor

PLAIN: dict[str, Any] = {"max_epochs": 2}
OPTIONS = {
    "one optimizer step a batch": PLAIN,
    "gradients accumulated over three batches": PLAIN | {"accumulate_grad_batches": 3},
    "validation inside an accumulation": PLAIN | {"accumulate_grad_batches": 3, "val_check_interval": 0.25},
    "no sanity check": PLAIN | {"num_sanity_val_steps": 0},
    "workers": {"max_epochs": 1, "num_workers": 2},
}


class KeepsDropoutOn(TinyModule):
    """Monte-Carlo dropout: its validation is random, and uses the global generator."""

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.features[5].train()


def trained(folder: Path, monitor: CAMMonitor | None, module: type[TinyModule] = TinyModule, **options: Any) -> Any:
    """Weights, optimizer state and training losses of a run."""
    seed_everything(3)
    net = module()
    workers = options.pop("num_workers", 0)
    trainer = fit(
        folder,
        monitor,
        net,
        loader(Squares(16), shuffle=True, num_workers=workers),
        loader(Squares(12, seed=1), shuffle=True, num_workers=workers),
        **options,
    )
    return net.state_dict(), trainer.optimizers[0].state_dict(), scalars(folder)


def flat(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat(state[key]))]
    if isinstance(state, (list, tuple)):
        return [leaf for part in state for leaf in flat(part)]
    return [state]


def assert_identical(a: Any, b: Any) -> None:
    for mine, theirs in zip(flat(a), flat(b), strict=True):
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs


@pytest.mark.parametrize("module", [TinyModule, KeepsDropoutOn])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_optimizer_state_and_metrics_are_bit_for_bit_those_without_the_monitor(
    tmp_path: Path, options: dict[str, Any], module: type[TinyModule]
) -> None:
    if module is KeepsDropoutOn and "num_workers" in options:
        pytest.skip("once is enough with workers")
    weights, optimizer, logged = trained(tmp_path / "without", None, module, **options)
    monitor = CAMMonitor(num_probes=4)
    watched_weights, watched_optimizer, watched_logged = trained(tmp_path / "with", monitor, module, **options)
    assert looks(tmp_path / "with") >= options["max_epochs"]
    assert_identical(weights, watched_weights)
    assert_identical(optimizer, watched_optimizer)
    for tag in ("train_loss", "val_loss"):
        assert logged[tag] == watched_logged[tag]


def test_a_run_in_which_the_monitor_fails_trains_the_same_weights(tmp_path: Path) -> None:
    weights, optimizer, _ = trained(tmp_path / "without", None, max_epochs=2)
    failing = CAMMonitor(num_probes=4, forward_fn=when(lambda module: module.current_epoch == 0, OSError("gone")))
    watched_weights, watched_optimizer, _ = trained(tmp_path / "with", failing, max_epochs=2)
    assert_identical(weights, watched_weights)
    assert_identical(optimizer, watched_optimizer)


def test_an_error_in_one_look_gives_one_warning_and_the_next_look_tries_again(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, forward_fn=when(lambda module: module.current_epoch == 1, OSError("disk gone")))
    with own_warnings() as said:
        trainer = fit(tmp_path, monitor, max_epochs=3)
    assert trainer.current_epoch == 3
    assert len(said) == 1
    assert "disk gone" in said[0]
    assert "tries again" in said[0]
    assert "Traceback" in said[0]
    assert looks(tmp_path) == 2


def test_an_error_in_the_middle_of_the_masked_passes_ends_neither_the_run_nor_the_later_looks(tmp_path: Path) -> None:
    calls = []

    def fails_at_its_fourth_call(module: Any, images: torch.Tensor) -> Any:
        if not module.trainer.sanity_checking:
            calls.append(len(images))
            if len(calls) == 4:
                raise RuntimeError("out of luck")
        return module(images)

    module = TinyModule()
    monitor = CAMMonitor(num_probes=12, forward_fn=fails_at_its_fourth_call)
    with own_warnings() as said:
        fit(tmp_path, monitor, module, max_epochs=2)
    assert len(said) == 1
    assert "out of luck" in said[0]
    assert looks(tmp_path) == 1
    assert hooks_left(module) == 0


def test_after_three_errors_in_a_row_it_gives_up(tmp_path: Path) -> None:
    asked = []

    def fails(module: Any) -> bool:
        asked.append(module.current_epoch)
        return True

    with own_warnings() as said:
        trainer = fit(tmp_path, CAMMonitor(num_probes=4, forward_fn=when(fails, OSError("gone"))), max_epochs=5)
    assert trainer.current_epoch == 5
    assert len(said) == 3
    assert "gives up" in said[2]
    assert "gives up" not in said[0] + said[1]
    assert sorted(set(asked)) == [0, 1, 2]


def test_errors_with_a_success_between_them_do_not_add_up(tmp_path: Path) -> None:
    monitor = CAMMonitor(
        num_probes=4, forward_fn=when(lambda module: module.current_epoch in (0, 1, 3, 4), OSError("x"))
    )
    with own_warnings() as said:
        fit(tmp_path, monitor, max_epochs=6)
    assert len(said) == 4
    assert looks(tmp_path) == 2


def test_a_batch_fn_that_fails_once_training_has_begun_ends_no_run(tmp_path: Path) -> None:
    calls = []

    def batch_fn(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 4:  # the sanity check has two
            raise KeyError("label")
        return batch

    with own_warnings() as said:
        trainer = fit(tmp_path, CAMMonitor(num_probes=4, batch_fn=batch_fn), max_epochs=2)
    assert trainer.current_epoch == 2
    assert len(said) == 1
    assert "KeyError" in said[0]
    assert looks(tmp_path) == 1


class LoggerWhoseImagesFail(TensorBoardLogger):
    def log_image(self, key: str, images: list[Any], step: int) -> None:
        raise ConnectionError("the tracking server is gone")


class LoggerWhoseExperimentFails(TensorBoardLogger):
    @property
    def experiment(self) -> Any:
        writer = super().experiment

        def fail(*args: Any, **kwargs: Any) -> None:
            raise ConnectionError("the tracking server is gone")

        writer.add_image = fail
        return writer


@pytest.mark.parametrize("logger", [LoggerWhoseImagesFail, LoggerWhoseExperimentFails])
def test_a_logger_that_fails_on_pictures_ends_no_run_and_loses_no_scalar(
    tmp_path: Path, logger: type[TensorBoardLogger]
) -> None:
    with own_warnings() as said:
        trainer = fit(tmp_path, CAMMonitor(num_probes=4), max_epochs=2, logger=logger(tmp_path, "", "run"))
    assert trainer.current_epoch == 2
    assert len(said) == 2
    assert all("the tracking server is gone" in text for text in said)
    logged = scalars(tmp_path)
    assert len(logged["train_loss"]) == 6
    assert len(logged["val_loss"]) == 2
    assert len(logged["cam/passes"]) == 2


def test_on_error_raise_ends_the_run_with_the_error_itself(tmp_path: Path) -> None:
    broken = when(lambda module: True, OSError("disk gone"))
    with pytest.raises(OSError, match="disk gone"):
        fit(tmp_path, CAMMonitor(num_probes=4, forward_fn=broken, on_error="raise"))


def test_ctrl_c_passes_through_and_hooks_and_flags_are_put_back(tmp_path: Path) -> None:
    module = KeepsDropoutOn()
    monitor = CAMMonitor(num_probes=4, forward_fn=when(lambda module: True, KeyboardInterrupt()))
    handler = signal.getsignal(signal.SIGINT)
    try:
        with own_warnings() as said, pytest.raises(SystemExit):
            fit(tmp_path, monitor, module)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert said == []
    assert hooks_left(module) == 0
    assert module.features[5].training
    assert not module.features[1].training


def test_no_hook_is_left_and_all_train_flags_are_as_without_it(tmp_path: Path) -> None:
    module = KeepsDropoutOn()
    module.features[1].eval()  # a frozen part, as Lightning restores it after validation
    fit(tmp_path, CAMMonitor(num_probes=4), module)
    assert hooks_left(module) == 0
    assert not module.features[1].training
    assert module.features[5].training
