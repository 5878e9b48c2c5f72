"""A model, or a step, that changes the images of its batch in place: what is explained is what the model was fed."""

from __future__ import annotations

from collections import UserDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import Squares, TinyModule, fit, loader, own_warnings
from torch import Tensor
from torch.utils.data import Dataset
from traces import assert_equal

from cam_callbacks import CAMMonitor, GradCAM
from cam_callbacks.data.given import GivenBatch

MEAN = 0.25
SAID = "the step changes the images of its batch in place"


class Normalizes(TinyModule):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images.sub_(MEAN))


class NormalizesByBatch(TinyModule):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images.sub_(images.mean()))


class DropsRed(TinyModule):
    """Takes whole numbers."""

    def forward(self, images: Tensor) -> Any:
        images[:, 0] = 0
        return super().forward(images.float() / 255)


class NormalizesInStep(TinyModule):
    def _loss_of(self, batch: Any) -> Tensor:
        return super()._loss_of((batch[0].sub_(MEAN), batch[1]))


class NormalizesPart(TinyModule):
    """In part in the step, in part in the forward."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images.clamp_(max=0.5))

    def _loss_of(self, batch: Any) -> Tensor:
        return super()._loss_of((batch[0].sub_(MEAN), batch[1]))


class Bytes(Dataset):
    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.squares[index]
        return (image * 255).byte(), label


class Names(UserDict):
    pass


class Pair(list):
    pass


@dataclass
class Photos:
    pixels: Tensor
    kinds: Tensor


class OfItsOwnKind(Normalizes):
    def _loss_of(self, batch: Any) -> Tensor:
        return super()._loss_of((batch.pixels, batch.kinds) if isinstance(batch, Photos) else batch)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if self.trainer.training else Photos(*batch)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


def unchanged(images: Tensor) -> Tensor:
    return images


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).byte()


def normalized(images: Tensor) -> Tensor:
    return images - MEAN


def reads_photos(batch: Photos) -> tuple[Tensor, Tensor]:
    return batch.pixels, batch.kinds


CASES: dict[str, tuple[type[TinyModule], dict[str, Any], Callable[[Tensor], Tensor], bool]] = {
    "nothing": (TinyModule, {}, unchanged, False),
    "forward": (Normalizes, {}, unchanged, False),
    "forward, by batch": (NormalizesByBatch, {}, unchanged, False),
    "forward, whole numbers": (DropsRed, {}, as_bytes, False),
    "forward, read by batch_fn": (OfItsOwnKind, {"batch_fn": reads_photos}, unchanged, False),
    "step": (NormalizesInStep, {}, normalized, True),
    "step and forward": (NormalizesPart, {}, lambda images: normalized(images).clamp(max=0.5), True),
}
"""What changes the images; arguments of the monitor; what the images become that it explains, and whether it warns."""


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_images_are_explained_as_the_model_was_fed(tmp_path: Path, case: str, inference_mode: bool) -> None:
    make, settings, expected, warns = CASES[case]
    squares = Squares(8, seed=1)
    data = [Bytes(each) if make is DropsRed else each for each in (Squares(8), squares)]
    runs = []
    for monitor in (None, CAMMonitor(num_probes=6, audit=None, method=GradCAM(), **settings)):
        module = make()
        with own_warnings() as texts:
            fit(tmp_path, monitor, module, *map(loader, data), inference_mode=inference_mode, num_sanity_val_steps=0)
        runs.append(module.state_dict())
    assert_equal(*runs)
    assert monitor is not None
    assert monitor.probes is not None
    assert any(SAID in text for text in texts) == warns, texts
    found = {tuple(image.flatten().tolist()) for image in monitor.probes.images}
    given = {tuple(image.flatten().tolist()) for image in expected(squares.images)}
    assert len(found) == 6
    assert found <= given


def test_a_batch_is_kept_in_containers_of_its_kind() -> None:
    images, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    for batch in (
        (images, labels),
        {"image": [images], "label": labels},
        Photos(images, labels),
        {"of one loader": Photos(images, labels)},
        Names(image=images),
        defaultdict(list, image=images),
    ):
        images.zero_()
        given = GivenBatch(batch)
        assert not given.was_changed
        images[0, 0, 0, 0] = torch.nan
        assert given.was_changed
        assert type(given.batch) is type(batch)
        assert images.isnan().any(), "the batch itself is left as it is"
    pair = Pair([images, labels])
    given = GivenBatch(pair)
    images.zero_()
    assert given.was_changed
    assert pair[0] is images
    images[0] = torch.nan
    labels[0] = 1
    assert not GivenBatch((images, labels)).was_changed, "not a number stays what it is"
