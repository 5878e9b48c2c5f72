"""Does the heat of a biased network lie where that of a clean one does not? And do two classes have different maps?

SqueezeNet 1.1 with ImageNet weights learns to tell cats from dogs: on the photos as they are ("natural"), and with red
and green backgrounds that go with the class, "painted" or "tinted" (see `bias_photos.py`). All maps are of the true
class of the validation photos. For each method:

- ins - del: insertion minus deletion, on the photos of the network's own kind;
- other class: Pearson correlation with the map of the other class (lower tells classes apart);
- blank: share of maps without contrast, of the true class and of the other;
- AUC: how often less of the heat is on the object in a network that learned the color than in the natural one, on the
  same photos with colored backgrounds, each photo compared with each (.5: the heat does not tell them apart).
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from bias_photos import BATCH, LEARNING_RATE, fine_tunable, train_epoch, validation
from setting import save, table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cam_callbacks import GradCAM, HiResCAM, LayerCAM, ReciproCAM, ScoreCAM
from cam_callbacks.explain.faithfulness import measure_faithfulness
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.trust import correlation

sys.path.append(str(Path(__file__).parents[1] / "example_projects" / "pets_background"))
from data import Background, PetsOnBackgrounds

KINDS: dict[str, Background] = {"natural": "natural", "painted": "biased", "tinted": "tinted"}
METHODS: dict[str, Method] = {
    "Grad-CAM": GradCAM(),
    "HiResCAM": HiResCAM(),
    "LayerCAM": LayerCAM(),
    "Recipro-CAM": ReciproCAM(),
    "Recipro-CAM, evidence": ReciproCAM("evidence"),
    "Score-CAM, probability": ScoreCAM(),
    "Score-CAM, contrast, one side": ScoreCAM("contrast", complement=False),
    "Score-CAM, contrast": ScoreCAM("contrast"),
}
LAYER = "features"
COLORED = ("painted", "tinted")
MEASURES = dict.fromkeys(("passes", "ins - del", "other class", "blank, true", "blank, other"), tuple(KINDS))
MEASURES["AUC"] = COLORED


def main() -> None:
    """Train the networks, print the table, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=Path("data"), help="folder that holds oxford-iiit-pet")
    options.add_argument(
        "--weights", type=Path, help="folder of weights, squeezenet1_1*.pth; without it, torchvision's"
    )
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--images", type=int, default=60)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--methods", default=".*", help="only those whose whole name this regular expression matches")
    options.add_argument("--short", action="store_true", help="one epoch, four photos, one seed")
    args = options.parse_args()
    if args.short:
        args.epochs, args.images, args.seeds = 1, 4, 1
    chosen = {name: method for name, method in METHODS.items() if re.fullmatch(args.methods, name)}
    found: dict[tuple[str, str, str], list[float]] = {}
    for seed in range(args.seeds):
        networks = {kind: trained(args, kind, seed) for kind in KINDS}
        photos = {kind: _some(validation(args.data, KINDS[kind], "own"), args.images) for kind in KINDS}
        for kind, network in networks.items():
            right = (network(photos[kind][0]).argmax(dim=1) == photos[kind][1]).float().mean()
            print(f"seed {seed}, {kind}: {float(right):.2f} right", flush=True)
        for name, method in chosen.items():
            for (measure, kind), value in measured(method, networks, photos).items():
                found.setdefault((name, measure, kind), []).append(value)
            print(name, flush=True)
    rows = [(name, *(_cell(found, name, measure) for measure in MEASURES)) for name in chosen]
    header = ("", *(f"{measure}: {' / '.join(kinds)}" for measure, kinds in MEASURES.items()))
    print("\n" + table(header, rows))
    save("faithfulness_pets", rows)


def _cell(found: Mapping[tuple[str, str, str], list[float]], name: str, measure: str) -> str:
    """The means over the networks, of each kind."""
    values = [found[name, measure, kind] for kind in MEASURES[measure]]
    return " / ".join(f"{sum(each) / len(each):.{0 if measure == 'passes' else 2}f}" for each in values)


def trained(args: argparse.Namespace, kind: str, seed: int) -> nn.Module:
    """The network of one kind."""
    network = fine_tunable("squeezenet1_1", args.weights, seed)
    loader = DataLoader(PetsOnBackgrounds(args.data, "train", KINDS[kind]), BATCH, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(args.epochs):
        train_epoch(network, loader, optimizer)
    return network


def measured(
    method: Method, networks: Mapping[str, nn.Module], photos: Mapping[str, tuple[Tensor, Tensor, Tensor]]
) -> dict[tuple[str, str], float]:
    """All numbers of one method."""
    found: dict[tuple[str, str], float] = {}
    for kind, network in networks.items():
        images, labels, _ = photos[kind]
        both = method(network, images, LAYER, torch.stack([labels, 1 - labels], dim=1))
        maps, others = both.heatmaps.unbind(dim=1)
        curves = measure_faithfulness(
            network, images, maps, labels, measures=["insertion", "deletion"], target_layer=LAYER, steps=10
        ).values["heatmaps"]
        found["ins - del", kind] = float((curves["insertion"] - curves["deletion"]).nanmean())
        found["other class", kind] = float(correlation(maps, others).nanmean())
        found["blank, true", kind], found["blank, other", kind] = both.blank.float().mean(dim=0).tolist()
        found["passes", kind] = float(both.passes.float().mean())
    for kind in COLORED:
        images, labels, masks = photos[kind]
        natural, biased = (
            on_object(method(networks[each], images, LAYER, labels).heatmaps, masks) for each in ("natural", kind)
        )
        found["AUC", kind] = share_above(natural, biased)
    return found


def on_object(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's heat that is on the object, of maps that are not blank."""
    total = heatmaps.flatten(1).sum(dim=1)
    return ((heatmaps * masks).flatten(1).sum(dim=1) / total)[total > 0]


def share_above(values: Tensor, others: Tensor) -> float:
    """How often one of the values is above one of the others, each compared with each; equal ones count half."""
    above = (values.unsqueeze(1) > others).float() + 0.5 * (values.unsqueeze(1) == others).float()
    return float(above.mean())


def _some(photos: tuple[Tensor, Tensor, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Photos at equal distances, so that both classes are there."""
    chosen = torch.linspace(0, len(photos[1]) - 1, min(count, len(photos[1]))).round().long()
    return photos[0][chosen], photos[1][chosen], photos[2][chosen]


if __name__ == "__main__":
    main()
