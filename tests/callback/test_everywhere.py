"""CAMMonitor in every corner of Lightning: each look is that of a direct call, and is logged at the right step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from direct_calls import Call, assert_explained, assert_logged, recording
from lightning.pytorch import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
from lightning_runs import (
    BATCH,
    Squares,
    TinyModule,
    fit,
    image_steps,
    loader,
    own_warnings,
    quiet,
    scalars,
)
from processes import run_script
from torch.utils.data import DataLoader, IterableDataset

from cam_callbacks import CAMMonitor


def monitor_that_records(**options: Any) -> tuple[CAMMonitor, list[Call]]:
    """A monitor of six probes, no audit, that ends the run on an error; and the calls of its method."""
    method = recording()
    return CAMMonitor(
        **({"method": method, "num_probes": 6, "audit": False, "on_error": "raise"} | options)
    ), method.calls


class Stream(IterableDataset):
    """Squares without a length."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Any:
        return iter(Squares(12, seed=self.seed))


RUN_WITH_ONE_LIGHTNING = """
import json, sys, warnings
from importlib import import_module

package, folder, *hidden = sys.argv[1:]
# What both need anyway is imported already; of either Lightning, and of what may have imported one, nothing is.
ANEW = {"lightning", "pytorch_lightning", "lightning_fabric", "cam_callbacks", "lightning_runs", "fault_makers"}
for name in [name for name in sys.modules if name.split(".")[0] in ANEW]:
    del sys.modules[name]


class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hides())
warnings.simplefilter("ignore")

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from cam_callbacks import Audit, CAMMonitor, ReciproCAM

pl = import_module(package)
TensorBoardLogger = import_module(f"{package}.loggers").TensorBoardLogger
Misconfiguration = import_module(f"{package}.utilities.exceptions").MisconfigurationException


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        return self.head(self.features(images).mean(dim=(2, 3)))

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.set_num_threads(1)
torch.manual_seed(0)
data = DataLoader(TensorDataset(torch.rand(8, 3, 12, 12), torch.arange(8) % 2), batch_size=4)
options = dict(accelerator="cpu", max_epochs=2, enable_progress_bar=False, enable_model_summary=False)
options |= dict(enable_checkpointing=False, log_every_n_steps=1)
module, monitor = Module(), CAMMonitor(num_probes=4, audit=None, on_error="raise")
logger = TensorBoardLogger(folder, name="", version="run")
pl.Trainer(callbacks=monitor, logger=logger, **options).fit(module, data, data)
direct = ReciproCAM("evidence")(module, monitor.probes.images, "features", monitor.probes.labels)
try:
    CAMMonitor(num_probes=0)
    refused = False
except Misconfiguration:
    refused = True
loaded = {name.split(".")[0] for name in sys.modules}
found = {
    "same": torch.allclose(monitor.explanation.heatmaps, direct.heatmaps, atol=1e-4),
    "refused": refused,
    "hidden": sorted(loaded & set(hidden)),
}
with open(f"{folder}/found.json", "w") as file:
    json.dump(found, file)
"""


HIDDEN = {"pytorch_lightning": ["lightning"], "lightning.pytorch": ["pytorch_lightning", "lightning_fabric"]}
"""What is not there, where only the one or the other is installed."""


@pytest.mark.parametrize("package", HIDDEN)
def test_it_works_where_only_one_of_the_two_lightnings_is_installed(tmp_path: Path, package: str) -> None:
    ended = run_script(tmp_path, RUN_WITH_ONE_LIGHTNING, package, str(tmp_path), *HIDDEN[package])
    assert ended.well, ended.printed[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"same": True, "refused": True, "hidden": []}
    assert [step for step, _ in scalars(tmp_path)["cam/passes"]] == [1, 3]
    assert image_steps(tmp_path)["cam/heatmaps"] == [1, 3]


