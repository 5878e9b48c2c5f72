"""Train a network to read how far a digit is turned, and show what it reads that from."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cam_callbacks import CAMMonitor, GradCAM, RegressionTarget, overlay
from cam_callbacks.figures.colors import MUTED
from cam_callbacks.figures.drawing import Picture, to_pictures
from cam_callbacks.figures.grid import Cell, Line, grid

sys.path.append(str(Path(__file__).parents[1]))
from quiet_lightning import quiet_lightning

HERE = Path(__file__).parent
SIZE = 32
LARGEST = 45.0  # degrees
SHOWN_ANGLES = torch.tensor([-40.0, -20.0, 0.0, 20.0, 40.0])
SHOWN_DIGITS = (4, 7)

Split = Literal["train", "val"]
Batch = tuple[Tensor, Tensor]


class AngleReader(pl.LightningModule):
    """Three convolutions, global average pooling, one linear layer: images (N, 1, 32, 32) -> degrees (N,).

    Each position of the last convolution sees 12 x 12 pixels: the network must read the angle from pieces of strokes,
    and a heatmap lies where they are. Padding repeats the border, so that the frame of the image is not a landmark.

    Args:
        learning_rate: The learning rate of Adam at the first step; it falls to zero along a cosine.
    """

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.features = nn.Sequential(  # (N, 1, 32, 32) -> (N, 48, 16, 16)
            _block(1, 16), nn.MaxPool2d(2), _block(16, 32), _block(32, 48)
        )
        self.head = nn.Linear(48, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return how far each digit is turned, in degrees, counterclockwise positive."""
        degrees: Tensor = LARGEST * self.head(self.features(images).mean(dim=(2, 3))).squeeze(1)
        return degrees

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a training batch."""
        images, angles = batch
        return F.mse_loss(self(images) / LARGEST, angles / LARGEST)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the mean absolute error of a validation batch, in degrees."""
        images, angles = batch
        self.log("val_error", F.l1_loss(self(images), angles), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam over all parameters; its learning rate falls to zero by the last step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def opposite(degrees: Tensor) -> Tensor:
    """Return the number with its sign changed: what raises it lowers the angle."""
    return -degrees


def main() -> None:
    """Train, write the picture, and print the error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--num-images", type=int, default=4096, help="training images")
    parser.add_argument(
        "--logs", type=Path, default=Path("lightning_logs/rotation_angle"), help="folder of the event files"
    )
    parser.add_argument("--picture", type=Path, default=HERE / "rotation_angle.png", help="file of the picture")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_lightning()

    pl.seed_everything(args.seed, verbose=False)
    train = DataLoader(turned_digits("train", args.num_images, args.seed), batch_size=64, shuffle=True)
    val = DataLoader(turned_digits("val", args.num_images // 8, args.seed), batch_size=64)
    shutil.rmtree(args.logs, ignore_errors=True)
    model = AngleReader()
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        logger=TensorBoardLogger(save_dir=args.logs, name="", version=""),
        callbacks=[
            CAMMonitor(explain=RegressionTarget(), method=GradCAM()),
            CAMMonitor(explain=opposite, method=GradCAM(), name="cam_opposite"),
        ],
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=8,
    )
    trainer.fit(model, train, val)

    args.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(model)).save(args.picture)
    error = float(trainer.callback_metrics["val_error"])
    print(f"\nMean absolute error: {error:.1f} degrees; always reading 0 would be {LARGEST / 2:.1f} off")
    print(f"\nThe picture:  {args.picture}\nTensorBoard:  .venv/bin/tensorboard --logdir {args.logs}")


def turned_digits(split: Split, num_images: int, seed: int = 0) -> TensorDataset:
    """Return images (num_images, 1, 32, 32) of handwritten digits, each turned at random, and the angles in degrees."""
    generator = torch.Generator().manual_seed(seed if split == "train" else seed + 1)
    glyphs, _ = handwriting(split)
    chosen = torch.randint(len(glyphs), (num_images,), generator=generator)
    angles = LARGEST * (2 * torch.rand(num_images, generator=generator) - 1)
    return TensorDataset(turn(glyphs[chosen], angles), angles)


def handwriting(split: Split) -> tuple[Tensor, Tensor]:
    """Return handwritten digits (M, 1, 8, 8), ink in [0, 1], and their labels; one of five is for validation."""
    scans, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    used = (torch.arange(len(scans)) % 5 == 4) == (split == "val")
    return scans[used].float().view(-1, 1, 8, 8) / 16, labels[used]


def turn(glyphs: Tensor, angles: Tensor) -> Tensor:
    """Draw glyphs (N, 1, 8, 8) smoothly at 32 x 32, each turned counterclockwise by its angle in degrees."""
    cos, sin = angles.deg2rad().cos(), angles.deg2rad().sin()
    zero = torch.zeros_like(cos)
    # The map from the drawn image back to the glyph; rows point down, so this turns counterclockwise.
    back = 1.25 * torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
    places = F.affine_grid(back, [len(glyphs), 1, SIZE, SIZE], align_corners=False)
    smooth = F.grid_sample(glyphs, places, mode="bicubic", align_corners=False)
    ink: Tensor = torch.sigmoid(10 * (smooth - 0.5))
    return ink


def draw(model: AngleReader) -> Picture:
    """Draw digits at several angles; under each what raises the number that is read, and what lowers it."""
    glyphs, labels = handwriting("val")
    rows: list[list[Cell]] = [[], [], []]
    for digit in SHOWN_DIGITS:
        images = turn(glyphs[labels == digit][:1].expand(len(SHOWN_ANGLES), -1, -1, -1), SHOWN_ANGLES)
        pictures = to_pictures(images)
        raising = GradCAM()(model, images, targets=RegressionTarget())
        lowering = GradCAM()(model, images, targets=opposite)
        pairs = zip(SHOWN_ANGLES.tolist(), raising.target_scores.tolist(), strict=True)
        headings = [f"{round(angle):+d}, read {round(read):+d}" for angle, read in pairs]
        rows[0].append(Cell(pictures, [Line("Turned by so many degrees, left is +", MUTED)], headings))
        # One scale for all maps of a digit: what is brighter counts more.
        brightest = max(float(each.layer_maps.max()) for each in (raising, lowering))
        for row, explanation, line in (
            (rows[1], raising, "What raises the number: it speaks for left"),
            (rows[2], lowering, "What lowers the number: it speaks for right"),
        ):
            heatmaps = explanation.scaled_to(brightest)
            row.append(Cell([overlay(*pair) for pair in zip(pictures, heatmaps, strict=True)], [Line(line, MUTED)]))
    return grid([cell for row in rows for cell in row], columns=len(SHOWN_DIGITS), size=128)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, padding_mode="replicate", bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


if __name__ == "__main__":
    main()
