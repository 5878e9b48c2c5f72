"""Train a network to say which findings an image shows, and let the audit say whether one is read from a ruler."""

import argparse
import shutil
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from data import FINDINGS, Chests
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cam_callbacks import CAMMonitor

sys.path.append(str(Path(__file__).parents[1]))
from quiet_lightning import quiet_lightning

Batch = dict[str, Tensor]


class FindingsReader(pl.LightningModule):
    """Four convolutions, the largest value of each channel, one linear layer: images (N, 1, 64, 64) -> logits (N, 4).

    It takes batches with `image`, `labels` and `mask`, and never looks at the masks.

    Args:
        learning_rate: The learning rate of Adam.
    """

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.features = nn.Sequential(  # (N, 1, 64, 64) -> (N, 48, 16, 16)
            _block(1, 16), nn.MaxPool2d(2), _block(16, 32), nn.MaxPool2d(2), _block(32, 48), _block(48, 48)
        )
        self.head = nn.Linear(48, len(FINDINGS))

    def forward(self, images: Tensor) -> Tensor:
        """Return a logit for each finding."""
        logits: Tensor = self.head(self.features(images).amax(dim=(2, 3)))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return F.binary_cross_entropy_with_logits(self(batch["image"]), batch["labels"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the accuracy of each finding in a validation batch."""
        is_right = (self(batch["image"]) > 0) == (batch["labels"] > 0.5)
        for finding, accuracy in zip(FINDINGS, is_right.float().mean(dim=0), strict=True):
            self.log(f"val_{finding}", accuracy, batch_size=len(is_right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def main() -> None:
    """Train the network, and print its accuracy and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", action="store_true", help="draw the ruler independently of the findings")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num-images", type=int, default=2048, help="training images")
    parser.add_argument("--batch-size", type=int, default=32, help="images of each training step")
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/findings"), help="folder of the event files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_lightning()
    pl.seed_everything(args.seed, verbose=False)

    name = "clean" if args.clean else "ruler"
    train = Chests(args.num_images, args.clean, seed=2 * args.seed)
    val = Chests(args.num_images // 4, args.clean, seed=2 * args.seed + 1)
    shutil.rmtree(args.logs / name, ignore_errors=True)
    monitor = CAMMonitor()
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(save_dir=args.logs, name="", version=name),
        callbacks=[monitor],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=8,
    )
    trainer.fit(FindingsReader(), DataLoader(train, args.batch_size, shuffle=True), DataLoader(val, 64))

    print(f"\nAccuracy on {len(val)} validation images:")
    for finding in FINDINGS:
        print(f"  {finding:10}{float(trainer.callback_metrics[f'val_{finding}']):.2f}")
    if monitor.verdict is not None:
        print(f"\n{monitor.verdict.text}")
    print(f"\nTensorBoard:  tensorboard --logdir {args.logs}")


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


if __name__ == "__main__":
    main()
