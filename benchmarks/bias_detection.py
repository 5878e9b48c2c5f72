"""How often is a planted bias found, how soon, and how often is one found that is not there?

Many small networks learn to tell handwritten threes from eights, at random places on a background. In some data a
background color, a texture, a corner tag or a frame goes along with the class, for a given share of the images (the
agreement), in training and validation alike; in other data nothing does. After each epoch the network is audited four
ways: with the true masks, with masks estimated by GrabCut, by the outer ring alone, and by where the heat lies.

The effect is the truth to compare with: further validation images are drawn twice, alike but for the mark, which is
once that of their own class and once that of the other; it is the accuracy that this costs.
"""

import argparse
import time
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from setting import save, table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cam_callbacks import AuditResult, audit_model, judge
from cam_callbacks.audit.donors import choose_donors
from cam_callbacks.audit.foreground import estimate_masks
from cam_callbacks.audit.interventions import ring, with_ring_of
from cam_callbacks.audit.statistics import measure, wilson
from cam_callbacks.data.probes import ProbeSet

SIDE, TRAINING, AUDITED, EPOCHS = 32, 1024, 128, 8
BIASES = ("color", "texture", "tag", "frame")
UNBIASED = ("plain", "natural colors", "imbalance 4:1", "wrong labels")
AGREEMENTS = (0.8, 0.9, 0.95, 1.0)
RULES = ("true masks", "estimated masks", "ring", "heat")
LOOKS_ALLOWED = 3  # so many looks after the warm-up an alarm is still in time
EFFECTS = (-1, 0.05, 0.1, 0.2, 0.4, 2)
Look = Run = dict[str, Any]
Found = dict[str, Any]  # the verdict of each rule; of the heat, the classes whose heat is away from the object


def main() -> None:
    """Train and audit all networks, print the tables, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5, help="networks a bias and agreement; twice as many clean")
    options.add_argument("--short", action="store_true", help="one seed, two biases, one agreement")
    args = options.parse_args()
    short = (1, BIASES[::2], UNBIASED[1:2], (0.95,))
    seeds, biases, unbiased, agreements = short if args.short else (args.seeds, BIASES, UNBIASED, AGREEMENTS)
    wanted = [(bias, agreement, seed) for seed in range(seeds) for bias in biases for agreement in agreements]
    wanted += [(kind, 0.5, seed) for seed in range(2 * seeds) for kind in unbiased]
    runs, start = [], time.perf_counter()
    for kind, agreement, seed in wanted:
        runs.append({"kind": kind, "agreement": agreement, "seed": seed, "looks": looks_of(kind, agreement, seed)})
        print(f"\r{len(runs)} of {len(wanted)} networks, {time.perf_counter() - start:.0f} s", end="", flush=True)
    biased, clean = ([run for run in runs if run["kind"] in kinds] for kinds in (BIASES, UNBIASED))
    parts = (sizes(biased), shares(biased, "agreement"), by_effect(biased), shares(clean, "kind"))
    print("", *parts, sep="\n\n")
    save("bias_detection", runs)


def looks_of(kind: str, agreement: float, seed: int) -> list[Look]:
    """Train one network, and audit it after each epoch."""
    torch.manual_seed(seed)
    images, targets, _ = draw(kind, agreement, seed, TRAINING, "train")
    shown, shown_targets, masks = draw(kind, agreement, seed, AUDITED, "val")
    probes = ProbeSet(shown, shown_targets, masks, ("three", "eight"))
    estimated = replace(probes, masks=estimate_masks(shown), masks_estimated=True)
    redrawn = [draw(kind, share, seed, 2 * AUDITED, "val")[:2] for share in (1.0, 0.0)]
    network = small_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    looks: list[Look] = []
    before: Found = {}
    for _ in range(EPOCHS):
        network.train()
        for batch in torch.randperm(TRAINING).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), targets[batch]).backward()
            optimizer.step()
        network.eval()
        found, before = look(network, probes, estimated, before)
        own, other = (float(right(network, *part).mean()) for part in redrawn)
        looks.append({**found, "effect": own - other})
    return looks


def look(network: nn.Module, probes: ProbeSet, estimated: ProbeSet, before: Found) -> tuple[Look, Found]:
    """Audit in all four ways: what each rule says at this look, and what the next look has to know of it."""
    looked = (audit_model(network, probes), audit_model(network, estimated), ring_result(network, probes))
    results = dict(zip(RULES, looked, strict=False))
    verdicts = {rule: judge(result, before.get(rule)) for rule, result in results.items()}
    learned = verdicts["true masks"].state != "not learned"
    heat = {index for index, state in verdicts["true masks"].heat.items() if state != "on the object"}
    suspects = frozenset(heat) if learned else frozenset()
    fired = {rule: verdict.state in ("alarm", "warning") for rule, verdict in verdicts.items()}
    fired["heat"] = bool(suspects & before.get("heat", frozenset()))
    gaps = {rule: result.gap.overall for rule, result in results.items()}
    shown = {rule: (gap.value, gap.low, gap.high) for rule, gap in gaps.items()}
    accuracy = results["true masks"]["accuracy"].overall.value
    return {"accuracy": accuracy, "learned": learned, "gaps": shown, "fired": fired}, {**verdicts, "heat": suspects}


def ring_result(network: nn.Module, probes: ProbeSet) -> AuditResult:
    """What `audit_model` finds if masks are neither given nor can be estimated."""
    donors = choose_donors(probes.labels, torch.ones(len(probes), dtype=torch.bool), probes.fingerprint)
    inside = ~ring((SIDE, SIDE)).expand(len(probes), SIDE, SIDE)
    arms = [with_ring_of(probes.images, inside, probes.images[donor[:, 0]]) for donor in (donors.same, donors.other)]
    whole, same, other = (right(network, images, probes.labels) for images in (probes.images, *arms))
    measures = {"accuracy": measure(whole, probes.labels), "ring_gap": measure(same - other, probes.labels)}
    return AuditResult(measures, "none", probes.labels, probes.class_names, torch.empty(0), donors, probes.image_ids)


def right(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(N,) 1 where the answer is right, else 0."""
    with torch.no_grad():
        return (network(images).argmax(dim=1) == targets).float()


