"""What do tools that look at the data alone say about the data of `bias_detection.py`?

cleanlab's Datalab, two checks of Deepchecks, and `AuditResult.data` ask whether one property of an image, such as its
brightness, gives the class away. They need labels, but no network; the last looks at masks, too, where there are any.
They get the images that the networks of `bias_detection.py` learn from, though fewer, and those of the validation where
a check compares the two. Each is asked as its documentation does, with its own thresholds.

The first two are needed by nothing else, and Deepchecks runs with older versions of others only. Give each an
environment of its own, and run the script in both; what they say is collected in one file, and what is there is not
asked again:

    pip install . scikit-learn "cleanlab[image]" datasets
    pip install . "deepchecks[vision]" "numpy<2" "pandas<3" "scikit-learn<1.6" "setuptools<81"
"""

import argparse
import contextlib
import io
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from bias_data import DIGITS, ELSEWHERE, IN_BACKGROUND, MEAN, SHAPES, STD, draw, has_photos
from bias_tables import BY_CHANCE, share
from setting import add_line, lines_of, table

from cam_callbacks.audit.properties import data_properties

AGREEMENTS = (1.0, 0.8, 0.6, 0.9, 0.7)  # complete ones come first, if it is stopped
OUT = Path(__file__).parents[1] / "build" / "data_rivals.jsonl"
USED = ("numpy", "pandas", "scikit-learn", "torch")
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images, targets and masks, which only ours looks at
Said = dict[str, list[str]]  # by rule, the properties that give the class away
Run = dict[str, Any]


