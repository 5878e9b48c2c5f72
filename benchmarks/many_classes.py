"""Of a hundred classes, are those found whose background the network uses, and no others?

Networks learn a hundred glyphs before grounds of any tint. Of five classes 95 of 100 images have a tint of their own,
in training and validation alike. Each is trained by Lightning with `CAMMonitor`, which audits 128 images after each
epoch. The effect is the truth to compare with: what right answers to a class lose if all of its images are drawn with
a tint of no class.

Each network is a line of a file; networks that are in it are not trained again.
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from setting import lines_of, run_missing, table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cam_callbacks import Audit, CAMMonitor, GradCAM, __version__
from cam_callbacks.audit.statistics import wilson

SIDE, GLYPH, CELL = 32, 5, 3
BIASED, AGREEMENT = 5, 0.95
LOOKS, WARM_UP = 5, 8
OUT = Path(__file__).parents[1] / "build" / "many_classes.jsonl"
Run = dict[str, Any]


def main() -> None:
    """Train and audit the networks that are not in the file, and print the tables of all that are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=20, help="networks with five biased classes")
    options.add_argument("--clean", type=int, default=10, help="networks without")
    options.add_argument("--classes", type=int, default=100)
    options.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each network")
    options.add_argument("--short", action="store_true", help="one network of few classes, in a file of its own")
    args = options.parse_args()
    if args.short:
        args.rounds, args.clean, args.classes = 1, 0, 40
        args.out = args.out.with_stem(f"{args.out.stem}_short")
    wanted = [(args.classes, BIASED, seed) for seed in range(args.rounds)]
    wanted += [(args.classes, 0, seed) for seed in range(args.clean)]
    run_missing(run_of, wanted, ("classes", "biased", "seed"), args)
    print_tables(lines_of(args.out))


