"""How often is a gap at the threshold suspected in a whole run, and how soon is a larger one found?

Nothing is trained: answers are drawn. At each look there are 128 images, of which half stay the same, or all. In each
arm a share of the answers is wrong whatever the background; of the others a share, the gap, follows the background.
What an image does stays the same from look to look. `judge` is asked as in a training.

At the threshold a suspicion is false; it is promised in at most 5% of the runs, whatever their length, and an alarm in
1%.
"""

import argparse
from dataclasses import replace

import torch
from setting import save, table, workers

from cam_callbacks import AuditResult, Verdict, judge
from cam_callbacks.audit.donors import choose_donors
from cam_callbacks.audit.statistics import measure, wilson

IMAGES, DONORS, POOL, WRONG, THRESHOLD = 128, 2, 100_000, 0.05, 0.05
LENGTHS, CLASSES, GAPS = (1, 20, 200), (2, 10, 20), (0.1, 0.15, 0.2, 0.3)
Row = tuple[int, float, int, bool]  # looks, gap, classes, whether half of the images are drawn anew


def main() -> None:
    """Simulate, print both tables, write JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, help="runs a row; 100, or 20 in the short form")
    options.add_argument("--processes", type=int, default=1, help="runs that are simulated at the same time")
    options.add_argument("--short", action="store_true", help="at most ten looks at two classes")
    args = options.parse_args()
    lengths, classes = ((1, 10), CLASSES[:1]) if args.short else (LENGTHS, CLASSES)
    runs = args.runs or (20 if args.short else 100)
    at_threshold: list[Row] = [
        (length, THRESHOLD, count, are_fresh) for count in classes for length in lengths for are_fresh in (True, False)
    ]
    above: list[Row] = [(5, gap, 2, True) for gap in GAPS]
    everything = [(*row, seed) for row in (*above, *at_threshold) for seed in range(runs)]
    with workers(args.processes) as pool:
        results = list(pool.map(run_of, *zip(*everything, strict=True), chunksize=4))
    states = {row: results[at * runs : (at + 1) * runs] for at, row in enumerate((*above, *at_threshold))}
    rows, found = [], []
    for row in at_threshold:
        shares = [share(sum(state in each for each in states[row]), runs) for state in ("suspicion", "alarm")]
        rows.append((row[2], row[0], "half" if row[3] else "none", *shares))
    for row in above:
        soon = [share(sum("alarm" in each[:looks] for each in states[row]), runs) for looks in (2, 3, 5)]
        found.append((row[1], *soon))
    print("\nGap at the threshold:\n")
    print(table(("classes", "looks", "images drawn anew", "runs with a suspicion", "with an alarm"), rows))
    print("\nAlarms of two classes, half of the images drawn anew:\n")
    print(table(("gap", "within 2 looks", "3 looks", "5 looks"), found))
    save("error_rates", {"at the threshold": rows, "found": found})


def run_of(looks: int, gap: float, classes: int, are_fresh: bool, seed: int) -> list[str]:
    """Return the states of the verdicts of a run."""
    draw = torch.Generator().manual_seed(seed)
    follows = torch.rand(POOL, generator=draw) < gap
    states: list[str] = []
    verdict: Verdict | None = None
    stay = IMAGES // 2 if are_fresh else IMAGES
    for number in range(looks):
        fresh = stay + torch.randperm(POOL - stay, generator=draw)[: IMAGES - stay]
        ids = torch.cat([torch.arange(stay), fresh])
        ids = ids[(ids % classes).argsort(stable=True)]
        verdict = judge(look_at(ids, follows[ids], classes, f"{seed:08x}{number:08x}", draw), verdict)
        states.append(verdict.state)
    return states


def look_at(
    ids: torch.Tensor, follows: torch.Tensor, classes: int, fingerprint: str, draw: torch.Generator
) -> AuditResult:
    """Return what an audit of these images would find."""
    labels, everyone = ids % classes, torch.ones(len(ids), dtype=torch.bool)
    donors = choose_donors(labels, everyone, fingerprint, DONORS)
    same, other = (torch.rand(len(ids), DONORS, generator=draw) >= WRONG for _ in range(2))
    gaps = same.float() - (other & ~follows.unsqueeze(1)).float()
    accuracy = measure(everyone.float(), labels)
    measures = {"accuracy": accuracy, "bg_gap": replace(accuracy, values=gaps.mean(dim=1), by_donor=gaps)}
    return AuditResult(measures, "given", labels, (), torch.zeros(len(ids), 3), donors, ids)


def share(hits: int, count: int) -> str:
    """A share with its 95% interval (Wilson)."""
    low, high = wilson(hits, count)
    return f"{hits}/{count} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
