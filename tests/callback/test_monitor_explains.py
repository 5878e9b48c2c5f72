"""What CAMMonitor explains: which class, which layer, which weights, of which models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning_runs import (
    CHANNELS,
    CountingCAM,
    Squares,
    TinyModule,
    TinyModuleOfPytorchLightning,
    fit,
    image_steps,
    infos,
    loader,
    looks,
    own_warnings,
    quiet,
    scalars,
)
from torch import Tensor, nn

from cam_callbacks import CAMMonitor, Explanation, Figures, ReciproCAM


def explanation_of(monitor: CAMMonitor) -> Explanation:
    assert monitor.explanation is not None
    return monitor.explanation


def scores_by(weights: dict[str, Tensor], monitor: CAMMonitor) -> Tensor:
    """The logits that a model of these weights gives the probes."""
    module = TinyModule()
    module.load_state_dict(weights)
    assert monitor.probes is not None
    with torch.no_grad():
        return module.eval()(monitor.probes.images)


def test_it_gives_the_heatmaps_that_the_method_gives_without_a_trainer(tmp_path: Path) -> None:
    module, monitor = TinyModule(), CAMMonitor(num_probes=6, audit=None)
    fit(tmp_path, monitor, module)
    assert monitor.probes is not None
    alone = ReciproCAM("evidence")(module, monitor.probes.images, "features.4", monitor.probes.labels)
    assert torch.allclose(explanation_of(monitor).heatmaps, alone.heatmaps, atol=1e-5)
    assert torch.allclose(explanation_of(monitor).logits, alone.logits, atol=1e-5)


def test_it_keeps_the_explanation_on_the_cpu_with_ordinary_tensors(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=None)
    lightning.pytorch.Trainer(callbacks=[monitor], **quiet(tmp_path)).validate(
        TinyModule(), loader(Squares(12)), verbose=False
    )
    explanation = explanation_of(monitor)
    assert explanation.heatmaps.device.type == "cpu"
    assert not explanation.heatmaps.is_inference()
    assert monitor.probes is not None
    assert not monitor.probes.images.is_inference()


def test_the_true_class_is_explained_by_default(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=6, audit=None)
    fit(tmp_path, monitor)
    assert explanation_of(monitor).targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_predicted_class_is_explained_where_it_is_asked_for(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=6, audit=None, explain="prediction")
    fit(tmp_path, monitor)
    explanation = explanation_of(monitor)
    assert torch.equal(explanation.targets, explanation.logits.argmax(dim=1))


def test_one_class_is_explained_for_all_images_where_its_number_is_given(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=6, audit=None, explain=2)
    fit(tmp_path, monitor)
    assert explanation_of(monitor).targets.tolist() == [2] * 6


def test_both_explains_the_most_probable_other_class_too(tmp_path: Path) -> None:
    method = CountingCAM()
    monitor = CAMMonitor(num_probes=6, audit=None, explain="both", method=method)
    fit(tmp_path, monitor)
    true_class, of_rivals = method.explanations
    assert true_class.targets.tolist() == [0, 0, 1, 1, 2, 2]
    mistaken = true_class.predicted != true_class.targets
    assert 0 < mistaken.sum() < 6  # else the test shows nothing
    assert torch.equal(of_rivals.targets[mistaken], true_class.predicted[mistaken])
    second = true_class.probabilities.topk(2).indices[:, 1]
    assert torch.equal(of_rivals.targets[~mistaken], second[~mistaken])
    total = float(true_class.passes.sum() + of_rivals.passes.sum())
    assert scalars(tmp_path)["cam/passes"] == [(2, total)]


class OneHot(TinyModule):
    """Exclusive classes, each with a sigmoid of its own."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, F.one_hot(targets, 3).float())


def test_rivals_of_classes_with_a_sigmoid_each_are_explained(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=6, audit=None, explain="both", on_error="raise")
    fit(tmp_path, monitor, OneHot())
    assert explanation_of(monitor).targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert looks(tmp_path) == 1


class OneLogit(TinyModule):
    """Cat or not."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, (targets == 0).float().unsqueeze(1))


class Binary(Squares):
    classes = ("not a cat", "cat")

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = super().__getitem__(index)
        return image, (target == 0).float()


def test_a_binary_model_of_one_logit_is_explained_for_both_its_classes(tmp_path: Path) -> None:
    class Module(OneLogit):
        def loss(self, output: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(output.squeeze(1), targets)

    monitor = CAMMonitor(num_probes=6, audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor, Module(), loader(Binary(12)), loader(Binary(12, seed=1)))
    assert said == []
    explanation = explanation_of(monitor)
    assert explanation.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(explanation.logits[:, 0], -explanation.logits[:, 1])
    assert monitor.probes is not None
    assert monitor.probes.class_names == ("not a cat", "cat")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Wrapped(TinyModule):
    """Returns its logits in some container."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(super().forward(images))

    def _loss_of(self, batch: Any) -> Tensor:
        return self.loss(super().forward(batch[0]), batch[1])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: (logits, logits.sum()),
        lambda logits: {"hidden": logits.sum(), "logits": logits},
        lambda logits: Output(logits, logits.sum()),
    ],
    ids=["tuple", "dictionary", "dataclass"],
)
def test_logits_are_found_in_what_the_model_returns(tmp_path: Path, wrap: Any) -> None:
    module, monitor = Wrapped(wrap), CAMMonitor(num_probes=6, audit=None)
    fit(tmp_path, monitor, module)
    plain = TinyModule()
    plain.load_state_dict(module.state_dict())
    assert monitor.probes is not None
    expected = plain.eval()(monitor.probes.images)
    assert torch.allclose(explanation_of(monitor).logits, expected, atol=1e-5)


