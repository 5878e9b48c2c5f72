"""What CAMMonitor keeps: through validations, in a checkpoint, in copies of itself."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning_runs import Squares, TinyModule, fit, image_steps, infos, loader, looks, own_warnings, quiet
from PIL import Image
from torch import Tensor, nn

from cam_callbacks import Audit, CAMMonitor, Figures, GradCAM, ProbeSet
from cam_callbacks.callback.watched_images import WatchedImages
from cam_callbacks.history import PastMaps


def shuffled(seed: int = 1) -> Any:
    return loader(Squares(24, seed=seed), shuffle=True)


def small(*arguments: Any, **options: Any) -> CAMMonitor:
    """A monitor without an audit, which takes longer than all the rest of a look."""
    return CAMMonitor(*arguments, **({"num_probes": 4, "audit": None} | options))


def looked(monitor: CAMMonitor) -> list[PastMaps]:
    return monitor.history


def fingerprint(monitor: CAMMonitor) -> str:
    assert monitor.probes is not None
    return monitor.probes.fingerprint


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[CAMMonitor, Path]:
    """A monitor after two epochs, and the checkpoint that was saved then; they are only read."""
    folder = tmp_path_factory.mktemp("stopped")
    seed_everything(1)
    monitor = CAMMonitor(num_probes=6)
    trainer = fit(folder, monitor, val=shuffled(), max_epochs=2)
    trainer.save_checkpoint(folder / "stopped.ckpt")
    return monitor, folder / "stopped.ckpt"


def resumed(folder: Path, monitor: CAMMonitor, checkpoint: Path, **options: Any) -> Trainer:
    seed_everything(2)
    options = {"val": shuffled(), "max_epochs": 4} | options
    return fit(folder, monitor, ckpt_path=str(checkpoint), **options)


def test_the_same_images_are_explained_though_the_loader_shuffles(tmp_path: Path) -> None:
    seen = []

    class Keeps(CAMMonitor):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(fingerprint(self))

    with own_warnings() as said:
        fit(tmp_path, Keeps(num_probes=6, audit=Audit(num_images=10)), val=shuffled(), max_epochs=2)
    assert said == []
    assert len(seen) == 2
    assert len(set(seen)) == 1


def test_the_probes_are_balanced_over_the_classes(tmp_path: Path) -> None:
    data = Squares(30)
    order = data.labels.argsort(stable=True)  # an unshuffled folder: one class after the other
    data.images, data.labels = data.images[order], data.labels[order]
    monitor = small(num_probes=7)
    fit(tmp_path, monitor, val=loader(data))
    assert monitor.probes is not None
    assert monitor.probes.labels is not None
    assert sorted(monitor.probes.labels.bincount().tolist()) == [2, 2, 3]


def test_a_resumed_run_goes_on_with_the_same_probes_layer_and_history(
    tmp_path: Path, stopped: tuple[CAMMonitor, Path]
) -> None:
    before, checkpoint = stopped
    monitor = small(num_probes=6)
    with own_warnings() as warned, infos() as said:
        trainer = resumed(tmp_path / "second", monitor, checkpoint)
    assert trainer.current_epoch == 4
    assert warned == []
    assert not [text for text in said if "the last with at least 6 x 6 positions" in text]
    assert fingerprint(monitor) == fingerprint(before)
    assert [look.epoch for look in looked(monitor)] == [0, 1, 2, 3]
    assert [look.step for look in looked(monitor)] == [2, 5, 8, 11]
    for old, new in zip(looked(before), looked(monitor), strict=False):
        assert torch.equal(old.layer_maps, new.layer_maps)
    assert looks(tmp_path / "second") == 2
    assert image_steps(tmp_path / "second")["cam/history"] == [8, 11]


def test_a_resumed_run_trains_the_weights_of_one_that_was_not_watched(
    tmp_path: Path, stopped: tuple[CAMMonitor, Path]
) -> None:
    _, checkpoint = stopped
    watched, plain = TinyModule(), TinyModule()
    resumed(tmp_path / "watched", small(num_probes=6), checkpoint, module=watched)
    seed_everything(2)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        fit(tmp_path / "plain", None, plain, val=shuffled(), max_epochs=4, ckpt_path=str(checkpoint))
    for mine, theirs in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_validating_a_checkpoint_looks_at_the_probes_in_it(tmp_path: Path, stopped: tuple[CAMMonitor, Path]) -> None:
    before, checkpoint = stopped
    monitor = small(num_probes=6)
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
    trainer.validate(TinyModule(), shuffled(), ckpt_path=str(checkpoint), verbose=False)
    assert fingerprint(monitor) == fingerprint(before)


def test_the_checkpoint_loads_with_weights_only(
    stopped: tuple[CAMMonitor, Path],
) -> None:
    _, checkpoint = stopped
    state = torch.load(checkpoint, weights_only=True)["callbacks"][CAMMonitor().state_key]

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list) else [value]

    assert {type(leaf) for leaf in leaves(state)} <= {Tensor, str, int, float, bool, type(None)}
    assert not any(leaf.is_inference() for leaf in leaves(state) if isinstance(leaf, Tensor))


def test_a_checkpoint_after_validate_and_fit_loads_with_weights_only(tmp_path: Path) -> None:
    monitor = CAMMonitor(
        num_probes=6, class_names=["a", "b", "c"], normalization="imagenet", audit=Audit(num_images=10)
    )
    module = TinyModule()
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
    trainer.validate(module, shuffled(), verbose=False)
    trainer.fit(module, loader(Squares(12)), shuffled())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    state = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"][CAMMonitor().state_key]
    assert state["probes"]["images"]["class_names"] == ["a", "b", "c"]


def test_a_checkpoint_saved_before_the_first_look_can_be_resumed(tmp_path: Path) -> None:
    trainer = fit(tmp_path / "first", CAMMonitor(num_probes=6, audit=Audit(num_images=10)), limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "early.ckpt")
    monitor = CAMMonitor(num_probes=6, audit=Audit(num_images=10))
    resumed(tmp_path / "second", monitor, tmp_path / "early.ckpt", max_epochs=2)
    assert [look.epoch for look in looked(monitor)] == [1]


def test_images_that_do_not_fit_are_left_out_of_the_checkpoint() -> None:
    watched = WatchedImages(16)
    watched.keep(ProbeSet(torch.zeros(3, 3, 512, 512)))
    saved = watched.state_dict(room=10 * 2**20)["images"]["images"]
    assert saved.nbytes == 3 * 3 * 512 * 512 * 4
    assert watched.state_dict(room=saved.nbytes - 1)["images"] is None


def test_images_that_are_part_of_a_tensor_are_saved_without_the_rest() -> None:
    watched = WatchedImages(16)
    watched.keep(ProbeSet(torch.zeros(1000, 3, 32, 32)[:2]))
    saved = watched.state_dict(room=10 * 2**20)["images"]["images"]
    assert saved.untyped_storage().nbytes() == 2 * 3 * 32 * 32 * 4


def test_given_probes_are_not_saved() -> None:
    assert CAMMonitor(probes=ProbeSet(torch.zeros(2, 3, 8, 8))).state_dict()["probes"]["images"] is None


def test_other_given_probes_are_noticed_by_a_monitor_used_before(tmp_path: Path) -> None:
    first, others = (ProbeSet(data.images[:3], data.labels[:3]) for data in (Squares(), Squares(seed=5)))
    trainer = fit(tmp_path / "first", small(probes=first))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = small(probes=others)
    Trainer(callbacks=[monitor], **quiet(tmp_path / "before")).validate(TinyModule(), shuffled(), verbose=False)
    resumed(tmp_path / "second", monitor, tmp_path / "last.ckpt", max_epochs=2)
    assert [look.epoch for look in looked(monitor)] == [1]


@pytest.mark.parametrize("same", [True, False])
def test_probes_missing_in_the_checkpoint_are_picked_and_compared(
    tmp_path: Path, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cam_callbacks.callback.memory._MAX_BYTES_IN_CHECKPOINT", 7000)  # enough for the history
    trainer = fit(tmp_path / "first", small(num_probes=6))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = small(num_probes=6)
    with own_warnings() as said:
        resumed(
            tmp_path / "second",
            monitor,
            tmp_path / "last.ckpt",
            max_epochs=2,
            val=loader(Squares(12, seed=1 if same else 2)),
        )
    assert [look.epoch for look in looked(monitor)] == ([0, 1] if same else [1])
    assert any("starting a new history" in text for text in said) != same


def test_a_checkpoint_grows_by_ten_megabytes_at_most(tmp_path: Path) -> None:
    sizes = []
    large = loader(Squares(24, size=224))
    audit = Audit(num_images=24, masks=lambda images: images.amax(dim=1) > 0.5)  # to estimate them takes seconds
    for monitor in (None, CAMMonitor(num_probes=12, audit=audit, method=GradCAM())):
        trainer = fit(tmp_path / str(len(sizes)), monitor, train=large, val=large, limit_train_batches=1)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        sizes.append((tmp_path / "last.ckpt").stat().st_size)
    assert 7 * 2**20 < sizes[1] - sizes[0] < 10.1 * 2**20


def test_the_state_stays_small_however_long_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_callbacks.history._MAX_LOOKS", 6)  # of 64: the run can be shorter
    monitor = CAMMonitor(num_probes=4, audit=None)
    options = {"limit_train_batches": 1, "limit_val_batches": 1, "logger": False, "num_sanity_val_steps": 0}
    fit(tmp_path, monitor, max_epochs=9, **options)
    epochs = [look.epoch for look in looked(monitor)]
    assert len(epochs) == 6
    assert epochs[0] == 0
    assert epochs[-1] == 8
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 500_000


def test_other_probes_than_before_start_a_new_history_with_a_warning(
    tmp_path: Path, stopped: tuple[CAMMonitor, Path]
) -> None:
    _, checkpoint = stopped
    data = Squares(6, seed=9)
    monitor = small(probes=ProbeSet(data.images, data.labels))
    with own_warnings() as said:
        resumed(tmp_path / "second", monitor, checkpoint)
    assert len(said) == 1
    assert "starting a new history" in said[0]
    assert [look.epoch for look in looked(monitor)] == [2, 3]


def test_a_resumed_run_may_want_another_number_of_probes(tmp_path: Path, stopped: tuple[CAMMonitor, Path]) -> None:
    _, checkpoint = stopped
    monitor = CAMMonitor(num_probes=9, audit=Audit(num_images=10))
    with own_warnings() as said:
        resumed(tmp_path / "second", monitor, checkpoint)
    assert monitor.probes is not None
    assert len(monitor.probes) == 9
    assert len(said) == 2
    assert "starting a new history" in said[0]
    assert "suspicions reset" in said[1]
    assert [look.epoch for look in looked(monitor)] == [2, 3]
    assert monitor.audit_result is not None
    assert len(monitor.audit_result.labels) == 10


def test_the_same_given_probes_keep_their_history_on_resuming(tmp_path: Path) -> None:
    data = Squares(6, seed=9)
    probes = ProbeSet(data.images, data.labels)
    fit(tmp_path / "first", small(probes=probes)).save_checkpoint(tmp_path / "c.ckpt")
    monitor = small(probes=probes)
    with own_warnings() as said:
        resumed(tmp_path / "second", monitor, tmp_path / "c.ckpt", max_epochs=2)
    assert said == []
    assert [look.epoch for look in looked(monitor)] == [0, 1]


def test_a_layer_named_by_the_user_goes_before_that_in_the_checkpoint(
    tmp_path: Path, stopped: tuple[CAMMonitor, Path]
) -> None:
    _, checkpoint = stopped
    monitor = small("features.1", num_probes=6)
    resumed(tmp_path / "second", monitor, checkpoint, max_epochs=3)
    assert monitor.explanation is not None
    assert monitor.explanation.target_layer == "features.1"


def test_a_layer_that_the_model_no_longer_has_does_not_end_the_run(
    tmp_path: Path, stopped: tuple[CAMMonitor, Path]
) -> None:
    _, checkpoint = stopped

    class Renamed(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            parts = self.features, self.head
            del self.features, self.head
            self.body, self.head = parts

        def forward(self, images: Tensor) -> Any:
            return self.head(self.body(images).mean(dim=(2, 3)))

        def on_load_checkpoint(self, checkpoint: Any) -> None:
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {key.replace("features", "body"): value for key, value in weights.items()}

    monitor = small(num_probes=6)
    trainer = resumed(tmp_path / "second", monitor, checkpoint, module=Renamed(), num_sanity_val_steps=0)
    assert trainer.current_epoch == 4
    assert looks(tmp_path / "second") == 2
    assert monitor.explanation is not None
    assert monitor.explanation.target_layer == "body"


def test_each_of_two_monitors_gets_its_own_state_back(tmp_path: Path) -> None:
    def pair() -> list[CAMMonitor]:
        return [small("features.0", num_probes=3, name="a"), small(num_probes=6, name="b")]

    first, second = pair(), pair()
    fit(tmp_path / "first", first).save_checkpoint(tmp_path / "c.ckpt")
    resumed(tmp_path / "second", second, tmp_path / "c.ckpt", max_epochs=2)  # type: ignore[arg-type]
    assert [fingerprint(monitor) for monitor in first] == [fingerprint(monitor) for monitor in second]


def test_it_can_be_copied_and_pickled_after_fit(tmp_path: Path) -> None:
    monitor = small()
    fit(tmp_path, monitor)
    for twin in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert fingerprint(twin) == fingerprint(monitor)
        assert twin.settings.method == monitor.settings.method
        fit(tmp_path / "twin", twin, max_epochs=2)
        assert [look.epoch for look in looked(twin)] == [0, 1]


def test_it_can_be_copied_and_pickled_after_validate(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=Audit(num_images=10))
    Trainer(callbacks=[monitor], **quiet(tmp_path)).validate(TinyModule(), loader(Squares(12)), verbose=False)
    for twin in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert fingerprint(twin) == fingerprint(monitor)


def test_a_second_fit_with_the_same_monitor_keeps_the_probes(tmp_path: Path) -> None:
    monitor = small()
    fit(tmp_path / "first", monitor, val=shuffled())
    before = fingerprint(monitor)
    fit(tmp_path / "second", monitor, val=shuffled(seed=8))
    assert fingerprint(monitor) == before
    assert looks(tmp_path / "second") == 1


def test_a_monitor_that_gave_up_looks_again_in_the_next_fit(tmp_path: Path) -> None:
    broken = [True]

    def forward(module: nn.Module, images: Tensor) -> Any:
        if broken[0] and not module.trainer.sanity_checking:  # type: ignore[union-attr]
            raise OSError("gone")
        return module(images)

    monitor = small(forward_fn=forward)
    with own_warnings():
        fit(tmp_path / "first", monitor, max_epochs=4)
    broken[0] = False
    fit(tmp_path / "second", monitor)
    assert looks(tmp_path / "second") == 1


@pytest.mark.parametrize("heat_scale", ["image", "run"])
def test_the_scale_of_the_run_shows_faint_maps_faintly(tmp_path: Path, heat_scale: Any) -> None:
    class Fades(TinyModule):
        """Its activations fall to a hundredth after the first epoch, and nothing else changes."""

        def forward(self, images: Tensor) -> Any:
            faint = not self.training and self.trainer.current_epoch > 0
            maps = self.features(images)
            return self.head(self.fade(maps * (0.01 if faint else 1.0)).mean(dim=(2, 3)))

        def __init__(self) -> None:
            super().__init__()
            self.fade = nn.Identity()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    monitor = CAMMonitor("fade", num_probes=4, figures=Figures("heatmap", heat_scale), audit=None)
    fit(tmp_path, monitor, Fades(), max_epochs=2, logger=False)
    heat = [float(np.mean(Image.open(path))) for path in sorted(tmp_path.glob("cam/heatmaps_*.png"))]
    assert len(heat) == 2
    if heat_scale == "run":
        assert heat[1] < heat[0] - 3
    else:
        assert heat[1] == pytest.approx(heat[0], abs=3)


def test_a_validation_in_another_trainer_does_not_shorten_the_history(tmp_path: Path) -> None:
    monitor = small()
    fit(tmp_path / "fit", monitor, max_epochs=2)
    kept = monitor.state_dict()["history"]["looks"]
    Trainer(callbacks=[monitor], **quiet(tmp_path / "again")).validate(TinyModule(), loader(Squares(12)), verbose=False)
    assert looks(tmp_path / "again") == 1
    assert [look["step"] for look in monitor.state_dict()["history"]["looks"]] == [look["step"] for look in kept]
