"""What a model is trained to answer, in a training: it is explained, and said in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_runs import ChangedSquares, TinyModule, but_what_looks_cost, fit, infos, loader, own_warnings
from torch import Tensor, nn

from cam_callbacks import Audit, CAMMonitor, GradCAM, RegressionTarget


class Answers(TinyModule):
    """Returns what a function makes of its features and of its three scores."""

    def __init__(self, answer: Any, held: nn.Module | None = None) -> None:
        super().__init__()
        self.answer, self.held = answer, held

    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        return self.answer(features, self.head(features.mean(dim=(2, 3))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self(torch.rand(2, 3, 16, 16))
        parts = output if isinstance(output, (tuple, list)) else [output]
        return torch.stack([part.float().square().mean() for part in parts]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 0.0, batch_size=1)


def several(image: Tensor, label: Tensor) -> Any:
    return image, torch.tensor([[0.0, 1, 1], [1, 0, 1], [0, 0, 0]])[label]


CASES: dict[str, tuple[Answers, Any, str]] = {
    "multi-label": (
        Answers(lambda features, scores: scores, nn.BCEWithLogitsLoss()),
        several,
        "multi-label, 3 classes; explains the true label with the highest score of each image at layer 'features', ",
    ),
    "segmentation": (
        Answers(lambda features, scores: features[:, :3] + features.mean(dim=1, keepdim=True)),
        lambda image, label: (image, (image[0] > 0.5).long() * (label + 1)),
        "segmentation, 3 classes; explains the class with the most labeled pixels of each image (0 only if",
    ),
    "regression": (
        Answers(lambda features, scores: scores[:, 0]),
        lambda image, label: (image, image.mean()),
        "regression, 1 number; explains the number at layer 'features', ",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_a_run_says_its_task_once_and_explains_it(tmp_path: Path, name: str, sanity_steps: int) -> None:
    module, item, says = CASES[name]
    monitor = CAMMonitor(num_probes=6, method=GradCAM(), audit=Audit(num_images=6))
    data = loader(ChangedSquares(item))
    with infos() as told, own_warnings() as warned:
        fit(tmp_path, monitor, module, data, data, max_epochs=2, num_sanity_val_steps=sanity_steps)
    (line,) = but_what_looks_cost(told)
    assert line.startswith(f"CAMMonitor: {says}")
    assert "No audit" not in line
    assert not warned
    explanation = monitor.explanation
    assert explanation is not None
    assert monitor.probes is not None
    if name == "multi-label":
        marked = monitor.probes.annotations
        assert marked is not None
        assert explanation.logits is not None
        assert explanation.probabilities is not None
        allowed = torch.where(marked.any(dim=1, keepdim=True), marked, True)
        assert torch.equal(explanation.targets, explanation.logits.masked_fill(~allowed, -torch.inf).argmax(dim=1))
        assert torch.equal(explanation.probabilities, explanation.logits.sigmoid())
    elif name == "segmentation":
        assert explanation.score_kind == "SegmentationTarget"
        assert explanation.targets is not None
        assert set(explanation.targets.tolist()) <= {1, 2, 0}
    else:
        assert explanation.score_kind == repr(RegressionTarget())


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (lambda features, scores: (features.flatten(1), scores), 1),
        (lambda features, scores: [torch.zeros(()), scores, features], 1),
        (lambda features, scores: (scores, features.mean(dim=(2, 3))[:, :3]), None),
    ],
)
def test_a_run_explains_the_answer_in_a_tuple_or_says_that_it_cannot_tell(
    tmp_path: Path, answer: Any, place: int | None
) -> None:
    monitor = CAMMonitor(num_probes=4, method=GradCAM(), audit=None)
    with infos() as told, own_warnings() as warned:
        fit(tmp_path, monitor, Answers(answer), max_epochs=2)
    if place is None:
        assert monitor.explanation is None
        (warning,) = warned
        assert (
            "several tensors that may be the answer: output[0] (N, 3) and output[1] (N, 3). Give forward_fn" in warning
        )
    else:
        assert not warned
        assert monitor.explanation is not None
        assert monitor.explanation.logits is not None
        assert monitor.explanation.logits.shape == (4, 3)
        assert any(f"single-label, 3 classes in output[{place}]; explains" in text for text in told)


UNLABELED = loader(ChangedSquares(lambda image, label: image))


@pytest.mark.parametrize("explain", ["label", "prediction", 1])
def test_several_answers_are_not_explained_whatever_is_asked_for(tmp_path: Path, explain: Any) -> None:
    module = Answers(lambda features, scores: (scores, features.mean(dim=(2, 3))[:, :3]))
    monitor = CAMMonitor(num_probes=4, method=GradCAM(), audit=None, explain=explain)
    with own_warnings() as warned:
        fit(tmp_path, monitor, module, val=UNLABELED)
    assert monitor.explanation is None
    assert ["several tensors that may be the answer" in text for text in warned] == [True]


class Frozen(Answers):
    """Returns the features of a frozen backbone, and the scores that were made from them."""

    def forward(self, images: Tensor) -> Any:
        features = self.features(images).mean(dim=(2, 3))
        return self.answer(features), self.head(self.answer(features))


@pytest.mark.parametrize("freeze", [lambda features: features, torch.detach])
def test_the_answer_of_a_frozen_backbone_is_what_was_made_last(tmp_path: Path, freeze: Any) -> None:
    module = Frozen(freeze)
    module.features.requires_grad_(False)
    monitor = CAMMonitor(num_probes=4, audit=None, explain="prediction")
    fit(tmp_path, monitor, module, val=UNLABELED)
    assert monitor.explanation is not None
    assert monitor.explanation.logits is not None
    assert monitor.explanation.logits.shape == (4, 3)


@pytest.mark.parametrize("is_constant", [True, False])
def test_a_model_that_answers_all_images_alike_is_named(tmp_path: Path, is_constant: bool) -> None:
    module = Answers(lambda features, scores: scores * (0 if is_constant else 1) + torch.arange(3.0))
    monitor = CAMMonitor(num_probes=4, audit=None)
    with own_warnings() as warned:
        fit(tmp_path, monitor, module, max_epochs=2)
    assert ["answers all 4 images alike" in text for text in warned] == [True] * is_constant


class ReadsColors(TinyModule):
    """Answers with the color of the square, counted from `first`, one of five classes."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, images: Tensor) -> Tensor:
        color = images.mean(dim=(2, 3)).argmax(dim=1)
        return F.one_hot(color + self.first, 5) * 9.0 + super().forward(images).mean(dim=1, keepdim=True)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_labels_beside_the_answers_are_named(tmp_path: Path, first: int) -> None:
    """Labels 1 to 3 of five outputs fit, and mean other classes if the step subtracts 1."""
    data = loader(ChangedSquares(lambda image, label: (image, label + 1)))
    monitor = CAMMonitor(num_probes=6, method=GradCAM(), audit=None)
    with own_warnings() as warned:
        fit(tmp_path, monitor, ReadsColors(first), val=data, max_epochs=2)
    assert sum("the class beside the label" in text for text in warned) == (first != 1)


