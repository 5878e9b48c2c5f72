"""Trainings as strangers write them, and what one line shows of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from modules import (
    GAN,
    Autoencoder,
    CountsRed,
    Detector,
    Digits,
    Findings,
    HuggingFaceViT,
    SegmentsBytes,
    SegmentsVolumes,
    SimCLR,
    ThirteenBands,
    as_meta,
)
from pytorch_lightning import LightningModule
from scenes import SIDE, Scene, Scenes
from torch import Tensor
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Project:
    """A stranger's project.

    Attributes:
        batch: What its batches are, in words.
        returns: What its model returns, in words.
        shown: What is shown, in words.
        module: Makes the module.
        data: What the data set gives.
        says: What CAMMonitor says, as regular expressions: all of it.
        evidence: Whether heatmaps are made, and the hottest pixel of each must lie on what is explained.
        audited: Whether there is a verdict.
        class_of_red: The class of red squares, which those of green and blue follow; None if all are one object.
        collate: Makes batches of items; None as a loader does it.
        has_validation: Whether there is one.
    """

    batch: str
    returns: str
    shown: str
    module: Callable[[], LightningModule]
    data: Scenes
    says: tuple[str, ...]
    evidence: bool = False
    audited: bool = False
    class_of_red: int | None = 0
    collate: Callable[[list[Any]], Any] | None = None
    has_validation: bool = True

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=4, collate_fn=self.collate)


def _findings(scene: Scene) -> Tensor:
    present = [bool((scene.pixels == color + 1).any()) for color in range(3)]
    return torch.tensor([float(each) for each in present] + [0.0] * 11)


def _boxes(scene: Scene) -> dict[str, Tensor]:
    rows, columns = (scene.pixels > 0).nonzero(as_tuple=True)
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return {"boxes": torch.stack(corners).float()[None], "labels": torch.tensor([scene.color])}


def _bands(image: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, SIDE, SIDE), image, torch.zeros(9, SIDE, SIDE)])


PROJECTS = {
    "a dense network on digits": Project(
        "`(images, classes)`, one channel",
        "(N, classes)",
        "the audit; no heatmaps, because no layer has positions",
        Digits,
        Scenes(lambda s: (s.image.mean(dim=0, keepdim=True), s.color)),
        ("shows no heatmaps: no layer of Digits puts out positions",),
        audited=True,
    ),
    "findings in X-rays": Project(
        "a dictionary; 14 numbers that are 0 or 1",
        "(N, 14), with `BCEWithLogitsLoss`",
        "of the true labels of each image the one with the highest score; the audit",
        Findings,
        Scenes(lambda s: {"image": s.image, "labels": _findings(s)}, squares=2),
        ("multi-label, 14 classes; explains the true label with the highest score of each image ",),
        audited=True,
        evidence=True,
    ),
    "a segmentation of byte images": Project(
        "`(images, pixels)`, uint8",
        "(N, classes, H, W)",
        "the largest class of each image, over its pixels; the audit",
        SegmentsBytes,
        Scenes(lambda s: ((s.image.clamp(0, 1) * 255).byte(), s.pixels), squares=2),
        ("segmentation, 4 classes; explains the class with the most labeled pixels of each image ",),
        audited=True,
        evidence=True,
        class_of_red=1,
    ),
    "a segmentation of volumes": Project(
        "a dictionary of volumes, tensors of a subclass",
        "(N, classes, D, H, W)",
        "the largest class of each volume, over its voxels",
        SegmentsVolumes,
        Scenes(
            lambda s: {"image": as_meta(s.image), "label": as_meta((s.pixels > 0).long().unsqueeze(0))}, dimensions=3
        ),
        (
            "segmentation, 2 classes; explains the class with the most labeled pixels ",
            "skips the audit: no class is the object of 2 of the 24 images and missing in another",
        ),
        evidence=True,
        class_of_red=None,
    ),
    "a regression": Project(
        "a dictionary; a float for each image",
        "(N, 1), with `MSELoss`",
        "the number; the audit",
        CountsRed,
        Scenes(lambda s: {"image": s.image, "target": s.image[:1].mean(dim=(1, 2)) * 30}, only_red=True),
        ("regression, 1 number; explains the number at layer ",),
        audited=True,
        evidence=True,
    ),
    "an autoencoder": Project(
        "`(images, classes)`",
        "images",
        "nothing",
        Autoencoder,
        Scenes(lambda s: (s.image, s.color)),
        ("CAMMonitor shows nothing: Autoencoder returns images, as an autoencoder does",),
    ),
    "contrastive learning": Project(
        "`((view, view), classes, names)`",
        "(N, features)",
        "nothing",
        SimCLR,
        Scenes(lambda s: ((s.image, s.image.flip(-1)), s.color, "a.png")),
        ("the batch holds 2 views", "CAMMonitor shows nothing: SimCLR returns 32 features of each image"),
    ),
    "contrastive learning without validation": Project(
        "`((view, view), classes, names)`",
        "(N, features)",
        "nothing: there is no validation to look after",
        SimCLR,
        Scenes(lambda s: ((s.image, s.image.flip(-1)), s.color, "a.png")),
        ("looks after each validation, but this fit has none",),
        has_validation=False,
    ),
    "a detector": Project(
        "a list of images, and one of boxes",
        "a dictionary for each image",
        'nothing; `Audit(task="detection")` would audit it, `batch_fn` and a callable as `explain` would explain it',
        Detector,
        Scenes(lambda s: (s.image, _boxes(s))),
        ("CAMMonitor shows nothing: ",),
        collate=lambda items: tuple(zip(*items, strict=True)),
    ),
    "a GAN": Project(
        "`(images, classes)`",
        "images of noise",
        "nothing; `forward_fn` would change it",
        GAN,
        Scenes(lambda s: (s.image, s.color)),
        ("CAMMonitor shows nothing: GAN cannot be run on images",),
    ),
    "satellite images of 13 bands": Project(
        "a dictionary; (N, 13, H, W)",
        "(N, classes)",
        "the label of each image, over the first three bands; the audit",
        ThirteenBands,
        Scenes(lambda s: {"image": _bands(s.image), "label": s.color}),
        ("single-label, 3 classes; explains the label of each image .*Pictures show the first three of 13 channels",),
        evidence=True,
        audited=True,
    ),
    "a vision transformer of Hugging Face": Project(
        "`pixel_values` and `labels`",
        "an object with `logits`",
        "the label of each image, by its name; the audit",
        HuggingFaceViT,
        Scenes(lambda s: {"pixel_values": s.image, "labels": s.color}),
        ("single-label, 3 classes; explains the label of each image",),
        evidence=True,
        audited=True,
    ),
}
