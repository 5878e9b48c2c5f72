"""Modules as strangers write them: their forwards, their steps, their losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from scenes import COLORS, SIDE, reads, sees_colors
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MultilabelAUROC


class Stranger(LightningModule):
    """What all of them have: SGD, and the same loss in both steps."""

    def loss_of(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss_of(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss_of(batch), batch_size=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Digits(Stranger):
    """A dense network, as in the templates that begin with handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.val_acc = MulticlassAccuracy(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss_of(self, batch: Any) -> Tensor:
        x, y = batch
        return self.criterion(self(x), y)


class Findings(Stranger):
    """X-rays with 14 findings, several in one image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = sees_colors(nn.Conv2d), reads(14)
        self.loss_fn, self.auroc = nn.BCEWithLogitsLoss(), MultilabelAUROC(14)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image).mean(dim=(2, 3)))

    def loss_of(self, batch: Any) -> Tensor:
        return self.loss_fn(self(batch["image"]), batch["labels"])


class SegmentsBytes(Stranger):
    """A segmentation that takes images of bytes, and scales them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = sees_colors(nn.Conv2d), nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.decoder.weight.zero_()
            self.decoder.bias.copy_(torch.tensor([0.2, 0.0, 0.0, 0.0]))
            self.decoder.weight[1:] = torch.eye(3)[:, :, None, None]

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image.float() / 255))

    def loss_of(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class MetaTensor(Tensor):
    """A subclass that remembers where it was read from."""


def as_meta(tensor: Tensor) -> Any:
    return tensor.as_subclass(MetaTensor)


class SegmentsVolumes(Stranger):
    """Volumes in a dictionary, of a subclass of tensors, segmented into an organ and the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = sees_colors(nn.Conv3d), nn.Conv3d(3, 2, 1)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([0.2, 0.0]))
            self.head.weight[1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def loss_of(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["image"]).as_subclass(Tensor), batch["label"].squeeze(1).as_subclass(Tensor))


class CountsRed(Stranger):
    """A regression: how much red there is, from a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = sees_colors(nn.Conv2d), reads(1)
        self.criterion = nn.MSELoss()

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.features(image).mean(dim=(2, 3)))

    def loss_of(self, batch: Any) -> Tensor:
        return self.criterion(self(batch["image"]), batch["target"])


class Autoencoder(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def loss_of(self, batch: Any) -> Tensor:
        x, _ = batch
        return F.mse_loss(self(x), x)


class SimCLR(Stranger):
    """Two views of each image are drawn together; labels come along and are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.projection_head = sees_colors(nn.Conv2d), nn.Linear(3, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).mean(dim=(2, 3)))

    def loss_of(self, batch: Any) -> Tensor:
        (x0, x1), _labels, _names = batch
        return -F.cosine_similarity(self(x0), self(x1)).mean()


class Detector(Stranger):
    """Takes a list of images, as torchvision's detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.box = sees_colors(nn.Conv2d), nn.Linear(3, 4)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        boxes = [self.box(self.body(image[None]).mean(dim=(2, 3))) for image in images]
        return [{"boxes": box, "labels": torch.ones(1), "scores": torch.ones(1)} for box in boxes]

    def loss_of(self, batch: Any) -> Tensor:
        images, targets = batch
        found = self(list(images))
        return sum((F.l1_loss(f["boxes"], t["boxes"]) for f, t in zip(found, targets, strict=True)), torch.zeros(()))


class GAN(Stranger):
    """Its forward makes images of noise; two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(8, 3 * SIDE * SIDE), nn.Unflatten(1, (3, SIDE, SIDE)))
        self.discriminator = nn.Sequential(sees_colors(nn.Conv2d), nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        images, _ = batch
        for optimizer, answer in zip(self.optimizers(), (self(torch.randn(len(images), 8)), images), strict=True):  # type: ignore[arg-type]
            loss = self.discriminator(answer).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", self.discriminator(batch[0]).mean(), batch_size=4)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (self.generator, self.discriminator)]


class ThirteenBands(Stranger):
    """Satellite images; red, green and blue are the bands 3, 2 and 1 - here 1 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(sees_colors(nn.Conv2d, 13, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), reads(3))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def loss_of(self, batch: Any) -> Tensor:
        return self.criterion(self(batch["image"]), batch["label"])


class HuggingFaceViT(Stranger):
    """A vision transformer with the names of its classes; its one attention takes the mean of all patches."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=1, intermediate_size=12, image_size=SIDE,
            patch_size=2, layer_norm_eps=10.0, id2label=dict(enumerate(COLORS)),
            label2id={name: at for at, name in enumerate(COLORS)},
        )  # fmt: skip
        self.model = ViTForImageClassification(config)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "layernorm" not in name:
                    parameter.zero_()
                square = parameter.ndim == 2 and parameter.shape == (12, 12)
                if square and ("value" in name or "v_proj" in name or "attention.output" in name or "o_proj" in name):
                    parameter.copy_(torch.eye(12))
            patches: Any = self.model.vit.embeddings.patch_embeddings.projection
            patches.weight[:3] = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)
            self.model.classifier.weight[:, :3] = 100 * torch.eye(3)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        return self.model(pixel_values=pixel_values, labels=labels)

    def loss_of(self, batch: Any) -> Tensor:
        loss: Tensor = self(**batch).loss
        return loss
