"""CAMMonitor on several processes: they share out the work, see and log the same, and fail together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning_runs import TinyModule, image_steps, scalars
from processes import run_script

from cam_callbacks import CAMMonitor
from cam_callbacks.callback import trainer as asked
from cam_callbacks.callback.trainer import Misconfiguration

SCRIPT = """
import atexit, json, os, pickle, sys
from pathlib import Path
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lightning_runs import Squares, TinyModule, loader, quiet
from cam_callbacks import CAM, Audit, CAMMonitor, GradCAM, ScoreCAM

METHODS = {"score": ScoreCAM(tolerance=0.05), "grad": GradCAM(), "cam": CAM()}


class Fails:
    "Raises on the second rank only, in some epochs; counts the forward passes of the rank otherwise."

    def __init__(self, epochs):
        self.epochs, self.calls, self.samples = epochs, 0, 0

    def __call__(self, module, images):
        if module.trainer.sanity_checking:
            return module(images)
        if module.global_rank == 1 and module.current_epoch in self.epochs:
            raise OSError("rank 1 is out of luck")
        self.calls += 1
        self.samples += len(images)
        return module(images)


class Fixed(TinyModule):
    "Its weights stay as they are: what several processes see is compared, and not how they sum gradients."

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sharded(Fixed):
    "Its weights are spread over the processes."

    def configure_model(self):
        for part in (self.features[0], self.features[3], self.head):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


class Reports(Callback):
    "Writes what each rank knows."

    def __init__(self, folder, monitor, forward_fn):
        self.folder, self.monitor, self.forward_fn, self.logged = folder, monitor, forward_fn, []

    def setup(self, trainer, module, stage):
        if torch.distributed.is_initialized():
            # Lightning does so for NCCL only; the threads of gloo may abort a process that ends before them.
            atexit.register(torch.distributed.destroy_process_group)

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("cam/")})

    def on_fit_end(self, trainer, module):
        monitor = self.monitor
        audit, explanation = monitor.audit_result, monitor.explanation
        report = {
            "logged": self.logged,
            "probes": monitor.probes.fingerprint,
            "targets": monitor.probes.labels,
            "layer_maps": None if explanation is None else explanation.layer_maps,
            "heatmaps": None if explanation is None else explanation.heatmaps,
            "passes": None if explanation is None else explanation.passes,
            "audit": None if audit is None else {name: each.values for name, each in audit.measures.items()},
            "verdict": None if audit is None else monitor.verdict.text,
            "epochs": trainer.current_epoch,
            "weights": [float(p.detach().full_tensor().sum() if hasattr(p, "full_tensor") else p.detach().sum())
                        for p in module.parameters()],
            "gradients": [p.grad is not None for p in module.parameters()],
            "calls": self.forward_fn.calls,
            "samples": self.forward_fn.samples,
        }
        torch.save(report, self.folder / f"rank{trainer.global_rank}.pt")


def run(folder, strategy="ddp", devices=2, method="score", epochs=1, failing=(), pickled=False):
    torch.manual_seed(0)
    sharded = strategy == "fully_shard"
    # Every process sees all batches, and all images are audited, so that all picks are those of one process.
    options = quiet(folder, max_epochs=epochs, strategy=strategy, devices=devices)
    options |= {"use_distributed_sampler": False, "enable_checkpointing": True, "num_sanity_val_steps": 0}
    if sharded:
        options |= {"strategy": ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)}
    forward_fn = Fails(failing)
    audit = None if failing or method != "score" else Audit(num_images=12)
    monitor = CAMMonitor(num_probes=3, audit=audit, explain="both", method=METHODS[method], forward_fn=forward_fn)
    checkpoint = ModelCheckpoint(folder, monitor=None if failing or sharded else "cam/passes")
    trainer = Trainer(callbacks=[monitor, Reports(folder, monitor, forward_fn), checkpoint], **options)
    module = Sharded() if sharded else Fixed()
    if pickled:
        trainer, module = pickle.loads(pickle.dumps((trainer, module)))
    trainer.fit(module, loader(Squares(8)), loader(Squares(12, seed=1)))


