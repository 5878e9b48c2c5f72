"""What a forward returns is compared with what the steps judge: features are not taken for class scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import Squares, TinyModule, fit, loader, own_warnings
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cam_callbacks import CAMMonitor, GradCAM


class ReturnsFeatures(TinyModule):
    """Its forward returns features, and its steps compute class scores from them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.wide = nn.Linear(6, 40)
            self.last = nn.Linear(40, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.wide(self.features(images).mean(dim=(2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.last(self(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        answers = self.last(self(batch[0])).argmax(dim=1)
        self.log("val_acc", (answers == batch[1]).float().mean())


def test_features_are_noticed_at_once_where_the_data_names_its_classes(tmp_path: Path) -> None:
    with own_warnings() as texts:
        fit(tmp_path, CAMMonitor(method=GradCAM()), ReturnsFeatures())
    assert len(texts) == 1
    assert "ReturnsFeatures returns 40 numbers for each image, where the data has 3 classes" in texts[0]


class RightLater(TinyModule):
    """It says that it was wrong in the second epoch, and right after that."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", float(self.current_epoch != 1), batch_size=1)


def wrong_answers(module: Any, images: Tensor) -> Tensor:
    """The color of each square, taken for that of the next class."""
    return images.amax(dim=(2, 3)).roll(1, dims=1)


class Logs(TinyModule):
    """It logs that it is right, under a name and in a unit."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__()
        self.logged = name, value

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(*self.logged, batch_size=1)


@pytest.mark.parametrize(
    ("name", "value", "is_noticed"),
    [
        ("val_acc", 0.9, True),
        ("val/accuracy", 90.0, True),
        ("Accuracy/val", 0.9, True),
        ("val_acc", 0.2, False),
        ("val_acc", 900.0, False),
        ("val_backlog", 0.9, False),
        ("train_acc", 0.9, False),
    ],
)
def test_answers_that_are_worse_than_guessing_are_noticed(
    tmp_path: Path, name: str, value: float, is_noticed: bool
) -> None:
    squares = Squares(48)
    nameless = loader(TensorDataset(squares.images, squares.labels))
    monitor = CAMMonitor(method=GradCAM(), forward_fn=wrong_answers, num_probes=2)
    with own_warnings() as texts:
        fit(tmp_path, monitor, Logs(name, value), val=nameless, limit_train_batches=1)
    noticed = [text for text in texts if "forward does not seem to return what validation_step judges" in text]
    assert len(noticed) == is_noticed


def test_an_accuracy_is_not_compared_with_that_of_another_validation(tmp_path: Path) -> None:
    monitor = CAMMonitor(method=GradCAM(), forward_fn=wrong_answers, every_n_epochs=2)
    with own_warnings() as texts:
        fit(tmp_path, monitor, RightLater(), val=loader(Squares(48)), max_epochs=3)
    assert monitor.audit_result is not None
    assert monitor.audit_result["accuracy"].overall.value == 0
    assert [text for text in texts if "validation_step judges" in text] == []
