"""What CAMMonitor refuses, when, and in which words."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Any

import lightning.pytorch.utilities.exceptions
import numpy as np
import pytest
import pytorch_lightning.utilities.exceptions
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_runs import BATCH, ChangedSquares, Squares, TinyModule, fit, loader, quiet
from torch import Tensor, nn

from cam_callbacks import CAMMonitor, ProbeSet, RegressionTarget
from cam_callbacks.callback.data_source import DataSource

MISCONFIGURATIONS = (
    lightning.pytorch.utilities.exceptions.MisconfigurationException,
    pytorch_lightning.utilities.exceptions.MisconfigurationException,
)


def refused(match: str) -> Any:
    """Expect the exception of `lightning.pytorch`."""
    return pytest.raises(MISCONFIGURATIONS[0], match=match)


class Never(TinyModule):
    """Training must not begin."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("a training step was taken")


class TakesAnyBatch(Never):
    """Its validation_step understands whatever comes."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize("kind", MISCONFIGURATIONS)
def test_a_refusal_is_the_exception_of_both_lightning_packages(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="num_probes=0 must be a whole number of at least 1"):
        CAMMonitor(num_probes=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0 must be a whole number of at least 1"),
        ({"num_probes": -3}, "num_probes=-3 must be a whole number of at least 1"),
        ({"audit": True}, "audit=True must be Audit"),
        ({"audit": 64}, "audit=64 must be Audit"),
        ({"figures": None}, "figures=None must be Figures"),
        ({"on_error": "ignore"}, "on_error='ignore' is unknown; choose one of 'warn', 'raise'"),
        (
            {"explain": "truth"},
            "explain='truth' is unknown; choose one of 'label', 'prediction', 'both' or a class",
        ),
        ({"explain": -1}, "explain=-1 is unknown"),
        ({"explain": True}, "explain=True is unknown"),
        ({"name": ""}, "must not be empty"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"probes": {}}, r"probes=dict\(...\) is not understood"),
        ({"probes": np.zeros(3)}, r"probes=ndarray\(...\) is not understood"),
        ({"probes": ""}, "probes='' names no folder"),
        ({"name": ".."}, "name='..' is the first part of every tag, and the name of a folder"),
        ({"name": " "}, "must not be empty"),
        ({"explain": RegressionTarget}, r"explain=RegressionTarget is a class; give RegressionTarget\(...\)"),
        ({"normalization": "cifar"}, "normalization='cifar' must be 'imagenet', or a pair"),
        ({"normalization": ((0.5, 0.5), (0.2,))}, "normalization=.*the means and the standard deviations"),
        ({"normalization": ((0.5,), (0.0,))}, "normalization=.*the means and the standard deviations"),
        ({"normalization": (0.5, 0.5)}, "normalization=.*the means"),
        ({"normalization": ((0.5,),)}, "normalization=.*the means"),
        ({"class_names": "cat"}, "class_names='cat' must be a list of names, or None"),
        ({"batch_fn": 3}, "batch_fn=3 must be a callable"),
        ({"forward_fn": "train.forward"}, "forward_fn='train.forward' must be a callable"),
        ({"method": "grad-cam"}, "method='grad-cam' must be a method such as GradCAM"),
        ({"target_layer": []}, r"target_layer=\[\] must be the dotted name of a layer"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_the_constructor(arguments: dict[str, Any], words: str) -> None:
    with refused(words):
        CAMMonitor(**arguments)


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_an_unknown_layer_is_refused_before_training_with_near_names(tmp_path: Path, sanity_steps: int) -> None:
    with refused("target_layer='features.33' is not in Never; nearest: .*'features.3'"):
        fit(tmp_path, CAMMonitor("features.33"), Never(), num_sanity_val_steps=sanity_steps)


def test_an_unknown_layer_is_refused_in_validate_too(tmp_path: Path) -> None:
    with refused("target_layer='feature.3'"):
        Trainer(callbacks=[CAMMonitor("feature.3")], **quiet(tmp_path)).validate(TinyModule(), loader(Squares(12)))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (lambda image, target: {"picture": image, "kind": target}, r"'picture': Tensor float32 \(4, 3, 16, 16\)"),
        (
            lambda image, target: (image, torch.tensor(7)),
            "returns 3 numbers for each image, where all labels are above 2",
        ),
        (lambda image, target: (image * torch.nan, target), "no batch had a finite image"),
        (lambda image, target: (image[0].flatten(), target), "not understood"),
    ],
    ids=["mapping", "range", "nan", "vectors"],
)
def test_a_batch_that_cannot_be_explained_is_refused_if_that_is_wanted(tmp_path: Path, item: Any, words: str) -> None:
    with refused(words):
        fit(
            tmp_path,
            CAMMonitor(on_error="raise"),
            TakesAnyBatch(),
            loader(ChangedSquares(item)),
            loader(ChangedSquares(item)),
        )


def test_a_class_that_does_not_exist_is_refused_in_the_sanity_check(tmp_path: Path) -> None:
    with refused(r"targets contains \[3\], but the model has 3 classes"):
        fit(tmp_path, CAMMonitor(explain=3), Never())


class StepsOnly(LightningModule):
    """A module without a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyModule()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("a training step was taken")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class TwoNetworks(StepsOnly):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = TinyModule()