def small_network() -> nn.Module:
    """Three convolutions, global average pooling, one linear layer."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))


@cache
def handwriting(digit: int, split: str) -> Tensor:
    """Samples of a digit, (M, 8, 8) in [0, 1]; of every five, three are for training and two for validation."""
    scans, labels = load_digits(return_X_y=True)
    glyphs = torch.from_numpy(scans[labels == digit]).float().reshape(-1, 8, 8) / 16
    return glyphs[(torch.arange(len(glyphs)) % 5 < 3) == (split == "train")]


def draw(kind: str, agreement: float, seed: int, count: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, 32, 32), targets (N,) and masks (N, 32, 32): the digit's ink and one pixel around it."""
    chance = torch.Generator().manual_seed(2 * seed + (split == "train"))
    every = 5 if kind == "imbalance 4:1" and split == "train" else 2
    digits = (torch.arange(count) % every == 0).long()
    wrong = torch.rand(count, generator=chance) < (0.12 if kind == "wrong labels" else 0.0)
    targets = torch.where(wrong, 1 - digits, digits)
    marked = torch.where(torch.rand(count, generator=chance) < agreement, targets, 1 - targets).bool()
    ink = torch.empty(count, 1, SIDE, SIDE)
    for index, digit in enumerate((3, 8)):
        glyphs, number = handwriting(digit, split), int((digits == index).sum())
        ink[digits == index] = placed(glyphs[torch.randint(len(glyphs), (number,), generator=chance)], chance)
    scene = scenery(kind, marked, chance)
    images = scene * (1 - ink) + ink * (0.85 + 0.15 * torch.rand(count, 1, 1, 1, generator=chance))
    masks = F.max_pool2d((ink > 0.4).float(), 3, stride=1, padding=1).squeeze(1) > 0
    return (images - 0.4) / 0.25, targets, masks


def placed(glyphs: Tensor, chance: torch.Generator) -> Tensor:
    """Glyphs (N, 8, 8) at random sizes and places, white on nothing: (N, 1, 32, 32) in [0, 1]."""
    count = len(glyphs)
    size = 14 + 6 * torch.rand(count, generator=chance)
    shift = (torch.rand(count, 2, generator=chance) * 2 - 1) * ((SIDE - size) / SIDE).unsqueeze(1)
    theta = torch.cat([torch.eye(2).expand(count, 2, 2), -shift.unsqueeze(2)], dim=2) * (SIDE / size)[:, None, None]
    grid = F.affine_grid(theta, [count, 1, SIDE, SIDE], align_corners=False)
    smooth = F.grid_sample(glyphs.unsqueeze(1), grid, mode="bicubic", align_corners=False)
    return torch.sigmoid(14 * (smooth - 0.5))


