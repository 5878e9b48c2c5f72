"""What is written for the tab into real event files, from looks and audits with real methods."""

from __future__ import annotations

import base64
import functools
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_runs import TinyModule, fit, loader
from PIL import Image
from tab_logs import Scenes
from torch import Tensor, nn

from cam_callbacks import CAMMonitor, ProbeSet, RegressionTarget, ScoreCAM, audit_model, judge
from cam_callbacks.audit import attention
from cam_callbacks.audit.statistics import measure
from cam_callbacks.explain.trust import measure_trust
from cam_callbacks.review import reader, schema
from cam_callbacks.review.event_files import FileSeries, read
from cam_callbacks.review.json_values import readable
from cam_callbacks.review.writer import TabWriter
from cam_callbacks.snapshot import AuditSnapshot, Snapshot


def board(folder: Path) -> TensorBoardLogger:
    """A logger that writes into a folder."""
    return TensorBoardLogger(folder.parent, name="", version=folder.name)


COLOR = ("mean color", "background", "all")


class Unreachable(CSVLogger):
    """Fails, after a long wait, when it is asked for what it writes with."""

    @property
    def experiment(self) -> Any:
        raise ConnectionError("no server")


def series(folder: Path, monitor: str = "cam") -> FileSeries:
    """What is in the event files of a folder."""
    found: dict[str, FileSeries] = {}
    for file in sorted(folder.glob("*tfevents*")):
        list(read(file, found))
    return found[monitor]


def look_at(model: nn.Module, probes: ProbeSet, targets: Any = None, **settings: Any) -> Snapshot:
    explanation = ScoreCAM(**{"tolerance": 0} | settings)(model, probes.images, "features", targets)
    return Snapshot(probes, explanation, None, 1.25)


def written(folder: Path, looked: Snapshot, name: str = "cam") -> dict[str, Any]:
    """The look as the tab is given it."""
    logger = board(folder)
    TabWriter(name, {}).write_look([logger], 7, looked, epoch=3, method="Score-CAM")
    logger.experiment.close()
    return reader.look(series(folder, name), 7)


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def photos(folder: Path) -> list[np.ndarray]:
    return [picture(uri) for uri in reader.timeline("run", "cam", series(folder))["photos"]]


@pytest.fixture
def model(small_cnn: Callable[..., nn.Module]) -> nn.Module:
    return small_cnn()


