"""A run that is terminated, or one of several processes: all go on, or end, as without CAMMonitor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from faults import FIRST_SKIPPED, LOOKS_DISABLED, ON_TWO_RANKS
from processes import run_script
from traces import assert_equal

SIGTERM_SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from lightning.pytorch import Callback, seed_everything
from lightning_runs import Squares, TinyModule, fit, loader
from fault_makers import IN_THE_MASKED_PASSES, FailsAtCall, Watches, in_epoch_1, slow
from traces import around
from cam_callbacks import Audit, CAMMonitor

folder = Path(sys.argv[1])


class TerminatesLook(FailsAtCall):
    def __call__(self, module, images):
        if in_epoch_1(module):
            self.calls += 1
            if self.calls == self.call:
                os.kill(os.getpid(), signal.SIGTERM)
        return module(images)


class TerminatesValidation(Callback):
    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if in_epoch_1(module) and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class Reports(Callback):
    def __init__(self, name):
        self.name = name

    def on_exception(self, trainer, module, exception):
        report = {"exception": type(exception).__name__, "step": trainer.global_step, "epoch": trainer.current_epoch}
        report |= {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        torch.save(report, folder / f"{self.name}.pt")


def run(name, callbacks):
    seed_everything(5)
    train, val = loader(Squares(12), shuffle=True), loader(Squares(12, seed=1))
    fit(folder / name, [*callbacks, Reports(name)], TinyModule(), train, val, max_epochs=4)


try:
    run("without", [TerminatesValidation()])
except BaseException as error:
    assert type(error).__name__ == "SIGTERMException"
monitor = CAMMonitor(num_probes=4, audit=Audit(num_images=12), **slow(TerminatesLook(IN_THE_MASKED_PASSES, None)))
callbacks, before, after = around(monitor)
watches = Watches(monitor)
try:
    run("with", [*callbacks, watches])
finally:
    # The look in whose middle it came is finished, before Lightning ends the run.
    print("LOOKS", watches.looks, "AUDITS", watches.audits, "UNDISTURBED", before.states == after.states)
"""


def test_sigterm_ends_the_run_as_it_does_without_the_monitor(tmp_path: Path) -> None:
    ended = run_script(tmp_path, SIGTERM_SCRIPT, str(tmp_path))
    watched, without = (torch.load(tmp_path / f"{which}.pt") for which in ("with", "without"))
    assert_equal(watched, without)
    assert watched["exception"] == "SIGTERMException"
    assert ended.well, ended.printed[-3000:]
    assert "LOOKS [0, 1] AUDITS [0, 1] UNDISTURBED True" in ended.printed
    assert "CAMMonitor failed" not in ended.printed


DDP_SCRIPT = """
import sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning_runs import Squares, TinyModule, loader, quiet
from fault_makers import BrokenUploads, Watches, in_epoch_1
from traces import around
from cam_callbacks import CAM, Audit, CAMMonitor, GradCAM, ScoreCAM

folder = Path(sys.argv[1])


def on_second_rank(largest):
    def forward(module, images):
        if in_epoch_1(module) and module.global_rank == 1 and len(images) > largest:
            raise OSError("rank 1 is out of luck")
        return module(images)
    return forward


def blind_on_second_rank(batch):
    if torch.distributed.get_rank() == 1:
        raise OSError("rank 1 is out of luck")
    return batch


def in_first_check(module, images):
    "Raises on the second rank in the first epoch: without a sanity check, in the check before the first look."
    if module.current_epoch == 0 and module.global_rank == 1 and len(images) > 2:
        raise OSError("rank 1 is out of luck")
    return module(images)


class BatchFn:
    "Raises on the second rank, at the last batch of the first validation after the sanity check."
    calls = 0

    def __call__(self, batch):
        self.calls += 1
        if self.calls == 4 and torch.distributed.get_rank() == 1:
            raise OSError("rank 1 is out of luck")
        return batch


def run(name, monitor, **options):
    seed_everything(5)
    module = TinyModule()
    watches = None if monitor is None else Watches(monitor)
    callbacks, before, after = around(monitor) if monitor is not None else ([], None, None)
    settings = {"max_epochs": 3, "strategy": "ddp", "devices": 2} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watching = [] if watches is None else [*callbacks, watches]
        trainer = Trainer(callbacks=watching, **quiet(folder / name, **settings))
        trainer.fit(module, loader(Squares(12), shuffle=True), loader(Squares(24, seed=1)))
    rank = trainer.global_rank
    reports[name] = {
        "epochs": trainer.current_epoch,
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "looks": None if watches is None else watches.looks,
        "audits": None if watches is None else watches.audits,
        "isolated": monitor is None or before.states == after.states,
        "said": [str(w.message) for w in caught if "Traceback (most recent call last)" in str(w.message)],
    }
    return rank


reports = {}
small = {"num_probes": 4, "audit": None}
audited = {"num_probes": 4, "audit": Audit(num_images=12)}
run("without", None)
run("probe capture", CAMMonitor(batch_fn=BatchFn(), **small))
run("all batches", CAMMonitor(batch_fn=blind_on_second_rank, **small), num_sanity_val_steps=0)
run("check", CAMMonitor(forward_fn=in_first_check, **small), num_sanity_val_steps=0)
run("forward", CAMMonitor(forward_fn=on_second_rank(0), **audited))
run("audit", CAMMonitor(forward_fn=on_second_rank(4), method=GradCAM(), **audited))
rank = run("logger", CAMMonitor(**small), logger=BrokenUploads(folder, "", "broken"))
torch.save(reports, folder / f"rank{rank}.pt")
"""


AUDITED = ("forward", "audit")
"""The stages whose failures an audit meets, too."""

WITHOUT_SANITY_CHECK = {"all batches": replace(LOOKS_DISABLED, epochs=3), "check": FIRST_SKIPPED}
"""With one, the run does not even begin."""


def test_two_processes_fail_and_go_on_together(tmp_path: Path) -> None:
    ended = run_script(tmp_path, DDP_SCRIPT, str(tmp_path), ranks=2)
    assert ended.well, ended.printed[-4000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for stage, outcome in (ON_TWO_RANKS | WITHOUT_SANITY_CHECK).items():
        for rank in (first, second):
            ran, without = rank[stage], rank["without"]
            assert ran["epochs"] == outcome.epochs
            assert_equal(ran["weights"], without["weights"])
            assert_equal(ran["optimizer"], without["optimizer"])
            assert ran["isolated"]
            assert ran["looks"] == list(outcome.looks), stage
            audits = list(outcome.looks if outcome.audits is None else outcome.audits)
            assert ran["audits"] == (audits if stage in AUDITED else []), stage
        said = [text for rank in (first, second) for text in rank[stage]["said"]]
        where = "server is gone" if stage == "logger" else "rank 1 is out of luck"
        assert len([text for text in said if where in text]) == outcome.tracebacks, stage
        assert all("CAMMonitor" in text for text in said)
