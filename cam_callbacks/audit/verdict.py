"""The verdict: from the numbers of this look, and the verdict on the one before, to a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from cam_callbacks._checks import check_fraction, check_type
from cam_callbacks.audit.result import MIN_IMAGES, AuditResult, HeatState, State, Verdict
from cam_callbacks.audit.statistics import Measure, share_of_means_up_to, wilson
from cam_callbacks.audit.wording import verdict_text

_ALPHA = 0.025  # one-sided: the lower bound of a 95% interval
_RING_THRESHOLD = 0.15
_MIN_PER_CLASS = 10
_MIN_DONORS = 20
_LACK_OF_HEAT = 0.25  # of the object's area: how much less heat than on a flat map counts as away from it
_ROUNDING = 1e-4


def judge(result: AuditResult, previous: Verdict | None = None, threshold: float = 0.05) -> Verdict:
    """Judge the numbers of a look.

    A class is suspect if the lower bound of its gap is above the threshold: the share of bootstrap means at or below it
    is the p-value of the class, and Holm's procedure (1979) over the classes, and all of them together, keeps the
    chance of any false suspicion at 2.5%. A suspicion at two looks in a row, even of different classes, is an alarm.
    Swapped rings need at least 0.15, and at two looks in a row they give a warning only. Nothing is judged before the
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
    classes, overall = _suspects(result.gap, threshold, result.donors.other)
    found = overall or bool(classes)
    if not _has_learned(result):
        state: State = "not learned"
    elif result.gap.overall.count < MIN_IMAGES:
        state = "too few images"
    elif not found:
        state = "no alarm"
    elif previous is None or not previous.found:
        state = "suspicion"
    else:
        state = "warning" if is_weak else "alarm"
    verdict = Verdict(state, classes, overall, _heat_states(result), "", threshold)
    if not verdict.found:
        verdict = replace(verdict, classes=(), overall=False)
    return replace(verdict, text=verdict_text(result, verdict, is_alone=previous is None))


def _suspects(gap: Measure, threshold: float, donors: Tensor) -> tuple[tuple[int, ...], bool]:
    """Return the classes whose gap is above the threshold, and whether that of all classes together is.

    Bootstrapping takes the images to be independent, which those with the same donor are not: a class whose donors of
    another class are few is not tested.
    """
    known = ~gap.values.isnan()
    groups: dict[int | None, Tensor] = {None: known}  # all classes together
    groups |= {index: known & (gap.labels == index) for index in gap.per_class}
    p_values = {}
    for group, members in groups.items():
        count, distinct = int(members.sum()), len(set(donors[members].tolist()))
        if count >= (MIN_IMAGES if group is None else _MIN_PER_CLASS) and distinct >= min(count, _MIN_DONORS):
            p_values[group] = share_of_means_up_to(threshold, gap.values[members])
    found = _rejected(p_values)
    return tuple(sorted(group for group in found if group is not None)), None in found


def _rejected(p_values: Mapping[int | None, float]) -> set[int | None]:
    """Return the groups whose hypothesis is rejected by Holm's procedure (1979)."""
    found = set()
    for place, group in enumerate(sorted(p_values, key=lambda group: p_values[group])):
        if p_values[group] > _ALPHA / (len(p_values) - place):
            break
        found.add(group)
    return found


def _has_learned(result: AuditResult) -> bool:
    """Return whether the accuracy is clearly above that of always answering the most frequent class."""
    accuracy = result["accuracy"].overall
    hits = round(accuracy.value * accuracy.count) if accuracy.count else 0
    low, _ = wilson(hits, accuracy.count)
    return low > float(result.labels.bincount().max() / len(result.labels))


def _heat_states(result: AuditResult) -> dict[int, HeatState]:
    """Return where the heat of each class lies, against what the masks of other images of the class give.

    If all masks lie in one place these say nothing; a clear lack of heat, compared with a flat map, does.
    """
    if not result.heat_chance_distribution:
        return {}
    heat, over_area = result["heat_on_object"].per_class, result["heat_over_area"].per_class
    states: dict[int, HeatState] = {}
    for index, by_chance in result.heat_chance_distribution.items():
        if heat[index].count < _MIN_PER_CLASS:
            continue
        value = heat[index].value
        area = value - over_area[index].value
        is_off_a_flat_map = over_area[index].high < -_LACK_OF_HEAT * area
        if is_off_a_flat_map or value < float(by_chance.quantile(_ALPHA)) - _ROUNDING:
            states[index] = "away from the object"
        elif value > float(by_chance.quantile(1 - _ALPHA)) + _ROUNDING:
            states[index] = "on the object"
        else:
            states[index] = "indistinguishable from chance"
    return states