@pytest.fixture
def probes(blobs: Callable[..., Tensor]) -> ProbeSet:
    masks = torch.zeros(4, 24, 32, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[3 * index : 3 * index + 8, 4:12] = True
    return ProbeSet(blobs(4, 24, 32), torch.tensor([0, 0, 0, 1]), masks, ("a", "b", "c", "d", "e"))


def test_the_numbers_are_those_of_the_explanation(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    looked = look_at(model, probes, probes.labels)
    look, explanation = written(tmp_path, looked), looked.explanation
    assert (look["epoch"], look["layer"], look["method"], look["seconds"]) == (3, "features", "Score-CAM", 1.25)
    assert look["passes"] == int(explanation.passes.sum())
    assert look["class_names"] == ["a", "b", "c", "d", "e"]

    def column(name: str) -> Any:
        return [probe[name] for probe in look["probes"]]

    near = functools.partial(pytest.approx, rel=1e-3)
    assert column("label") == column("explained") == [0, 0, 0, 1]
    assert column("predicted") == explanation.predicted.tolist()
    assert column("probability_predicted") == near(explanation.probabilities.amax(dim=1).tolist())
    assert column("probability_label") == near(explanation.probabilities[range(4), probes.labels].tolist())
    assert column("score") == near(explanation.target_scores.tolist())
    assert column("largest") == near(explanation.layer_maps.flatten(1).amax(dim=1).tolist())
    assert column("passes") == explanation.passes.tolist()
    assert column("error") == [0] * 4
    assert column("channels")[0] == [
        [index, near(weight)]
        for index, weight in zip(
            explanation.channels.index[0, :4].tolist(), explanation.channels.weight[0, :4].tolist(), strict=True
        )
    ]


def test_the_maps_are_those_of_the_explanation(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    looked = look_at(model, probes)
    look = written(tmp_path, looked)
    for uri, raw in zip(look["maps"], looked.explanation.layer_maps, strict=True):
        heat = (raw - raw.min()) / (raw.max() - raw.min())
        assert np.abs(picture(uri) / 255 - heat.numpy()).max() < 0.5 / 255 + 1e-6


def test_heat_on_the_object_is_that_of_the_audit(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    looked = look_at(model, probes)
    found = written(tmp_path, looked)["probes"]
    heat = attention.heat_on_object(looked.explanation.heatmaps, probes.masks)
    assert [probe["heat_on_object"] for probe in found] == pytest.approx(heat.tolist(), rel=1e-3)
    assert all(probe["heat_on_object_chance"] is not None for probe in found[:3])
    assert found[3]["heat_on_object_chance"] is None  # no other probe of its class


@pytest.mark.parametrize("upsampling", ["none", "nearest", "bicubic"])
def test_heat_on_the_object_is_known_however_maps_are_upsampled(
    tmp_path: Path, model: nn.Module, probes: ProbeSet, upsampling: Any
) -> None:
    look = written(tmp_path, look_at(model, probes, upsampling=upsampling))
    assert all(0 <= probe["heat_on_object"] <= 1 for probe in look["probes"])


def test_without_masks_and_labels_what_follows_from_them_is_null(
    tmp_path: Path, model: nn.Module, probes: ProbeSet
) -> None:
    look = written(tmp_path, look_at(model, ProbeSet(probes.images)))
    for probe in look["probes"]:
        unknown = ("label", "probability_label", "heat_on_object", "heat_on_object_chance")
        assert [probe[name] for name in unknown] == [None] * 4
    assert look["class_names"] is None


def test_a_target_that_is_not_a_class_has_a_score_only(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    look = written(tmp_path, look_at(model, ProbeSet(probes.images), RegressionTarget(2)))
    for probe in look["probes"]:
        assert [probe[name] for name in ("explained", "predicted", "probability_predicted")] == [None] * 3
        assert isinstance(probe["score"], float)


def test_a_skipped_probe_is_one_black_pixel_and_nulls(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    images = probes.images.clone()
    images[1] = 3e38  # becomes infinite in the first layer
    look = written(tmp_path, look_at(model, replace(probes, images=images)))
    probe = look["probes"][1]
    assert (probe["skipped"], probe["blank"], probe["predicted"], probe["largest"]) == (True, False, None, None)
    assert picture(look["maps"][1]).tolist() == [[0]]
    assert look["channels"][1] == probe["channels"] == []
    assert len(look["channels"][2]) == 4


def test_a_blank_probe_is_black(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    looked = look_at(model, probes)
    raw = looked.explanation.layer_maps.clone()
    raw[2] = 0.7
    look = written(tmp_path, replace(looked, explanation=replace(looked.explanation, layer_maps=raw)))
    assert look["probes"][2]["blank"]
    assert picture(look["maps"][2]).shape == raw.shape[1:]
    assert picture(look["maps"][2]).max() == 0


def test_coarse_maps_are_called_so_and_their_heat_is_not_measured(
    tmp_path: Path, model: nn.Module, probes: ProbeSet
) -> None:
    looked = look_at(model, probes, probes.labels)
    fine = written(tmp_path / "fine", looked)
    coarse = replace(looked.explanation, layer_maps=torch.rand(4, 2, 3), channels=None)
    look = written(tmp_path / "coarse", replace(looked, explanation=coarse))
    assert (fine["coarse"], look["coarse"]) == ("", "coarse: 2 x 3 positions")
    assert all(probe["heat_on_object"] is None for probe in look["probes"])


def test_several_layers_have_maps_without_channels(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    explanation = ScoreCAM(tolerance=0)(model, probes.images, ["features.2", "features"])
    looked = Snapshot(probes, explanation, None, 1.0)
    look = written(tmp_path, looked)
    assert look["layer"] == "features.2, features"
    assert look["channels"] == [[]] * 4
    assert schema.TAB_CHANNELS not in series(tmp_path).found


@pytest.mark.parametrize(
    ("size", "photo", "heat"), [((64,), (78, 224, 3), (78, 16)), ((8, 16, 24), (48, 72, 3), (12, 18))]
)
def test_maps_of_signals_and_volumes_lie_over_their_photos(
    tmp_path: Path,
    small_cnn: Callable[..., nn.Module],
    blobs: Callable[..., Tensor],
    size: tuple[int, ...],
    photo: tuple[int, ...],
    heat: tuple[int, ...],
) -> None:
    look = written(tmp_path, look_at(small_cnn(dimensions=len(size)), ProbeSet(blobs(2, *size))))
    assert [each.shape for each in photos(tmp_path)] == [photo] * 2
    assert [picture(uri).shape for uri in look["maps"]] == [heat] * 2
    assert look["signals"] == (len(size) == 1)
    if len(size) == 1:
        strip = picture(look["maps"][0])
        assert strip[:-14].max() == 0
        assert (strip[-14:] == strip[-1]).all()
        assert strip[-1].max() == 255


def test_photos_are_small_and_gray_where_they_can_be(
    tmp_path: Path, model: nn.Module, blobs: Callable[..., Tensor]
) -> None:
    images = blobs(2, 80, 400).sigmoid()
    images[1] = images[1, :1]
    written(tmp_path, look_at(model, ProbeSet(images)))
    assert [each.shape for each in photos(tmp_path)] == [(51, 256, 3), (51, 256)]


def test_photos_have_the_colors_from_before_the_normalization(tmp_path: Path, model: nn.Module) -> None:
    images = torch.zeros(1, 3, 16, 16)  # the mean color
    images[..., :4] = 0.1
    normalization = ((0.2, 0.4, 0.6), (0.2, 0.2, 0.2))
    written(tmp_path, look_at(model, ProbeSet(images, normalization=normalization)))
    (photo,) = photos(tmp_path)
    assert photo[0, -1].tolist() == [51, 102, 153]


def test_photos_and_settings_are_written_once_unless_photos_change(
    tmp_path: Path, model: nn.Module, probes: ProbeSet
) -> None:
    data, logger = TabWriter("cam", {"num_probes": 4}), board(tmp_path)
    first, other = look_at(model, probes), look_at(model, replace(probes, images=probes.images.flip(0)))
    for step, looked in enumerate([first, first, other, other, first]):
        data.write_look([logger], step, looked, epoch=step, method="Score-CAM")
    logger.experiment.close()
    found = series(tmp_path)
    assert list(found.steps(schema.TAB_SETTINGS)) == [0]
    assert list(found.steps(schema.TAB_PHOTOS)) == [0, 2, 4]
    assert list(found.steps(schema.TAB_MAPS)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("installed", [(), ("lightning",), ("pytorch_lightning",), ("lightning", "pytorch_lightning")])
def test_the_version_of_a_package_that_is_not_installed_is_null(
    tmp_path: Path, model: nn.Module, probes: ProbeSet, installed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, package in enumerate(installed):
        information = tmp_path / "site-packages" / f"{package}-2.{index}.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.{index}\n")
    logger, looked = board(tmp_path / "run"), look_at(model, probes)
    logger.experiment.flush()  # what it imports is imported
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    TabWriter("cam", {}).write_look([logger], 0, looked, epoch=0, method="Score-CAM")
    logger.experiment.close()
    versions = reader.timeline("run", "cam", series(tmp_path / "run"))["settings"]["versions"]
    assert versions["lightning"] == (f"2.{len(installed) - 1}" if installed else None)
    assert versions["torch"] == torch.__version__


def test_another_logger_gets_photos_of_its_own(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    data, looked = TabWriter("cam", {}), look_at(model, probes)
    for place in ("one", "two"):
        logger = board(tmp_path / place)
        data.write_look([logger], 0, looked, epoch=0, method="Score-CAM")
        logger.experiment.close()
    assert photos(tmp_path / "one")[0].shape == photos(tmp_path / "two")[0].shape


def test_loggers_that_are_not_tensorboard_are_left_alone(tmp_path: Path, model: nn.Module, probes: ProbeSet) -> None:
    tensorboard = board(tmp_path / "run")
    others = [CSVLogger(tmp_path, name="csv"), Unreachable(tmp_path), DummyLogger(), object()]
    data, looked = TabWriter("cam", {}), look_at(model, probes)
    data.write_look(others, 0, looked, epoch=0, method="Score-CAM")
    assert not list(tmp_path.rglob("*tfevents*"))
    data.write_look([*others, tensorboard], 0, looked, epoch=0, method="Score-CAM")
    tensorboard.finalize("success")
    assert list(series(tmp_path / "run").steps(schema.TAB_MAPS)) == [0]


def test_an_audit_is_written_with_all_its_measures(tmp_path: Path) -> None:
    module, scenes = TinyModule(), Scenes(biased=True, count=48)
    images = ProbeSet(scenes.images, scenes.labels, scenes.masks, ("same", "same", "owl"))
    explanation = ScoreCAM()(module, images.images, "features", images.labels)
    trust = {
        name: measure(values, images.labels)
        for name, values in measure_trust(module, images.images, explanation).items()
    }
    result = audit_model(module, images, "features")
    audited = AuditSnapshot(images, result, judge(result), trust, result.passes, torch.ones(len(images)).bool())
    logger = board(tmp_path)
    swaps = np.full((4, 5, 3), 9, dtype=np.uint8)
    TabWriter("cam", {}).write_audit([logger], 7, audited, swaps, epoch=3, testing=True)
    logger.experiment.close()
    found = series(tmp_path, "cam_test")
    shown = json.loads(found.blob(schema.TAB_AUDIT, 7))
    assert set(shown["measures"]) == {*audited.result.measures, *audited.trust}
    assert (shown["images"], shown["notes"]) == (48, list(audited.result.notes))
    color, *properties = shown["data"]
    assert (color["name"], color["where"], color["label"], color["gives_away"]) == (*COLOR, True)
    assert [each["auc"] for each in properties] == pytest.approx([each.auc for each in result.data], rel=1e-3)
    assert {each["label"] for each in properties} <= {"same (0)", "same (1)", "owl"}
    (background,) = shown["dependences"]
    assert (background["title"], background["gap"], background["placebo"]) == (
        "the background",
        "bg_gap",
        "outline_gap",
    )
    verdict = audited.verdict
    assert (shown["verdict"]["state"], shown["verdict"]["text"]) == (verdict.state, verdict.text)
    gap = audited.result.measures["bg_gap"]
    assert set(shown["measures"]["bg_gap"]["per_class"]) == {"same (0)", "same (1)", "owl"}
    assert shown["measures"]["bg_gap"]["overall"] == {
        name: None if value is None else pytest.approx(value, rel=1e-3) for name, value in vars(gap.overall).items()
    }
    assert np.array_equal(Image.open(io.BytesIO(found.blob(schema.TAB_SWAPS, 7))), swaps)


def test_a_test_run_has_records_of_its_own(tmp_path: Path) -> None:
    val = loader(Scenes(False, 12), batch_size=12)
    trainer = fit(tmp_path, CAMMonitor(num_probes=3, audit=None), train=val, val=val)
    trainer.test(trainer.lightning_module, val)
    trainer.logger.finalize("success")
    assert list(series(tmp_path / "run").steps(schema.TAB_PROBES)) == [0]
    assert len(series(tmp_path / "run", "cam_test").steps(schema.TAB_PROBES)) == 1


class Awkward:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_settings_of_all_kinds_are_readable(tmp_path: Path) -> None:
    settings = readable(
        {
            "nothing": None,
            "flag": True,
            "number": 3,
            "share": 0.5,
            "infinite": float("inf"),
            "word": "predicted",
            "path": tmp_path,
            "names": ("cat", "dog"),
            "method": ScoreCAM(tolerance=0),
            "function": fit,
            "lambda": lambda batch: batch,
            "partial": functools.partial(fit, 3),
            "class": CAMMonitor,
            "probes": ProbeSet(torch.rand(2, 3, 8, 8)),
            "dataset": Scenes(False, 3),
            "label": RegressionTarget(1),
            "module": TinyModule(),
            "tensor": torch.rand(100, 100),
            "awkward": Awkward(),
            "long": "x" * 10_000,
        }
    )
    assert json.loads(json.dumps(settings, allow_nan=False)) == settings
    assert all(value is None or isinstance(value, (str, int, float)) for value in settings.values())
    assert all(len(str(value)) <= 200 for value in settings.values())
    assert not any(" at 0x" in str(value) for value in settings.values())
    assert (settings["nothing"], settings["flag"], settings["number"], settings["infinite"]) == (None, True, 3, "inf")
    assert settings["path"] == str(tmp_path)
    assert settings["names"] == "('cat', 'dog')"
    assert str(settings["method"]).startswith("ScoreCAM(")
    assert settings["function"] == "lightning_runs.fit"
    assert settings["probes"] == "ProbeSet of 2 images"
    assert settings["dataset"] == "Scenes"
    assert settings["awkward"] == "Awkward"


def test_a_class_is_named_of_which_this_look_has_no_image(tmp_path: Path) -> None:
    scenes = Scenes(biased=True, count=48)
    images = ProbeSet(scenes.images, scenes.labels, scenes.masks)
    result = audit_model(TinyModule(), images, "features", num_donors=1)
    verdict = replace(judge(result), classes=(1, 9))  # of many classes some were certain at an earlier look
    audited = AuditSnapshot(images, result, verdict, {}, result.passes, torch.ones(len(images)).bool())
    logger = board(tmp_path)
    TabWriter("cam", {}).write_audit([logger], 7, audited, None, epoch=3)
    logger.experiment.close()
    assert json.loads(series(tmp_path).blob(schema.TAB_AUDIT, 7))["verdict"]["classes"] == ["1", "9"]