if __name__ == "__main__":
    for name, settings in json.loads(sys.argv[2]).items():
        print(f"RUN {name}", flush=True)
        if settings.get("strategy") == "ddp_fork":
            os.environ.pop("MASTER_PORT", None)  # that of the run before, whose processes have ended
        run(Path(sys.argv[1]) / name, **settings)
"""


FORKED = {
    "four ranks": {"strategy": "ddp_fork", "devices": 4},
    "one look fails": {"strategy": "ddp_fork", "epochs": 3, "failing": [1]},
    "all looks fail": {"strategy": "ddp_fork", "epochs": 3, "failing": [0, 1, 2]},
    # They are given what spawned processes are given, but need not import everything once more.
    "pickled": {"strategy": "ddp_fork", "pickled": True},
    # The last: a process that has back-propagated cannot be forked.
    "alone": {"strategy": "auto", "devices": 1},
    "alone, two looks": {"strategy": "auto", "devices": 1, "epochs": 2},
}
LAUNCHED = {"ddp": {"epochs": 2}} | {
    f"sharded, {method}": {"strategy": "fully_shard", "method": method} for method in ("score", "grad", "cam")
}
"""Runs one after the other, of processes that one process starts, or of two processes that are launched."""


@dataclass
class Ran:
    """The folder of a run, what each rank reports, and what was printed."""

    folder: Path
    ranks: list[dict[str, Any]]
    printed: str


def run(folder: Path, runs: dict[str, dict[str, Any]], ranks: int) -> dict[str, Ran]:
    ended = run_script(folder, SCRIPT, str(folder), json.dumps(runs), ranks=ranks)
    assert ended.well, ended.printed[-4000:]
    printed = dict.fromkeys(runs, "")
    for part in ended.printed.split("RUN ")[1:]:
        name, said = part.split("\n", 1)
        printed[name] += said
    return {
        name: Ran(
            folder / name,
            [torch.load(folder / name / f"rank{rank}.pt") for rank in range(settings.get("devices", 2))],
            printed[name],
        )
        for name, settings in runs.items()
    }


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    return run(tmp_path_factory.mktemp("forked"), FORKED, ranks=1)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    return run(tmp_path_factory.mktemp("launched"), LAUNCHED, ranks=2)


@pytest.fixture(scope="module")
def alone(forked: dict[str, Ran]) -> dict[str, Any]:
    """What one process reports after one look."""
    return forked["alone"].ranks[0]


def assert_same(a: Any, b: Any, but: tuple[str, ...] = (), within: float = 1e-4) -> None:
    """Equal but for rounding, which differs with the number of images in a batch."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, equal_nan=True, atol=within, rtol=within)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if key not in but:
                assert_same(a[key], b[key], but, within)
    elif isinstance(a, list):
        assert len(a) == len(b)
        for mine, theirs in zip(a, b, strict=True):
            assert_same(mine, theirs, but, within)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=within, abs=within)
    else:
        assert a == b


OWN = ("calls", "samples", "cam/seconds", "cam/audit_seconds")


def assert_shared_out(ran: Ran, alone: dict[str, Any]) -> None:
    """Two processes see what one process sees; one of them makes the passes of two of the three probes."""
    first, second = ran.ranks
    assert_same(first, second, but=("calls", "samples"))
    assert_same(first, alone, but=OWN)
    extra = 15 * 3  # passes that every rank makes to get to know the model
    for rank in ran.ranks:
        assert rank["samples"] <= 0.67 * alone["samples"] + extra
    assert first["samples"] + second["samples"] >= alone["samples"] - extra
    assert "CAMMonitor failed" not in ran.printed


def test_processes_share_out_the_work_and_see_what_one_process_sees(
    launched: dict[str, Ran], forked: dict[str, Ran]
) -> None:
    ran = launched["ddp"]
    assert len(ran.ranks[0]["logged"]) == 2
    assert_shared_out(ran, forked["alone, two looks"].ranks[0])
    logged = scalars(ran.folder)
    assert [value for _, value in logged["cam/passes"]] == [at["cam/passes"] for at in ran.ranks[0]["logged"]]
    assert image_steps(ran.folder)["cam/heatmaps"] == [step for step, _ in logged["val_loss"]]
    assert ran.printed.count("the last with at least 6 x 6 positions") == 1


