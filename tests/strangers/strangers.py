"""Trainings as strangers write them: their batches, their modules, their losses, and what one line shows of each.

The networks see colors by construction: channel k of their one convolution is the brightness of color k over the
others. So it is known where the evidence lies: on the square of that color.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MultilabelAUROC

COUNT, SIDE, SQUARE = 24, 16, 5
COLORS = ("red", "green", "blue")


class Scene(NamedTuple):
    """An image with one or two squares.

    Attributes:
        image: (3, *spatial) in [0, 1].
        pixels: (*spatial) int64: 0, or one more than the color of the square.
        color: The color of the larger square.
    """

    image: Tensor
    pixels: Tensor
    color: int


def scene(index: int, dimensions: int = 2, squares: int = 1) -> Scene:
    """The same scene each time; colors take turns, and a second square is smaller."""
    draw = torch.Generator().manual_seed(index)
    size = (SIDE,) * dimensions
    image, pixels = 0.1 * torch.rand(3, *size, generator=draw), torch.zeros(size, dtype=torch.int64)
    for place in range(squares):
        color, side = (index + place) % 3, SQUARE - 2 * place
        half = SIDE // 2 * place  # the second lies in the other half
        corner = torch.randint(0, SIDE // 2 - side + 1, (dimensions,), generator=draw).tolist()
        corner[0] += half
        region = tuple(slice(at, at + side) for at in corner)
        image[(color, *region)] += 0.8
        pixels[region] = color + 1
    return Scene(image, pixels, index % 3)


class Scenes(Dataset[Any]):
    """Scenes, each in the form that the stranger's data set gives."""

    def __init__(
        self, item: Callable[[Scene], Any], dimensions: int = 2, squares: int = 1, only_red: bool = False
    ) -> None:
        self.item = item
        indices = range(0, 3 * COUNT, 3) if only_red else range(COUNT)
        self.scenes = [scene(index, dimensions, squares) for index in indices]

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.item(self.scenes[index])


def sees_colors(conv: type[nn.Module], channels: int = 3, first: int = 0) -> nn.Sequential:
    """A convolution and a ReLU that give the brightness of three colors; the bands of an image begin at `first`."""
    layer: Any = conv(channels, 3, 3, padding=1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        for color in range(3):
            for band in range(3):
                layer.weight[color, first + band] = (1.0 if band == color else -1.0) / layer.weight[0, 0].numel()
    return nn.Sequential(layer, nn.ReLU())


def reads(outputs: int, slope: float = 100.0) -> nn.Linear:
    """A linear layer whose output k is that of color k; other outputs are low."""
    layer = nn.Linear(3, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-3.0)
        for color in range(min(3, outputs)):
            layer.weight[color, color] = slope
    return layer


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
        return self.loss_fn(self(batch["image"]), batch["findings"] if "findings" in batch else batch["labels"])


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


_NO_AUDIT = r"No audit, which needs one class for each image$"

PROJECTS = {
    "a dense network on digits": Project(
        "`(images, classes)`, one channel",
        "(N, classes)",
        "the audit; no heatmaps, because no layer has positions",
        Digits,
        Scenes(lambda s: (s.image.mean(dim=0, keepdim=True), s.color)),
        ("shows no heatmaps: no layer of Digits has an output whose",),
        audited=True,
    ),
    "findings in X-rays": Project(
        "a dictionary; 14 numbers that are 0 or 1",
        "(N, 14), with `BCEWithLogitsLoss`",
        "of the true labels of each image the one with the highest score",
        Findings,
        Scenes(lambda s: {"image": s.image, "labels": _findings(s)}, squares=2),
        (rf"multi-label, 14 classes; explains the label with the highest score of each image .*{_NO_AUDIT}",),
        evidence=True,
    ),
    "a segmentation of byte images": Project(
        "`(images, pixels)`, uint8",
        "(N, classes, H, W)",
        "the largest class of each image, over its pixels",
        SegmentsBytes,
        Scenes(lambda s: ((s.image.clamp(0, 1) * 255).byte(), s.pixels), squares=2),
        (rf"segmentation, 4 classes; explains the class with the most pixels of each image, .*{_NO_AUDIT}",),
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
        (rf"segmentation, 2 classes; explains the class with the most pixels .*{_NO_AUDIT}",),
        evidence=True,
        class_of_red=None,
    ),
    "a regression": Project(
        "a dictionary; a float for each image",
        "(N, 1), with `MSELoss`",
        "the number",
        CountsRed,
        Scenes(lambda s: {"image": s.image, "target": s.image[:1].mean(dim=(1, 2)) * 30}, only_red=True),
        (rf"regression, 1 number; explains the number by .*{_NO_AUDIT}",),
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
        "nothing; `forward_fn` or `explain` would change it",
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
        (
            "single-label, 3 classes; explains the label of each image",
            "the images have 13 channels",
            "nearly the plain mean",
        ),
        evidence=True,
        audited=True,
    ),
    "a vision transformer of Hugging Face": Project(
        "`pixel_values` and `labels`",
        "an object with `logits`",
        "the label of each image, by its name; the audit",
        HuggingFaceViT,
        Scenes(lambda s: {"pixel_values": s.image, "labels": s.color}),
        ("single-label, 3 classes; explains the label of each image", "nearly the plain mean"),
        evidence=True,
        audited=True,
    ),
}
