"""CAMMonitor on several processes: all of them look, log and fail together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning_runs import image_steps, scalars

SCRIPT = """
import json, sys, warnings
from pathlib import Path
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_runs import Squares, TinyModule, loader, quiet
from cam_callbacks import CAMMonitor

folder, strategy, failing = Path(sys.argv[1]), sys.argv[2], [int(epoch) for epoch in sys.argv[3].split(",") if epoch]


class Fails:
    "Raises on the second rank only, in some epochs."

    def __call__(self, module, images):
        if module.global_rank == 1 and not module.trainer.sanity_checking and module.current_epoch in failing:
            raise OSError("rank 1 is out of luck")
        return module(images)


class Reports(Callback):
    "Writes what each rank knows."

    def __init__(self, monitor):
        self.monitor, self.passes = monitor, []

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.passes.append(float(trainer.callback_metrics.get("cam/passes", -1)))

    def on_fit_end(self, trainer, module):
        report = {
            "passes": self.passes,
            "probes": self.monitor.probes.fingerprint,
            "targets": self.monitor.probes.targets.tolist(),
            "epochs": trainer.current_epoch,
            "weights": [float(p.detach().sum()) for p in module.parameters()],
        }
        (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    monitor = CAMMonitor(num_probes=6, forward_fn=Fails())
    checkpoint = ModelCheckpoint(folder, monitor=None if failing else "cam/passes")
    options = quiet(folder, max_epochs=4, enable_checkpointing=True, strategy=strategy, devices=2)
    trainer = Trainer(callbacks=[monitor, Reports(monitor), checkpoint], **options)
    trainer.fit(TinyModule(), loader(Squares(16)), loader(Squares(16, seed=1)))
"""


def run(folder: Path, strategy: str, failing: str = "") -> tuple[list[dict[str, Any]], str]:
    """What each rank reports, and what was printed."""
    (folder / "script.py").write_text(SCRIPT)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    command = [sys.executable, str(folder / "script.py"), str(folder), strategy, failing]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with open(folder / "printed.txt", "w+") as printed:
        # A session of its own, so that its own processes end with it where it hangs.
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed, start_new_session=True)
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        printed.seek(0)
        text = printed.read()
    assert code != -signal.SIGKILL, f"it hangs\n{text[-4000:]}"
    assert code == 0, text[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)], text


def test_two_processes_look_at_the_same_probes_and_log_the_same(tmp_path: Path) -> None:
    (first, second), printed = run(tmp_path, "ddp")
    assert first == second
    assert first["epochs"] == 4
    assert len(first["passes"]) == 4
    assert min(first["passes"]) > 6
    assert [value for _, value in scalars(tmp_path)["cam/passes"]] == first["passes"]
    assert image_steps(tmp_path)["cam/heatmaps"] == [step for step, _ in scalars(tmp_path)["val_loss"]]
    assert "CAMMonitor failed" not in printed
    assert printed.count("CAMMonitor explains the layer") == 1


def test_it_can_be_spawned(tmp_path: Path) -> None:
    (first, second), printed = run(tmp_path, "ddp_spawn")
    assert first == second
    assert len(first["passes"]) == 4
    assert "CAMMonitor failed" not in printed


def test_an_error_on_one_rank_makes_all_of_them_leave_this_look_out_and_ends_no_run(tmp_path: Path) -> None:
    (first, second), printed = run(tmp_path, "ddp_fork", failing="1")
    assert first["epochs"] == second["epochs"] == 4
    assert first["weights"] == second["weights"]
    assert [step for step, _ in scalars(tmp_path)["cam/passes"]] == [1, 5, 7]
    assert "rank 1 is out of luck" in printed
    assert printed.count("CAMMonitor failed at this evaluation, it tries again") == 2  # one a rank


def test_all_ranks_give_up_together(tmp_path: Path) -> None:
    (first, second), printed = run(tmp_path, "ddp_fork", failing="0,1,2,3")
    assert first["epochs"] == second["epochs"] == 4
    assert "cam/passes" not in scalars(tmp_path)
    assert printed.count("it gives up") == 2
