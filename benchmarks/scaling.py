"""What a look and its audit cost on several processes: time, forward samples of a rank, bytes sent.

Lightning's ddp on the CPU, one thread a process, a torchvision model with random weights, one validation. The time is
that from the end of the last validation batch until CAMMonitor has logged everything, of the slowest rank. With fewer
cores than processes it says nothing; the processor time of the busiest rank is what it takes with a core to itself.

Beyond what is measured, samples and bytes are carried on by arithmetic: images are dealt out in turns, and what is
gathered is padded to the largest share.
"""

import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from setting import model, parser, photos, save, table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cam_callbacks import Audit, CAMMonitor

PROBES = 16
HEADINGS = ("processes", "time", "processor time of a rank", "samples of a rank", "kB gathered", "kB of images sent")


def main() -> None:
    """Measure 1, 2 and 4 processes, carry on to 1,024, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="resnet18")
    options.add_argument("--audit-images", type=int, default=128)
    options.add_argument("--processes", type=int, help="only so many, started by this one")
    options.add_argument("--folder", type=Path, help="where each rank writes what it measured")
    args = options.parse_args()
    if args.short:
        args.size, args.audit_images = 64, 32
    if args.processes:
        look(args)
        return
    rows: list[Any] = []
    alone = measured(1)
    for processes in (1, 2) if args.short else (1, 2, 4):
        most = measured(processes) if processes > 1 else alone
        enough = processes <= (os.cpu_count() or 1)
        rows.append(
            (
                processes,
                f"{most['wall'] / alone['wall']:.2f}" if enough else "too few cores",
                f"{most['processor'] / alone['processor']:.2f}",
                most["samples"],
                f"{processes * most['gathered'] / 1e3:.0f}",
                f"{most['sent'] / 1e3:.0f}",
            )
        )
        print(rows[-1], flush=True)
    each = processes * most["gathered"] / (PROBES + args.audit_images)
    for more in (8, 64, 1024):
        probes, images = ceil(PROBES / more), ceil(args.audit_images / more)
        samples = alone["samples"] * (probes + images) / (PROBES + args.audit_images)
        gathered = more * each * (probes + images)
        rows.append((more, "", "", f"{samples:.0f}", f"{gathered / 1e3:.0f}", f"{most['sent'] / 1e3:.0f}"))
    print("\n" + table(HEADINGS, rows))
    save("scaling", rows)


def measured(processes: int) -> dict[str, float]:
    """The largest of what each rank of so many processes measures."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--processes", str(processes), "--folder", folder]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        ranks = [json.loads(path.read_text()) for path in Path(folder).glob("rank*.json")]
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


class Classifier(LightningModule):
    """A torchvision model, only validated."""

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        self.model = model(name, weights)

    def forward(self, images: Tensor) -> Any:
        """Logits (N, 1000)."""
        return self.model(images)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing but the look is of interest."""


class Begins(Callback):
    """Stands before the monitor, and notes when the last batch has ended."""

    def on_validation_batch_end(self, *args: Any) -> None:
        """Note the time."""
        self.wall, self.processor = time.perf_counter(), time.process_time()


class Ends(Callback):
    """Stands after the monitor, and writes what it took."""

    def __init__(self, begins: Begins, counted: dict[str, int], folder: Path) -> None:
        self.begins, self.counted, self.folder = begins, counted, folder

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Write times and counts."""
        took = {
            "wall": time.perf_counter() - self.begins.wall,
            "processor": time.process_time() - self.begins.processor,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(took | self.counted))


def look(args: Namespace) -> None:
    """Validate once, with a monitor between two clocks; runs in every process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counted = {"samples": 0, "gathered": 0, "sent": 0}
    network = Classifier(args.model, args.weights)
    network.model.register_forward_pre_hook(lambda _, inputs: count(counted, "samples", len(inputs[0])))
    count_bytes(counted)
    images = photos(args.data, args.audit_images, args.size)
    batches = DataLoader(TensorDataset(images, torch.arange(len(images)) % 4), batch_size=len(images))
    begins = Begins()
    monitor = CAMMonitor(num_probes=PROBES, audit=Audit(num_images=args.audit_images), normalization="imagenet")
    trainer = Trainer(
        accelerator="cpu",
        devices=args.processes,
        strategy="ddp" if args.processes > 1 else "auto",
        use_distributed_sampler=False,
        default_root_dir=args.folder,
        callbacks=[begins, monitor, Ends(begins, counted, args.folder)],
        enable_progress_bar=False,
    )
    trainer.validate(network, batches, verbose=False)


def count_bytes(counted: dict[str, int]) -> None:
    """Count what goes through the two collectives that carry objects."""
    gather, broadcast = torch.distributed.all_gather_object, torch.distributed.broadcast_object_list

    def counted_gather(values: list[Any], value: Any, *rest: Any, **options: Any) -> None:
        count(counted, "gathered", len(pickle.dumps(value)))
        gather(values, value, *rest, **options)

    def counted_broadcast(values: list[Any], *rest: Any, **options: Any) -> None:
        broadcast(values, *rest, **options)
        count(counted, "sent", len(pickle.dumps(values)))

    torch.distributed.all_gather_object = counted_gather
    torch.distributed.broadcast_object_list = counted_broadcast


def count(counted: dict[str, int], what: str, number: int) -> None:
    """Add to a count."""
    counted[what] += number


if __name__ == "__main__":
    main()
