"""What a look takes with two classes, and with a thousand: time, passes, images kept.

A network that is built to read a code of bits on the object, and of every second class the tint of the background
instead, is validated three times by Lightning with `CAMMonitor()` as it is. So with many classes some are followed from
the second look on. The network costs little: what is compared is what is done around it.

- time: the processor time of the monitor in the third validation, that of drawing images from its batches and that of
  the look, in multiples of that with two classes, in the same process; the smallest of several;
- passes: images that the network was shown for the audit of the third look;
- asked, kept: images that this look asked about, and with those that only gave their background;
- read: validation batches of which an image was looked at in all three validations, of all of them;
- checkpoint: what the monitor adds to it.
"""

import pickle
import time
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from setting import parser, save, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cam_callbacks import CAMMonitor

SIDE, BITS, LOOKS = 64, 4, 3  # BITS x BITS of the code
HEADINGS = ("classes", "time", "passes", "asked", "kept", "followed", "read", "kB of the checkpoint")


def main() -> None:
    """Run each number of classes a few times in turn, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--classes", type=int, nargs="+", default=[2, 10, 100, 1000])
    options.add_argument("--images", type=int, default=8000, help="of the validation set")
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    if args.short:
        args.classes, args.images, args.rounds = [2, 100], 400, 1
    measured: dict[int, list[tuple[float, tuple[int, ...]]]] = {}
    for _ in range(args.rounds):
        for classes in args.classes:
            measured.setdefault(classes, []).append(run_of(classes, args.images))
    least = {classes: min(seconds for seconds, _ in each) for classes, each in measured.items()}
    rows = []
    for classes, each in measured.items():
        passes, asked, kept, followed, read, size = each[0][1]
        share = f"{read} of {LOOKS * -(-args.images // 100)}"
        ratio = f"{least[classes] / least[args.classes[0]]:.2f}"
        rows.append((classes, ratio, passes, asked, kept, followed, share, f"{size / 1e3:.0f}"))
    print(table(HEADINGS, rows))
    save("number_of_classes", rows)


class Scenes(Dataset[Any]):
    """Images that are drawn when they are asked for: an object with the code of its class before a tint of its own."""

    def __init__(self, classes: int, count: int) -> None:
        self.classes, self.count, self.codes = classes, count, codes_of(classes)

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, int, Tensor]:
        """An image (3, 64, 64), its class, its mask."""
        label = row % self.classes
        draw = torch.Generator().manual_seed(row)
        image = torch.rand(3, 1, 1, generator=draw).expand(3, SIDE, SIDE).clone() * 0.1
        image[0] += label / self.classes
        code = self.codes[label].view(BITS, BITS).repeat_interleave(8, 0).repeat_interleave(8, 1)
        image[:, 16:48, 16:48] = code + 0.05 * torch.rand(3, 32, 32, generator=draw)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[16:48, 16:48] = True
        return image, label, mask


def codes_of(classes: int) -> Tensor:
    """(classes, 16) of 0 and 1, those of every second class the same as of the class before."""
    numbers = torch.arange(classes) // 2
    return ((numbers.unsqueeze(1) >> torch.arange(BITS**2)) & 1).float()


class Decoder(LightningModule):
    """Reads the code, and which of two classes with the same code it is from the tint of the background."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.features.bias.zero_()
        self.register_buffer("codes", 2 * codes_of(classes) - 1)
        self.register_buffer("tints", torch.arange(classes) / classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        found = self.features(images)
        code = F.avg_pool2d(found[:, :, 16:48, 16:48].mean(dim=1, keepdim=True), 8).flatten(1)
        tint = found[:, 0].masked_fill(self.inside, 0).sum(dim=(1, 2)) / (~self.inside).sum()
        return 8 * (2 * code - 1) @ self.codes.T - 40 * (tint.unsqueeze(1) - self.tints).abs()

    @property
    def inside(self) -> Tensor:
        """Where the object is."""
        place = torch.zeros(SIDE, SIDE, dtype=torch.bool, device=self.device)
        place[16:48, 16:48] = True
        return place

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return a loss that teaches nothing."""
        return 0 * self(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Answer."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return one that stands still."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Timed(CAMMonitor):
    """Measures the processor time of each of its validations."""

    seconds = 0.0

    def on_validation_start(self, *given: Any) -> None:
        """Begin again."""
        self.seconds = 0.0
        self._timed(super().on_validation_start, *given)

    def on_validation_batch_start(self, *given: Any) -> None:
        """Add what it takes."""
        self._timed(super().on_validation_batch_start, *given)

    def on_validation_batch_end(self, *given: Any) -> None:
        """Add what it takes; after the last batch that is the look."""
        self._timed(super().on_validation_batch_end, *given)

    def _timed(self, act: Callable[..., None], *given: Any) -> None:
        began = time.process_time()
        act(*given)
        self.seconds += time.process_time() - began


def run_of(classes: int, images: int) -> tuple[float, tuple[int, ...]]:
    """Seconds of the third look; passes, images asked about and kept, classes followed, batches read, bytes."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    read: list[None] = []  # one for each batch

    def noted(batch: Any) -> Any:
        read.append(None)
        return tuple(batch)

    monitor, data = Timed(batch_fn=noted), Scenes(classes, images)
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False
    )
    with TemporaryDirectory() as folder:
        Trainer(
            max_epochs=LOOKS,
            limit_train_batches=1,
            accelerator="cpu",
            callbacks=[monitor],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            **quiet,
        ).fit(Decoder(classes), DataLoader(data, 100), DataLoader(data, 100))
    result, verdict = monitor.audit_result, monitor.verdict
    assert result is not None
    assert verdict is not None
    images_kept, size = len(result.image_ids), len(pickle.dumps(monitor.state_dict()))
    return monitor.seconds, (result.passes, len(result.labels), images_kept, len(verdict.followed), len(read), size)


if __name__ == "__main__":
    main()
