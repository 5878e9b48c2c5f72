"""Is a bias found, whatever the model is trained to answer, and is none found that is not there?

Small networks learn to name several labels, to tell a number, to segment, to find a box, or to embed, from shapes
before a ground. Its tint goes with what is true (of several labels, with the first one) for a share of the images, the
agreement; at 0.5 it says nothing (of a number, at 0). After each epoch the network is audited, half of the images
being new, as in a training.

The effect is the truth to compare with: the same images are drawn twice, with the tint of what is true and with the
opposite one; it is what that costs of right answers. Of a number it is the slope of the answer on the tint.

Each network is a line of a file; networks that are in it are not trained again.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from setting import lines_of, run_missing, table
from task_data import SIDE, TASKS, Scenes, draw
from torch import Tensor, nn

from cam_callbacks import Verdict, __version__, audit_model, judge
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.questions import question_about
from cam_callbacks.audit.statistics import wilson
from cam_callbacks.explain.model_outputs import OutputKind, OutputReader
from cam_callbacks.explain.output_form import OutputForm

TRAINING, POOL, COMPARED, IMAGES, EPOCHS = 1536, 1024, 256, 128, 5
AGREEMENTS = (1.0, 0.9, 0.5, 0.5)
OUT = Path(__file__).parents[1] / "build" / "tasks.jsonl"
Run = dict[str, Any]
Loss = Callable[[nn.Module, Scenes], Tensor]


def main() -> None:
    """Train and audit the networks that are not in the file, and print the tables of all that are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=16, help="networks of each task; each round has one agreement")
    options.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each network")
    options.add_argument("--short", action="store_true", help="two rounds of two tasks, in a file of its own")
    args = options.parse_args()
    tasks = TASKS
    if args.short:
        tasks, args.rounds = ("multi-label", "regression"), 1
        args.out = args.out.with_stem(f"{args.out.stem}_short")
    wanted = [(task, AGREEMENTS[seed % len(AGREEMENTS)], seed) for seed in range(args.rounds) for task in tasks]
    run_missing(run_of, wanted, ("task", "agreement", "seed"), args)
    print_tables(lines_of(args.out))


def run_of(task: AuditTask, agreement: float, seed: int) -> Run:
    """Train and audit one network: a line of the file."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    share = 0.0 if task == "regression" and agreement == 0.5 else agreement
    training, pool = (draw(task, share, 10 * seed + place, count) for place, count in ((0, TRAINING), (1, POOL)))
    network, loss = NETWORKS[task]()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    chance = torch.Generator().manual_seed(seed)
    looks = []
    verdict: Verdict | None = None
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.randperm(TRAINING).split(32):
            optimizer.zero_grad()
            loss(network, training.at(rows)).backward()
            optimizer.step()
        network.eval()
        half = IMAGES // 2
        rows = torch.cat([torch.arange(half), half + torch.randperm(POOL - half, generator=chance)[:half]])
        result = audit_model(network, pool.at(rows).probes(task), task=task, num_donors=1)
        verdict = judge(result, verdict)
        looks.append(
            {
                "effect": effect_of(network, task, seed),
                "right": result.right.overall.value,
                "gap": gap_of_marked(task, result),
                "placebo": result["outline_gap"].overall.value,
                "cost": result["collage_cost"].overall.value,
                "state": verdict.state,
                "classes": list(verdict.classes),
            }
        )
    versions = {"cam_callbacks": __version__, "torch": torch.__version__}
    run: Run = {"task": task, "agreement": agreement, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    return run | {"versions": versions, "looks": looks}


def gap_of_marked(task: str, result: Any) -> float:
    """Return the gap: of several labels that of the first one, which alone may have a mark."""
    measured = result["bg_gap"]
    return measured.per_class[0].value if task == "multi-label" else measured.overall.value


def effect_of(network: nn.Module, task: AuditTask, seed: int) -> float:
    """Return what the tint does in truth."""
    own, other = (draw(task, 1.0, 10 * seed + 2, COMPARED, flipped) for flipped in (False, True))
    if task == "regression":
        with torch.no_grad():
            answers = [network(each.images).flatten() for each in (own, other)]
        steps = 2 * own.truth - 1  # from the opposite tint to that of the number
        return float((steps * (answers[0] - answers[1])).sum() / (steps**2).sum())
    with torch.no_grad():
        output, flipped = network(own.images), network(other.images)
    if task == "multi-label":
        truth = own.truth[:, 0]
        right = [((each[:, 0] > 0) == truth).float().mean() for each in (output, flipped)]
        return float(right[0] - right[1])
    question = question_about(own.probes(task), task)
    reader = OutputReader("logits", False, lambda _: OutputKind("logits", False), OutputForm)
    rows = torch.arange(COMPARED)
    question.prepare(lambda read: read(output, rows, reader))
    right = [question.read(each, rows, reader)[0].nanmean() for each in (output, flipped)]
    return float(right[0] - right[1])


def body(channels: int = 24) -> nn.Sequential:
    """Three convolutions, to an eighth of the side."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, channels), (channels, 2 * channels), (2 * channels, 2 * channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def pooled(outputs: int) -> nn.Sequential:
    """A network that returns numbers."""
    return nn.Sequential(body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, outputs))


