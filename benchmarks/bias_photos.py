"""How often is a planted bias found in fine-tuned networks, and how often is one found that is not there?

SqueezeNet 1.1 and MobileNetV2 with ImageNet weights learn to tell cats from dogs: the photos of the example
`pets_background`, as they are, or with red and green backgrounds, painted or tinted, that go with the class, with nine
of ten of its photos, or with chance. After each epoch all validation photos are audited, by all rules of
`bias_detection.py`, whose definitions hold; the networks of a row differ in the first weights of the new layer and in
the order of the photos.

Each network is a line of a file; networks that are in it are not trained again.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bias_detection import Found, Look, Run, look, right
from bias_tables import FALSE_ALARMS, found_at_all, sizes
from setting import lines_of, model, run_each, table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cam_callbacks import __version__
from cam_callbacks.data.probes import ProbeSet

sys.path.append(str(Path(__file__).parents[1] / "example_projects" / "pets_background"))
from data import AGREEMENT, BACKGROUNDS, Background, PetsOnBackgrounds

NETWORKS = ("squeezenet1_1", "mobilenet_v2")
CLEAN: tuple[Background, ...] = ("natural", "random")
EPOCHS, BATCH, LEARNING_RATE = 5, 16, 3e-4
OUT = Path(__file__).parents[1] / "build" / "bias_photos.jsonl"
Photos = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    """Fine-tune and audit the networks that are not in the file, and print the tables of all that are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=Path("data"), help="folder that holds oxford-iiit-pet")
    options.add_argument("--weights", type=Path, help="folder of weights, NETWORK*.pth; without it, torchvision's")
    options.add_argument("--seeds", type=int, default=5, help="networks a row")
    options.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each network")
    options.add_argument("--short", action="store_true", help="two networks, two epochs, in a file of their own")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = options.parse_args()
    wanted = [(name, background, seed) for seed in range(args.seeds) for background in BACKGROUNDS for name in NETWORKS]
    if args.short:
        wanted = [(NETWORKS[0], "random", 0), (NETWORKS[0], "biased", 0)]
        args.out = args.out.with_stem(f"{args.out.stem}_short")
    done = {(run["network"], run["background"], run["seed"]) for run in lines_of(args.out)}
    missing = [(*each, args) for each in wanted if each not in done]
    for run in run_each(run_of, missing, args.processes, args.out):
        print(f"{run['kind']}, seed {run['seed']}: {run['seconds']:.0f} s", flush=True)
    print_tables(lines_of(args.out))


def run_of(name: str, background: Background, seed: int, args: argparse.Namespace) -> Run:
    """Fine-tune and audit one network: a line of the file."""
    start = time.perf_counter()
    network = fine_tunable(name, args.weights, seed).to(args.device)
    with_estimated = name == NETWORKS[0] and seed == 0  # for these, masks are estimated too
    looks = looks_of(network, background, args.data, 2 if args.short else EPOCHS, with_estimated)
    run: Run = {"network": name, "background": background, "kind": f"{name}, {background}", "seed": seed}
    run |= {"agreement": AGREEMENT.get(background, 0.5 if background in CLEAN else 1.0), "looks": looks}
    run |= {"versions": {"cam_callbacks": __version__, "torch": torch.__version__}}
    return run | {"seconds": round(time.perf_counter() - start, 1)}


def fine_tunable(name: str, weights: Path | None, seed: int) -> nn.Module:
    """The network with ImageNet weights, its last layer replaced by one for two classes."""
    network = model(name, "DEFAULT" if weights is None else str(next(weights.glob(f"{name}*.pth"))))
    torch.manual_seed(seed)
    if name == "squeezenet1_1":  # without the ReLU after the last convolution, which can leave both logits at zero
        last = nn.Conv2d(512, 2, kernel_size=1)
        network.classifier = nn.Sequential(nn.Dropout(0.5), last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        network.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 2))
    return network


def looks_of(network: nn.Module, background: Background, folder: Path, epochs: int, with_estimated: bool) -> list[Look]:
    """Fine-tune a network, and audit it after each epoch."""
    train = DataLoader(PetsOnBackgrounds(folder, "train", background), BATCH, shuffle=True)
    drawn, *redrawn = (validation(folder, background, colors) for colors in ("drawn", "own", "other"))
    probes = ProbeSet(*drawn, ("cat", "dog"))
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    looks: list[Look] = []
    before: Found = {}
    for _ in range(epochs):
        train_epoch(network, train, optimizer)
        found, before = look(network, probes, before, with_estimated)
        own, other = (right(network, images, labels) for images, labels, _ in redrawn)
        groups = [each[probes.labels == label].mean() for each in (own, other) for label in (0, 1)]
        looks.append({**found, "effect": float(own.mean() - other.mean()), "worst_group": float(min(groups))})
    return looks


def train_epoch(network: nn.Module, loader: DataLoader[Any], optimizer: torch.optim.Optimizer) -> None:
    """Train for one epoch; the network is in eval mode afterwards."""
    device = next(network.parameters()).device
    network.train()
    for norm in (each for each in network.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.eval()  # so few photos are not enough for statistics of their own
    for images, labels, _masks in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
        optimizer.step()
    network.eval()


def validation(folder: Path, background: Background, colors: str) -> Photos:
    """The validation photos, with their colors as drawn, or all with the color of their own class, or of the other."""
    photos = PetsOnBackgrounds(folder, "val", background)
    labels = [photos[place][1] for place in range(len(photos))]
    photos.colors = {"drawn": photos.colors, "own": labels, "other": [1 - label for label in labels]}[colors]
    images, targets, masks = zip(*(photos[place] for place in range(len(photos))), strict=True)
    return torch.stack(images), torch.tensor(targets), torch.stack(masks)


def print_tables(runs: list[Run]) -> None:
    """Print all tables, as Markdown."""
    clean = [run for run in runs if run["background"] in CLEAN]
    print("\nClean networks that were found, or in alarm, at any look\n")
    groups = {name: [run for run in clean if name in (run["network"], "all")] for name in (*NETWORKS, "all")}
    print(table(("network", *FALSE_ALARMS), [(name, *found_at_all(members)) for name, members in groups.items()]))
    print("\nMedians of the looks, and in how many networks there was an alarm\n")
    print(sizes(runs))


if __name__ == "__main__":
    main()
