"""Runs of a model that answers by the background, or does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning_runs import fit, loader
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cam_callbacks import Audit, CAMMonitor, Method, ScoreCAM

SIZE, OBJECT = 24, 10
AUDITED = 32
"""Images of an audit, of 64 that there are."""


def samples(biased: bool, masks: bool = True, count: int = 64, seed: int = 0) -> Any:
    """Blue squares, bright or dark by class, on backgrounds that are red or green: by class, or by chance."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    images = 0.1 * torch.rand(count, 3, SIZE, SIZE, generator=draw)
    inside = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for index, target in enumerate(targets.tolist()):
        row, column = torch.randint(2, SIZE - OBJECT - 2, (2,), generator=draw).tolist()
        inside[index, row : row + OBJECT, column : column + OBJECT] = True
        color = target if biased else int(torch.randint(2, (1,), generator=draw))
        images[index, color] += 0.5 + 0.2 * torch.rand(1, generator=draw)
        images[index, :, inside[index]] = torch.tensor([0.1, 0.1, 0.3 + 0.6 * target]).unsqueeze(1)
    parts = [images, targets, inside] if masks else [images, targets]
    return loader(TensorDataset(*parts), batch_size=16)


class ReadsOneThing(LightningModule):
    """Knows from the start: answers by the background's color, or by the object's brightness."""

    def __init__(self, background: bool) -> None:
        super().__init__()
        self.background = background
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.features.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        red, green, blue = maps.flatten(2).unbind(dim=1)
        score = (green - red).mean(dim=1) if self.background else blue.amax(dim=1) - 0.6
        return torch.stack([-score, score], dim=1) * self.scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(
    folder: Path, background: bool, data: Any, epochs: int = 2, method: Method | None = None, **audit: Any
) -> CAMMonitor:
    settings = Audit(**{"num_images": AUDITED} | audit)
    monitor = CAMMonitor("features", method or ScoreCAM(), num_probes=4, audit=settings, on_error="raise")
    fit(folder, monitor, ReadsOneThing(background), data, data, max_epochs=epochs)
    return monitor
