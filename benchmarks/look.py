"""What a look takes, by stage: the first one, and later ones.

A torchvision network of random weights is validated on noise, or on photos, as in a training whose steps take nothing:
Lightning's Trainer, TensorBoard's logger, CAMMonitor with its defaults. For each look:

- heatmaps, audit, pictures and logging: seconds, as the monitor itself measures them;
- validation: seconds of the same validation without a look, in the same run;
- look / validation: how many such validations a look takes;
- operators: calls of torch's operators in a later look, which do not depend on how busy the machine is;
- synchronizations: how often it waits for the device (only on CUDA).

Objects are squares in the middle; with `--no-masks` GrabCut looks for them.
"""

import time
import warnings
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from setting import Counted, model, parser, photos, save, synchronizations, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import cam_callbacks
from cam_callbacks import CAMMonitor

STAGES = ("heatmaps", "audit", "pictures and logging")
CLASSES = 4
EPOCHS = 5  # the first has no look, of the last only operators are counted


def main() -> None:
    """Look three times, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="resnet18")
    options.add_argument("--images", type=int, default=160, help="of the validation")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--precision", default="32-true")
    options.add_argument("--no-masks", action="store_true", help="the images come without masks")
    options.add_argument("--method", help="name of a method of cam_callbacks; without it, the default")
    args = options.parse_args()
    if args.short:
        args.images, args.size = 64, 64
    looks: list[dict[str, float]] = []
    network = model(args.model, None, "cpu")
    data = Scenes(photos(args.data, args.images, args.size), with_masks=not args.no_masks)
    chosen = {} if args.method is None else {"method": getattr(cam_callbacks, args.method)()}
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="gpu" if args.device.startswith("cuda") else "cpu",
            devices=1,
            precision=args.precision,
            logger=TensorBoardLogger(folder),
            callbacks=[Measured(looks, **chosen)],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        loader = DataLoader(data, args.batch_size)
        trainer.fit(Classifier(network), DataLoader(data, args.batch_size), loader)
    rows = [
        (
            number or "first",
            *(f"{look.get(stage, 0):.2f}" for stage in STAGES),
            f"{look['validation']:.2f}",
            f"{sum(look.get(stage, 0) for stage in STAGES) / look['validation']:.1f}",
            look.get("operators", ""),
            look.get("synchronizations", "") if args.device.startswith("cuda") else "",
        )
        for number, look in enumerate(looks)
    ]
    print(f"\n{args.model}, {args.images} images of {args.size} px, {args.precision}, {args.device}\n")
    print(table(("look", *STAGES, "validation", "look / validation", "operators", "synchronizations"), rows))
    save("look", looks)


class Scenes(Dataset[tuple[Tensor, int, Tensor]]):
    """Images, classes in turn, and masks of a square in the middle."""

    def __init__(self, images: Tensor, with_masks: bool) -> None:
        self.images, self.with_masks = images, with_masks
        side = images.shape[-1]
        self.mask = torch.zeros(side, side, dtype=torch.bool)
        self.mask[side // 3 : -side // 3, side // 3 : -side // 3] = True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        item = (self.images[index], index % CLASSES)
        return (*item, self.mask) if self.with_masks else item


class Classifier(LightningModule):
    """A network that is trained in a single step, so that its answers differ."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return self.network(images)[:, :CLASSES]  # type: ignore[no-any-return]

    def training_step(self, batch: Any, number: int) -> Tensor | None:
        """Train with the first batch only."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) if number == 0 else None

    def validation_step(self, batch: Any, _number: int) -> None:
        """Log the loss."""
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that is cheap."""
        return torch.optim.SGD(self.parameters(), 1e-3)


class Measured(CAMMonitor):
    """Looks at each epoch but the first, and notes what that took; the last time it counts operators instead."""

    def __init__(self, looks: list[dict[str, float]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.looks, self.validation, self.began = looks, 0.0, 0.0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the time."""
        self.began = time.perf_counter()
        if trainer.current_epoch > 0:
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Any, *rest: Any, **named: Any) -> None:
        """Look after the last batch."""
        is_last = trainer.current_epoch == EPOCHS - 1
        with Counted() if is_last else nullcontext() as counted, synchronizations(is_last) as waits:
            super().on_validation_batch_end(trainer, *rest, **named)
        if is_last:
            self.looks[-1]["operators"] = self.looks[-1].get("operators", 0) + counted.count
            self.looks[-1]["synchronizations"] = self.looks[-1].get("synchronizations", 0) + len(waits)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep what the look took."""
        super().on_validation_end(trainer, pl_module)
        if trainer.current_epoch == 0:
            self.validation = time.perf_counter() - self.began
        elif trainer.current_epoch < EPOCHS - 1:
            self.looks.append({**self._parts.overhead.last_look, "validation": self.validation})


if __name__ == "__main__":
    main()
