"""Whatever goes wrong while CAMMonitor looks: the run goes on as without it."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_makers import (
    AUDITED,
    IN_THE_MASKED_PASSES,
    MAKERS,
    PROBES,
    STEPS,
    FailsAtCall,
    Maker,
    Watches,
    in_epoch_1,
    slow,
)
from faults import FAULTS, PASSES_THROUGH
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_runs import BATCH, Squares, TinyModule, fit, image_steps, loader, own_warnings, scalars, when
from traces import around, assert_equal, state_of

from cam_callbacks import CAM, Audit, CAMMonitor

LOOKS_FAIL = [name for name, fault in FAULTS.items() if fault.outcome is not PASSES_THROUGH]

STAYS = ("train flags", "hooks", "requires_grad", "gradients", "weights and buffers", "attributes")
"""What a run that ends by an error leaves as it was when the look began."""


@dataclass
class Ran:
    """A run with a fault: its trainer and module, and all warnings, in which its folder is called `folder`."""

    trainer: Trainer
    module: TinyModule
    said: list[str]


def run(maker: Maker, folder: Path, callbacks: list[Callback], epochs: int = 3) -> Ran:
    seed_everything(5)
    module = maker.module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(
            folder,
            callbacks,
            module,
            loader(Squares(BATCH * STEPS), shuffle=True),
            maker.val(),
            **({"max_epochs": epochs} | maker.options(folder)),
        )
    return Ran(trainer, module, [str(warning.message).replace(str(folder), "folder") for warning in caught])


@pytest.fixture(scope="module")
def run_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Maker, int], tuple[Ran, Path]]:
    """Gives the run without a monitor, and its folder; once for all faults whose runs differ in the monitor alone."""

    @functools.cache
    def plain(module: Any, val: Any, options: Any, epochs: int) -> tuple[Ran, Path]:
        folder = tmp_path_factory.mktemp("plain") / "without"
        return run(Maker(module=module, val=val, options=options), folder, [], epochs), folder

    return lambda maker, epochs: plain(maker.module, maker.val, maker.options, epochs)


def watched(maker: Maker, **arguments: Any) -> CAMMonitor:
    """The monitor of a run with a fault; where it audits, then on all images that there are."""
    return CAMMonitor(**({"num_probes": PROBES, "audit": None} | maker.monitor() | arguments))


def audit_of(name: str) -> Audit | None:
    """That of a run with this fault, of each kind of outcome at least once."""
    audited = FAULTS[name].stage in ("audit", "figures") or name in ("data set", "masked passes", "TensorBoard")
    return Audit(num_images=AUDITED) if audited else None


def meddlers(maker: Maker, monitor: CAMMonitor) -> list[Callback]:
    return [] if maker.meddler is None else [maker.meddler(monitor)]


def test_each_fault_that_is_listed_is_brought_about() -> None:
    assert list(MAKERS) == LOOKS_FAIL


@pytest.mark.parametrize("name", LOOKS_FAIL)
def test_the_run_goes_on_as_without_the_monitor(name: str, tmp_path: Path, run_without: Any) -> None:
    maker, says, outcome = MAKERS[name], FAULTS[name].says, FAULTS[name].outcome
    monitor = watched(maker, audit=audit_of(name))
    callbacks, before, after = around(monitor)
    watches = Watches(monitor)
    folder = tmp_path / "with"
    ran = run(maker, folder, [*meddlers(maker, monitor), *callbacks, watches], outcome.epochs)
    without, plain_folder = run_without(maker, outcome.epochs)

    assert ran.trainer.current_epoch == outcome.epochs
    assert_equal(ran.module.state_dict(), without.module.state_dict())
    assert_equal(ran.trainer.optimizers[0].state_dict(), without.trainer.optimizers[0].state_dict())
    assert after.states == before.states

    def epochs(given: tuple[int, ...] | None) -> list[int]:
        return list(outcome.looks if given is None else given)

    assert watches.looks == epochs(None)
    assert watches.audits == ([] if monitor.settings.audit is None else epochs(outcome.audits))
    if (folder / "run").exists():
        logged, plain = scalars(folder), scalars(plain_folder)
        for tag in ("train_loss", "val_loss"):
            assert repr(logged[tag]) == repr(plain[tag])  # nan is nan
        pictures = image_steps(folder).get("cam/heatmaps", [])
        assert [step // STEPS for step in pictures] == epochs(outcome.pictures)

    own = [text for text in ran.said if text not in without.said and "are written as" not in text]
    with_traceback = [text for text in own if "Traceback (most recent call last)" in text]
    assert len(with_traceback) == outcome.tracebacks
    if outcome.remarks is None:
        assert len(own) > len(with_traceback)
    else:
        assert len(own) - len(with_traceback) == outcome.remarks
    assert all(says in text for text in own)
    if outcome.tracebacks == 3:
        assert ["disabled" in text for text in with_traceback] == [False, False, True]
    else:
        assert not any("disabled" in text for text in own)


@pytest.mark.parametrize("name", [name for name in LOOKS_FAIL if FAULTS[name].outcome.error])
def test_those_who_want_it_get_the_error_itself_and_nothing_stays(name: str, tmp_path: Path) -> None:
    maker = MAKERS[name]
    monitor = watched(maker, on_error="raise", audit=audit_of(name))
    callbacks, before, _ = around(monitor)
    module = maker.module()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - it is compared in the last line
        run(replace(maker, module=lambda: module), tmp_path / "with", [*meddlers(maker, monitor), *callbacks])
    left = state_of(module)
    for what in STAYS:
        assert left[what] == before.states[-1][what], what
    assert FAULTS[name].says in f"{type(caught.value).__name__}: {caught.value}"


class Interrupts(Callback):
    """Ctrl-C at the end of the second validation."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if in_epoch_1(pl_module) and args[2] == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.usefixtures("handler_of_ctrl_c")
