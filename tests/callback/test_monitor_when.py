"""When CAMMonitor looks, at which step it logs, and that its scalars are ordinary Lightning metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_runs import (
    BATCH,
    CountingCAM,
    Squares,
    TinyModule,
    fit,
    image_steps,
    loader,
    looks,
    own_warnings,
    quiet,
    scalars,
)
from torch.utils.data import IterableDataset

from cam_callbacks import CAMMonitor


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self) -> Any:
        return iter(Squares(12, seed=1))


def test_it_looks_after_every_nth_epoch(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4, every_n_epochs=2, audit=None), max_epochs=5)
    # three batches an epoch: the second epoch ends at step 5, the fourth at step 11
    assert [step for step, _ in scalars(tmp_path)["cam/passes"]] == [5, 11]


def test_it_does_not_look_in_the_sanity_check(tmp_path: Path) -> None:
    method = CountingCAM()
    monitor = CAMMonitor(method=method, num_probes=4, audit=None)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, monitor, FailsInTraining())
    assert method.explanations == []
    assert monitor.explanation is None
    assert looks(tmp_path) == 0


class FailsInTraining(TinyModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 1 / 0


def test_the_sanity_check_does_not_settle_the_probes(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=12, audit=None)
    fit(tmp_path, monitor, num_sanity_val_steps=1)
    assert monitor.probes is not None
    assert len(monitor.probes) == 12


def test_it_looks_in_validate_whatever_the_epoch(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, every_n_epochs=7, audit=None)
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
    trainer.validate(TinyModule(), loader(Squares(12)), verbose=False)
    assert looks(tmp_path) == 1
    assert image_steps(tmp_path)["cam/heatmaps"] == [0]


def test_probes_picked_in_validate_serve_a_fit_after_it(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=None)
    module, trainer = TinyModule(), Trainer(callbacks=[monitor], **quiet(tmp_path))
    trainer.validate(module, loader(Squares(12)), verbose=False)
    assert monitor.probes is not None
    fingerprint = monitor.probes.fingerprint
    with own_warnings() as said:
        trainer.fit(module, loader(Squares(12)), loader(Squares(12)))
    assert said == []
    assert monitor.probes.fingerprint == fingerprint


def test_it_looks_in_test_at_the_test_images_under_tags_of_their_own(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=None)
    trainer = fit(tmp_path, monitor)
    assert monitor.probes is not None
    kept = monitor.probes.fingerprint
    trainer.test(TinyModule(), loader(Squares(12, seed=5)), verbose=False)
    assert looks(tmp_path, "cam_test") == 1
    assert looks(tmp_path) == 1
    assert "cam_test/heatmaps" in image_steps(tmp_path)
    assert monitor.probes.fingerprint == kept


@pytest.mark.parametrize("limit", [2, 0.7])
def test_it_looks_after_the_last_of_a_limited_number_of_batches(tmp_path: Path, limit: float) -> None:
    monitor = CAMMonitor(num_probes=12, audit=None)
    fit(tmp_path, monitor, limit_val_batches=limit)
    assert looks(tmp_path) == 1
    assert monitor.probes is not None
    assert len(monitor.probes) == 2 * BATCH


def test_it_looks_once_after_several_loaders_at_images_of_all(tmp_path: Path) -> None:
    first, second = Squares(12, seed=1), Squares(24, seed=2)
    monitor = CAMMonitor(num_probes=12, audit=None)
    fit(tmp_path, monitor, val=[loader(first), loader(second)])
    logged = scalars(tmp_path)
    assert looks(tmp_path) == 1
    assert not [tag for tag in logged if tag.startswith("cam/") and "dataloader_idx" in tag]
    assert monitor.probes is not None
    for squares in (first, second):
        found = [any(torch.equal(image, each) for each in squares.images) for image in monitor.probes.images]
        assert sum(found) == 6


def test_pictures_stand_at_the_steps_of_lightnings_own_scalars(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4), max_epochs=3, accumulate_grad_batches=2)
    own = [step for step, _ in scalars(tmp_path)["val_loss"]]
    assert len(own) == 3
    steps = image_steps(tmp_path)
    assert set(steps) == {"cam/heatmaps", "cam/history", "cam/class_mean", "cam/swaps", "cam/heat_over_chance"}
    for tag in steps:
        assert steps[tag] == own
    assert [step for step, _ in scalars(tmp_path)["cam/passes"]] == own


def test_pictures_stand_at_the_steps_of_scalars_in_validate_after_fit(tmp_path: Path) -> None:
    trainer = fit(tmp_path, CAMMonitor(num_probes=4, audit=None), max_epochs=2)
    trainer.validate(TinyModule(), loader(Squares(12)), verbose=False)
    own = [step for step, _ in scalars(tmp_path)["cam/passes"]]
    assert image_steps(tmp_path)["cam/heatmaps"] == own


def test_passes_seconds_blank_and_skipped_are_logged(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=None)
    fit(tmp_path, monitor)
    logged = {tag: values[0][1] for tag, values in scalars(tmp_path).items() if tag.startswith("cam/")}
    assert set(logged) == {"cam/passes", "cam/seconds", "cam/blank", "cam/skipped"}
    assert monitor.explanation is not None
    assert logged["cam/passes"] == float(monitor.explanation.passes.sum())
    assert 4 <= logged["cam/passes"] <= 4 * (1 + 2 * 8 * 8 + 1)
    assert logged["cam/seconds"] > 0
    assert logged["cam/blank"] == float(monitor.explanation.blank.sum())
    assert logged["cam/skipped"] == 0


@pytest.mark.parametrize("first", [True, False])
def test_model_checkpoint_and_early_stopping_can_monitor_the_scalars(tmp_path: Path, first: bool) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="cam/passes", mode="max")
    stop = EarlyStopping(monitor="cam/skipped", patience=1, mode="min")
    monitor = CAMMonitor(num_probes=4, audit=None)
    others = [stop, checkpoint]
    callbacks = [monitor, *others] if first else [*others, monitor]
    trainer = fit(tmp_path, callbacks, max_epochs=6, enable_checkpointing=True)
    assert checkpoint.best_model_score is not None
    assert checkpoint.best_model_score in [value for _, value in scalars(tmp_path)["cam/passes"]]
    assert trainer.current_epoch == 2  # cam/skipped never falls


def test_skipped_images_are_counted_and_drawn(tmp_path: Path) -> None:
    def not_finite_for_bright_images(module: Any, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = module(images)
        scores[images[:, 2].flatten(1).mean(dim=1) > 0.25] = torch.nan  # the third class, unmasked
        return scores

    monitor = CAMMonitor(num_probes=6, forward_fn=not_finite_for_bright_images, audit=None)
    fit(tmp_path, monitor)
    assert scalars(tmp_path)["cam/skipped"][0][1] == 2
    assert monitor.explanation is not None
    assert monitor.explanation.skipped.tolist() == [False] * 4 + [True] * 2
    assert image_steps(tmp_path)["cam/heatmaps"] == [2]