def test_so_do_processes_to_which_the_monitor_goes_pickled(forked: dict[str, Ran], alone: dict[str, Any]) -> None:
    assert_shared_out(forked["pickled"], alone)


def test_more_processes_than_probes(forked: dict[str, Ran], alone: dict[str, Any]) -> None:
    ran = forked["four ranks"]
    for rank in ran.ranks:
        assert_same(rank, ran.ranks[0], but=("calls", "samples"))
    assert_same(ran.ranks[0], alone, but=OWN)
    assert "CAMMonitor failed" not in ran.printed


@pytest.mark.parametrize("method", ["score", "grad", "cam"])
def test_ranks_that_share_the_weights_make_the_same_passes(
    launched: dict[str, Ran], method: str, alone: dict[str, Any]
) -> None:
    ran = launched[f"sharded, {method}"]
    first, second = ran.ranks
    assert "CAMMonitor failed" not in ran.printed, ran.printed[-3000:]
    assert first["calls"] == second["calls"] > 0
    assert first["samples"] == second["samples"]
    assert_same(first, second)
    assert len(first["logged"]) == 1
    if method == "score":
        assert_same(first, alone, but=OWN)


def test_an_error_on_one_rank_makes_all_ranks_skip_this_look(forked: dict[str, Ran]) -> None:
    ran = forked["one look fails"]
    first, second = ran.ranks
    assert first["epochs"] == second["epochs"] == 3
    assert first["weights"] == second["weights"]
    assert [step for step, _ in scalars(ran.folder)["cam/passes"]] == [1, 5]
    assert "rank 1 is out of luck" in ran.printed
    assert ran.printed.count("CAMMonitor failed at the evaluation of epoch 1") == 2  # one a rank


def test_all_ranks_give_up_together(forked: dict[str, Ran]) -> None:
    ran = forked["all looks fail"]
    first, second = ran.ranks
    assert first["epochs"] == second["epochs"] == 3
    assert "cam/passes" not in scalars(ran.folder)
    assert ran.printed.count("disabled") == 2


LOGS_NOTHING = """
import sys
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import Squares, TinyModule, loader, quiet
from cam_callbacks import Audit, CAMMonitor


class Unreachable(CSVLogger):
    def log_image(self, key, images, step=None):
        raise ConnectionError("the tracker is gone")


if __name__ == "__main__":
    options = quiet(sys.argv[1], max_epochs=3, strategy="ddp", devices=2, num_sanity_val_steps=0)
    monitor = CAMMonitor("features", num_probes=2, audit=None, on_error="raise")
    trainer = Trainer(callbacks=[monitor], **(options | {"logger": Unreachable(sys.argv[1])}))
    trainer.fit(TinyModule(), loader(Squares(8)), loader(Squares(8)))
"""


def test_where_errors_are_wanted_that_of_a_logger_ends_all_ranks(tmp_path: Path) -> None:
    ended = run_script(tmp_path, LOGS_NOTHING, str(tmp_path), ranks=2)
    assert all(ended.codes)
    assert "ConnectionError: the tracker is gone" in ended.printed
    assert "RuntimeError: CAMMonitor failed to log on another rank" in ended.printed


class FlattensWeights(FSDPStrategy):
    """The way to have one without a GPU."""

    def __init__(self) -> None:
        pass


class PartitionsWeights(DDPStrategy):
    """As DeepSpeedStrategy says it of itself."""

    zero_stage_3 = True


@pytest.mark.parametrize(
    ("strategy", "remedy"),
    [(FlattensWeights(), "use ModelParallelStrategy"), (PartitionsWeights(), "use stage 1 or 2")],
)
def test_strategies_that_hide_the_model_from_callbacks_are_refused(strategy: Any, remedy: str) -> None:
    with pytest.raises(Misconfiguration, match=remedy):
        asked.check_strategy(type("Holds", (), {"strategy": strategy})())
    CAMMonitor().setup(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), TinyModule(), "fit")
