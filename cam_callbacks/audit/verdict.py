"""The verdict: from the numbers of this look, and of the one before, to a statement that one can act on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cam_callbacks._checks import check_fraction, check_type
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Estimate, Measure, share_of_means_up_to, wilson
from cam_callbacks.data.datasets import ALL

State = Literal["alarm", "suspicion", "warning", "no alarm", "too few images", "not learned"]
HeatState = Literal["on the object", "indistinguishable from chance", "off the object"]

_ALPHA = 0.025  # one-sided: the lower bound of a 95 % interval
_RING_THRESHOLD = 0.15
_FEWEST = 10
_DISTINCT_DONORS = 20
_ENOUGH = 30
_DATA_RED_FLAG = 0.85
_PER_CLASS_LINES = 10
_LEAST_SHARE_OFF = 0.25  # of the object's area: so much less heat than a flat map has on it
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Verdict:
    """What was found at a look.

    Attributes:
        state: `"alarm"`: answers depend on the background, found at two looks in a row. `"suspicion"`: found at this
            look. `"warning"`: a weak test, without masks, found the same at two looks in a row; it never becomes an
            alarm. `"no alarm"`: nothing was found, which does not mean that nothing is there. `"too few images"`:
            nothing can be said. `"not learned"`: neither, as the accuracy is not clearly above chance.
        classes: The classes that it is about; `ALL` (-1) for all of them together.
        suspects: The classes found at this look, to be handed to `judge` at the next.
        heat: By class of ten maps or more, where the heat lies; without masks empty.
        text: All of it in words, Markdown.
        threshold: What the lower bound of a gap has to exceed.
    """

    state: State
    classes: tuple[int, ...]
    suspects: frozenset[int]
    heat: Mapping[int, HeatState]
    text: str
    threshold: float


def judge(result: AuditResult, previous_suspects: Collection[int] | None = (), threshold: float = 0.05) -> Verdict:
    """Judge the numbers of a look.

    A class is suspect where the lower bound of its gap is above the threshold: the share of bootstrap means at or below
    it is the class's p-value, and Holm's procedure (1979) over the classes, and all of them together, keeps the chance
    of any false suspicion at 2.5 %. A suspicion at two looks in a row, even of different classes, is an alarm.
    Exchanged rings need 0.15 at least, and at two looks in a row they give a warning only. Nothing is judged before the
    accuracy is clearly above that of always answering the most frequent class.

    Args:
        result: Of this look.
        previous_suspects: `Verdict.suspects` of the look before; empty at the first look, None where there is one look
            only, as in `Trainer.validate`: a suspicion then says that it is the most that one look can give.
        threshold: The smallest gap that matters.

    Raises:
        TypeError: `previous_suspects` that is no collection.
        ValueError: A threshold that is not at least 0 and below 1.
    """
    check_fraction("threshold", threshold, "a number of at least 0 and below 1")
    wanted = "the suspects of the verdict before, or None"
    check_type("previous_suspects", previous_suspects, (Collection, type(None)), wanted)
    gap = result.measures[result.gap_name]
    weak = result.mask_source == "none"
    threshold = max(threshold, _RING_THRESHOLD) if weak else threshold
    suspects = _suspects(gap, threshold, result.donors.other)
    again = suspects if previous_suspects else frozenset()
    heat = _heat_states(result)
    if not _learned(result):
        state: State = "not learned"
        suspects = again = frozenset()
    elif gap.overall.count < _ENOUGH:
        state = "too few images"
        suspects = again = frozenset()
    elif weak:
        state = "warning" if again else "suspicion" if suspects else "no alarm"
    else:
        state = "alarm" if again else "suspicion" if suspects else "no alarm"
    classes = tuple(sorted(again or suspects)) if state in ("alarm", "suspicion", "warning") else ()
    text = _text(result, state, classes, heat, threshold, only_look=previous_suspects is None)
    return Verdict(state, classes, suspects, heat, text, threshold)


def _suspects(gap: Measure, threshold: float, donors: Tensor) -> frozenset[int]:
    """The classes whose gap is above the threshold, by Holm's procedure on bootstrap p-values.

    Resampling takes images for independent, which those with the same donor are not: a class whose other-class donors
    are few is not tested.
    """
    p_values = {}
    for index in (ALL, *gap.per_class):
        tested = ~gap.values.isnan() & ((gap.labels == index) | (index == ALL))
        count, distinct = int(tested.sum()), len(set(donors[tested].tolist()))
        if count >= (_ENOUGH if index == ALL else _FEWEST) and distinct >= min(count, _DISTINCT_DONORS):
            p_values[index] = share_of_means_up_to(threshold, gap.values[tested])
    found = set()
    for place, index in enumerate(sorted(p_values, key=lambda index: p_values[index])):
        if p_values[index] > _ALPHA / (len(p_values) - place):
            break
        found.add(index)
    return frozenset(found)


def _learned(result: AuditResult) -> bool:
    """Whether the accuracy is clearly above that of always answering the most frequent class."""
    accuracy = result.measures["accuracy"].overall
    hits = round(accuracy.value * accuracy.count) if accuracy.count else 0
    low, _ = wilson(hits, accuracy.count)
    return low > float(result.labels.bincount().max() / len(result.labels))


def _heat_states(result: AuditResult) -> dict[int, HeatState]:
    """Where the heat of each class lies, against what the masks of other images of the class give.

    Where all masks lie in one place these say nothing; a clear lack of heat, compared with a flat map, does.
    """
    heat, over_area = (result.measures.get(name) for name in ("heat_on_object", "heat_over_area"))
    if heat is None or over_area is None:
        return {}
    states: dict[int, HeatState] = {}
    for index, null in result.heat_chance_distribution.items():
        if heat.per_class[index].count < _FEWEST:
            continue
        value = heat.per_class[index].value
        area = value - over_area.per_class[index].value
        if (
            over_area.per_class[index].high < -_LEAST_SHARE_OFF * area
            or value < float(null.quantile(0.025)) - _ROUNDING
        ):
            states[index] = "off the object"
        elif value > float(null.quantile(0.975)) + _ROUNDING:
            states[index] = "on the object"
        else:
            states[index] = "indistinguishable from chance"
    return states


def _text(
    result: AuditResult,
    state: State,
    classes: tuple[int, ...],
    heat: Mapping[int, HeatState],
    threshold: float,
    only_look: bool,
) -> str:
    gap = result.measures[result.gap_name]
    parts = [_headline(result, state, classes, threshold, only_look)]
    if state in ("alarm", "suspicion", "warning"):
        parts.append(_what_is_used(result, classes))
    parts.append(_numbers(result, gap))
    if heat:
        parts.append(_heat_lines(result, heat))
    color = result.measures.get("data_color_auc")
    outside = "heat" if result.mask_source == "none" else "object"
    if color is not None and color.overall.value >= _DATA_RED_FLAG:
        parts.append(
            f"**Red flag of the data** (not of the model): the mean color outside the {outside} alone tells the "
            f"classes apart, AUC {_shown(color.overall)}. Whoever collected the images should know why."
        )
    parts.append(_missing(gap, result))
    parts += [f"Note: {note}" for note in result.notes]
    parts.append(
        "Not tested: a bias inside the object's mask (a collar, a watermark on it), blur, texture of the object, and "
        "anything that all classes share. No alarm is not the same as no bias."
    )
    parts.append(f"Next: {_next(state, result)}")
    return "\n\n".join(part for part in parts if part)


def _headline(result: AuditResult, state: State, classes: tuple[int, ...], threshold: float, only_look: bool) -> str:
    what = "ring" if result.mask_source == "none" else "background"
    who = ", ".join(result.class_name(index) for index in classes)
    count = result.measures[result.gap_name].overall.count
    then = f"{'a warning' if result.mask_source == 'none' else 'an alarm'} if the next one agrees"
    return {
        "alarm": f"**ALARM: answers depend on the {what}** ({who}). Suspected at two looks in a row.",
        "suspicion": f"**Suspicion: answers seem to depend on the {what}** ({who}). Found at this look; "
        f"{'one look alone gives no alarm' if only_look else then}.",
        "warning": f"**Warning: answers seem to depend on what lies at the edge** ({who}). Without masks this is a "
        "weak test.",
        "no alarm": f"**No alarm.** No dependence on the {what} clearly above {threshold:g} was found.",
        "too few images": f"**Too few images to say anything**: {count} of {_ENOUGH}.",
        "not learned": "**Nothing to judge yet**: the accuracy is not clearly above that of always answering the most "
        "frequent class.",
    }[state]


def _what_is_used(result: AuditResult, classes: tuple[int, ...]) -> str:
    """Whether it is the color of the background or its content, where both were measured."""
    recolored = result.measures.get("recolor_gap")
    if recolored is None or result.mask_source == "none":
        return ""
    gap = result.measures[result.gap_name]
    shares = []
    for index in classes:
        whole, color = (_of(each, index) for each in (gap, recolored))
        shares.append(color.value / whole.value if whole.value > 0 else 0.0)
    share = sum(shares) / len(shares)
    if share > 0.6:
        return "Moving only the background's *color* has most of the effect: its color is what is used."
    if share < 0.25 and result.mask_source == "estimated":
        return (
            "Moving only the background's color has little effect: its *content or texture* is what is used, or parts "
            "of objects that the estimate of the foregrounds left in the backgrounds; masks would tell."
        )
    if share < 0.25:
        return "Moving only the background's color has little effect: its *content or texture* is what is used."
    return "Moving only the background's color has part of the effect: color and content or texture are both used."


def _numbers(result: AuditResult, gap: Measure) -> str:
    arms = "ring" if result.mask_source == "none" else "background"
    made = " (foregrounds estimated)" if result.mask_source == "estimated" else ""
    lines = [
        f"Accuracy with a {arms} of the same class minus accuracy with one of another class{made}, with 95 % "
        f"intervals: {_shown(gap.overall)} over {gap.overall.count} images.",
        "",
    ]
    worst = sorted(gap.per_class, key=lambda index: -_sortable(gap.per_class[index]))[:_PER_CLASS_LINES]
    lines += [f"- {result.class_name(i)}: {_shown(gap.per_class[i])}, {gap.per_class[i].count} images" for i in worst]
    if len(gap.per_class) > len(worst):
        lines.append(f"- and {len(gap.per_class) - len(worst)} classes with smaller gaps")
    return "\n".join(lines)


def _heat_lines(result: AuditResult, heat: Mapping[int, HeatState]) -> str:
    measured = result.measures["heat_on_object"]
    over_area = result.measures["heat_over_area"]
    lines = [f"Heat ({result.heat_method} of the true class; evidence, not proof):", ""]
    for index in list(heat)[:_PER_CLASS_LINES]:
        estimate = measured.per_class[index]
        area = estimate.value - over_area.per_class[index].value
        chance = "" if estimate.chance is None else f", chance {estimate.chance:.2f}, area {area:.2f}"
        lines.append(f"- {result.class_name(index)}: {heat[index]} ({_shown(estimate)}{chance})")
    return "\n".join(lines)


def _missing(gap: Measure, result: AuditResult) -> str:
    few = [index for index, estimate in gap.per_class.items() if estimate.count < _ENOUGH]
    if not few:
        return ""
    names = ", ".join(f"{result.class_name(i)} {_ENOUGH - gap.per_class[i].count}" for i in few[:_PER_CLASS_LINES])
    more = f" and {len(few) - _PER_CLASS_LINES} others" if len(few) > _PER_CLASS_LINES else ""
    wanted = _ENOUGH * len(gap.per_class)
    return (
        f"Few images: for numbers to rely on, {_ENOUGH} a class are needed; missing: {names}{more}. Where the "
        f"validation data has them, num_audit_images={wanted} takes them."
    )


def _next(state: State, result: AuditResult) -> str:
    if state in ("alarm", "suspicion", "warning"):
        return (
            "look at the picture of exchanged backgrounds; ask how the images of these classes were collected; collect "
            "or augment images whose background does not go with the class, and train again."
        )
    if state == "not learned":
        return "wait for the next looks."
    if state == "too few images":
        return "give more labeled validation images."
    if result.mask_source != "given":
        return "masks of the objects, even of some fifty validation images, make this test sharper."
    return "look at the heatmaps of mistakes, and at images from another source."


def _of(each: Measure, index: int) -> Estimate:
    return each.overall if index == ALL else each.per_class[index]


def _shown(estimate: Estimate) -> str:
    if estimate.count == 0:
        return "not known"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _sortable(estimate: Estimate) -> float:
    return estimate.value if estimate.value == estimate.value else float("-inf")
