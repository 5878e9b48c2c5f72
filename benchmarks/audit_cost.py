"""What the audit of large images takes beside the model: time and memory, with a model that costs nothing.

`audit_model` on smooth noise with squares for objects, in a process of its own. The model averages blocks of the image
and looks at the result, so that nearly all that is measured are the changes of the images: backgrounds inpainted and
exchanged, colors moved, and so on.

- passes: images that the model was shown;
- time: in multiples of the time to copy each of these images once;
- MB: the peak of the resident memory beyond that of the images (on a GPU, of what PyTorch has allocated).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from memory import Watch
from setting import parser, save, table
from torch import Tensor, nn

from cam_callbacks import ProbeSet, audit_model

SIDE = 16  # positions that the model looks at


def main() -> None:
    """Audit in processes of their own, print the table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--images", type=int, default=128)
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 224, 512])
    options.add_argument("--only", type=int, help="only this size, in this process")
    args = options.parse_args()
    if args.short:
        args.images, args.sizes = 32, [64, 128]
    if args.only:
        print(json.dumps(measure(args)))
        return
    rows = []
    for size in args.sizes:
        command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--only", str(size)]
        command += ["--images", str(args.images)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        passes, ratio, seconds, extra, own = json.loads(done.stdout.splitlines()[-1])
        rows.append((f"{size} px", passes, f"{ratio:.0f}", f"{seconds:.1f}", f"{extra:.0f}", f"{own:.0f}"))
        print(rows[-1], flush=True)
    print("\n" + table(("", "passes", "time / copies", "seconds", "MB", "MB of the images"), rows))
    save("audit_cost", rows)


def measure(args: argparse.Namespace) -> tuple[float, ...]:
    """Passes, time in multiples of that of copies, seconds, MB, MB of the images."""
    size = args.only
    images, labels, masks = scenes(args.images, size)
    network = Blocks(size).to(args.device)
    audit_model(network, ProbeSet(*(part[:8] for part in (images, labels, masks))), num_donors=2)  # warm
    probes = ProbeSet(images, labels, masks)
    with Watch(args.device.startswith("cuda")) as watch:
        start = time.perf_counter()
        result = audit_model(network, probes, num_donors=2)
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(3):
        for image in images:
            image.clone()
    copies = (time.perf_counter() - start) / 3 / args.images * result.passes
    return result.passes, seconds / copies, seconds, watch.extra / 1e6, images.nbytes / 1e6


def scenes(count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, size, size), labels (N,), masks (N, size, size)."""
    chance = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(count, 3, SIDE, SIDE, generator=chance), size, mode="bilinear")
    labels = torch.arange(count) % 2
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for image, mask, label in zip(images, masks, labels.tolist(), strict=True):
        top, left = torch.randint(size // 8, size // 2, (2,), generator=chance).tolist()
        mask[top : top + size // 3, left : left + size // 4] = True
        image[:, mask] = 0.2 + 0.6 * label
    return images, labels, masks


class Blocks(nn.Module):
    """Looks at means of blocks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.AvgPool2d(size // SIDE), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 2)."""
        return self.head(self.features(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