def labels_network() -> tuple[nn.Module, Loss]:
    """It names several labels."""
    return pooled(3), lambda network, some: F.binary_cross_entropy_with_logits(network(some.images), some.truth.float())


def number_network() -> tuple[nn.Module, Loss]:
    """It tells a number."""
    return pooled(1), lambda network, some: F.mse_loss(network(some.images).flatten(), some.truth)


def segments_network() -> tuple[nn.Module, Loss]:
    """It gives a class to each pixel."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU()]
    for dilation in (1, 2, 4):
        layers += [nn.Conv2d(24, 24, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    pixels = nn.Sequential(nn.Sequential(*layers), nn.Conv2d(24, 3, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
    return pixels, lambda network, some: F.cross_entropy(
        network(some.images), some.truth.view(-1, 1, 1) * some.masks, torch.tensor([0.3, 1.0, 1.0])
    )


class OneBox(nn.Module):
    """A detector that finds one box, and says of which class it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(48 * (SIDE // 8) ** 2, 64), nn.ReLU(), nn.Linear(64, 6))

    def numbers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, 4) in [0, 1], and logits (N, 2)."""
        found = self.head(self.body(images))
        return found[:, :4].sigmoid(), found[:, 4:]

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return what torchvision's detectors do."""
        boxes, logits = self.numbers(images)
        scores, labels = logits.softmax(dim=1).max(dim=1)
        parts = zip((SIDE * boxes).split(1), scores.split(1), (labels + 1).split(1), strict=True)
        return [dict(zip(("boxes", "scores", "labels"), part, strict=True)) for part in parts]


def box_network() -> tuple[nn.Module, Loss]:
    """It finds a box."""

    def loss(network: nn.Module, some: Scenes) -> Tensor:
        assert isinstance(network, OneBox)
        boxes, logits = network.numbers(some.images)
        rows, columns = (some.masks.any(dim=dim) for dim in (2, 1))
        first = [each.float().argmax(dim=1) for each in (columns, rows)]
        last = [SIDE - each.flip(1).float().argmax(dim=1) for each in (columns, rows)]
        truth = torch.stack([*first, *last], dim=1) / SIDE
        return 10 * F.smooth_l1_loss(boxes, truth) + F.cross_entropy(logits, some.truth - 1)

    return OneBox(), loss


class Embeds(nn.Module):
    """It returns features, which training brings near to a direction of each class (Wang et al. 2017, 1704.06369)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled(16)
        self.directions = nn.Parameter(torch.randn(2, 16))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 16)."""
        return self.features(images)


def features_network() -> tuple[nn.Module, Loss]:
    """It embeds."""

    def loss(network: nn.Module, some: Scenes) -> Tensor:
        assert isinstance(network, Embeds)
        likeness = F.normalize(network(some.images), dim=1) @ F.normalize(network.directions, dim=1).T
        return F.cross_entropy(8 * likeness, some.truth - 1)

    return Embeds(), loss


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
    "multi-label": labels_network,
    "regression": number_network,
    "segmentation": segments_network,
    "detection": box_network,
    "embedding": features_network,
}


def print_tables(runs: list[Run]) -> None:
    """Print what was found in each task, and the false alarms."""
    rows = []
    for task in TASKS:
        for agreement in dict.fromkeys(AGREEMENTS):
            own = [run for run in runs if (run["task"], run["agreement"]) == (task, agreement)]
            if not own:
                continue
            last = [run["looks"][-1] for run in own]
            shown = (
                f"{mean(look[what] for look in last):.2f}" for what in ("right", "effect", "gap", "placebo", "cost")
            )
            said = (str(sum(state in states_of(run) for run in own)) for state in ("suspicion", "alarm"))
            rows.append((task, f"{agreement:g}", str(len(own)), *shown, *said))
    header = ("task", "agreement", "networks", "right", "effect", "gap", "placebo", "cost", "suspicion", "alarm")
    print("\nMeans at the last look, and in how many networks there was a suspicion, and an alarm, at any look:\n")
    print(table(header, rows))
    clean = [run for run in runs if run["agreement"] == 0.5]
    if clean:
        for state in ("suspicion", "alarm"):
            count = sum(state in states_of(run) for run in clean)
            low, high = wilson(count, len(clean))
            print(f"\nclean networks with {state}: {count} of {len(clean)} [{low:.2f}, {high:.2f}]")


def states_of(run: Run) -> set[str]:
    """What was said at any look; of several labels, an alarm about another label than the first is one, too."""
    return {look["state"] for look in run["looks"]}


if __name__ == "__main__":
    main()
