"""CAMMonitor in LightningCLI: every argument from YAML, printed and read back; the config.yaml of the documentation."""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning.cli
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning_runs import Squares, TinyModule, image_steps, loader, looks, scalars
from processes import run_script
from torch import Tensor

from cam_callbacks import Audit, CAMMonitor, Figures, GradCAM, Intervention, RegressionTarget, ScoreCAM
from cam_callbacks.callback.trainer import Misconfiguration

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

DOCS = Path(__file__).parents[2] / "docs"


class Module(TinyModule):
    def train_dataloader(self) -> Any:
        return loader(Squares(8))

    def val_dataloader(self) -> Any:
        return loader(Squares(8, seed=1))


def my_batch_fn(batch: Any) -> Any:
    return batch[0], batch[1]


def my_exchange(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
    return donors


def my_forward_fn(module: Any, images: Tensor) -> Any:
    return module(images)


def every_argument(method: str) -> dict[str, Any]:
    return {
        "target_layer": "features.0",
        "method": {"class_path": method, "init_args": {"weighting": "increase", "batch_size": 8}},
        "probes": None,
        "num_probes": 3,
        "explain": "both",
        "every_n_epochs": 2,
        "max_overhead": 0.5,
        "class_names": ["a", "b", "c"],
        "normalization": [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]],
        "batch_fn": f"{__name__}.my_batch_fn",
        "forward_fn": f"{__name__}.my_forward_fn",
        "audit": {
            "class_path": "cam_callbacks.Audit",
            "init_args": {
                "num_images": 60,
                "threshold": 0.1,
                "on_alarm": "stop",
                "foreground_values": [1, 3],
                "randomization": True,
            },
        },
        "figures": {
            "class_path": "cam_callbacks.Figures",
            "init_args": {"overlay_style": "jet", "heat_scale": "run", "channels": True},
        },
        "outputs": "probabilities",
        "report": True,
        "on_error": "raise",
        "name": "look",
    }


def config(folder: Path, **arguments: Any) -> str:
    """The path of a YAML file with a monitor of these arguments."""
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": str(folder), "name": "", "version": "run"},
        },
        "callbacks": [{"class_path": "cam_callbacks.CAMMonitor", "init_args": arguments}],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": trainer}))
    return str(path)


def cli(*args: str, run: bool = False) -> LightningCLI:
    return LightningCLI(Module, args=list(args), run=run, save_config_callback=None, seed_everything_default=1)


def monitor_of(made: LightningCLI) -> CAMMonitor:
    return next(callback for callback in made.trainer.callbacks if isinstance(callback, CAMMonitor))


