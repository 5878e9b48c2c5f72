"""Trains on two processes that Lightning spawns, and makes sure that they look; each has to import everything anew.

python tools/spawned_run.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lightning.pytorch import Trainer
from lightning_runs import Squares, TinyModule, image_steps, loader, quiet, scalars

from cam_callbacks import Audit, CAMMonitor


def main() -> None:
    """Train, and read what was logged."""
    monitor = CAMMonitor(num_probes=3, audit=Audit(num_images=12), on_error="raise")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = Trainer(callbacks=[monitor], **quiet(folder, strategy="ddp_spawn", devices=2))
        trainer.fit(TinyModule(), loader(Squares(16)), loader(Squares(16, seed=1)))
        logged, pictures = scalars(folder), image_steps(folder)
        steps = [step for step, _ in logged["val_loss"]]
        for tag in ("cam/passes", "cam/audit_passes"):
            assert [step for step, _ in logged[tag]] == steps, f"{tag} is not logged at each of {steps}: {logged}"
        assert pictures["cam/heatmaps"] == steps, f"the pictures stand at {pictures}, the validations at {steps}"
    print("two spawned processes have looked, audited and logged")


if __name__ == "__main__":
    main()
