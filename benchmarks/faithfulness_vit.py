"""Which heatmap of a vision transformer is to be trusted? And does it tell a network that learned a color from another?

Small transformers of timm learn four handwritten digits, each somewhere on a colored background: "balanced", where the
color is drawn, and "biased", where each digit has its own. They have 8 x 8 tokens and four blocks, and read a class
token or the mean of all tokens. Two convolutions make the tokens, because that is learned in a minute (Xiao et al.
2021, arXiv 2106.14881). The biased networks are trained for a third of the time: they know colors after one epoch.
Layers are those that each method chooses where none is named.

The first tables, one for each way of reading, are of balanced networks and validation images, the predicted class:

- passes: forward samples for each image, short ones of Recipro-CAM included;
- time: of a method's maps, in multiples of the time of one forward pass of the same images (median over networks);
- ins - del: insertion minus deletion; this and the other measures are those of `measure_faithfulness`;
- other class: Pearson correlation with the map of the second most probable class (lower tells classes apart);
- blank: share of maps without contrast, which count in no mean;
- difference to Grad-CAM: on the same images, with the 95 % interval of a bootstrap over images.

The last table has the biased networks, too. On images whose digits have their own colors, with the true class:

- AUC: how often less of the heat is on the digit in the biased network than in the balanced one of the same seed, each
  image compared with each (.5: the heat does not tell them apart), for each seed;
- on the digit: the mean share of the heat that is on the digit, in balanced and biased networks.
"""

import argparse
import colorsys
import re
import time
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from bias_data import MEAN, SIDE, STD, handwriting
from faithfulness import MEASURES, STEPS, print_tables, timed
from faithfulness_pets import on_object, share_above
from setting import Line, save, table
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from cam_callbacks import GradCAM, HiResCAM, LayerCAM, LeGrad, ReciproCAM, ScoreCAM
from cam_callbacks._version import __version__
from cam_callbacks.explain.faithfulness import measure_faithfulness
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.trust import correlation

METHODS: dict[str, Method] = {
    "Recipro-CAM, evidence": ReciproCAM("evidence"),
    "Recipro-CAM, evidence, gaussian": ReciproCAM("evidence", "gaussian"),
    "Recipro-CAM": ReciproCAM(),
    "Recipro-CAM, gaussian": ReciproCAM(neighborhood="gaussian"),
    "Grad-CAM": GradCAM(),
    "HiResCAM": HiResCAM(),
    "LayerCAM": LayerCAM(),
    "LeGrad": LeGrad(),
    "Score-CAM": ScoreCAM(),
    "Score-CAM by contrast": ScoreCAM("contrast"),
}
READ = {"token": "class token", "avg": "mean of the tokens"}
DIGITS, PATCH = 4, 4
COLORS = torch.tensor([colorsys.hsv_to_rgb(digit / DIGITS, 0.6, 0.5) for digit in range(DIGITS)])
WIDTH, BLOCKS, HEADS, BATCH, LEARNING_RATE = 32, 4, 4, 32, 4e-3
VALIDATION = 400