def test_forward_fn_is_called_in_place_of_the_model(tmp_path: Path) -> None:
    class Module(TinyModule):
        def forward(self, images: Tensor, scale: float) -> Tensor:
            return scale * super().forward(images)

        def _loss_of(self, batch: Any) -> Tensor:
            return self.loss(self(batch[0], 1.0), batch[1])

    module = Module()
    monitor = CAMMonitor(num_probes=6, audit=None, forward_fn=lambda model, images: {"logits": model(images, 2.0)})
    fit(tmp_path, monitor, module)
    assert torch.allclose(explanation_of(monitor).logits, 2 * scores_by(module.validated[-1], monitor), atol=1e-5)


def test_the_layer_that_was_chosen_is_said_once(tmp_path: Path) -> None:
    with infos() as said:
        fit(tmp_path, CAMMonitor(num_probes=4, audit=None), max_epochs=2)
    chosen = [text for text in said if "the last with at least 6 x 6 positions" in text]
    assert len(chosen) == 1
    assert "'features'" in chosen[0]


def test_of_a_layer_that_was_named_nothing_is_said(tmp_path: Path) -> None:
    monitor = CAMMonitor("features.0", num_probes=4, audit=None)
    with infos() as said:
        fit(tmp_path, monitor)
    assert not [text for text in said if "target_layer" in text]
    assert explanation_of(monitor).target_layer == "features.0"


@pytest.mark.parametrize(
    ("package", "module", "in_list"),
    [(lightning.pytorch, TinyModule, True), (pytorch_lightning, TinyModuleOfPytorchLightning, False)],
    ids=["lightning, in a list", "pytorch_lightning, alone"],
)
def test_trainers_of_both_lightning_packages_take_it_alone_and_in_a_list(
    tmp_path: Path, package: Any, module: Any, in_list: bool
) -> None:
    monitor = CAMMonitor(num_probes=4, audit=None)
    logger = package.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    trainer = package.Trainer(callbacks=[monitor] if in_list else monitor, **quiet(tmp_path, logger=logger))
    trainer.fit(module(), loader(Squares(12)), loader(Squares(12)))
    assert looks(tmp_path) == 1
    assert image_steps(tmp_path)["cam/heatmaps"] == [2]


def test_a_model_with_a_layer_that_views_its_input_is_explained(tmp_path: Path) -> None:
    class Views(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.view(len(maps), -1)

    class Module(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(Views(), nn.Linear(CHANNELS * 64, 3))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.features(images))

    monitor = CAMMonitor(num_probes=4, audit=None)
    fit(tmp_path, monitor, Module())
    assert looks(tmp_path) == 1
    assert np.isfinite(explanation_of(monitor).heatmaps.numpy()).all()


@pytest.mark.parametrize("explain", ["prediction", 1])
def test_multi_label_targets_do_not_matter_without_need_of_labels(tmp_path: Path, explain: Any) -> None:
    class MultiLabel(TinyModule):
        def loss(self, output: Any, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(output, targets)

    class Labels(Squares):
        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return image, torch.tensor([1.0, float(target == 1), 1.0])

    monitor = CAMMonitor(num_probes=4, audit=None, explain=explain)
    fit(tmp_path, monitor, MultiLabel(), loader(Labels(12)), loader(Labels(12)))
    assert looks(tmp_path) == 1
    assert monitor.probes.labels is None


class TestOutputs:
    @staticmethod
    def module(end: nn.Module) -> TinyModule:
        module = TinyModule()
        plain = module.forward
        module.forward = lambda images: end(plain(images))  # type: ignore[method-assign]
        return module

    def test_that_are_probabilities_are_said_once_and_read_as_such(self, tmp_path: Path) -> None:
        monitor = CAMMonitor("features.4", num_probes=6, audit=None, outputs="auto")
        with infos() as said:
            fit(tmp_path, monitor, self.module(nn.Softmax(dim=1)), max_epochs=2)
        assert sum("the model returns probabilities" in each for each in said) == 1
        explanation = explanation_of(monitor)
        assert explanation.outputs == "probabilities"
        assert explanation.probabilities is not None
        assert explanation.logits is not None
        torch.testing.assert_close(explanation.logits.exp(), explanation.probabilities)

    def test_are_what_the_user_says(self, tmp_path: Path) -> None:
        monitor = CAMMonitor("features.4", num_probes=6, audit=None, outputs="logits")
        fit(tmp_path, monitor, self.module(nn.Softmax(dim=1)))
        assert explanation_of(monitor).outputs == "logits"


def test_channels_are_not_logged_without_a_word(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, figures=Figures(channels=True), audit=None)
    with own_warnings() as said:
        fit(tmp_path, monitor, max_epochs=2)
    assert len(said) == 1
    assert "Figures(channels=True)" in said[0]