def main() -> None:
    """Ask the rivals that are installed about the data that is not in the file, and print the tables of all that is."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="seeds of each kind and agreement")
    options.add_argument("--agreements", type=float, nargs="+", default=AGREEMENTS, help="shares that have the mark")
    options.add_argument("--images", type=int, default=512, help="images of each split")
    options.add_argument("--out", type=Path, default=OUT, help="one line of JSON for each data set and rival")
    options.add_argument("--short", action="store_true", help="a round of four kinds, in a file of its own")
    args = options.parse_args()
    torch.set_num_threads(1)
    planted, clean = (*IN_BACKGROUND, *ELSEWHERE), (*DIGITS, *SHAPES)
    if args.short:
        planted, clean, args.agreements = ("color", "blur"), ("natural colors", "ring, disc on blotches"), (1.0,)
        args.rounds, args.images, args.out = 1, 128, args.out.with_stem(f"{args.out.stem}_short")
    clean = tuple(kind for kind in clean if has_photos() or not kind.endswith("photos"))
    wanted = [
        (kind, agreement, seed)
        for agreement in (BY_CHANCE, *args.agreements)
        for seed in range(args.rounds)
        for kind in ((*clean, *planted) if agreement == BY_CHANCE else planted)
    ]
    for rival, ask in RIVALS.items():
        try:
            versions = {name: version(name) for name in (rival, *USED)}
        except PackageNotFoundError as missing:
            print(f"{rival} is not asked: {missing}; see --help")
            continue
        done = [(run["rival"], run["kind"], run["agreement"], run["seed"], run["images"]) for run in lines_of(args.out)]
        for number, (kind, agreement, seed) in enumerate(wanted, 1):
            if (rival, kind, agreement, seed, args.images) in done:
                continue
            training, validation = (draw(kind, agreement, seed, args.images, split) for split in ("train", "val"))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                said = ask(training, validation)
            run = {"rival": rival, "kind": kind, "agreement": agreement, "seed": seed, "images": args.images}
            run |= {"said": said, "versions": versions, "date": date.today().isoformat()}
            add_line(args.out, run)
            print(f"{rival}, {number} of {len(wanted)}: {kind}, {agreement:g}", flush=True)
    print_tables(lines_of(args.out))


def pixels(images: torch.Tensor) -> list[Any]:
    """Each image as an array of uint8 (32, 32, 3), as it would be in a file."""
    stored = ((images * STD + MEAN).clamp(0, 1) * 255).round().to(torch.uint8)
    return list(stored.permute(0, 2, 3, 1).numpy())


def ask_cleanlab(training: Part, validation: Part) -> Said:
    """Return the properties whose score `Datalab.report` would show."""
    from cleanlab import Datalab
    from datasets import Dataset
    from PIL import Image

    images = [Image.fromarray(each) for each in pixels(training[0])]
    lab = Datalab(
        Dataset.from_dict({"image": images, "label": training[1].tolist()}), label_name="label", image_key="image"
    )
    lab.find_issues()
    found = lab.get_info("spurious_correlations")
    scores = found["correlations_df"].set_index("property")["score"]
    names = [name.removesuffix("_score") for name in scores[scores < found["threshold"]].index]
    return {f"Datalab: score below {found['threshold']:g}": names}


def ask_deepchecks(training: Part, validation: Part) -> Said:
    """Return the properties that a condition of each check names."""
    from deepchecks.vision import VisionData
    from deepchecks.vision.checks import PropertyLabelCorrelation, PropertyLabelCorrelationChange

    data = [
        VisionData(
            [{"images": pixels(images), "labels": targets.tolist()}],
            task_type="classification",
            label_map={0: "first", 1: "second"},
            reshuffle_data=False,  # the images are drawn at random
        )
        for images, targets, _ in (training, validation)
    ]
    alone = PropertyLabelCorrelation().add_condition_property_pps_less_than()
    change = PropertyLabelCorrelationChange().add_condition_property_pps_in_train_less_than()
    change.add_condition_property_pps_difference_less_than()
    said: Said = {}
    for check, parts in ((alone, data[:1]), (change, data)):
        result = check.run(*parts, with_display=False)
        for condition in result.conditions_results:
            names = [] if condition.is_pass() else [name for name in result.value if f"'{name}'" in condition.details]
            if not condition.is_pass() and not names:
                raise RuntimeError(condition.details)
            said[f"{type(check).__name__}: {condition.name.replace('is less than', 'not below')}"] = names
    return said


def ask_ours(training: Part, validation: Part) -> Said:
    """Return the properties that the verdict of an audit would warn of, with masks and without.

    Apart from these, those that the object is a part of, such as of the whole image: they may tell the class rightly.
    """
    images, targets, masks = training
    found = {"with masks": data_properties(images, targets, masks), "without masks": data_properties(images, targets)}
    said: Said = {}
    for kind, shows_object in (("AuditResult.data", False), ("what shows the object", True)):
        for name, properties in found.items():
            told = [each for each in properties if each.gives_away and each.shows_object == shows_object]
            said[f"{kind}, {name}"] = [f"{each.name} of the {each.where}" for each in told]
    return said


RIVALS: dict[str, Callable[[Part, Part], Said]] = {
    "cleanlab": ask_cleanlab,
    "deepchecks": ask_deepchecks,
    "cam_callbacks": ask_ours,
}


def print_tables(runs: Sequence[Run]) -> None:
    """Print a table for each rule of each rival, and one that sums them up, as Markdown."""
    rules = list(dict.fromkeys(rule for run in runs for rule in run["said"]))
    for rule in rules:
        print(f"\n{rule}\n\n{found_by_kind(runs, rule)}")
    print(f"\nAll rules\n\n{summary(runs, rules)}\n")
    for rival in RIVALS:
        members = [run for run in runs if run["rival"] == rival]
        if members:
            versions = sorted({f"{name} {number}" for run in members for name, number in run["versions"].items()})
            seeds, images, dates = (sorted({run[key] for run in members}) for key in ("seed", "images", "date"))
            counted = f"{len(members)} data sets of {images} images, seeds {seeds}"
            print(f"{rival}: {counted}, on {', '.join(dates)}, with {', '.join(versions)}")


def found_by_kind(runs: Sequence[Run], rule: str) -> str:
    """For each kind of data and agreement: in how many data sets a rule found something, and which properties."""
    asked = [run for run in runs if rule in run["said"]]
    agreements = sorted({run["agreement"] for run in asked})
    rows = []
    for kind in dict.fromkeys(run["kind"] for run in asked):
        members = [run for run in asked if run["kind"] == kind]
        cells = [
            found(rule, same) if (same := [run for run in members if run["agreement"] == agreement]) else ""
            for agreement in agreements
        ]
        names = Counter(name for run in members for name in run["said"][rule])
        rows.append((kind, *cells, ", ".join(f"{name} ({count})" for name, count in names.most_common())))
    return table(("data", *(f"{agreement:g}" for agreement in agreements), "properties"), rows)


def found(rule: str, runs: Sequence[Run]) -> str:
    """In how many data sets a rule found something, of how many."""
    return f"{sum(bool(run['said'][rule]) for run in runs)}/{len(runs)}"


def summary(runs: Sequence[Run], rules: Sequence[str]) -> str:
    """For each rule: the share of data sets in which it found something, where something is planted and where not."""
    clean = [run for run in runs if run["agreement"] == BY_CHANCE]
    planted = [run for run in runs if run["agreement"] != BY_CHANCE]
    groups = {
        "in the background": [run for run in planted if run["kind"] in IN_BACKGROUND],
        "elsewhere": [run for run in planted if run["kind"] in ELSEWHERE],
        "nothing planted": clean,
        "nothing planted, as many of each class": [run for run in clean if "imbalance" not in run["kind"]],
    }
    rows = []
    for rule in rules:
        asked = [[run for run in members if rule in run["said"]] for members in groups.values()]
        rows.append((rule, *(share(sum(bool(run["said"][rule]) for run in each), len(each)) for each in asked)))
    return table(("rule", *groups), rows)


if __name__ == "__main__":
    main()
