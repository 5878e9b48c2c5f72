"""In words: what answers depend on besides the background."""

from __future__ import annotations

import math

from cam_callbacks.audit.result import FAIR_COST, MAX_COST, AuditResult
from cam_callbacks.audit.statistics import Estimate
from cam_callbacks.audit.verdict import Finding, Verdict
from cam_callbacks.audit.words import words_of

DIGITS = 2
"""Decimals of the numbers of a verdict."""

_NOTHING_CHANGED = {  # what it may mean that an exchange makes no difference at all
    "compression_gap": "they use none of it, or no image shows traces of JPEG, or their qualities are alike",
    "mirror_gap": "they use none of it, or no object faces a side clearly",
    "position_gap": "they use none of it, or objects lie alike",
    "size_gap": "they use none of it, or objects are of one size",
    "detail_gap": "they use none of it, or images are alike in it",
}


def finding_text(result: AuditResult, finding: Finding, is_alone: bool) -> str:
    """Say that answers depend on something else than the background."""
    (further,) = (each for each in result.further if each.gap == finding.gap)
    weaknesses = [
        "no masks were given" * further.lacks_masks,
        "the exchange itself costs right answers" * (further.cost > FAIR_COST),
        "this exchange changes other things, too" * further.warns_only,
    ]
    weakness = "; ".join(filter(None, weaknesses))
    outlook = "an alarm if the next one is as sure"
    if weakness:
        outlook = f"a warning if the next one finds it, too, and never an alarm: {weakness}"
    elif is_alone:
        outlook = "one look alone gives no alarm"
    start, end = {
        "alarm": ("ALARM: answers depend on", "Found at this look, and at the one before."),
        "warning": ("Warning: answers seem to depend on", f"A weak test: {weakness}."),
    }.get(finding.state, ("Suspicion: answers seem to depend on", f"Found at this look; {outlook}."))
    return f"**{start} {finding.title}** (found in: {found_in(result, finding)}). {end}"


def found_in(result: AuditResult, found: Verdict | Finding) -> str:
    """Name what a dependence was found in: all classes together, and single ones; a single number is not all."""
    is_one = len(result.gap.per_class) == 1 and bool(found.classes)
    names = [f"all {words_of(result.task).many} together"] * (found.overall and not is_one)
    return ", ".join([*names, *map(result.class_names.name, found.classes)])


def further_text(result: AuditResult) -> str:
    """Say what else was exchanged, with what came of it."""
    lines, words = [], words_of(result.task)
    for each in result.further:
        line = f"- {each.title}, `{each.gap}`: {shown(result[each.gap].overall)}"
        if each.placebo is not None:
            line += f"; its placebo {shown(result[each.placebo].overall)}"
        cost = "what the exchange itself costs is not known"
        if not math.isnan(each.cost):
            of_what = "the right answers" if words.right == "accuracy" else words.right_is
            cost = f"the exchange itself costs {max(each.cost, 0):.2f} of {of_what}"
        differences = result[result.forms_of(each.gap)[-1]]
        if differences.overall.count and not differences.values.nan_to_num().any():
            meaning = _NOTHING_CHANGED.get(each.gap, "does it change the images?")
            cost += f"; all answers are the same with both: {meaning}"
        lines.append(f"{line}; {cost}{', too much to be judged' * (each.cost > MAX_COST)}")
    if not lines:
        return ""
    whose = "an image of the same class and with one of another class"
    if words.of_other != "of another class":
        whose = f"that {words.of_same}, and with that {words.of_other}"
    head = f"Also exchanged, each with {whose} (0: no dependence):"
    return "\n".join([head, "", *lines])


def shown(estimate: Estimate, digits: int = DIGITS) -> str:
    """Return a number with its interval."""
    if estimate.count == 0:
        return "not known"
    value, low, high = (round(each, digits) + 0.0 for each in (estimate.value, estimate.low, estimate.high))  # no -0
    return f"{value:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")
