"""Which of the exchanges besides the background finds which bias, and how often does one find what is not there?

Networks are trained and audited as in `bias_detection.py`, with all built-in interventions. In some data the place of
the object goes with the class, its size, the way it faces, blur, JPEG quality, a watermark over all of the image, or
the color of the background; in other data nothing does, though qualities and ways may vary. The effect is the truth to
compare with: the accuracy that it costs to draw the same images with the mark of the other class.

Each network is a line of a file; networks that are in it are not trained again.
"""

import argparse
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bias_data import ELSEWHERE, FACING
from bias_detection import epochs_of
from setting import lines_of, run_missing, table

from cam_callbacks import Verdict, __version__, audit_model, judge
from cam_callbacks.audit.statistics import wilson

INTERVENTIONS = ("position", "size", "detail", "compression", "mirror")
PLANTED = (*ELSEWHERE, "color", FACING)
VARYING = ("JPEG quality", FACING)  # in clean data, whatever the class
CLEAN = (
    "plain",
    "natural colors",
    "disc, square on blotches",
    "diamond, cross on stripes",
    "ring, disc on any colors",
    *VARYING,
)
AGREEMENTS = (1.0, 0.9)
IMAGES = 128
OUT = Path(__file__).parents[1] / "build" / "interventions.jsonl"
Run = dict[str, Any]


def main() -> None:
    """Train and audit the networks that are not in the file, and print the tables of all that are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=6, help="networks of each kind; each round has one agreement")
    options.add_argument("--kinds", nargs="+", choices=sorted({*PLANTED, *CLEAN}), help="only these")
    options.add_argument("--processes", type=int, default=1, help="networks that are trained at the same time")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each network")
    options.add_argument("--short", action="store_true", help="one round of three kinds, in a file of its own")
    args = options.parse_args()
    planted, clean = PLANTED, CLEAN
    if args.short:
        planted, clean, args.rounds = ("position", "blur"), CLEAN[:1], 1
        args.out = args.out.with_stem(f"{args.out.stem}_short")
    wanted = [
        (kind, agreement, seed)
        for seed in range(args.rounds)
        for kinds, agreement in ((clean, 0.5), (planted, AGREEMENTS[seed % len(AGREEMENTS)]))
        for kind in kinds
        if args.kinds is None or kind in args.kinds
    ]
    run_missing(run_of, wanted, ("kind", "agreement", "seed"), args)
    print_tables(lines_of(args.out))


def run_of(kind: str, agreement: float, seed: int) -> Run:
    """Train and audit one network: a line of the file."""
    start, looks = time.perf_counter(), []
    verdict: Verdict | None = None
    for network, probes, effect in epochs_of(kind, agreement, seed, IMAGES):
        result = audit_model(network, probes, num_donors=1, interventions=INTERVENTIONS)
        verdict = judge(result, verdict)
        found = {each.gap: each.state for each in verdict.findings}
        names = [result.gap_name, *(each.gap for each in result.further)]
        looks.append(
            {
                **effect,
                "accuracy": result["accuracy"].overall.value,
                "found": found | {"bg_gap": verdict.background},
                "gaps": {name: result[name].overall.value for name in names},
                "placebos": {each.gap: result[each.placebo].overall.value for each in result.further if each.placebo},
                "costs": {each.gap: each.cost for each in result.further},
            }
        )
    versions = {"cam_callbacks": __version__, "torch": torch.__version__}
    run: Run = {"kind": kind, "agreement": agreement, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    return run | {"versions": versions, "looks": looks}


def print_tables(runs: list[Run]) -> None:
    """Print what was found by what, and the false alarms."""
    names = ["bg_gap", *(f"{name}_gap" for name in INTERVENTIONS)]
    rows = []
    for kind in dict.fromkeys((*PLANTED, *CLEAN)):
        for agreement in (*AGREEMENTS, 0.5):
            own = [run for run in runs if (run["kind"], run["agreement"]) == (kind, agreement)]
            if own:
                rows.append(row_of(kind, agreement, own, names))
    header = ("what goes with the class", "agreement", "networks", "accuracy", "effect", *names)
    print("\nMean gap at the last look, and in how many networks there was an alarm or a warning at any look:\n")
    print(table(header, rows))
    clean = [run for run in runs if run["agreement"] == 0.5]
    for state in ("alarm", "warning", "suspicion") if clean else ():
        count = sum(state in states_of(run, names) for run in clean)
        low, high = wilson(count, len(clean))
        print(f"\nclean networks with {state}: {count} of {len(clean)} [{low:.2f}, {high:.2f}]")
    for which in ("placebos", "costs"):
        values: dict[str, list[float]] = {}
        for run in runs:
            for name, value in run["looks"][-1][which].items():
                values.setdefault(name, []).append(value)
        shown = (f"{name} {mean(each):.3f}, {max(each):.3f}" for name, each in values.items())
        print(f"\n{which}, mean and largest: " + "; ".join(shown))


def row_of(kind: str, agreement: float, runs: list[Run], names: list[str]) -> tuple[str, ...]:
    """A line of the table."""
    last = [run["looks"][-1] for run in runs]
    cells = []
    for name in names:
        states = [{look["found"].get(name) for look in run["looks"]} for run in runs]
        said = sum(bool(each & {"alarm", "warning"}) for each in states)
        cells.append(f"{mean(look['gaps'][name] for look in last):.2f}, {said}")
    shown = (f"{mean(look[what] for look in last):.2f}" for what in ("accuracy", "effect"))
    return (kind, f"{agreement:g}", str(len(runs)), *shown, *cells)


def states_of(run: Run, names: list[str]) -> set[str]:
    """What was said at any look."""
    return {str(look["found"].get(name)) for look in run["looks"] for name in names}


if __name__ == "__main__":
    main()
