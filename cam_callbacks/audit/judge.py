"""The verdict: from the numbers of this look, and what the looks before have found, to a decision."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from torch import Tensor

from cam_callbacks._checks import check_fraction, check_type
from cam_callbacks.audit.evidence import Evidence
from cam_callbacks.audit.measures import OTHER_MASKS, SECOND_TESTS
from cam_callbacks.audit.result import FAIR_COST, MAX_COST, MIN_IMAGES, MIN_PER_CLASS, AuditResult
from cam_callbacks.audit.statistics import wilson
from cam_callbacks.audit.verdict import WORST_FIRST, Finding, HeatState, State, Verdict
from cam_callbacks.audit.wording import verdict_text
from cam_callbacks.audit.words import words_of

_SUSPICION, _ALARM = 0.05, 0.01  # the chance of any false one in a run
_SECOND_LEVEL = 0.025
_WITHOUT_COLLAGE = ("recolor_gap",)  # what a collage breaks, a blur may break too; only a gap has two arms
_RING_THRESHOLD = 0.15
_FOLLOWED = 8  # classes at a time, at most
_WORTH = 0.25  # of the largest score, to be followed
_LEAST = 1e-3  # of a score
_LACK_OF_HEAT = 0.25  # of the object's area: how much less heat than on a flat map counts as away from it
_TAIL = 0.025
_ROUNDING = 1e-4

_Group = int | None
"""A class, or None for all of them together."""
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class _Suspects:
    """The groups whose gap is above the threshold; `certain` are those of which that is as sure as for an alarm."""

    found: frozenset[_Group]
    certain: frozenset[_Group]


def judge(result: AuditResult, previous: Verdict | None = None, threshold: float = 0.05) -> Verdict:
    """Judge the numbers of a look, together with what the last looks have found.

    A class, or all of them together, is suspect if its background gap, in accuracy or in probability (the smaller
    p-value is doubled), is above the threshold, and that gap minus the one of the placebo (`outline_gap`) is, too. This
    is tested on all images of the last five looks, each counted once, by Student's t with errors that know that images
    share donors. At the n-th look of a run the level is 0.05 / (n (n + 1)), half of it for all classes together, the
    rest for the single ones, by Holm's procedure with weights (1979): so the chance of any false suspicion in a run is
    at most 5%, however long it is. An alarm has to follow a suspicion; its level is 0.01 / (n (n - 1)), so that the
    chance of a false one in a run is at most 1%.

    What else is exchanged (`Audit(interventions=...)`) is judged in the same way, each against its placebo if it has
    one; then the background has one half of each level, and all of them together the other half, again by Holm's
    procedure over classes and interventions. No second test is asked for; an exchange that itself costs more than 0.2
    is not judged, and one that costs more than 0.1, or lacks masks that are given, gives a warning only; so do those of
    position and size, which change more than they say.

    Of many classes (`result.drawn_for`) single ones are followed: those that look worst, eight at most, get more
    images at the next look, and are judged by these alone, each against all that were ever followed.

    Where swapping itself costs the model more than 0.2 of its accuracy, it is not a fair test, and only the gap of
    recolored backgrounds is judged. Where it costs more than 0.1, or where masks are estimated, an alarm needs a second
    test that agrees: a recolored or a blurred background. With estimated masks the gap also has to hold with larger and
    with smaller ones. Swapped rings need a gap of at least 0.15, and give a warning only. Nothing is judged before the
    accuracy is clearly above that of always answering the most frequent class.

    Args:
        result: The numbers of this look, from `audit_model`.
        previous: The verdict on the look before; None if there was none. One look alone gives no alarm.
        threshold: The smallest gap that matters.

    Raises:
        TypeError: `previous` is not a Verdict.
        ValueError: `threshold` is not at least 0 and below 1.
    """
    check_fraction("threshold", threshold, "a number of at least 0 and below 1")
    check_type("previous", previous, (Verdict, type(None)), "the verdict on the look before, or None")
    is_weak, smallest = result.mask_source == "none", threshold
    threshold = max(threshold, _RING_THRESHOLD) if is_weak else threshold
    before = None if previous is None else previous.evidence
    if result.task == "embedding" and not result.right.overall.count:  # no class has three images
        few = Verdict("too few images", (), False, {}, "", threshold, evidence=before)
        return _said(result, few, previous)
    if not _has_learned(result):
        return _said(result, Verdict("not learned", (), False, {}, "", threshold, evidence=before), previous)
    evidence = Evidence.of(result) if before is None else before.followed_by(result)
    verdict = Verdict("no alarm", (), False, _heat_states(result), "", threshold, evidence=evidence)
    forms = [name for name in result.forms_of(result.gap_name) if name in evidence.values]
    if evidence.count(result.gap_name) < MIN_IMAGES:
        few = _following(replace(verdict, state="too few images"), forms[-1], frozenset())
        return _said(result, few, previous)
    levels = _levels(evidence, share=0.5 if result.further else 1.0)
    cost = _collage_cost(result)
    is_fair = cost <= MAX_COST
    judged = result.forms_of(result.gap_name) if is_fair else _WITHOUT_COLLAGE
    placebos = dict(zip(result.forms_of("bg_gap"), result.forms_of("outline_gap"), strict=True))
    suspects = _suspects(evidence, judged, threshold, placebos, levels)
    agree = bool(_agreeing_tests(evidence, suspects, threshold)) and _holds_at_other_masks(evidence, threshold)
    needs_second_test = result.mask_source == "estimated" or cost > FAIR_COST
    is_second = previous is not None and bool(previous.overall or previous.classes)
    state: State = "no alarm" if is_fair else "not testable"
    if suspects.found:
        state = "suspicion"
        if is_second and (is_weak or not is_fair):
            state = "warning"
        elif is_second and suspects.certain and (agree or not needs_second_test):
            state = "alarm"
    said = suspects.certain if state == "alarm" else suspects.found
    found = replace(
        _following(verdict, forms[-1], suspects.certain),
        state=state,
        classes=tuple(sorted(group for group in said if group is not None)),
        overall=None in said,
        detectable=_detectable(evidence, judged, threshold, levels) if is_fair else math.nan,
        second_test="agrees" if agree else "needed" if needs_second_test else "silent",
        findings=tuple(_findings(result, evidence, previous, smallest, levels)),
    )
    return _said(result, found, previous)


def _said(result: AuditResult, verdict: Verdict, previous: Verdict | None) -> Verdict:
    """Put a verdict into words; its state is then that of the worst that was found."""
    states = [verdict.state, *(each.state for each in verdict.findings)]
    worst = min(states, key=lambda state: WORST_FIRST.index(state) if state in WORST_FIRST else len(WORST_FIRST))
    text = verdict_text(result, verdict, is_alone=previous is None)
    return replace(verdict, text=text, state=worst, background=verdict.state)


class _Levels(NamedTuple):
    """The levels of a suspicion and of an alarm at this look; those of all looks add up to those of the run."""

    suspicion: float
    alarm: float


def _levels(evidence: Evidence, share: float) -> _Levels:
    """Return the levels, of which the background, or all else together, has a share."""
    number = evidence.num_looks
    return _Levels(share * _SUSPICION / (number * (number + 1)), share * _ALARM / (number * max(number - 1, 1)))


def _collage_cost(result: AuditResult) -> float:
    return result["collage_cost"].overall.value if "collage_cost" in result else 0.0


def _suspects(
    evidence: Evidence, names: tuple[str, ...], threshold: float, placebos: Mapping[str, str], levels: _Levels
) -> _Suspects:
    """Find the groups in which one of the measures is above the threshold."""
    p_values = _p_values(evidence, names, threshold, placebos)
    weights = _weights(p_values)
    return _Suspects(*(_rejected(p_values, weights, level) for level in levels))


def _following(verdict: Verdict, name: str, certain: frozenset[_Group]) -> Verdict:
    """Choose the classes that get more images at the next look: those that look worst, unless they are certain.

    Args:
        verdict: What was found.
        name: The measure by which classes look bad.
        certain: The classes that need no more images.
    """
    evidence = verdict.evidence
    if evidence is None or evidence.followed is None:
        return verdict
    scores = {label: score for label, score in evidence.scores(name).items() if label not in certain}
    least = _WORTH * max(scores.values(), default=0.0)
    worst_first = sorted(scores, key=lambda label: -scores[label])[:_FOLLOWED]
    followed = tuple(sorted(label for label in worst_first if scores[label] >= max(least, _LEAST)))
    return replace(verdict, followed=followed, evidence=evidence.following(followed))


def _p_values(
    evidence: Evidence, names: tuple[str, ...], threshold: float, placebos: Mapping[str, str]
) -> dict[_Group, float]:
    """Return the p-value of each group: that one of the measures is above the threshold in it."""
    p_values: dict[_Group, float] = {}
    groups = set(evidence.labels.tolist())
    if evidence.followed is not None:  # all that ever were count, tested or not
        groups = set(evidence.followed)
        p_values = dict.fromkeys(groups, 1.0)
    for group in (None, *sorted(groups)):
        tests = [_p_value(evidence, name, group, threshold, placebos) for name in names if name in evidence.values]
        known = [p for p in tests if p is not None]
        if known:
            p_values[group] = min(known) * len(known)  # Bonferroni's correction
    return p_values


def _findings(
    result: AuditResult, evidence: Evidence, previous: Verdict | None, threshold: float, levels: _Levels
) -> Iterator[Finding]:
    """Yield what else than the background answers depend on, all of it judged at one level."""
    p_values: dict[tuple[str, _Group], float] = {}
    weights: dict[tuple[str, _Group], int] = {}
    for each in result.further:
        if each.cost > MAX_COST:
            continue
        names = result.forms_of(each.gap)
        placebos = {}
        if each.placebo is not None:
            placebos = dict(zip(names, result.forms_of(each.placebo), strict=True))
        of_groups = _p_values(evidence, names, threshold, placebos)
        p_values |= {(each.gap, group): p for group, p in of_groups.items()}
        weights |= {(each.gap, group): weight for group, weight in _weights(of_groups).items()}
    found, certain = (_rejected(p_values, weights, level) for level in levels)
    before = set() if previous is None else {finding.gap for finding in previous.findings}
    for each in result.further:
        groups = {group for gap, group in found if gap == each.gap}
        if not groups:
            continue
        surely = {group for gap, group in certain if gap == each.gap}
        is_weak = each.warns_only or each.lacks_masks or each.cost > FAIR_COST
        state: State = "suspicion"
        if each.gap in before and is_weak:
            state = "warning"
        elif each.gap in before and surely:
            state, groups = "alarm", surely
        classes = tuple(sorted(group for group in groups if group is not None))
        yield Finding(each.gap, each.title, state, classes, None in groups)


def _detectable(evidence: Evidence, names: tuple[str, ...], threshold: float, levels: _Levels) -> float:
    """Return the gap of all classes together, by the first of the measures, of which four in five are suspected."""
    tested = [None, *(label for label in set(evidence.labels.tolist()) if _is_tested(evidence, names[0], label))]
    weights = _weights(tested)
    number = sum(name in evidence.values for name in names)
    level = levels.suspicion * weights[None] / sum(weights.values()) / number
    return evidence.pooled(names[0]).detectable(threshold, level)


def _is_tested(evidence: Evidence, name: str, group: _Group) -> bool:
    return evidence.count(name, group) >= (MIN_IMAGES if group is None else MIN_PER_CLASS)


def _p_value(
    evidence: Evidence, name: str, group: _Group, threshold: float, placebos: Mapping[str, str] = MappingProxyType({})
) -> float | None:
    """Return the p-value of a gap above the threshold in a group; None if it has too few images."""
    if not _is_tested(evidence, name, group):
        return None
    p, placebo = evidence.pooled(name, group).p_value(threshold), placebos.get(name)
    if placebo in evidence.values:  # both have to be above it
        p = max(p, evidence.pooled(name, group, minus=placebo).p_value(threshold))
    return p


def _agreeing_tests(evidence: Evidence, suspects: _Suspects, threshold: float) -> list[str]:
    """Return the measures of the second test that are above the threshold in a group that is suspect."""
    tests = {
        (name, group): _p_value(evidence, name, group, threshold)
        for name in SECOND_TESTS
        if name in evidence.values
        for group in suspects.found
    }
    level = _SECOND_LEVEL / max(len(tests), 1)
    return sorted({name for (name, _), p in tests.items() if p is not None and p <= level})


def _holds_at_other_masks(evidence: Evidence, threshold: float) -> bool:
    """Return whether the gap of all images is above the threshold with larger and with smaller masks, where tried."""
    return all(evidence.pooled(name).mean > threshold for name in OTHER_MASKS if name in evidence.values)


def _rejected(p_values: Mapping[_Key, float], weights: Mapping[_Key, int], level: float) -> frozenset[_Key]:
    """Return the groups whose hypothesis is rejected by Holm's procedure (1979), in its form with weights."""
    found: set[_Key] = set()
    left = sum(weights.values())
    for group in sorted(p_values, key=lambda group: p_values[group] / weights[group]):
        if p_values[group] > level * weights[group] / left:
            break
        found.add(group)
        left -= weights[group]
    return frozenset(found)


