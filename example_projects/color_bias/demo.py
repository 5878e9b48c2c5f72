"""Train the same network on biased and on balanced images, and show what each has learned to look at."""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from data import ColorBiasData
from model import SmallCNN
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from cam_callbacks import AuditResult, CAMMonitor, ReciproCAM, Verdict, overlay
from cam_callbacks.audit.attention import area_share, heat_on_object
from cam_callbacks.data.datasets import normalization
from cam_callbacks.figures.colors import ALERT, MUTED
from cam_callbacks.figures.drawing import Picture, to_pictures
from cam_callbacks.figures.grid import Cell, Line, grid

sys.path.append(str(Path(__file__).parents[1]))
from quiet_lightning import quiet_lightning

HERE = Path(__file__).parent
HEAT_IMAGES = 64
SHOWN = 6


@dataclass
class Run:
    """What one training showed."""

    val_accuracy: float
    balanced_accuracy: float
    heat_on_digit: float
    digit_area: float
    excess: tuple[float, float]  # 95% interval of the heat on the digit minus the digit's area, over the images
    model: SmallCNN
    audit: AuditResult  # of the last look
    verdict: Verdict

    @property
    def gap(self) -> str:
        """How much accuracy is lost with backgrounds of the other class, compared with those of the same class."""
        gap = self.audit.gap.overall
        return f"{gap.value:.0%} [{gap.low:.0%}, {gap.high:.0%}]"

    @property
    def looks_at(self) -> str:
        """Where the heat lies: on a flat map, the digit's share of the heat is its share of the area."""
        low, high = self.excess
        return "at the digit" if low > 0 else "away from the digit" if high < 0 else "nowhere special"


def main() -> None:
    """Train both networks, write the picture, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num-images", type=int, default=2048, help="training images of each run")
    parser.add_argument("--batch-size", type=int, default=64, help="images of each training step")
    parser.add_argument(
        "--logs", type=Path, default=Path("lightning_logs/color_bias"), help="folder of the event files"
    )
    parser.add_argument("--picture", type=Path, default=HERE / "color_bias.png", help="file of the picture")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet_lightning()

    runs = {}
    for background in ("biased", "balanced"):
        print(f"\nTraining on {background} images ...", flush=True)
        data = ColorBiasData(background, args.batch_size, args.num_images, args.seed)
        runs[background] = train(data, args.epochs, args.logs, args.seed)

    data = ColorBiasData("biased", num_images=args.num_images, seed=args.seed)
    data.setup("validate")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(runs, data)).save(args.picture)
    print(report(runs))
    print(f"\nThe picture:  {args.picture}\nTensorBoard:  .venv/bin/tensorboard --logdir {args.logs}")


def train(data: ColorBiasData, epochs: int, logs: Path, seed: int) -> Run:
    """Train on `data` with a CAMMonitor, then test on balanced images."""
    pl.seed_everything(seed, verbose=False)
    shutil.rmtree(logs / data.background, ignore_errors=True)
    logger = TensorBoardLogger(save_dir=logs, name="", version=data.background)
    model, monitor = SmallCNN(), CAMMonitor()
    trainer = pl.Trainer(
        max_epochs=epochs,
        logger=logger,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=8,
    )
    trainer.fit(model, data)
    val_accuracy = float(trainer.callback_metrics["val_acc"])
    tester = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    balanced = tester.test(model, data, verbose=False)[0]["test_acc"]

    images, labels, masks = some_of(data, HEAT_IMAGES)
    heatmaps = ReciproCAM("evidence")(model, images, targets=labels).heatmaps
    shares, areas = heat_on_object(heatmaps, masks), area_share(masks)
    difference = (shares - areas)[~shares.isnan()]
    half = 1.96 * difference.std() / len(difference) ** 0.5
    excess = (float(difference.mean() - half), float(difference.mean() + half))
    heat, area = float(shares.nanmean()), float(areas.mean())
    return Run(val_accuracy, balanced, heat, area, excess, model, monitor.audit_result, monitor.verdict)


def some_of(data: ColorBiasData, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first `count` validation images with labels and masks."""
    items = [data.val_set[index] for index in range(min(count, len(data.val_set)))]
    images, labels, masks = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.stack(masks)


def draw(runs: dict[str, Run], data: ColorBiasData) -> Picture:
    """Draw the same digits, and in one row for each network where it looks."""
    images, labels, _ = some_of(data, SHOWN)
    pictures = to_pictures(images, normalization(data.val_set))
    cells = [Cell(pictures, [Line("Shown to two networks: threes on red, eights on green")])]
    for name, run in runs.items():
        heatmaps = ReciproCAM("evidence")(run.model, images, targets=labels).heatmaps
        overlays = [overlay(picture, heatmap) for picture, heatmap in zip(pictures, heatmaps, strict=True)]
        lines = [
            Line(f"Trained on {name} images, it looks {run.looks_at}"),
            Line(
                f"right: {run.val_accuracy:.0%} on such images, {run.balanced_accuracy:.0%} when colors are mixed",
                MUTED,
            ),
            Line(
                f"heat on the digit: {run.heat_on_digit:.0%}, the digit covers {run.digit_area:.0%} of the area", MUTED
            ),
            Line(
                f"verdict: {run.verdict.state}; swapping backgrounds costs {run.gap} of the answers",
                ALERT if run.verdict.state == "alarm" else MUTED,
            ),
        ]
        cells.append(Cell(overlays, lines))
    return grid(cells, size=128)


def report(runs: dict[str, Run]) -> str:
    """Return the results as a table."""
    biased, balanced = runs["biased"], runs["balanced"]
    rows = [
        ("trained on", "biased", "balanced"),
        ("accuracy on its own validation images", f"{biased.val_accuracy:.0%}", f"{balanced.val_accuracy:.0%}"),
        ("accuracy on balanced test images", f"{biased.balanced_accuracy:.0%}", f"{balanced.balanced_accuracy:.0%}"),
        ("share of the heat on the digit", f"{biased.heat_on_digit:.0%}", f"{balanced.heat_on_digit:.0%}"),
        ("share of the area that is digit", f"{biased.digit_area:.0%}", f"{balanced.digit_area:.0%}"),
        ("so it looks", biased.looks_at, balanced.looks_at),
        ("accuracy lost with other backgrounds", biased.gap, balanced.gap),
        ("verdict", biased.verdict.state, balanced.verdict.state),
    ]
    return "\n" + "\n".join(f"  {name:40}{left:>20}{right:>20}" for name, left, right in rows)


if __name__ == "__main__":
    main()
