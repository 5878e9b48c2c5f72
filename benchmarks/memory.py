"""Peak extra memory of Score-CAM beyond the model and the images, each contestant in its own process.

The resident memory of the process is watched while it runs (on a GPU: what PyTorch has allocated). Where the machine
cannot hold what a peer builds, its size is computed: grad-cam multiplies all images with all masks at once (N, K, 3,
H, W). torchcam and ours, which is asked for every pass (`tolerance=0`), are stopped after 256 masked images: a chunk of
32 is all that ever exists.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from setting import model, parser, photos, save, table
from speed import channels_of, gradcam, torchcam

from cam_callbacks import ScoreCAM

CONTESTANTS = ("forward passes alone", "ours, adaptive", "ours, exact", "torchcam", "grad-cam")
BATCH = 32
MASKED = 8 * BATCH


def main() -> None:
    """Run each contestant in a process, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--model", default="resnet50")
    options.add_argument("--layer", default="layer4")
    options.add_argument("--images", type=int, default=16)
    options.add_argument("--contestant", choices=CONTESTANTS, help="only this one, in this process")
    args = options.parse_args()
    if args.short:
        args.images, args.size = min(args.images, 4), 96
    if args.contestant:
        print(json.dumps(measure(args)))
        return
    channels = channels_of(model(args.model), args.layer, torch.zeros(1, 3, args.size, args.size))
    rows = []
    for contestant in CONTESTANTS:
        needed, of_what = by_arithmetic(contestant, args.images, channels, args.size)
        if needed > 4e9 or (args.short and needed):
            rows.append((contestant, f"{needed / 1e6:.0f}", f"computed: {of_what}"))
        else:
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--contestant", contestant]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append((contestant, f"{json.loads(done.stdout.splitlines()[-1]):.0f}", "measured"))
        print(rows[-1], flush=True)
    print("\n" + table(("", "MB", ""), rows))
    save("memory", rows)


def by_arithmetic(contestant: str, images: int, channels: int, size: int) -> tuple[float, str]:
    """Bytes that a peer surely takes, and for what; 0 where that depends on its chunks."""
    if contestant != "grad-cam":
        return 0.0, ""
    return 4 * 4.0 * images * channels * size * size, "masks, and all masked images (N, K, 3, H, W)"


def measure(args: argparse.Namespace) -> float:
    """Peak MB of one contestant beyond what was there before it began."""
    images = photos(args.data, args.images, args.size).to(args.device)
    network = model(args.model, args.weights, args.device)
    contestant, layer = args.contestant, args.layer
    with Watch(images.is_cuda) as watch:
        run(contestant, network, layer, images)
    return watch.extra / 1e6


def run(contestant: str, network: torch.nn.Module, layer: str, images: torch.Tensor) -> None:
    """One contestant, once."""
    if contestant == "forward passes alone":
        batch = images[:1].expand(BATCH, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            network(batch)
            network(batch)
    elif contestant == "ours, adaptive":
        ScoreCAM("probability", tolerance=0.02, batch_size=BATCH)(network, images, layer)
    else:
        with torch.no_grad():
            targets = network(images).argmax(dim=1)
        if contestant != "grad-cam":
            stop_after(2 * len(images) + MASKED, network)  # the images themselves come before
        with contextlib.suppress(StopIteration):
            if contestant == "ours, exact":
                ScoreCAM("probability", tolerance=0, batch_size=BATCH)(network, images, layer, targets)
            else:
                {"torchcam": torchcam, "grad-cam": gradcam}[contestant](network, layer, images, targets)()


def stop_after(images: int, network: torch.nn.Module) -> None:
    """Let the network, and copies of it, end with `StopIteration` once so many images were forwarded."""
    seen = 0

    def count(_network: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])
        if seen > images:
            raise StopIteration

    network.register_forward_pre_hook(count)


class Watch:
    """Peak memory of the process between entry and exit, beyond that at entry."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.extra = 0.0

    def __enter__(self) -> "Watch":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = self.now()
        self.running = True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()

    def watch(self) -> None:
        """Look every few milliseconds."""
        while self.running:
            self.extra = max(self.extra, self.now() - self.before)
            time.sleep(0.005)

    def now(self) -> float:
        """Bytes in use."""
        if self.cuda:
            return float(torch.cuda.max_memory_allocated())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096.0


if __name__ == "__main__":
    main()
