"""CAMMonitor built by Hydra, from `_target_`: each argument, in Python and in a process of its own."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from direct_calls import assert_explained, assert_logged, recording
from lightning_runs import Squares, TinyModule, fit, image_steps, loader, scalars
from processes import run_script

from cam_callbacks import CAM, Audit, CAMMonitor, Figures, GradCAM, RegressionTarget, ScoreCAM
from cam_callbacks.data.class_names import ClassNames

pytest.importorskip("hydra", reason="needs hydra-core")
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def my_batch_fn(batch: Any) -> Any:
    return batch[0], batch[1]


def built(**arguments: Any) -> CAMMonitor:
    """The monitor that Hydra makes of a config with these arguments."""
    monitor = instantiate(OmegaConf.create({"_target_": "cam_callbacks.CAMMonitor", **arguments}))
    assert isinstance(monitor, CAMMonitor)
    return monitor


def test_every_kind_of_argument_is_understood() -> None:
    settings = built(
        _convert_="all",
        target_layer=["features.0", "features.3"],
        method={"_target_": "cam_callbacks.ScoreCAM", "weighting": "increase", "batch_size": 8},
        num_probes=3,
        explain="both",
        every_n_epochs=2,
        class_names=["a", "b", "c"],
        normalization=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        batch_fn={"_target_": "hydra.utils.get_method", "path": f"{__name__}.my_batch_fn"},
        audit={"_target_": "cam_callbacks.Audit", "foreground_values": [1, 3], "on_alarm": "stop"},
        figures={"_target_": "cam_callbacks.Figures", "overlay_style": "jet", "channels": True},
        on_error="raise",
        name="look",
    ).settings
    assert settings.target_layer == ("features.0", "features.3")
    assert settings.method == ScoreCAM(weighting="increase", batch_size=8)
    assert (settings.num_probes, settings.explain, settings.every_n_epochs) == (3, "both", 2)
    assert settings.class_names == ("a", "b", "c")
    assert settings.normalization == ((0.0,) * 3, (1.0,) * 3)
    assert settings.batch_fn is my_batch_fn
    assert settings.audit == Audit(foreground_values=[1, 3], on_alarm="stop")
    assert settings.figures == Figures("jet", channels=True)
    assert (settings.on_error, settings.name) == ("raise", "look")


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("target_layer", ["features.0", "features.3"], ("features.0", "features.3")),
        ("class_names", ["a", "b"], ClassNames(("a", "b"))),
        ("audit", {"_target_": "cam_callbacks.Audit", "foreground_values": [1, 3]}, Audit(foreground_values=[1, 3])),
        ("normalization", [[0.5], [0.25]], ((0.5,), (0.25,))),
        ("method", {"_target_": "cam_callbacks.GradCAM", "score": "probability"}, GradCAM("probability")),
        ("method", {"_target_": "cam_callbacks.CAM"}, CAM()),
        ("explain", {"_target_": "cam_callbacks.RegressionTarget", "index": 2}, RegressionTarget(2)),
        ("explain", 2, 2),
        ("explain", "label", "label"),
    ],
)
def test_without_convert_nothing_of_hydra_stays_in_the_monitor(argument: str, value: Any, expected: Any) -> None:
    monitor = built(**{argument: value})
    found = getattr(monitor.settings, argument)
    assert found == expected
    assert type(found) is type(expected)
    assert b"omegaconf" not in pickle.dumps(monitor)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_probe": 3}, "num_probe"),
        ({"figures": {"_target_": "cam_callbacks.Figures", "overlay_style": "rainbow"}}, "overlay_style='rainbow'"),
        ({"explain": True}, "explain=True is unknown; choose one of 'label', 'prediction', 'both'"),
        ({"method": {"_target_": "cam_callbacks.ScoreCAM", "weigting": "increase"}}, "weigting"),
        ({"method": {"_target_": "cam_callbacks.ScoreCAm"}}, "ScoreCAm"),
    ],
)
def test_a_typo_is_rejected_and_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InstantiationException, match=re.escape(words)):
        built(**arguments)


def test_it_explains_as_one_made_in_python(tmp_path: Path) -> None:
    module, method = TinyModule(), recording()
    config = OmegaConf.create({"_target_": "cam_callbacks.CAMMonitor", "num_probes": 6, "on_error": "raise"})
    monitor = instantiate(config, _partial_=True)(audit=None, method=method)
    fit(tmp_path, monitor, module, train=loader(Squares(12)), max_epochs=2)
    assert_explained(method.calls, module.validated)
    assert_logged(tmp_path, [2, 5], method.calls)


TRAIN = """
import hydra
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from pytorch_lightning import LightningModule


def my_batch_fn(batch):
    return batch[0], batch[1]


class Module(LightningModule):
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


@hydra.main(version_base=None, config_path=".", config_name="config")
def main(config):
    trainer = hydra.utils.instantiate(config.trainer)
    data = DataLoader(TensorDataset(torch.rand(8, 3, 12, 12), torch.arange(8) % 2), batch_size=4)
    trainer.fit(Module(), data, data)
    monitor = next(each for each in trainer.callbacks if type(each).__name__ == "CAMMonitor")
    print("PROBES", len(monitor.probes), monitor.probes.class_names, monitor.settings.method)


if __name__ == "__main__":
    main()
"""


def test_the_config_of_the_documentation_trains_in_a_process_of_its_own(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    block = re.search(r"^## Hydra$.*?^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    config = yaml.safe_load(block[1])
    config["trainer"] |= {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "logger": {
            "_target_": "pytorch_lightning.loggers.TensorBoardLogger",
            "save_dir": str(tmp_path / "logs"),
            "name": "",
            "version": "run",
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    ended = run_script(tmp_path, TRAIN, "trainer.callbacks.0.num_probes=4", name="train")
    assert ended.well, ended.printed[-3000:]
    assert "PROBES 4 ('cat', 'dog') ScoreCAM(" in ended.printed
    assert "weighting='increase', tolerance=0.01" in ended.printed
    assert [step for step, _ in scalars(tmp_path / "logs")["cam/passes"]] == [1, 3]
    assert image_steps(tmp_path / "logs")["cam/heatmaps"] == [1, 3]