def printed_config(path: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli("--config", path, "--print_config")
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_an_exchange_of_ones_own_is_named_printed_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {
        "class_path": "cam_callbacks.Intervention",
        "init_args": {"name": "corner", "exchange": f"{__name__}.my_exchange", "title": "the corner"},
    }
    path = config(tmp_path, audit={"interventions": ["detail", own]})
    expected = ("detail", Intervention("corner", my_exchange, title="the corner"))
    assert monitor_of(cli("--config", path)).settings.audit.interventions == expected
    printed = tmp_path / "printed.yaml"
    printed.write_text(printed_config(path, capsys))
    assert monitor_of(cli("--config", str(printed))).settings.audit.interventions == expected


@pytest.mark.parametrize("method", ["cam_callbacks.ScoreCAM", "cam_callbacks.explain.score_cam.ScoreCAM"])
def test_every_argument_can_be_set_in_yaml(tmp_path: Path, method: str) -> None:
    settings = monitor_of(cli("--config", config(tmp_path, **every_argument(method)))).settings
    assert settings.method == ScoreCAM(weighting="increase", batch_size=8, outputs="probabilities")
    assert settings.target_layer == "features.0"
    assert settings.num_probes == 3
    assert settings.explain == "both"
    assert settings.every_n_epochs == 2
    assert settings.max_overhead == 0.5
    assert settings.audit == Audit(60, 0.1, "stop", [1, 3], True)
    assert settings.figures == Figures("jet", "run", True)
    assert settings.class_names == ("a", "b", "c")
    assert settings.normalization == ((0.0,) * 3, (1.0,) * 3)
    assert settings.batch_fn is my_batch_fn
    assert settings.forward_fn is my_forward_fn
    assert (settings.on_error, settings.name) == ("raise", "look")


@pytest.mark.parametrize(
    ("argument", "value", "attribute"),
    [
        ("explain", 2, 2),
        ("explain", "label", "label"),
        ("explain", "prediction", "prediction"),
        ("audit", None, None),
        ("audit", False, None),
        ("audit", {"num_images": 60}, Audit(60)),
        ("figures", {"heat_scale": "run"}, Figures(heat_scale="run")),
        ("figures", {"overlay_style": "color"}, Figures("color")),
        ("normalization", "imagenet", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("class_names", ["a"], ("a",)),
    ],
)
def test_each_form_of_an_argument_is_understood(tmp_path: Path, argument: str, value: Any, attribute: Any) -> None:
    made = monitor_of(cli("--config", config(tmp_path, **{argument: value})))
    assert getattr(made.settings, argument) == attribute


def test_a_folder_of_probes_can_be_named(tmp_path: Path) -> None:
    monitor = monitor_of(cli("--config", config(tmp_path, probes=str(tmp_path / "photos"))))
    assert str(monitor.settings.probes) == str(tmp_path / "photos")


@pytest.mark.parametrize("argument", ["explain", "audit"])
def test_a_truth_value_is_not_taken_for_a_class_or_a_setting(tmp_path: Path, argument: str) -> None:
    """YAML reads a bare `true` as a boolean, and a boolean is a Python int."""
    with pytest.raises((SystemExit, Misconfiguration)):
        cli("--config", config(tmp_path, **{argument: True}))


def test_a_run_from_yaml_looks(tmp_path: Path) -> None:
    path = config(tmp_path, **every_argument("cam_callbacks.ScoreCAM"))
    cli("fit", "--config", path, run=True)
    assert looks(tmp_path, "look") == 1


@pytest.mark.parametrize(
    "arguments", [{}, every_argument("cam_callbacks.ScoreCAM")], ids=["defaults", "every argument"]
)
def test_the_printed_config_can_be_used_again(
    tmp_path: Path, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first = config(tmp_path, **arguments)
    printed = printed_config(first, capsys)
    init_args = yaml.safe_load(printed)["trainer"]["callbacks"][0]["init_args"]
    assert set(init_args) == set(every_argument(""))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.yaml").write_text(printed)
    again = str(tmp_path / "again" / "config.yaml")
    assert printed_config(again, capsys) == printed
    one, two = monitor_of(cli("--config", first)), monitor_of(cli("--config", again))
    for argument in every_argument(""):
        assert getattr(one.settings, argument) == getattr(two.settings, argument), argument


def test_layers_methods_and_targets_of_other_kinds_can_be_written(tmp_path: Path) -> None:
    arguments = {
        "target_layer": ["features.0", "features.3"],
        "method": {
            "class_path": "cam_callbacks.GradCAM",
            "init_args": {"score": "probability", "upsampling": "nearest"},
        },
        "explain": {"class_path": "cam_callbacks.RegressionTarget", "init_args": {"index": 2}},
    }
    monitor = monitor_of(cli("--config", config(tmp_path, **arguments)))
    assert monitor.settings.target_layer == ("features.0", "features.3")
    assert monitor.settings.method == GradCAM("probability", upsampling="nearest")
    assert monitor.settings.explain == RegressionTarget(2)


def test_the_monitor_can_be_added_on_the_command_line() -> None:
    args = [
        "--trainer.callbacks=cam_callbacks.CAMMonitor",
        "--trainer.callbacks.num_probes=5",
        "--trainer.accelerator=cpu",
    ]
    assert monitor_of(cli(*args)).settings.num_probes == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_probe": 3}, "num_probe"),
        ({"figures": {"overlay_style": "rainbow"}}, "rainbow"),
        ({"method": {"class_path": "cam_callbacks.ScoreCAM", "init_args": {"weigting": "increase"}}}, "weigting"),
        ({"method": {"class_path": "cam_callbacks.ScoreCAM", "init_args": {"weighting": "decrease"}}}, "decrease"),
        ({"num_probes": "many"}, "many"),
    ],
)
def test_a_typo_is_rejected_and_named(
    tmp_path: Path, arguments: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli("--config", config(tmp_path, **arguments))
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert "trainer.callbacks" in said
    assert words in said
    assert "Traceback" not in said


def test_the_help_of_the_monitor_names_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("--trainer.callbacks.help=cam_callbacks.CAMMonitor")
    shown = capsys.readouterr().out
    for argument in every_argument(""):
        assert f"--trainer.callbacks.{argument}" in shown


class TestTheConfigOfTheDocumentation:
    """`docs/config.yaml`, run by the `train.py` that `docs/configuration.md` shows."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A folder with both."""
        page = (DOCS / "configuration.md").read_text(encoding="utf-8")
        script = re.search(r"^## LightningCLI$.*?^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        assert script is not None
        (tmp_path / "train.py").write_text(script[1])
        shutil.copy(DOCS / "config.yaml", tmp_path)
        return tmp_path

    @staticmethod
    def arguments() -> dict[str, Any]:
        """Those of the monitor."""
        config = yaml.safe_load((DOCS / "config.yaml").read_text())
        return config["trainer"]["callbacks"][0]["init_args"]

    NESTED: ClassVar = {"method": ScoreCAM, "audit": Audit, "figures": Figures}

    @staticmethod
    def values(given: dict[str, Any]) -> dict[str, Any]:
        """The values of a class that is named, or of a data class, which need not be."""
        return given.get("init_args", given)

    def test_has_every_option(self) -> None:
        arguments = self.arguments()
        assert list(arguments) == list(inspect.signature(CAMMonitor).parameters)
        for name, kind in self.NESTED.items():
            assert set(self.values(arguments[name])) == set(inspect.signature(kind).parameters)

    def test_is_the_default_where_it_does_not_say_otherwise(self) -> None:
        text, arguments = (DOCS / "config.yaml").read_text(), self.arguments()
        values = {name: (self.values(arguments.pop(name)), kind) for name, kind in self.NESTED.items()}
        for given, kind in (*values.values(), (arguments, CAMMonitor)):
            for name, value in given.items():
                default = inspect.signature(kind).parameters[name].default
                line = re.search(rf"^ +{name}: .*$", text, re.MULTILINE)
                assert line is not None
                assert ("# default: " in line[0]) == (value != default), line[0]
                if "# default: " in line[0]:
                    said = line[0].split("# default: ")[1].split(";")[0].split(", ")[0]
                    found = yaml.safe_load(said)
                    assert (tuple(found) if isinstance(found, list) else found) == default

    def test_stands_on_the_page_as_it_is(self) -> None:
        page = (DOCS / "configuration.md").read_text(encoding="utf-8")
        assert f"```yaml\n{(DOCS / 'config.yaml').read_text()}```" in page

    def test_is_what_the_monitor_gets(self, tmp_path: Path) -> None:
        monitor = monitor_of(cli("--config", config(tmp_path, **self.arguments())))
        assert monitor.settings.method == ScoreCAM(weighting="increase", tolerance=0.01)
        assert (monitor.settings.num_probes, monitor.settings.explain) == (8, "both")
        assert monitor.settings.audit.num_images == 64

    def test_printed_and_read_again_it_trains_and_looks(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shown = runpy.run_path(str(folder / "train.py"))
        arguments = ["fit", "--config", str(folder / "config.yaml"), "--print_config"]
        with pytest.raises(SystemExit, match="0"):
            pytorch_lightning.cli.LightningCLI(shown["Classifier"], shown["Photos"], args=arguments)
        printed = capsys.readouterr().out
        found = yaml.safe_load(printed)["trainer"]["callbacks"][0]
        assert found == {"class_path": "cam_callbacks.CAMMonitor", "init_args": self.arguments()}
        (folder / "printed.yaml").write_text(printed)
        options = ("--config=printed.yaml", "--trainer.accelerator=cpu", "--trainer.logger.init_args.version=run")
        ended = run_script(folder, (folder / "train.py").read_text(), "fit", *options, name="train")
        assert ended.well, ended.printed[-3000:]
        assert "at layer 'features', the last" in ended.printed
        logs = folder / "lightning_logs" / "photos"
        assert [step for step, _ in scalars(logs)["cam/passes"]] == [1, 3]
        steps = image_steps(logs)
        assert steps["cam/heatmaps"] == steps["cam/channels"] == steps["cam/history"] == [1, 3]
        assert [step for step, _ in scalars(logs)["cam/audit_passes"]] == [1, 3]
