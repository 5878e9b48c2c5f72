"""Train a network on photos of cats and dogs, and let the audit say whether it answers by the background."""

import argparse
import shutil
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from data import BACKGROUNDS, BREEDS, PetsOnBackgrounds, Split
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import SqueezeNet, SqueezeNet1_1_Weights, squeezenet1_1

from cam_callbacks import CAMMonitor

sys.path.append(str(Path(__file__).parents[1]))
from quiet_lightning import quiet_lightning

Batch = tuple[Tensor, ...]
EPOCHS, EPOCHS_FROM_SCRATCH = 3, 40


class PetClassifier(pl.LightningModule):
    """SqueezeNet 1.1 with two classes: images (N, 3, H, W) -> logits (N, 2).

    It takes batches `(images, labels)` or `(images, labels, masks)` and never looks at the masks.

    Args:
        network: The network; its last convolution is replaced by one for two classes.
        learning_rate: The learning rate of Adam.
    """

    def __init__(self, network: SqueezeNet, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        # Without the ReLU after the last convolution, which can leave both logits at zero for good.
        network.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, 2, kernel_size=1), nn.AdaptiveAvgPool2d((1, 1))
        )
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a validation batch."""
        logits = self(batch[0])
        accuracy = (logits.argmax(dim=1) == batch[1]).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(logits, batch[1]), "val_acc": accuracy}, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main() -> None:
    """Train the network and print what the audit found."""
    args = _arguments()
    quiet_lightning()
    pl.seed_everything(args.seed, verbose=False)

    def photos(split: Split) -> PetsOnBackgrounds:
        return PetsOnBackgrounds(
            args.data,
            split,
            args.background,
            photos=args.photos,
            size=args.size,
            breeds=tuple(args.breeds),
            with_masks=args.masks == "given",
            download=args.download,
        )

    train = DataLoader(photos("train"), batch_size=16, shuffle=True)
    val = DataLoader(photos("val"), batch_size=32)
    model = PetClassifier(load_network(args.weights, args.from_scratch), learning_rate=3e-4)
    epochs = args.epochs or (EPOCHS_FROM_SCRATCH if args.from_scratch else EPOCHS)
    monitor = CAMMonitor(every_n_epochs=max(1, epochs // 5))
    kind = [args.background, "estimated" if args.masks == "estimated" else "", "scratch" if args.from_scratch else ""]
    name = "_".join(filter(None, kind))
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=_loggers(args.logs, name, args.png),
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=4,
    )
    trainer.fit(model, train, val)
    print(report(monitor, name, float(trainer.callback_metrics["val_acc"])))
    print(f"\nTensorBoard:  tensorboard --logdir {args.logs}")


def load_network(weights: Path | None, from_scratch: bool) -> SqueezeNet:
    """Return SqueezeNet 1.1 with random weights, those of a file (of any precision), or torchvision's for ImageNet."""
    if from_scratch or weights is not None:
        network = squeezenet1_1()
        if weights is not None and not from_scratch:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            network.load_state_dict({name: value.float() for name, value in state.items()})
        return network
    return squeezenet1_1(weights=SqueezeNet1_1_Weights.IMAGENET1K_V1)


def report(monitor: CAMMonitor, name: str, accuracy: float) -> str:
    """Return the accuracy, the gaps with their intervals, and the verdict of the last look."""
    if monitor.audit_result is None or monitor.verdict is None:
        return f"\n{name}: accuracy {accuracy:.2f}; there was no audit"
    lines = [f"\n{name}: accuracy {accuracy:.2f} on {len(monitor.audit_result.labels)} validation photos"]
    for measure, found in monitor.audit_result.measures.items():
        if "_gap" in measure and "_probability" not in measure:
            gap = found.overall
            lines.append(f"  {measure:24}{gap.value:6.2f} [{gap.low:.2f}, {gap.high:.2f}]")
    return "\n".join([*lines, "", monitor.verdict.text])


def _loggers(logs: Path, name: str, png: bool) -> list[Logger]:
    """Return a TensorBoard logger; with `png` also a logger that takes no pictures, so that they go to PNG files."""
    shutil.rmtree(logs / name, ignore_errors=True)
    loggers: list[Logger] = [TensorBoardLogger(save_dir=logs, name="", version=name)]
    return [*loggers, CSVLogger(save_dir=logs, name="", version=f"{name}/csv")] if png else loggers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds oxford-iiit-pet")
    parser.add_argument("--download", action="store_true", help="download the data set (800 MB) if it is not there")
    parser.add_argument("--background", choices=BACKGROUNDS, default="natural")
    parser.add_argument("--masks", choices=("given", "estimated"), default="given")
    parser.add_argument("--breeds", nargs="*", default=BREEDS, help="breeds, as the files are named; none: all")
    parser.add_argument("--photos", type=int, default=120, help="photos of each class, half of them for validation")
    parser.add_argument("--size", type=int, default=128, help="height and width of the images")
    parser.add_argument("--weights", type=Path, help="file of ImageNet weights (default: torchvision downloads them)")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument("--epochs", type=int, help=f"(default: {EPOCHS}; from scratch: {EPOCHS_FROM_SCRATCH})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/pets_background"), help="folder of the logs")
    parser.add_argument("--png", action="store_true", help="also write the pictures to PNG files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
