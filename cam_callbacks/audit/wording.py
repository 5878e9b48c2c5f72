"""The verdict in words, for people: Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cam_callbacks.audit.result import MIN_IMAGES, AuditResult
from cam_callbacks.audit.statistics import Estimate
from cam_callbacks.audit.verdict import Verdict

_MAX_CLASSES = 10  # that are listed
_DIGITS, _MAX_DIGITS = 2, 4  # decimals
_OTHER_MASKS = ("bg_gap_larger_masks", "bg_gap_smaller_masks")
_DATA_WARNING = 0.85  # AUC
_LARGE_SHARE, _SMALL_SHARE = 0.6, 0.25  # of the effect

_NOT_TESTED = (
    "Not tested: a bias inside the object's mask (a collar, a watermark on it), blur, the texture of the object, and "
    "anything that all classes share. No alarm is not the same as no bias."
)
_MASKS = "masks of the object, or Audit(masks=...)"


def verdict_text(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    """Return the verdict in words: what was found, how sure that is, what was not tested, and what to do next.

    Args:
        result: The numbers that were judged.
        verdict: The decision; its text is not read.
        is_alone: Whether this is the first look, which cannot be an alarm.
    """
    parts = [
        _headline(result, verdict, is_alone),
        _second_instrument(result, verdict),
        _what_is_used(result, verdict),
        _numbers(result),
        _placebo(result, verdict),
        _power(verdict),
        _heat(result, verdict),
        _data_warning(result),
        _missing_images(result),
        *(f"Note: {note}" for note in result.notes),
        _NOT_TESTED,
        f"Next: {_next_step(result, verdict)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    is_weak = result.mask_source == "none"
    what = "ring" if is_weak else "background"
    names = [
        *["all classes together"] * verdict.overall,
        *(result.class_names.name(index) for index in verdict.classes),
    ]
    who = ", ".join(names)
    weakness = (
        "Without masks this is a weak test."
        if is_weak
        else "It stands on moved colors alone: the model cannot take the exchange."
    )
    return {
        "alarm": f"**ALARM: answers depend on the {what}** (found in: {who}). Found at this look, after one that found "
        "it too.",
        "suspicion": f"**Suspicion: answers seem to depend on the {what}** (found in: {who}). Found at this look; "
        f"{_outlook(result, verdict, is_alone)}.",
        "warning": f"**Warning: answers seem to depend on {'what lies at the edge' if is_weak else 'the background'}** "
        f"(found in: {who}). {weakness}",
        "no alarm": f"**No alarm.** No dependence on the {what} clearly above {verdict.threshold:g} was found.",
        "not testable": "**Not testable by collage.** The model cannot take the exchange of backgrounds, not even with "
        "those of the same class. Moved colors show no dependence.",
        "too few images": f"**Too few images to say anything**: {result.gap.overall.count} of {MIN_IMAGES}.",
        "not learned": "**Nothing to judge yet**: the accuracy is not clearly above that of always answering the most "
        "frequent class.",
    }[verdict.state]


def _outlook(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    if is_alone:
        return "one look alone gives no alarm"
    if verdict.witness == "needed":
        return "no alarm unless moved colors, or a blurred background, show it too"
    return f"{'a warning' if result.mask_source == 'none' else 'an alarm'} if the next one is as sure"


def _second_instrument(result: AuditResult, verdict: Verdict) -> str:
    """Say whether the tests that paste nothing agree with what was found, and why that is asked for."""
    if not verdict.found or "blur_loss" not in result:
        return ""
    if verdict.witness == "agrees":
        return (
            "Two independent tests agree: moving the colors of the background, or blurring it, shows the dependence "
            "too, without any other image."
        )
    if (
        result.mask_source == "estimated"
        and min(result[name].overall.value for name in _OTHER_MASKS) < verdict.threshold
    ):
        return (
            "The gap hangs on the edges of the estimated masks: with larger ones it is "
            f"{_shown(result[_OTHER_MASKS[0]].overall)}, with smaller ones {_shown(result[_OTHER_MASKS[1]].overall)}. "
            "An alarm needs both."
        )
    missing = "Moving the colors of the background, or blurring it, does not show the dependence"
    if verdict.witness == "silent":
        return f"{missing}: it is found by the exchange alone."
    why = "masks are estimated" if result.mask_source == "estimated" else "the exchange itself costs right answers"
    return f"{missing}, which an alarm needs here, because {why}."


def _what_is_used(result: AuditResult, verdict: Verdict) -> str:
    """Say whether the color or the content of the background is used, if both were measured and something was found."""
    if not verdict.found or "recolor_gap" not in result.measures:
        return ""
    gap, recolored = result.gap, result["recolor_gap"]
    pairs = [(gap.overall, recolored.overall)] * verdict.overall
    pairs += [(gap.per_class[index], recolored.per_class[index]) for index in verdict.classes]
    share = sum(color.value / whole.value if whole.value > 0 else 0.0 for whole, color in pairs) / len(pairs)
    if share > _LARGE_SHARE:
        return "Changing only the background's *color* accounts for most of the effect: the model uses its color."
    if share >= _SMALL_SHARE:
        return (
            "Changing only the background's color has part of the effect: color and content or texture are both used."
        )
    little = "Changing only the background's color has little effect: its *content or texture* is what is used"
    if result.mask_source == "estimated":
        return f"{little}, or parts of objects that the estimated masks left in the backgrounds; masks would tell."
    return f"{little}."


def _numbers(result: AuditResult) -> str:
    gap = result.gap
    arms = "ring" if result.mask_source == "none" else "background"
    made = " (foregrounds estimated)" if result.mask_source == "estimated" else ""
    lines = [
        f"Accuracy with a {arms} of the same class minus accuracy with one of another class{made}, with 95% "
        f"intervals: {_shown(gap.overall)} over {gap.overall.count} images.",
        "",
    ]
    worst_first = sorted(gap.per_class, key=lambda index: _descending(gap.per_class[index]))
    for index in worst_first[:_MAX_CLASSES]:
        estimate = gap.per_class[index]
        lines.append(f"- {result.class_names.name(index)}: {_shown(estimate)}, {estimate.count} images")
    if len(worst_first) > _MAX_CLASSES:
        lines.append(f"- and {len(worst_first) - _MAX_CLASSES} classes with smaller gaps")
    in_probability = result.measures.get(f"{result.gap_name}_probability")
    if in_probability is not None:
        lines += ["", f"The same in the probability of the true class: {_shown(in_probability.overall)}."]
    return "\n".join(lines)


def _placebo(result: AuditResult, verdict: Verdict) -> str:
    if "outline_gap" not in result:
        return ""
    parts = [
        f"With its own background, inpainted only where the other image's object would be (the placebo), the gap is "
        f"{_shown(result['outline_gap'].overall)}."
    ]
    if verdict.state == "no alarm" and result.gap.overall.low > verdict.threshold:
        parts.append("So the gap is not held against the model: what it reads is the outline of the other object.")
    parts.append(f"The exchange itself costs {_shown(result['collage_cost'].overall)} of the accuracy.")
    return " ".join(parts)


def _power(verdict: Verdict) -> str:
    if math.isnan(verdict.detectable):
        return ""
    with_more = verdict.threshold + (verdict.detectable - verdict.threshold) / 2
    return (
        f"Four of five looks like this one would find a gap of {verdict.detectable:.2f}; smaller ones may be missed. "
        f"With four times as many images it would be {with_more:.2f}."
    )


def _heat(result: AuditResult, verdict: Verdict) -> str:
    if not verdict.heat:
        return ""
    heat, over_area = result["heat_on_object"].per_class, result["heat_over_area"].per_class
    lines = [
        f"Heat by {result.heat_method} of the true class, which the pictures may show by another method (evidence, not "
        "proof):",
        "",
    ]
    for index in list(verdict.heat)[:_MAX_CLASSES]:
        estimate = heat[index]
        area = estimate.value - over_area[index].value
        where, chance = verdict.heat[index], estimate.chance
        is_judged_by_area = where == "away from the object" and chance is not None and not estimate.value < chance
        levels = {"area": area} if chance is None or is_judged_by_area else {"chance": chance, "area": area}
        is_told_apart = where != "indistinguishable from chance"
        digits = _telling_digits(estimate.value, levels.values()) if is_told_apart else _DIGITS
        shown = ", ".join(f"{name} {level:.{digits}f}" for name, level in levels.items())
        lines.append(f"- {result.class_names.name(index)}: {where} ({_shown(estimate, digits)}; {shown})")
    return "\n".join(lines)


def _data_warning(result: AuditResult) -> str:
    auc = result.measures.get("data_color_auc")
    if auc is None or not auc.overall.value >= _DATA_WARNING:
        return ""
    where = "in the outer ring" if result.mask_source == "none" else "outside the object"
    return (
        f"**Data warning** (not about the model): the mean color {where} alone tells the classes apart, "
        f"AUC {_shown(auc.overall)}. Ask whoever collected the images why."
    )


def _missing_images(result: AuditResult) -> str:
    """Say which classes have few numbers, and what would help: masks where these failed, images where there are few."""
    few = [index for index, estimate in result.gap.per_class.items() if estimate.count < MIN_IMAGES]
    lack_masks = [index for index in few if _lacks_masks(result, index)]
    lack_images = [index for index in few if index not in lack_masks]
    parts = []
    if lack_masks:
        sizes = result.labels.bincount().tolist()
        listed = [f"{_class(result, index)}: {_masked(result, index)} of {sizes[index]}" for index in lack_masks]
        parts.append(
            f"Few foregrounds: reliable numbers need {MIN_IMAGES} images of each class whose foreground is known "
            f"({_listed(listed)}). Give {_MASKS}."
        )
    if lack_images:
        missing = {index: MIN_IMAGES - result.gap.per_class[index].count for index in lack_images}
        listed = [f"{_class(result, index)}: {number} more" for index, number in missing.items()]
        parts.append(
            f"Few images: reliable numbers need {MIN_IMAGES} of each class ({_listed(listed)}). The audit used "
            f"{len(result.labels)}; if the validation data has more of these classes, a larger Audit(num_images=...) "
            "takes them."
        )
    return "\n\n".join(parts)


def _listed(classes: list[str]) -> str:
    return ", ".join(classes) if len(classes) <= _MAX_CLASSES else f"{len(classes)} classes have fewer"


def _lacks_masks(result: AuditResult, index: int) -> bool:
    """Return whether images of a class are left out because their masks are empty or cover all."""
    size = int((result.labels == index).sum())
    return result.mask_source != "none" and size > 1 and _masked(result, index) < size


def _masked(result: AuditResult, index: int) -> int:
    """Return of how many images of a class the background could be swapped."""
    return int((result.donors.known & (result.labels == index)).sum())


def _class(result: AuditResult, index: int) -> str:
    name = result.class_names.name(index)
    return f"class {name}" if name == str(index) else name


def _next_step(result: AuditResult, verdict: Verdict) -> str:
    if verdict.found:
        return (
            "look at the picture of swapped backgrounds; ask how the images of these classes were collected; collect "
            "or augment images whose background does not go with the class, and train again."
        )
    if verdict.state == "not learned":
        return "train on; the next look, if there is one, is judged again."
    if verdict.state == "too few images":
        lack_masks = any(_lacks_masks(result, index) for index in result.gap.per_class)
        lack_images = not lack_masks or len(result.labels) < MIN_IMAGES
        lacking = [_MASKS] * lack_masks + ["more labeled validation images"] * lack_images
        return f"give {'; and '.join(lacking)}."
    if result.mask_source != "given":
        return (
            "masks of the object, even for about fifty validation images, make this test more sensitive; "
            "Audit(masks=...) takes a function that makes them."
        )
    return "look at the heatmaps of mistakes, and at images from another source."


def _shown(estimate: Estimate, digits: int = _DIGITS) -> str:
    if estimate.count == 0:
        return "not known"
    value, low, high = (round(each, digits) + 0.0 for each in (estimate.value, estimate.low, estimate.high))  # no -0
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _telling_digits(value: float, levels: Iterable[float]) -> int:
    """Return how many decimals it takes to see on which side of each level a value lies."""
    for digits in range(_DIGITS, _MAX_DIGITS):
        if all(f"{value:.{digits}f}" != f"{level:.{digits}f}" for level in levels):
            return digits
    return _MAX_DIGITS


def _descending(estimate: Estimate) -> float:
    """Return a key that sorts large values first and unknown ones last."""
    return math.inf if math.isnan(estimate.value) else -estimate.value
