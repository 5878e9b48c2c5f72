"""Images of whole numbers, as a model that scales them itself is fed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cam_callbacks import CAM, GradCAM, ProbeSet, ScoreCAM
from cam_callbacks.audit.measuring import audit_model
from cam_callbacks.explain.image_types import in_type


class OfFloats(nn.Module):
    """Is fed values from 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
            self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images / 255).mean(dim=(2, 3)))


class OfBytes(OfFloats):
    """Takes nothing but bytes."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return super().forward(images.float())


def drawn(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", [GradCAM(), CAM(), ScoreCAM(), ScoreCAM("increase")], ids=str)
def test_bytes_are_explained_as_the_same_numbers_are(method: GradCAM | CAM | ScoreCAM) -> None:
    of_bytes = method(OfBytes(), drawn(), "features")
    of_floats = method(OfFloats(), drawn().float(), "features")
    assert torch.equal(of_bytes.targets, of_floats.targets)
    assert torch.allclose(of_bytes.heatmaps, of_floats.heatmaps, atol=0.02)


def test_bytes_are_audited_as_the_same_numbers_are() -> None:
    labels, masks = torch.arange(12) % 2, torch.zeros(12, 12, 12, dtype=torch.bool)
    masks[:, 3:8, 3:8] = True
    of_bytes = audit_model(OfBytes(), ProbeSet(drawn(12), labels, masks), "features")
    of_floats = audit_model(OfFloats(), ProbeSet(drawn(12).float(), labels, masks), "features")
    assert of_bytes["accuracy"].overall.value == of_floats["accuracy"].overall.value


def test_whole_numbers_are_rounded_and_stay_within_their_type() -> None:
    values = torch.tensor([-3.0, 0.4, 0.6, 254.6, 300.0])
    assert in_type(values, torch.uint8).tolist() == [0, 0, 1, 255, 255]
    assert in_type(values, torch.bool).tolist() == [False, False, True, True, True]
    assert in_type(values, torch.float64).dtype == torch.float64