def test_ctrl_c_passes_through_and_all_is_put_back(on_error: Any, tmp_path: Path) -> None:
    module, plain = TinyModule(), TinyModule()
    forward_fn = FailsAtCall(IN_THE_MASKED_PASSES, KeyboardInterrupt())
    callbacks, before, after = around(watched(Maker(), on_error=on_error, **slow(forward_fn)))
    with pytest.raises(SystemExit) as ended:
        run(Maker(module=lambda: module), tmp_path / "with", callbacks)
    with pytest.raises(SystemExit) as without:
        run(Maker(module=lambda: plain), tmp_path / "without", [Interrupts()])
    assert ended.value.code == without.value.code
    assert forward_fn.calls == IN_THE_MASKED_PASSES
    assert len(after.states) == len(before.states) - 1
    left = state_of(module)
    for what in (*STAYS, "generator of torch", "generator of NumPy", "generator of Python"):
        assert left[what] == before.states[-1][what], what
    assert_equal(module.state_dict(), plain.state_dict())
    assert left["train flags"] == state_of(plain)["train flags"]


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_a_class_name_that_a_logger_cannot_write_ends_no_run(logger: Any, tmp_path: Path) -> None:
    """As that of a folder whose name is not UTF-8, which Python reads with surrogates."""
    monitor = CAMMonitor(num_probes=PROBES, audit=Audit(num_images=AUDITED), class_names=["cat", "d\udce4chs", "owl"])
    trainer = fit(tmp_path, monitor, max_epochs=2, logger=logger(tmp_path, "", "run"))
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("names", [("ネコ", "イヌ", "フクロウ"), ("..", "cat ", "")], ids=["not ASCII", "of a path"])
def test_the_tags_of_all_numbers_are_names_that_mlflow_takes(names: tuple[str, ...], tmp_path: Path) -> None:
    """Lightning hands it only those letters of a tag that MLflow takes: of `cam/bg_gap/ネコ` no name is left."""
    validation = pytest.importorskip("mlflow.utils.validation")
    fit(tmp_path, CAMMonitor(num_probes=PROBES, audit=Audit(num_images=AUDITED), class_names=names))
    tags = [tag for tag in scalars(tmp_path) if "_by_class" in tag]
    handed_over = [re.sub("[^a-zA-Z0-9_/. -]+", "", tag) for tag in tags]
    assert len(set(handed_over)) == len(tags) > 9
    for tag in handed_over:
        validation._validate_metric_name(tag)


def test_validations_without_a_look_do_not_count_as_successes(tmp_path: Path) -> None:
    broken = when(lambda module: True, OSError("gone"))
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=PROBES, every_n_epochs=2, forward_fn=broken, audit=None), max_epochs=10)
    assert len(said) == 3
    assert "disabled" in said[2]


def test_an_audit_that_was_given_up_is_tried_again_in_the_next_fit(tmp_path: Path) -> None:
    fails = [True]

    def forward(module: Any, images: torch.Tensor) -> Any:
        if fails[0] and len(images) == AUDITED:
            raise OSError("gone")
        return module(images)

    monitor = CAMMonitor(
        "features", num_probes=PROBES, audit=Audit(num_images=AUDITED), forward_fn=forward, method=CAM()
    )
    fit(tmp_path / "first", monitor, max_epochs=4)
    assert monitor.audit_result is None
    fails[0] = False
    fit(tmp_path / "second", monitor)
    assert monitor.audit_result is not None


class UnpicklableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def test_after_a_failed_look_the_monitor_can_be_copied_and_pickled(tmp_path: Path) -> None:
    copied = []

    class Copies(Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            copied.append((copy.deepcopy(monitor), pickle.dumps(monitor)))

    error = UnpicklableError("one", "two")
    monitor = CAMMonitor(num_probes=PROBES, forward_fn=Raises(error), audit=None)
    with own_warnings() as said:
        fit(tmp_path, [monitor, Copies()])
    assert len(copied) == 2
    assert any("CAMMonitor failed" in text for text in said)


class Raises:
    """A forward_fn that can be pickled, and raises once training has begun."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, module: Any, images: torch.Tensor) -> Any:
        if not module.trainer.sanity_checking:
            raise self.error
        return module(images)

    def __getstate__(self) -> dict[str, Any]:
        return {}
