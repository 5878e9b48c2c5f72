"""The verdict: from the numbers of this look, and what the looks before have found, to a decision."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from cam_callbacks._checks import check_fraction, check_type
from cam_callbacks.audit.evidence import Evidence
from cam_callbacks.audit.measures import OTHER_MASKS, SECOND_TESTS
from cam_callbacks.audit.result import MIN_IMAGES, AuditResult
from cam_callbacks.audit.statistics import wilson
from cam_callbacks.audit.verdict import HeatState, State, Verdict
from cam_callbacks.audit.wording import verdict_text

_SUSPICION, _ALARM = 0.05, 0.01  # the chance of any false one in a run
_SECOND_LEVEL = 0.025
_WITHOUT_COLLAGE = ("recolor_gap",)  # what a collage breaks, a blur may break too; only a gap has two arms
_PLACEBOS = {"bg_gap": "outline_gap", "bg_gap_probability": "outline_gap_probability"}
_RING_THRESHOLD = 0.15
_MIN_PER_CLASS = 10
_FAIR_COST, _MAX_COST = 0.1, 0.2  # of a collage
_LACK_OF_HEAT = 0.25  # of the object's area: how much less heat than on a flat map counts as away from it
_TAIL = 0.025
_ROUNDING = 1e-4

_Group = int | None
"""A class, or None for all of them together."""


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
    is_weak = result.mask_source == "none"
    threshold = max(threshold, _RING_THRESHOLD) if is_weak else threshold
    before = None if previous is None else previous.evidence
    if not _has_learned(result):
        return _said(result, Verdict("not learned", (), False, {}, "", threshold, evidence=before), previous)
    evidence = Evidence.of(result) if before is None else before.followed_by(result)
    verdict = Verdict("no alarm", (), False, _heat_states(result), "", threshold, evidence=evidence)
    if evidence.count(result.gap_name) < MIN_IMAGES:
        return _said(result, replace(verdict, state="too few images"), previous)
    cost = _collage_cost(result)
    is_fair = cost <= _MAX_COST
    judged = (result.gap_name, f"{result.gap_name}_probability") if is_fair else _WITHOUT_COLLAGE
    suspects = _suspects(evidence, judged, threshold)
    agree = bool(_agreeing_tests(evidence, suspects, threshold)) and _holds_at_other_masks(evidence, threshold)
    needs_second_test = result.mask_source == "estimated" or cost > _FAIR_COST
    is_second = previous is not None and previous.found
    state: State = "no alarm" if is_fair else "not testable"
    if suspects.found:
        state = "suspicion"
        if is_second and (is_weak or not is_fair):
            state = "warning"
        elif is_second and suspects.certain and (agree or not needs_second_test):
            state = "alarm"
    said = suspects.certain if state == "alarm" else suspects.found
    found = replace(
        verdict,
        state=state,
        classes=tuple(sorted(group for group in said if group is not None)),
        overall=None in said,
        detectable=_detectable(evidence, judged, threshold) if is_fair else math.nan,
        second_test="agrees" if agree else "needed" if needs_second_test else "silent",
    )
    return _said(result, found, previous)


def _said(result: AuditResult, verdict: Verdict, previous: Verdict | None) -> Verdict:
    return replace(verdict, text=verdict_text(result, verdict, is_alone=previous is None))


def _level(evidence: Evidence) -> float:
    """Return the level of a suspicion at this look; those of all looks add up to that of the run."""
    return _SUSPICION / (evidence.num_looks * (evidence.num_looks + 1))


def _level_of_alarm(evidence: Evidence) -> float:
    """Return the level of an alarm at this look, from the second on; those of all looks add up to that of the run."""
    return _ALARM / (evidence.num_looks * max(evidence.num_looks - 1, 1))


def _collage_cost(result: AuditResult) -> float:
    return result["collage_cost"].overall.value if "collage_cost" in result else 0.0


def _suspects(evidence: Evidence, names: tuple[str, ...], threshold: float) -> _Suspects:
    """Find the groups in which one of the measures is above the threshold."""
    p_values: dict[_Group, float] = {}
    for group in (None, *sorted(set(evidence.labels.tolist()))):
        tests = [_p_value(evidence, name, group, threshold) for name in names if name in evidence.values]
        known = [p for p in tests if p is not None]
        if known:
            p_values[group] = min(known) * len(known)  # Bonferroni's correction
    found, certain = (_rejected(p_values, level) for level in (_level(evidence), _level_of_alarm(evidence)))
    return _Suspects(found, certain)


def _detectable(evidence: Evidence, names: tuple[str, ...], threshold: float) -> float:
    """Return the gap of all classes together, by the first of the measures, of which four in five are suspected."""
    tested = [None, *(label for label in set(evidence.labels.tolist()) if _is_tested(evidence, names[0], label))]
    weights = _weights(tested)
    level = _level(evidence) * weights[None] / sum(weights.values()) / sum(name in evidence.values for name in names)
    return evidence.pooled(names[0]).detectable(threshold, level)


def _is_tested(evidence: Evidence, name: str, group: _Group) -> bool:
    return evidence.count(name, group) >= (MIN_IMAGES if group is None else _MIN_PER_CLASS)


def _p_value(evidence: Evidence, name: str, group: _Group, threshold: float) -> float | None:
    """Return the p-value of a gap above the threshold in a group; None if it has too few images."""
    if not _is_tested(evidence, name, group):
        return None
    p, placebo = evidence.pooled(name, group).p_value(threshold), _PLACEBOS.get(name)
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


def _rejected(p_values: Mapping[_Group, float], level: float) -> frozenset[_Group]:
    """Return the groups whose hypothesis is rejected by Holm's procedure (1979), in its form with weights."""
    weights, found = _weights(p_values), set()
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
    """Return whether the accuracy is clearly above that of always answering the most frequent class."""
    accuracy = result["accuracy"].overall
    hits = round(accuracy.value * accuracy.count) if accuracy.count else 0
    low, _ = wilson(hits, accuracy.count)
    return low > float(result.labels.bincount().max() / len(result.labels))


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
        if heat[index].count < _MIN_PER_CLASS:
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