def scenery(kind: str, marked: Tensor, chance: torch.Generator) -> Tensor:
    """Backgrounds (N, 3, 32, 32) with light and shade; the mark of a bias is on those that are marked (N,) bool."""
    count = len(marked)
    color = 0.25 + 0.3 * torch.rand(count, 3, generator=chance)
    color = torch.full((count, 3), 0.4) if kind == "plain" else color
    if kind == "color":
        color = torch.where(marked.unsqueeze(1), torch.tensor([0.3, 0.45, 0.35]), torch.tensor([0.5, 0.35, 0.35]))
        color = color + 0.04 * torch.randn(count, 3, generator=chance)
    coarse, fine = (torch.randn(count, 1, cells, cells, generator=chance) for cells in (4, 16))
    shade = sum(F.interpolate(noise, size=(SIDE, SIDE), mode="bicubic") for noise in (coarse, fine))
    scene = color[:, :, None, None] * (0.15 * shade).exp()
    phase = 6.3 * torch.rand(count, 1, 1, generator=chance)
    if kind == "texture":  # faint stripes, lying or standing
        stripes = torch.sin(torch.arange(SIDE) * 6.3 / 5 + phase).expand(-1, SIDE, -1)
        stripes = torch.where(marked[:, None, None], stripes, stripes.mT)
        scene = scene * (1 + 0.2 * stripes.unsqueeze(1))
    where = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    where[1:6, 1:6] = kind == "tag"
    if kind == "frame":
        where = ~F.pad(~where[4:, 4:], (2, 2, 2, 2))
    where = where & marked[:, None, None, None]
    return torch.where(where, torch.tensor([0.85, 0.65, 0.2])[:, None, None], scene).clamp(0, 1)


def after_warm_up(run: Run) -> list[Look]:
    """The looks at which the accuracy was clearly above chance, and those that came after the first of them."""
    learned = [each["learned"] for each in run["looks"]]
    return run["looks"][learned.index(True) :] if any(learned) else []


def alarm_at(run: Run, rule: str) -> float:
    """At which look after the warm-up, counted from 1, a rule first fired; infinity if never."""
    return next((at for at, each in enumerate(after_warm_up(run), 1) if each["fired"][rule]), inf)


def share(hits: int, count: int) -> str:
    """A share with its 95% interval (Wilson)."""
    low, high = wilson(hits, count)
    return f"{hits}/{count} [{low:.2f}, {high:.2f}]"


def sizes(runs: list[Run]) -> str:
    """For each bias and agreement: how large the effect is, what each gap measures of it, and what was found when."""
    rows = []
    for kind, agreement in sorted({(run["kind"], run["agreement"]) for run in runs}):
        members = [run for run in runs if (run["kind"], run["agreement"]) == (kind, agreement)]
        early = [each for run in members for each in after_warm_up(run)[:LOOKS_ALLOWED]]
        columns = [[each["accuracy"] for each in early], [each["effect"] for each in early]]
        columns += [[each["gaps"][rule][0] for each in early] for rule in RULES[:3]]
        columns += [[run["looks"][-1]["effect"] for run in members]]
        times = {rule: [at for run in members if (at := alarm_at(run, rule)) < inf] for rule in RULES}
        cells = [f"{len(at)}/{len(members)}" + (f", look {median(at):g}" if at else "") for at in times.values()]
        rows.append((kind, agreement, *(f"{median(column):.2f}" for column in columns), *cells))
    gaps = [f"gap, {rule}" for rule in RULES[:3]]
    return table(("bias", "agreement", "accuracy", "effect", *gaps, "last effect", *RULES), rows)


def shares(runs: list[Run], by: str) -> str:
    """For each rule, and each agreement or kind of data: the share of runs, and of looks, in which it fired."""
    rows = []
    for rule in RULES:
        for value in (*sorted({run[by] for run in runs}), "all"):
            members = [run for run in runs if value in (run[by], "all")]
            fired = [each["fired"][rule] for run in members for each in after_warm_up(run)]
            times = [alarm_at(run, rule) for run in members]
            counts = [share(sum(at <= limit for at in times), len(times)) for limit in (LOOKS_ALLOWED, EPOCHS)]
            rows.append((rule, value, *counts, share(sum(fired), len(fired))))
    return table(("rule", by, f"runs, within {LOOKS_ALLOWED} looks", "runs, ever", "looks"), rows)


def by_effect(runs: list[Run]) -> str:
    """For each size of the effect, the smaller one of a look and the look before: the share of looks with an alarm."""
    looks = [pair for run in runs for pair in pairwise(after_warm_up(run))]
    rows = []
    for low, high in pairwise(EFFECTS):
        members = [now for before, now in looks if low <= min(before["effect"], now["effect"]) < high]
        found = [share(sum(now["fired"][rule] for now in members), len(members)) for rule in RULES]
        rows.append((f"{max(low, 0):g} to {min(high, 1):g}", *found))
    return table(("effect", *RULES), rows)


if __name__ == "__main__":
    main()
