"""Train a network to find plates and trays, and let the audit say whether it tells them apart by the cloth."""

import argparse
import shutil
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from data import CLASSES, Scenes
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cam_callbacks import CAMMonitor, GradCAM

sys.path.append(str(Path(__file__).parents[1]))
from quiet_lightning import quiet_lightning

Batch = dict[str, Tensor]


class SegmentFinder(pl.LightningModule):
    """A small fully convolutional network: images (N, 3, H, W) -> logits (N, 3, H, W), a class for each pixel.

    At each position it sees fine features, coarse ones, and the mean of the coarse ones over the image, as many
    networks for segmentation do.

    Args:
        learning_rate: The learning rate of Adam at the first step; it falls to zero along a cosine.
    """

    def __init__(self, learning_rate: float = 4e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.fine = _block(3, 16, stride=2)  # (N, 3, H, W) -> (N, 16, H/2, W/2)
        self.coarse = nn.Sequential(  # (N, 16, H/2, W/2) -> (N, 32, H/4, W/4)
            _block(16, 32, stride=2), _block(32, 32), _block(32, 32)
        )
        self.mixed = nn.Sequential(_block(32 + 32, 32, kernel_size=1), _block(32, 32))
        self.head = nn.Conv2d(16 + 32, len(CLASSES), kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return a logit for each class at each pixel."""
        fine = self.fine(images)
        coarse = self.coarse(fine)
        overall = coarse.mean(dim=(2, 3), keepdim=True).expand_as(coarse)
        mixed = self.mixed(torch.cat([coarse, overall], dim=1))
        logits = self.head(torch.cat([fine, _resized(mixed, fine.shape[2:])], dim=1))
        return _resized(logits, images.shape[2:])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        return F.cross_entropy(self(batch["image"]), batch["mask"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean IoU of the object in a validation batch."""
        seen, truth = self(batch["image"]).argmax(dim=1), batch["mask"]
        label = truth.amax(dim=(1, 2), keepdim=True)  # an image has one object
        both, either = (seen == label) & (truth == label), (seen == label) | (truth == label)
        iou = both.sum(dim=(1, 2)) / either.sum(dim=(1, 2))
        self.log("val_iou", iou.mean(), prog_bar=True, batch_size=len(iou))

    def configure_optimizers(self) -> dict[str, object]:
        """Return Adam over all parameters; its learning rate falls to zero by the last step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train the network, and print its IoU and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clean", action="store_true", help="choose the cloth independently of the object")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=1024, help="training images")
    parser.add_argument("--batch-size", type=int, default=16, help="images of each training step")
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/segments"), help="folder of the event files")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_lightning()
    pl.seed_everything(args.seed, verbose=False)

    name = "clean" if args.clean else "cloth"
    train = Scenes(args.num_images, args.clean, seed=2 * args.seed)
    val = Scenes(args.num_images // 4, args.clean, seed=2 * args.seed + 1)
    shutil.rmtree(args.logs / name, ignore_errors=True)
    monitor = CAMMonitor(method=GradCAM())
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(save_dir=args.logs, name="", version=name),
        callbacks=[monitor],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=8,
    )
    trainer.fit(SegmentFinder(), DataLoader(train, args.batch_size, shuffle=True), DataLoader(val, 64))

    print(f"\nMean IoU of the object in {len(val)} validation images: {float(trainer.callback_metrics['val_iou']):.2f}")
    if monitor.verdict is not None:
        print(f"\n{monitor.verdict.text}")
    print(f"\nTensorBoard:  tensorboard --logdir {args.logs}")


def _block(channels_in: int, channels_out: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def _resized(values: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


if __name__ == "__main__":
    main()
