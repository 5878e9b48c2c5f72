"""How often is a planted bias found, how soon, and how often is one found that is not there?

Many small networks learn to tell threes from eights, or shapes from each other. In some data a mark goes along with the
class, for a given share of the images (the agreement), in training and validation alike; in other data nothing does.
After each epoch the network is audited: with the true masks (also by accuracies alone), with masks estimated by
GrabCut, by the outer ring alone, by where the heat lies, and by the rule of the first edition. As in a training, half
of the images are new at each look.

The effect is the truth to compare with: further validation images are drawn twice, alike but for the mark, which is
once that of their own class and once that of the other; it is the accuracy that this costs.

Each network is a line of a file; networks that are in it are not trained again.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bias_data import DIGITS, ELSEWHERE, IN_BACKGROUND, SHAPES, draw, has_photos
from bias_tables import print_tables
from setting import lines_of, run_each
from torch import Tensor, nn

from cam_callbacks import AuditResult, __version__, judge
from cam_callbacks.audit.interventions import fill
from cam_callbacks.audit.measuring import measures_of
from cam_callbacks.audit.observations import Observations
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.resampling import bootstrap

TRAINING, EPOCHS = 1024, 6
TRAINING_OF_SHAPES = 2048  # they are harder to learn
IMAGES, POOL, COMPARED = 128, 1024, 256
ESTIMATED_EVERY = 3  # networks of a kind: for these, masks are estimated too
PLANTED, CLEAN = (*IN_BACKGROUND, *ELSEWHERE), (*DIGITS, *SHAPES)
KINDS = (*PLANTED, *CLEAN)
AGREEMENTS = (1.0, 0.8, 0.6, 0.9, 0.7, 0.5)
OUT = Path(__file__).parents[1] / "build" / "bias_detection.jsonl"
MEASURES = ("outline_gap", "collage_cost", "recolor_gap", "blur_loss", "heat_on_object")
OLD_THRESHOLD = 0.05
Look = Run = dict[str, Any]
Found = dict[str, Any]  # the verdict of each rule; of the heat, the classes whose heat is away from the object


def main() -> None:
    """Train and audit the networks that are not in the file, and print the tables of all that are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=12, help="networks of each kind; each round has one agreement")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these")
    options.add_argument(
        "--images", type=int, default=IMAGES, help="images of a look; another number needs another file"
    )
    options.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each network")
    options.add_argument("--short", action="store_true", help="one round of four kinds, in a file of its own")
    options.add_argument("--tables", action="store_true", help="train nothing, print the tables of the file")
    args = options.parse_args()
    planted, clean = PLANTED, CLEAN
    if args.short:
        planted, clean, args.rounds = ("tag", "blur"), ("natural colors", "ring, disc on blotches"), 1
        args.out = args.out.with_stem(f"{args.out.stem}_short")
    clean = tuple(kind for kind in clean if has_photos() or not kind.endswith("photos"))
    wanted = [
        (kind, agreement, seed, args.images)
        for seed in range(args.rounds)
        for kinds, agreement in ((clean, 0.5), (planted, AGREEMENTS[seed % len(AGREEMENTS)]))
        for kind in kinds
        if kind in args.kinds
    ]
    done = {(run["kind"], run["agreement"], run["seed"], run.get("images", IMAGES)) for run in lines_of(args.out)}
    missing = [] if args.tables else [each for each in wanted if each not in done]
    for number, run in enumerate(run_each(run_of, missing, args.processes, args.out), 1):
        print(f"{number} of {len(missing)}: {run['kind']}, {run['agreement']:g}, {run['seconds']:.0f} s", flush=True)
    print_tables(lines_of(args.out))


