"""Small runs of each task, in which a network is audited that reads a part of what surrounds the object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning_runs import fit, loader
from task_scenes import (
    SaysBoxes,
    SaysFeatures,
    SaysLabels,
    SaysNumbers,
    SaysWhere,
    classed,
    labeled,
    numbered,
    segmented,
)
from torch import Tensor, nn
from torch.utils.data import Dataset

from cam_callbacks import Audit, CAMMonitor

NUM_IMAGES = 64


class Rows(Dataset):
    """Images with what is known of each, by name."""

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Unchanged(LightningModule):
    """A network whose weights the training leaves as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum((0 * each.sum() for each in self.parameters()), torch.zeros(()))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["image"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def boxes_of(masks: Tensor) -> Tensor:
    found = []
    for mask in masks:
        places = mask.nonzero().flip(1)  # x, y
        found.append(torch.cat([places.amin(dim=0), places.amax(dim=0) + 1]).float())
    return torch.stack(found)


def rows_of(task: str) -> Rows:
    if task == "segmentation":
        given = segmented(160)
        return Rows(image=given.images, mask=given.annotations.long())
    if task in ("detection", "embedding"):
        given = classed(160)
        where = {"boxes": boxes_of(given.masks)} if task == "detection" else {"mask": given.masks}
        return Rows(image=given.images, label=given.labels, **where)
    given = labeled(160) if task == "multi-label" else numbered(160)
    labels = given.annotations.float() * (3 if task == "regression" else 1)
    return Rows(image=given.images, label=labels, mask=given.masks)


class SaysThreeTimes(SaysNumbers):
    def forward(self, images: Tensor) -> Tensor:
        return 3 * super().forward(images)


NETWORKS = {
    "multi-label": SaysLabels,
    "regression": SaysThreeTimes,
    "segmentation": SaysWhere,
    "detection": SaysBoxes,
    "embedding": SaysFeatures,
}


def monitored(folder: Path, task: str, reads: float, **settings: Any) -> CAMMonitor:
    stated = task if task in ("detection", "embedding") else None
    monitor = CAMMonitor(
        "network.features" if stated is None else None,
        num_probes=4,
        audit=Audit(num_images=NUM_IMAGES, task=stated),
        on_error="raise",
        **settings,
    )
    data = loader(rows_of(task), batch_size=16)
    fit(folder, monitor, Unchanged(NETWORKS[task](reads)), data, data, max_epochs=2)
    return monitor