def main() -> None:
    """Train the networks, print the tables, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=100, help="validation images that are explained")
    options.add_argument("--seeds", type=int, default=2, help="networks of each kind")
    options.add_argument("--training", type=int, default=4096, help="training images")
    options.add_argument("--epochs", type=int, default=6, help="of the balanced networks; the others take a third")
    options.add_argument("--layer", help="of all methods but LeGrad; without it, the one that each chooses")
    options.add_argument("--read", nargs="+", choices=READ, default=list(READ), help="networks that read only these")
    options.add_argument("--methods", default=".*", help="only those whose whole name this regular expression matches")
    options.add_argument("--short", action="store_true", help="one epoch, few images, one seed")
    args = options.parse_args()
    if args.short:
        args.images, args.seeds, args.training, args.epochs = 8, 1, 256, 1
    methods = {name: method for name, method in METHODS.items() if re.fullmatch(args.methods, name)}
    lines = [line_of(pool, seed, methods, args) for pool in args.read for seed in range(args.seeds)]
    for pool in args.read:
        chosen = [line for line in lines if line["pool"] == pool]
        print_tables(f"ViT, {READ[pool]}, layers {chosen[0]['layers']}", chosen)
    rows = []
    for name in methods:
        cells = []
        for pool in args.read:
            found = [line["heat"][name] for line in lines if line["pool"] == pool]
            cells.append(" / ".join(f"{each['AUC']:.2f}" for each in found))
            kinds = ("balanced", "biased")
            cells.append(" / ".join(f"{sum(each[kind] for each in found) / len(found):.2f}" for kind in kinds))
        rows.append((name, *cells))
    header = ("", *(f"{READ[pool]}: {part}" for pool in args.read for part in ("AUC", "on the digit")))
    print("\n" + table(header, rows))
    save("faithfulness_vit", lines)


def line_of(pool: str, seed: int, methods: Mapping[str, Method], args: argparse.Namespace) -> Line:
    """Train a balanced and a biased network, and measure all maps of them."""
    start = time.perf_counter()
    networks = {kind: trained(pool, kind == "biased", seed, args) for kind in ("balanced", "biased")}
    images, labels, _ = digits(False, seed, VALIDATION, "val")
    colored, own, masks = (part[: args.images] for part in digits(True, seed, VALIDATION, "val"))
    with torch.no_grad():
        right = {
            f"{kind} network, {of} images": float((network(shown).argmax(dim=1) == labels).float().mean())
            for kind, network in networks.items()
            for of, shown in (("balanced", images), ("biased", digits(True, seed, VALIDATION, "val")[0]))
        }
    print(f"{READ[pool]}, seed {seed}: {right}, {time.perf_counter() - start:.0f} s", flush=True)
    network, images = networks["balanced"], images[: args.images]
    with torch.no_grad():
        ranked = network(images).argsort(dim=1, descending=True)
    forward = min(timed(lambda: network(images)) for _ in range(3))
    line: dict[str, Any] = {key: {} for key in ("layers", "passes", "time", "other class", "heat")}
    maps = {}
    for name, method in methods.items():
        layer = None if name == "LeGrad" else args.layer
        start_of_method = time.perf_counter()
        explained = method(network, images, layer, ranked[:, 0])
        line["time"][name] = (time.perf_counter() - start_of_method) / forward
        maps[name] = explained.heatmaps
        line["layers"][name] = explained.target_layer
        line["passes"][name] = explained.passes.tolist()
        line["other class"][name] = correlation(
            maps[name], method(network, images, layer, ranked[:, 1]).heatmaps
        ).tolist()
        heat = {kind: on_object(method(each, colored, layer, own).heatmaps, masks) for kind, each in networks.items()}
        line["heat"][name] = {kind: float(values.mean()) for kind, values in heat.items()}
        line["heat"][name]["AUC"] = share_above(heat["balanced"], heat["biased"])
    found = measure_faithfulness(
        network, images, maps, ranked[:, 0], measures=MEASURES, target_layer=args.layer, steps=STEPS
    )
    line["values"] = {
        name: {key: values.tolist() for key, values in measured.items()} for name, measured in found.values.items()
    }
    line["blank"] = {name: blank.tolist() for name, blank in found.blank.items()}
    line["versions"] = {"cam_callbacks": __version__, "torch": torch.__version__, "timm": timm.__version__}
    print(f"{READ[pool]}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    return line | {"pool": pool, "seed": seed, "right": right}


def trained(pool: str, biased: bool, seed: int, args: argparse.Namespace) -> nn.Module:
    """A network in eval mode."""
    torch.manual_seed(seed)
    network = VisionTransformer(
        SIDE, PATCH, 3, DIGITS, pool, WIDTH, BLOCKS, HEADS, 2, class_token=pool == "token", embed_layer=Stem
    )
    with torch.no_grad():
        network.pos_embed[:, -((SIDE // PATCH) ** 2) :] = 0.5 * build_sincos2d_pos_embed([SIDE // PATCH] * 2, WIDTH)
    images, labels, _ = digits(biased, seed, args.training, "train")
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    epochs = -(-args.epochs // 3) if biased else args.epochs
    steps = epochs * -(-args.training // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.2)
    for _ in range(epochs):
        for batch in torch.randperm(args.training).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


class Stem(PatchEmbed):
    """Tokens of two convolutions, each of which halves the image."""

    def __init__(self, *args: Any, embed_dim: int, **settings: Any) -> None:
        super().__init__(*args, embed_dim=embed_dim, **settings)
        self.proj = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(3, embed_dim // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(embed_dim // 2, embed_dim, 3, 2, 1)
        )


def digits(biased: bool, seed: int, count: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, 32, 32), labels (N,), and masks (N, 32, 32); the same but for the color, biased or not."""
    chance = torch.Generator().manual_seed(2 * seed + (split == "train"))
    labels = torch.arange(count) % DIGITS
    drawn = torch.randint(DIGITS, (count,), generator=chance)
    ink = torch.zeros(count, 1, SIDE, SIDE)
    for canvas, label in zip(ink, labels.tolist(), strict=True):
        glyphs = handwriting(label, split)
        glyph = glyphs[torch.randint(len(glyphs), (1,), generator=chance)]
        top, left = (PATCH * torch.randint(5, (2,), generator=chance)).tolist()
        canvas[:, top : top + 16, left : left + 16] = F.interpolate(glyph[None], scale_factor=2, mode="bilinear")[0]
    masks = F.max_pool2d((ink > 0.4).float(), 3, stride=1, padding=1).squeeze(1) > 0
    scene = COLORS[labels if biased else drawn][:, :, None, None]
    scene = scene + 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=chance)
    return (torch.lerp(scene, torch.ones(()), ink) - MEAN) / STD, labels, masks


if __name__ == "__main__":
    main()