class TestWithOtherCallbacks:
    class KeepsRawWeights(Callback):
        """Keeps the weights that training goes on with."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.weights = {key: value.clone() for key, value in pl_module.state_dict().items()}

    @pytest.mark.skipif(not hasattr(lightning_callbacks, "WeightAveraging"), reason="needs Lightning 2.6")
    @pytest.mark.parametrize("kind", ["EMAWeightAveraging", "WeightAveraging"])
    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    def test_the_averaged_weights_are_explained_at_each_look(self, tmp_path: Path, kind: str, first: bool) -> None:
        module, raw = TinyModule(), self.KeepsRawWeights()
        monitor, calls = monitor_that_records()
        averaging = getattr(lightning_callbacks, kind)(**({"decay": 0.7} if kind.startswith("EMA") else {}))
        fit(tmp_path, [*([monitor, averaging] if first else [averaging, monitor]), raw], module, max_epochs=3)
        assert_explained(calls, module.validated)
        assert_logged(tmp_path, [2, 5, 8], calls)
        validated = module.validated[-1]
        assert not torch.allclose(validated["head.weight"], raw.weights["head.weight"])  # else nothing is shown

    @pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
    def test_stochastic_weight_averaging_explains_the_validated_weights(self, tmp_path: Path, first: bool) -> None:
        module = TinyModule()
        monitor, calls = monitor_that_records()
        averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
        fit(tmp_path, [monitor, averaging] if first else [averaging, monitor], module, max_epochs=3)
        assert_explained(calls, module.validated)
        assert_logged(tmp_path, [step for step, _ in scalars(tmp_path)["val_loss"]], calls)
        assert len(calls) >= 3

    def test_two_monitors_explain_layers_of_their_own(self, tmp_path: Path) -> None:
        module = TinyModule()
        early, early_calls = monitor_that_records(target_layer="features.0", name="early")
        late, late_calls = monitor_that_records(target_layer="features.4", num_probes=3, name="late", explain="both")
        fit(tmp_path, [early, late], module, max_epochs=2)
        assert {call.explanation.target_layer for call in early_calls} == {"features.0"}
        assert {call.explanation.target_layer for call in late_calls} == {"features.4"}
        assert_explained(early_calls, module.validated)
        assert_logged(tmp_path, [2, 5], early_calls, "early")
        assert image_steps(tmp_path)["late/heatmaps"] == [2, 5]

    def test_it_can_come_from_the_module(self, tmp_path: Path) -> None:
        monitor, calls = monitor_that_records()

        class Brings(TinyModule):
            def configure_callbacks(self) -> Any:
                return [monitor]

        module = Brings()
        fit(tmp_path, None, module)
        assert_explained(calls, module.validated)
        assert_logged(tmp_path, [2], calls)

    def test_one_of_the_module_takes_the_place_of_one_of_the_trainer(self, tmp_path: Path) -> None:
        monitor, calls = monitor_that_records()
        replaced, unused = monitor_that_records()

        class Brings(TinyModule):
            def configure_callbacks(self) -> Any:
                return monitor

        fit(tmp_path, replaced, Brings())
        assert len(calls) == 1
        assert unused == []

    def test_a_checkpoint_of_the_best_look_holds_the_explained_weights(self, tmp_path: Path) -> None:
        monitor, calls = monitor_that_records()
        best = ModelCheckpoint(tmp_path, monitor="cam/passes", mode="max", save_weights_only=True)
        fit(tmp_path, [best, monitor], max_epochs=3, enable_checkpointing=True)
        looks = [call.explanation.passes.sum() for call in calls]
        winner = looks.index(max(looks))
        state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        assert_explained([calls[winner]], [state])


LOOPS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "two validation loaders": ({"val": [loader(Squares(12, seed=1)), loader(Squares(8, seed=2))]}, [2, 5]),
    "data sets without a length": ({"train": loader(Stream(0)), "val": loader(Stream(1))}, [2, 5]),
    "limit_val_batches as a number": ({"limit_val_batches": 2}, [2, 5]),
    "limit_val_batches as a share": ({"limit_val_batches": 0.7}, [2, 5]),
    "val_check_interval as a number": ({"val_check_interval": 2, "check_val_every_n_epoch": None}, [1, 3, 5]),
    "val_check_interval as a share": ({"train": loader(Squares(16)), "val_check_interval": 0.5}, [1, 3, 5, 7]),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 2}, [5]),
    "overfit_batches": ({"overfit_batches": 2}, [1, 3]),
    "accumulate_grad_batches": ({"accumulate_grad_batches": 2}, [1, 3]),
    "num_sanity_val_steps=0": ({"num_sanity_val_steps": 0}, [2, 5]),
    "num_sanity_val_steps=-1": ({"num_sanity_val_steps": -1}, [2, 5]),
    "inference_mode=False": ({"inference_mode": False}, [2, 5]),
    "gradient_clip_val": ({"gradient_clip_val": 0.1}, [2, 5]),
    "detect_anomaly": ({"detect_anomaly": True}, [2, 5]),
    "max_steps": ({"max_steps": 5, "max_epochs": -1}, [2]),
}


@pytest.mark.parametrize("options", LOOPS)
def test_each_look_of_a_loop_explains_the_weights_that_were_validated(tmp_path: Path, options: str) -> None:
    settings, steps = LOOPS[options]
    module = TinyModule()
    monitor, calls = monitor_that_records()
    with own_warnings() as said:
        fit(tmp_path, monitor, module, **({"max_epochs": 2} | settings))
    assert said == []
    assert_explained(calls, module.validated)
    assert_logged(tmp_path, steps, calls)
    assert [step for step, _ in scalars(tmp_path)[val_loss(settings)]] == steps


def val_loss(settings: dict[str, Any]) -> str:
    return "val_loss/dataloader_idx_0" if isinstance(settings.get("val"), list) else "val_loss"


def test_where_loaders_are_made_anew_each_epoch_the_probes_stay(tmp_path: Path) -> None:
    class Reloads(TinyModule):
        def train_dataloader(self) -> DataLoader:
            return loader(Squares(12))

        def val_dataloader(self) -> DataLoader:
            return loader(Squares(12, seed=10 + self.trainer.current_epoch))

    module = Reloads()
    monitor, calls = monitor_that_records()
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1))
    trainer.fit(module)
    assert_explained(calls, module.validated)
    assert_logged(tmp_path, [2, 5, 8], calls)
    assert all(torch.equal(call.images, calls[0].images) for call in calls)
    own = Squares(12, seed=10).images
    assert all((own == image).flatten(1).all(dim=1).any() for image in calls[0].images)


def test_a_fast_dev_run_makes_one_look_and_writes_nothing(tmp_path: Path) -> None:
    module = TinyModule()
    monitor, calls = monitor_that_records(num_probes=BATCH, every_n_epochs=5)
    fit(tmp_path, monitor, module, fast_dev_run=True)
    assert_explained(calls, module.validated)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_barebones_run_makes_its_looks_and_writes_nothing(tmp_path: Path) -> None:
    module = TinyModule()
    monitor, calls = monitor_that_records()
    options = {"barebones": True, "max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path}
    with own_warnings() as said:
        Trainer(callbacks=[monitor], **options).fit(module, loader(Squares(12)), loader(Squares(12, seed=1)))
    assert said == []
    assert_explained(calls, module.validated)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_a_logger_the_files_are_named_for_the_right_steps(tmp_path: Path) -> None:
    module = TinyModule()
    monitor, calls = monitor_that_records()
    fit(tmp_path, monitor, module, logger=False, max_epochs=2)
    assert_explained(calls, module.validated)
    written = sorted(path.name for path in tmp_path.rglob("heatmaps*.png"))
    assert written == ["heatmaps_step=000002.png", "heatmaps_step=000005.png"]


def test_without_validation_there_is_no_look(tmp_path: Path) -> None:
    monitor, calls = monitor_that_records()
    with own_warnings() as said:
        fit(tmp_path, monitor, limit_val_batches=0, max_epochs=2)
    assert calls == []
    assert "cam/passes" not in scalars(tmp_path)
    assert ["this fit has none" in text for text in said] == [True]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_explain_the_weights_of_the_module(tmp_path: Path, stage: str) -> None:
    module, data = TinyModule(), Squares(12, seed=5)
    monitor, calls = monitor_that_records()
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
    getattr(trainer, stage)(module, loader(data), verbose=False)
    assert_explained(calls, [module.state_dict()])
    assert_logged(tmp_path, [0], calls, "cam_test" if stage == "test" else "cam")
    assert all((data.images == image).flatten(1).all(dim=1).any() for image in calls[0].images)


class OptimizesItself(TinyModule):
    """Manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def optimizers_as_list(self) -> list[Any]:
        found = self.optimizers()
        return found if isinstance(found, list) else [found]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers_as_list():
            optimizer.zero_grad()
            self.manual_backward(self._loss_of(batch))
            optimizer.step()


class OptimizesItselfTwice(OptimizesItself):
    """One optimizer for the features, one for the head: `global_step` goes up by two a batch."""

    def configure_optimizers(self) -> Any:
        parts = (self.features, self.head)
        return [torch.optim.Adam(part.parameters(), lr=0.01) for part in parts]


@pytest.mark.parametrize("kind", [OptimizesItself, OptimizesItselfTwice], ids=["one optimizer", "two optimizers"])
def test_manual_optimization_logs_at_the_steps_of_lightnings_scalars(tmp_path: Path, kind: Any) -> None:
    module = kind()
    monitor, calls = monitor_that_records()
    trainer = fit(tmp_path, monitor, module, max_epochs=2)
    assert_explained(calls, module.validated)
    assert_logged(tmp_path, [step for step, _ in scalars(tmp_path)["val_loss"]], calls)
    optimizers = len(trainer.optimizers)
    assert trainer.global_step == 6 * optimizers
    # Lightning itself counts a batch of manual optimization as one step, whatever the optimizers.
    assert scalars(tmp_path)["val_loss"][-1][0] == 5
