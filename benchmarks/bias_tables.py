"""The tables of `bias_detection.py`."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, nan
from statistics import mean, median, stdev
from typing import Any

from bias_data import DIGITS, ELSEWHERE, IN_BACKGROUND, PAIRS, SCENES, SHAPES
from setting import table

from cam_callbacks.audit.statistics import wilson

RULES = ("true masks", "estimated masks", "ring", "heat", "old rule")
VERDICTS = ("true masks", "accuracy alone", "estimated masks", "ring")  # that `judge` gives
BY_CHANCE = 0.5  # the agreement at which a mark goes with no class
LOOKS_ALLOWED = (3, 5)  # so many looks after the warm-up an alarm is still in time
EFFECTS = (-1, 0.05, 0.1, 0.2, 0.4, 0.7, 2)
FOUND = ("alarm", "suspicion", "warning")
Look = Run = dict[str, Any]


def print_tables(runs: Sequence[Run]) -> None:
    """Print all tables, as Markdown."""
    inside, outside = (_of(runs, kinds) for kinds in (IN_BACKGROUND, ELSEWHERE))
    clean = [run for run in runs if run["agreement"] == BY_CHANCE]
    versions = sorted({f"{name} {version}" for run in runs for name, version in run["versions"].items()})
    seconds = sum(run["seconds"] for run in runs)
    seeds = sorted({run["seed"] for run in runs})
    counted = f"{len(runs)} networks, seeds {seeds}, {', '.join(versions)}, {seconds / 60:.0f} minutes"
    parts = {
        counted: "",
        "False alarms, by network": false_alarms(clean),
        "Clean networks": clean_measures(clean),
        "Accuracy, heat and alarm": ladder(inside),
        "Found, by the size of the effect": by_size(inside, _effect),
        "Found, by the size of the gap": by_size(inside, lambda run: _effect(run) * (2 * run["agreement"] - 1)),
        "In the background": sizes(inside),
        "Elsewhere": sizes(outside),
        "The second test": second_tests(runs),
    }
    print("", *(f"{title}\n\n{part}" for title, part in parts.items()), sep="\n\n")


def _of(runs: Sequence[Run], kinds: Sequence[str]) -> list[Run]:
    return [run for run in runs if run["kind"] in kinds]


def after_warm_up(run: Run) -> list[Look]:
    """The looks at which the accuracy was clearly above chance, and those that came after the first of them."""
    learned = [each["learned"] for each in run["looks"]]
    return run["looks"][learned.index(True) :] if any(learned) else []


def first_at(run: Run, is_so: Callable[[Look], bool]) -> float:
    """At which look after the warm-up, counted from 1, something was so for the first time; infinity if never."""
    return next((at for at, each in enumerate(after_warm_up(run), 1) if is_so(each)), inf)


def alarm_at(run: Run, rule: str) -> float:
    """At which look after the warm-up a rule first gave an alarm, or the warning of a ring."""
    return first_at(run, lambda look: look["fired"][rule])


def share(hits: int, count: int) -> str:
    """A share with its 95% interval (Wilson)."""
    low, high = wilson(hits, count)
    return f"{hits}/{count} [{low:.2f}, {high:.2f}]" if count else "-"


def _with(runs: Sequence[Run], rule: str) -> list[Run]:
    """The runs that learned enough to be judged, and were, by a rule."""
    return [run for run in runs if after_warm_up(run) and rule in run["looks"][0]["fired"]]


def _middle(values: Sequence[float]) -> str:
    known = [value for value in values if value is not None and value == value]
    return f"{median(known):.2f}" if known else "-"


def _families(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups = {kind: [kind] for kind in DIGITS}
    groups |= {pair: [kind for kind in SHAPES if kind.startswith(pair)] for pair in PAIRS}
    groups |= {f"shapes on {scene}": [kind for kind in SHAPES if kind.endswith(scene)] for scene in SCENES}
    groups["marks by chance"] = [*IN_BACKGROUND, *ELSEWHERE]
    groups["all"] = [*DIGITS, *SHAPES, *IN_BACKGROUND, *ELSEWHERE]
    return {name: _of(runs, kinds) for name, kinds in groups.items() if _of(runs, kinds)}


def false_alarms(runs: Sequence[Run]) -> str:
    """For each family of clean data: how many networks were ever suspected, or in alarm."""
    return table(("data", *FALSE_ALARMS), [(name, *found_at_all(members)) for name, members in _families(runs).items()])


_WITHOUT_ALARM = ("true masks", "estimated masks", "ring")
FALSE_ALARMS = (*(f"{rule}: found" for rule in _WITHOUT_ALARM), *(f"{rule}: alarm" for rule in RULES))


def found_at_all(runs: Sequence[Run]) -> list[str]:
    """In how many networks anything was ever found, and in how many there was an alarm: the columns `FALSE_ALARMS`."""
    cells = []
    for rule in _WITHOUT_ALARM:
        judged = _with(runs, rule)
        found = [first_at(run, lambda look, rule=rule: look["states"][rule] in FOUND) < inf for run in judged]
        cells.append(share(sum(found), len(judged)))
    for rule in RULES:
        judged = _with(runs, rule)
        cells.append(share(sum(alarm_at(run, rule) < inf for run in judged), len(judged)))
    return cells


def clean_measures(runs: Sequence[Run]) -> str:
    """For each family of clean data: means of the gaps over networks, and medians over all looks after the warm-up."""
    rows = []
    for name, members in _families(runs).items():
        judged = [run for run in members if after_warm_up(run)]
        gaps = [_mean_gap(judged, rule) for rule in ("true masks", "old rule")]
        rows.append((name, len(members), len(members) - len(judged), *gaps, *_medians(members, slice(None))))
    return table(("data", "networks", "never judged", "mean bg_gap", "mean old bg_gap", *_MEDIANS), rows)


def _mean_gap(runs: Sequence[Run], rule: str) -> str:
    """The mean over networks of their mean gap, with its 95% interval."""
    gaps = [mean(look["gaps"][rule][0] for look in after_warm_up(run)) for run in runs]
    half = 1.96 * stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else nan
    return f"{mean(gaps):.3f} [{mean(gaps) - half:.3f}, {mean(gaps) + half:.3f}]" if gaps else "-"


_MEDIANS = ("accuracy", "bg_gap", "outline_gap", "collage_cost", "recolor_gap", "blur_loss", "old bg_gap")


def _medians(runs: Sequence[Run], which: slice) -> list[str]:
    looks = [each for run in runs for each in after_warm_up(run)[which]]
    columns = [
        [look["accuracy"] for look in looks],
        [look["gaps"]["true masks"][0] for look in looks],
        *([look["measures"][name] for look in looks] for name in _MEDIANS[2:6]),
        [look["gaps"]["old rule"][0] for look in looks],
    ]
    return [_middle(column) for column in columns]


def ladder(runs: Sequence[Run]) -> str:
    """For each agreement, medians of the last look, and how many networks heat or the audit ever gave away."""
    rows = []
    for agreement in sorted({run["agreement"] for run in runs}):
        members = _with([run for run in runs if run["agreement"] == agreement], "true masks")
        last = [run["looks"][-1] for run in members]
        middles = [_middle([look[name] for look in last]) for name in ("accuracy", "worst_group", "effect")]
        on_object = _middle([look["measures"]["heat_on_object"] for look in last])
        found = [share(sum(alarm_at(run, rule) < inf for run in members), len(members)) for rule in _OF_LADDER]
        rows.append((agreement, len(members), *middles, on_object, *found))
    heads = ("agreement", "networks", "accuracy", "worst group", "effect", "heat_on_object")
    return table((*heads, *(f"{rule}: alarm" for rule in _OF_LADDER)), rows)


_OF_LADDER = ("heat", "true masks")


def by_size(runs: Sequence[Run], size: Callable[[Run], float]) -> str:
    """For each size of the effect, or of the gap that it leaves: the share of networks in alarm in time."""
    rows = []
    for low, high in pairwise(EFFECTS):
        members = [run for run in runs if after_warm_up(run) and low <= size(run) < high]
        cells = [cell for rule in VERDICTS for cell in _in_time(_with(members, rule), rule)]
        rows.append((f"{max(low, 0):g} to {min(high, 1):g}", *cells))
    return table(("size", *(f"{rule}, {number} looks" for rule in VERDICTS for number in LOOKS_ALLOWED)), rows)


def _effect(run: Run) -> float:
    looks = after_warm_up(run)[: LOOKS_ALLOWED[-1]]
    return median(look["effect"] for look in looks) if looks else nan


def _in_time(runs: Sequence[Run], rule: str) -> list[str]:
    times = [alarm_at(run, rule) for run in runs]
    return [share(sum(at <= limit for at in times), len(times)) for limit in LOOKS_ALLOWED]


def sizes(runs: Sequence[Run]) -> str:
    """For each mark and agreement: how large the effect is, what is measured of it, and how many were found when."""
    rows = []
    for kind, agreement in sorted({(run["kind"], run["agreement"]) for run in runs}):
        members = [run for run in runs if (run["kind"], run["agreement"]) == (kind, agreement)]
        found = []
        for rule in RULES:
            judged = _with(members, rule)
            times = [at for run in judged if (at := alarm_at(run, rule)) < inf]
            found.append(f"{len(times)}/{len(judged)}" + (f", look {median(times):g}" if times else ""))
        effect = _middle([_effect(run) for run in members])
        rows.append((kind, agreement, effect, *_medians(members, slice(LOOKS_ALLOWED[-1])), *found))
    return table(("mark", "agreement", "effect", *_MEDIANS, *RULES), rows)


def second_tests(runs: Sequence[Run]) -> str:
    """For each kind of data: at how many of the looks with a finding the second test agreed."""
    groups = {kind: _of(runs, [kind]) for kind in (*IN_BACKGROUND, *ELSEWHERE)}
    for name, is_clean in (("all planted", False), ("all clean", True)):
        groups[name] = [run for run in runs if (run["agreement"] == BY_CHANCE) == is_clean]
    rows = []
    for name, members in groups.items():
        looks = [look for run in members for look in after_warm_up(run)]
        said = Counter(look["second_test"] for look in looks if look["states"]["true masks"] in FOUND)
        rows.append((name, len(looks), share(said["agrees"], said.total()), said["silent"], said["needed"]))
    return table(("data", "looks", "agrees, where something was found", "silent", "needed, and silent"), rows)