def _weights(groups: Collection[_Group]) -> dict[_Group, int]:
    """Return what each group weighs: all classes together half, the single ones the other half."""
    num_classes = sum(group is not None for group in groups)
    return {group: max(num_classes, 1) if group is None else 1 for group in groups}


def _has_learned(result: AuditResult) -> bool:
    """Return whether answers are clearly more often right than the best that does not look at the image."""
    right = result.right.overall
    hits = round(max(right.value, 0.0) * right.count) if right.count else 0
    low, _ = wilson(hits, right.count)
    words = words_of(result.task)
    if words.may_be_negative:
        low = right.low
    return low > max(right.chance or 0.0, words.least)


def _heat_states(result: AuditResult) -> dict[int, HeatState]:
    """Return where the heat of each class lies, against what other masks give: those of other images, and shifted ones.

    Other images tell whether the heat follows the object, but nothing if all masks lie in one place. Shifted masks keep
    their size, and tell whether there is more heat on the object than elsewhere.
    """
    if not result.heat_chance_distribution:
        return {}
    heat, over_area = result["heat_on_object"].per_class, result["heat_over_area"].per_class
    states: dict[int, HeatState] = {}
    for index, of_others in result.heat_chance_distribution.items():
        if heat[index].count < MIN_PER_CLASS:
            continue
        value, shifted = heat[index].value, result.heat_shifted_distribution[index]
        area = value - over_area[index].value
        is_off_a_flat_map = _is_below(shifted, value) and over_area[index].value < -_LACK_OF_HEAT * area
        if is_off_a_flat_map or _is_below(of_others, value):
            states[index] = "away from the object"
        elif _is_above(of_others, value) and _is_above(shifted, value):
            states[index] = "on the object"
        else:
            states[index] = "indistinguishable from chance"
    return states


def _is_below(by_chance: Tensor, value: float) -> bool:
    return value < float(by_chance.quantile(_TAIL)) - _ROUNDING


def _is_above(by_chance: Tensor, value: float) -> bool:
    return value > float(by_chance.quantile(1 - _TAIL)) + _ROUNDING