def run_of(kind: str, agreement: float, seed: int, images: int = IMAGES) -> Run:
    """Train and audit one network: a line of the file."""
    start = time.perf_counter()
    looks = looks_of(kind, agreement, seed, images)
    versions = {"cam_callbacks": __version__, "torch": torch.__version__}
    run: Run = {"kind": kind, "agreement": agreement, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    return run | {"images": images, "versions": versions, "looks": looks}


def looks_of(kind: str, agreement: float, seed: int, num_images: int) -> list[Look]:
    """Train one network, and audit it after each epoch."""
    with_estimated = (KINDS.index(kind) + seed) % ESTIMATED_EVERY == 0
    looks: list[Look] = []
    before: Found = {}
    for network, probes, effect in epochs_of(kind, agreement, seed, num_images):
        found, before = look(network, probes, before, with_estimated)
        looks.append({**found, **effect})
    return looks


def epochs_of(
    kind: str, agreement: float, seed: int, num_images: int
) -> Iterator[tuple[nn.Module, ProbeSet, dict[str, float]]]:
    """Train one network; yield it after each epoch, with the images to audit, and what the mark does in truth.

    That is the accuracy on images drawn with the mark of their class, minus that with the other one; and the accuracy
    of the worst of the four groups.
    """
    torch.manual_seed(seed)
    is_shape = kind in SHAPES
    images, targets, _ = draw(kind, agreement, seed, TRAINING_OF_SHAPES if is_shape else TRAINING, "train")
    pool = draw(kind, agreement, seed, POOL, "val")
    redrawn = [draw(kind, share, seed, COMPARED, "val")[:2] for share in (1.0, 0.0)]
    takes_maximum = is_shape and not kind.endswith("any colors")
    network = small_network(nn.AdaptiveMaxPool2d(1) if takes_maximum else nn.AdaptiveAvgPool2d(1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3 if is_shape else 2e-3)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(images)).split(32 if is_shape else 64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), targets[batch]).backward()
            optimizer.step()
        network.eval()
        rows = rows_of_look(pool[1], num_images // 4, chance)
        shown, labels, masks = (part[rows] for part in pool)
        own, other = (right(network, *part) for part in redrawn)
        groups = [each[redrawn[0][1] == target].mean() for each in (own, other) for target in (0, 1)]
        effect = {"effect": float(own.mean() - other.mean()), "worst_group": float(min(groups))}
        yield network, ProbeSet(shown, labels, masks, ("first", "second")), effect


def rows_of_look(targets: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """(4 `count`,) the images that are audited: of each class so many that are always the same, and as many others."""
    rows = []
    for target in (0, 1):
        members = (targets == target).nonzero().flatten()
        fresh = members[count:]
        rows += [members[:count], fresh[torch.randperm(len(fresh), generator=chance)[:count]]]
    return torch.cat(rows)


def look(network: nn.Module, probes: ProbeSet, before: Found, with_estimated: bool) -> tuple[Look, Found]:
    """Audit in all ways: what each rule says at this look, and what the next look has to know of it."""
    result = audited(network, probes)
    results = {
        "true masks": result,
        "accuracy alone": without_probability(result),
        "ring": audited(network, nothing_found(probes)),
    }
    if with_estimated:
        first = before.get("estimated masks")
        evidence = None if first is None else first.evidence
        # A run keeps to the estimated masks, or to the ring, that it began with.
        goes_by_masks = None if evidence is None else "bg_gap" in evidence.values
        results["estimated masks"] = audited(network, replace(probes, masks=None), goes_by_masks)
    verdicts = {rule: judge(result, before.get(rule)) for rule, result in results.items()}
    verdict = verdicts["true masks"]
    learned = verdict.state != "not learned"
    away = {index for index, state in verdict.heat.items() if state != "on the object"}
    heat = frozenset(away) if learned else frozenset()
    old = old_gap(network, probes, result)
    found: Found = {**verdicts, "heat": heat, "old rule": learned and old[1] > OLD_THRESHOLD}
    fired = {rule: verdict.state in ("alarm", "warning") for rule, verdict in verdicts.items()}
    fired["heat"] = bool(heat & before.get("heat", frozenset()))
    fired["old rule"] = found["old rule"] and before.get("old rule", False)
    gaps = {rule: result.gap.overall for rule, result in results.items()}
    said: Look = {
        "accuracy": result["accuracy"].overall.value,
        "learned": learned,
        "states": {rule: verdict.state for rule, verdict in verdicts.items()},
        "fired": fired,
        "gaps": {rule: (gap.value, gap.low, gap.high) for rule, gap in gaps.items()} | {"old rule": old},
        "measures": {name: result[name].overall.value for name in MEASURES},
        "second_test": verdict.second_test,
        "detectable": verdict.detectable,
    }
    return said, found


def without_probability(result: AuditResult) -> AuditResult:
    """The same numbers without those of the probability of the true class."""
    kept = {name: each for name, each in result.measures.items() if not name.endswith("_probability")}
    return replace(result, measures=kept)


def audited(network: nn.Module, probes: ProbeSet, goes_by_masks: bool | None = None) -> AuditResult:
    """What a look of a training finds: `audit_model` with the donors that it affords."""
    observations = Observations(probes, goes_by_masks=goes_by_masks)
    return measures_of(observations, [observations.observe(network, torch.arange(len(probes)))])


def nothing_found(probes: ProbeSet) -> ProbeSet:
    """The images as they are where no foreground can be estimated."""
    return replace(probes, masks=torch.zeros_like(probes.masks), masks_estimated=True)


def old_gap(network: nn.Module, probes: ProbeSet, result: AuditResult) -> tuple[float, float, float]:
    """The background gap of the first edition, with its interval: the donors' objects are filled with a mean color."""
    known = result.donors.known
    images, masks, labels = probes.images[known], probes.masks[known], probes.labels[known]
    filled = fill(probes.images, probes.masks)
    arms = [
        torch.where(masks.unsqueeze(1), images, filled[donor[known, 0]])
        for donor in (result.donors.same, result.donors.other)
    ]
    same, other = (right(network, arm, labels) for arm in arms)
    return (float((same - other).mean()), *bootstrap(same - other))


def right(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(N,) 1 where the answer is right, else 0."""
    with torch.no_grad():
        answers = network(images.to(next(network.parameters()).device)).argmax(dim=1).cpu()
    return (answers == targets).float()


def small_network(pool: nn.Module) -> nn.Module:
    """Three convolutions, a global pool, one linear layer."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(32, 2))


if __name__ == "__main__":
    main()
