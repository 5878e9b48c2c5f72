"""Warnings show a line of the user: in a training, that of `trainer.fit`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning_runs
import pytest
from lightning_runs import ChangedSquares, TinyModule, fit, loader, own_warnings, when
from torch import Tensor, nn

from cam_callbacks import Audit, CAMMonitor


def test_warnings_show_the_line_that_started_the_run(tmp_path: Path) -> None:
    fails = when(lambda module: module.trainer.current_epoch == 1, OSError("gone"))
    monitor = CAMMonitor(num_probes=3, class_names=["cat", "dog"], audit=Audit(num_images=12), forward_fn=fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, monitor, TinyModule(), logger=False, max_epochs=2)
    shown = {str(each.message)[:20]: each.filename for each in caught}
    for beginning in ("there are 2 class na", "the trainer has no l", "CAMMonitor failed at"):
        assert shown[beginning] == lightning_runs.__file__


class OfBatchStatistics(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = module.running_var = module.num_batches_tracked = None


def test_that_images_are_forwarded_alone_is_said_once_a_run(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=3, audit=Audit(num_images=12, randomization=True), on_error="raise")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, monitor, OfBatchStatistics(), max_epochs=3)
    said = [each for each in caught if "each image is forwarded alone" in str(each.message)]
    assert [each.filename for each in said] == [lightning_runs.__file__]


AGED = "No labels were found in the batch (keys: image, age). If 'age' holds them: "


class OfAges(TinyModule):
    """Reads its labels under a name that is not known."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["age"].long()), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["image"])


def aged(image: Tensor, label: int) -> dict[str, Any]:
    return {"image": image, "age": label}


@pytest.mark.parametrize(("audit", "count"), [(Audit(num_images=12), 1), (None, 0)])
def test_labels_under_another_name_cost_the_audit(tmp_path: Path, audit: Audit | None, count: int) -> None:
    data = loader(ChangedSquares(aged))
    with own_warnings() as warned:
        fit(tmp_path, CAMMonitor(num_probes=3, audit=audit), OfAges(), data, data, max_epochs=2)
    said = [text for text in warned if AGED in text]
    assert len(said) == count
    assert all(text.endswith("(batch['image'], batch['age'])). Until then there is no audit") for text in said)


def test_numbers_that_no_label_explains_name_what_may_be_labels(tmp_path: Path) -> None:
    class Number(OfAges):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.MSELoss()

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)[:, :1]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch["image"]).mean()

    data = loader(ChangedSquares(aged))
    with own_warnings() as warned:
        fit(tmp_path, CAMMonitor(num_probes=3), Number(), data, data)
    assert [text for text in warned if "shows nothing" in text and AGED in text]


def test_an_embedding_without_labels_says_which_may_be_labels(tmp_path: Path) -> None:
    data = loader(ChangedSquares(aged))
    with own_warnings() as warned:
        fit(tmp_path, CAMMonitor(num_probes=3, audit=Audit(task="embedding")), OfAges(), data, data)
    assert [text for text in warned if "skips the audit" in text and AGED in text]