def test_the_layer_is_chosen_anew_where_the_training_has_replaced_it(tmp_path: Path) -> None:
    class Replaces(TinyModule):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.body = self.features
                del self.features

        def forward(self, images: Tensor) -> Tensor:
            network = self.body if hasattr(self, "body") else self.features
            return self.head(network(images).mean(dim=(2, 3)))

    monitor = CAMMonitor(num_probes=4, method=GradCAM(), audit=None)
    with own_warnings() as warned:
        fit(tmp_path, monitor, Replaces(), max_epochs=2)
    assert monitor.explanation is not None
    assert monitor.explanation.target_layer == "body"
    assert all("new history" in text for text in warned)


def test_what_returns_images_gets_one_warning_and_no_heatmap(tmp_path: Path) -> None:
    module = Answers(lambda features, scores: features[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3))
    monitor = CAMMonitor()
    with own_warnings() as warned:
        fit(tmp_path, monitor, module, val=loader(ChangedSquares(lambda image, label: image)), max_epochs=2)
    assert monitor.explanation is None
    assert [text for text in warned if re.search("shows nothing: Answers returns images.*explain=", text)] == warned
    assert len(warned) == 1


def test_a_prediction_that_is_asked_for_is_explained_whatever_it_may_be(tmp_path: Path) -> None:
    module = Answers(lambda features, scores: scores.repeat(1, 8))
    data = loader(ChangedSquares(lambda image, label: image))
    monitor = CAMMonitor(explain="prediction", audit=None, method=GradCAM(), num_probes=2)
    with own_warnings() as warned:
        fit(tmp_path, monitor, module, val=data)
    assert not warned
    assert monitor.explanation is not None


def test_labels_that_are_no_class_of_the_model_are_left_out(tmp_path: Path) -> None:
    data = loader(ChangedSquares(lambda image, label: (image, torch.where(label == 2, 255, label))))
    monitor = CAMMonitor(num_probes=6, method=GradCAM(), audit=Audit(num_images=12))
    module = Answers(lambda features, scores: scores)
    with own_warnings() as warned:
        fit(tmp_path, monitor, module, val=data, max_epochs=2)
    assert monitor.probes is not None
    assert monitor.probes.labels is not None
    assert monitor.probes.labels.tolist() == [0, 0, 1, 1]
    assert monitor.audit_result is not None
    assert set(monitor.audit_result.labels.tolist()) == {0, 1}
    assert len([text for text in warned if "none of the model's 3 classes: [255]" in text]) == 1


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_ages_are_numbers_also_where_errors_end_the_run(tmp_path: Path, sanity_steps: int) -> None:
    module = Answers(lambda features, scores: scores[:, 0])
    data = loader(ChangedSquares(lambda image, label: (image, label + 30)))
    monitor = CAMMonitor(method=GradCAM(), on_error="raise", audit=None, num_probes=4)
    fit(tmp_path, monitor, module, val=data, num_sanity_val_steps=sanity_steps)
    assert monitor.explanation is not None
    assert monitor.explanation.score_kind == repr(RegressionTarget())