class NeedsMore(StepsOnly):
    def forward(self, images: Tensor, temperature: float) -> Tensor:
        return self.net(images) / temperature

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0], 1.0)


class ReturnsText(StepsOnly):
    def forward(self, images: Tensor) -> Any:
        self.net(images)
        return {"answer": "cat"}


class ReturnsMaps(StepsOnly):
    def forward(self, images: Tensor) -> Tensor:
        return self.net.features(images)


class NoMaps(StepsOnly):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (TwoNetworks, "TwoNetworks has no forward method; define it, or give forward_fn"),
        (NeedsMore, "NeedsMore.forward needs more than the images.*temperature.*give forward_fn"),
        (ReturnsText, r"the model returned dict with the keys \['answer'\].*forward_fn"),
        (ReturnsMaps, "returns maps, but no pixel labels.*forward_fn"),
        (NoMaps, "no layer of NoMaps puts out positions"),
    ],
)
def test_a_model_that_cannot_be_explained_is_refused_if_that_is_wanted(
    tmp_path: Path, module: type[LightningModule], words: str
) -> None:
    with refused(words):
        fit(tmp_path, CAMMonitor(on_error="raise"), module())


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("head", "target_layer='head' has an output of shape"),
        ("unused", "target_layer='unused' was never called"),
    ],
)
def test_a_layer_without_maps_is_refused_in_the_sanity_check(tmp_path: Path, layer: str, words: str) -> None:
    module = Never()
    module.unused = nn.Conv2d(3, 3, 1)
    with refused(words):
        fit(tmp_path, CAMMonitor(layer), module)


def test_probes_that_do_not_fit_the_model_are_refused_in_the_sanity_check(tmp_path: Path) -> None:
    with refused(r"Never cannot be run on images of shape \(1, 1, 16, 16\)"):
        fit(tmp_path, CAMMonitor(probes=ProbeSet(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))), Never())


def test_a_folder_that_does_not_exist_is_refused_in_the_sanity_check(tmp_path: Path) -> None:
    with refused("probes='.*nowhere' is not a folder"):
        fit(tmp_path, CAMMonitor(probes=tmp_path / "nowhere"), Never())


def test_probes_of_another_type_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with refused("probes"):
        fit(tmp_path, CAMMonitor(probes=3), Never())  # type: ignore[arg-type]


def test_two_monitors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `CAMMonitor`"):
        fit(tmp_path, [CAMMonitor(), CAMMonitor("features.0")], Never())


def test_a_second_monitor_of_one_name_that_joins_later_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(callbacks=[CAMMonitor()], **quiet(tmp_path))
    trainer.callbacks.append(CAMMonitor("features.0"))
    with refused("two CAMMonitors have name='cam'.*give one another name"):
        trainer.fit(Never(), loader(Squares(12)), loader(Squares(12)))


def test_the_prediction_can_be_explained_without_labels(tmp_path: Path) -> None:
    data = loader(ChangedSquares(lambda image, target: image))
    trainer = fit(tmp_path, CAMMonitor(explain="prediction"), Unlabeled(), data, data)
    assert trainer.current_epoch == 1


class Unlabeled(TinyModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert len(batch) == BATCH


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"target_layer": torch.nn.Conv2d(3, 3, 1)},
            r"target_layer=Conv2d\(\.\.\.\) must be the dotted name of a layer",
        ),
        ({"batch_fn": lambda: None}, "batch_fn must be a callable: batch -> .*; this one does not take 1 arguments"),
        ({"forward_fn": lambda images: None}, "forward_fn must be a callable: .*; this one does not take 2 arguments"),
        ({"normalization": "12"}, "normalization='12' must be 'imagenet', or a pair"),
    ],
)
def test_callables_and_layers_that_cannot_serve_are_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(MISCONFIGURATIONS, match=message):
        CAMMonitor(**wrong)


def test_callables_of_any_fitting_signature_are_accepted() -> None:
    def wrapped(*given: Any) -> Any:
        return given

    for batch_fn in (operator.itemgetter("image"), dict, max, functools.wraps(lambda: None)(wrapped), lambda x, y=1: x):
        CAMMonitor(batch_fn=batch_fn)


def test_photos_for_a_model_of_signals_are_refused(tmp_path: Path) -> None:
    data = DataSource(CAMMonitor(probes=tmp_path).settings, print)
    batch = torch.rand(4, 2, 32), torch.arange(4) % 2
    with pytest.raises(ValueError, match=r"the model's images \(4, 2, 32\) are not photos; give a ProbeSet"):
        data.read_probes(tmp_path, Trainer(logger=False, enable_checkpointing=False), batch)