def draw(classes: int, biased: int, seed: int, count: int, own_tint: float = AGREEMENT) -> tuple[Tensor, ...]:
    """Images (N, 3, 32, 32), classes (N,) and masks (N, 32, 32); the first classes have a tint of their own.

    Each glyph has a twin, half of the classes away, that differs in a few of its cells; those of classes with a tint in
    none, so that nothing but the tint tells the two apart.
    """
    fixed = torch.Generator().manual_seed(7)
    shapes = torch.rand(classes // 2, GLYPH**2, generator=fixed) < 0.5
    differing = torch.where(torch.arange(classes // 2) < biased, 0, 4).unsqueeze(1)
    twins = shapes ^ (torch.rand(shapes.shape, generator=fixed).argsort(dim=1) < differing)
    shapes = torch.cat([shapes, twins]).view(-1, GLYPH, GLYPH)
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    wrong = torch.rand(count, GLYPH, GLYPH, generator=chance) < 0.06
    glyphs = (shapes[labels] ^ wrong).repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)
    ink = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    masks = torch.zeros_like(ink)
    side = GLYPH * CELL
    corners = torch.randint(1, SIDE - side - 1, (count, 2), generator=chance).tolist()
    for row, (top, left) in enumerate(corners):
        ink[row, top : top + side, left : left + side] = glyphs[row]
        masks[row, top : top + side, left : left + side] = True
    hue = torch.rand(count, generator=chance)
    is_own = (labels < biased) & (torch.rand(count, generator=chance) < own_tint)
    hue = torch.where(is_own, (labels + 0.03 * torch.randn(count, generator=chance)) / max(biased, 1), hue)
    angles = 2 * torch.pi * (hue.unsqueeze(1) - torch.arange(3) / 3)
    blotches = F.interpolate(torch.randn(count, 1, 5, 5, generator=chance), size=(SIDE, SIDE), mode="bicubic")
    strength = torch.where(is_own, 0.4, 0.15).view(-1, 1, 1, 1)  # no other ground has such a tint
    ground = strength * angles.cos()[:, :, None, None] + 0.1 * blotches
    light = (0.4 + 0.2 * torch.rand(count, 1, 1, 1, generator=chance)).expand_as(ground)
    glyph = torch.where(ink.unsqueeze(1), light, -light)
    images = torch.where(masks.unsqueeze(1), glyph, ground) + 0.25 * torch.randn(count, 3, SIDE, SIDE, generator=chance)
    return images, labels, masks


class Glyphs(LightningModule):
    """A small network that tells glyphs apart."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 96)):
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(192, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        found = self.features(images)
        return self.head(torch.cat([found.amax(dim=(2, 3)), found.mean(dim=(2, 3))], dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Notes(Callback):
    """Takes down what each look has found."""

    def __init__(self, monitor: CAMMonitor) -> None:
        self.monitor = monitor
        self.looks: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it down."""
        verdict, result = self.monitor.verdict, self.monitor.audit_result
        if verdict is None or result is None:
            return
        self.looks.append(
            {
                "named": list(verdict.classes),
                "together": verdict.overall,
                "state": verdict.state,
                "followed": list(verdict.followed),
                "passes": result.passes,
                "accuracy": float(trainer.callback_metrics["val_acc"]),
                "gap": result["bg_gap"].overall.value,
            }
        )


def run_of(classes: int, biased: int, seed: int) -> Run:
    """Train and audit one network: a line of the file."""
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    torch.manual_seed(seed)
    training = TensorDataset(*draw(classes, biased, 10 * seed, 30 * classes))
    validation = TensorDataset(*draw(classes, biased, 10 * seed + 1, 50 * classes))
    module = Glyphs(classes)
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False
    )
    loaders = (DataLoader(training, 64, shuffle=True), DataLoader(validation, 200))
    Trainer(max_epochs=WARM_UP, accelerator="cpu", num_sanity_val_steps=0, limit_val_batches=0, **quiet).fit(
        module, loaders[0]
    )
    monitor = CAMMonitor(method=GradCAM(), num_probes=4, audit=Audit(num_images=128))
    notes = Notes(monitor)
    with TemporaryDirectory() as folder:
        Trainer(
            max_epochs=LOOKS,
            accelerator="cpu",
            callbacks=[monitor, notes],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            **quiet,
        ).fit(module, *loaders)
    versions = {"cam_callbacks": __version__, "torch": torch.__version__}
    run: Run = {"classes": classes, "biased": biased, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    return run | {
        "versions": versions,
        "effects": effects_of(module.eval(), classes, biased, seed),
        "looks": notes.looks,
    }


def effects_of(module: nn.Module, classes: int, biased: int, seed: int) -> list[float]:
    """Return what right answers to each biased class lose without its tint."""
    right = []
    for own_tint in (1.0, 0.0):
        images, labels, _ = draw(classes, biased, 10 * seed + 2, 40 * classes, own_tint)
        rows = (labels < biased).nonzero().flatten()
        with torch.no_grad():
            answers = module(images[rows]).argmax(dim=1) == labels[rows]
        right.append([float(answers[labels[rows] == label].float().mean()) for label in range(biased)])
    return [round(own - other, 3) for own, other in zip(*right, strict=True)]


def print_tables(runs: list[Run]) -> None:
    """Print how many of the biased classes are named within the looks, and which others."""
    rows = []
    for classes, biased in sorted({(run["classes"], run["biased"]) for run in runs}):
        own = [run for run in runs if (run["classes"], run["biased"]) == (classes, biased)]
        named = [set().union(*(look["named"] for look in run["looks"])) for run in own]
        right = [sum(label < biased for label in each) for each in named]
        wrong = [sum(label >= biased for label in each) for each in named]
        good = sum(r >= min(4, biased) and not w for r, w in zip(right, wrong, strict=True))
        low, high = wilson(good, len(own))
        effects = [effect for run in own for effect in run["effects"]]
        rows.append(
            (
                str(classes),
                str(biased),
                str(len(own)),
                f"{mean(run['looks'][-1]['accuracy'] for run in own):.2f}",
                f"{mean(effects):.2f}" if effects else "",
                f"{mean(right):.1f}",
                str(sum(wrong)),
                f"{good} [{low:.2f}, {high:.2f}]",
                f"{mean(look['passes'] for run in own for look in run['looks']):.0f}",
            )
        )
    header = (
        "classes",
        "biased",
        "networks",
        "accuracy",
        "effect",
        "named",
        "others named",
        "4 and no other",
        "passes",
    )
    print(f"\nMeans over networks; named within {LOOKS} looks:\n")
    print(table(header, rows))


if __name__ == "__main__":
    main()
