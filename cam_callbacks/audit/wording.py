"""The verdict in words, for people: Markdown."""

from __future__ import annotations

import math

from cam_callbacks.audit.result import MIN_IMAGES, AuditResult, Verdict
from cam_callbacks.audit.statistics import Estimate

_MAX_CLASSES = 10  # that are listed
_DATA_WARNING = 0.85  # AUC
_MOST_OF_THE_EFFECT, _LITTLE_OF_THE_EFFECT = 0.6, 0.25

_NOT_TESTED = (
    "Not tested: a bias inside the object's mask (a collar, a watermark on it), blur, the texture of the object, and "
    "anything that all classes share. No alarm is not the same as no bias."
)


def verdict_text(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    """Return the verdict in words: what was found, how sure that is, what was not tested, and what to do next.

    Args:
        result: The numbers that were judged.
        verdict: The decision; its text is not read.
        is_alone: Whether there is no verdict on a look before, so that this one cannot be an alarm.
    """
    parts = [
        _headline(result, verdict, is_alone),
        _what_is_used(result, verdict),
        _numbers(result),
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
    if is_alone:
        outlook = "one look alone gives no alarm"
    else:
        outlook = f"{'a warning' if is_weak else 'an alarm'} if the next one agrees"
    return {
        "alarm": f"**ALARM: answers depend on the {what}** ({who}). Suspected at two looks in a row.",
        "suspicion": f"**Suspicion: answers seem to depend on the {what}** ({who}). Found at this look; {outlook}.",
        "warning": f"**Warning: answers seem to depend on what lies at the edge** ({who}). Without masks this is a "
        "weak test.",
        "no alarm": f"**No alarm.** No dependence on the {what} clearly above {verdict.threshold:g} was found.",
        "too few images": f"**Too few images to say anything**: {result.gap.overall.count} of {MIN_IMAGES}.",
        "not learned": "**Nothing to judge yet**: the accuracy is not clearly above that of always answering the most "
        "frequent class.",
    }[verdict.state]


def _what_is_used(result: AuditResult, verdict: Verdict) -> str:
    """Say whether the color or the content of the background is used, if both were measured and something was found."""
    if not verdict.found or "recolor_gap" not in result.measures:
        return ""
    gap, recolored = result.gap, result["recolor_gap"]
    pairs = [(gap.overall, recolored.overall)] * verdict.overall
    pairs += [(gap.per_class[index], recolored.per_class[index]) for index in verdict.classes]
    share = sum(color.value / whole.value if whole.value > 0 else 0.0 for whole, color in pairs) / len(pairs)
    if share > _MOST_OF_THE_EFFECT:
        return "Moving only the background's *color* accounts for most of the effect: the model uses its color."
    if share >= _LITTLE_OF_THE_EFFECT:
        return "Moving only the background's color has part of the effect: color and content or texture are both used."
    little = "Moving only the background's color has little effect: its *content or texture* is what is used"
    if result.mask_source == "estimated":
        return (
            f"{little}, or parts of objects that the estimated foregrounds left in the backgrounds; masks would tell."
        )
    return f"{little}."


def _numbers(result: AuditResult) -> str:
    gap = result.gap
    arms = "ring" if result.mask_source == "none" else "background"
    made = " (foregrounds estimated)" if result.mask_source == "estimated" else ""
    lines = [
        f"Accuracy with a {arms} of the same class minus accuracy with one of another class{made}, with 95 % "
        f"intervals: {_shown(gap.overall)} over {gap.overall.count} images.",
        "",
    ]
    worst_first = sorted(gap.per_class, key=lambda index: _descending(gap.per_class[index]))
    for index in worst_first[:_MAX_CLASSES]:
        estimate = gap.per_class[index]
        lines.append(f"- {result.class_names.name(index)}: {_shown(estimate)}, {estimate.count} images")
    if len(worst_first) > _MAX_CLASSES:
        lines.append(f"- and {len(worst_first) - _MAX_CLASSES} classes with smaller gaps")
    return "\n".join(lines)


def _heat(result: AuditResult, verdict: Verdict) -> str:
    if not verdict.heat:
        return ""
    heat, over_area = result["heat_on_object"].per_class, result["heat_over_area"].per_class
    lines = [f"Heat ({result.heat_method} of the true class; evidence, not proof):", ""]
    for index in list(verdict.heat)[:_MAX_CLASSES]:
        estimate = heat[index]
        area = estimate.value - over_area[index].value
        chance = "" if estimate.chance is None else f", chance {estimate.chance:.2f}, area {area:.2f}"
        lines.append(f"- {result.class_names.name(index)}: {verdict.heat[index]} ({_shown(estimate)}{chance})")
    return "\n".join(lines)


def _data_warning(result: AuditResult) -> str:
    auc = result.measures.get("data_color_auc")
    if auc is None or not auc.overall.value >= _DATA_WARNING:
        return ""
    outside = "heat" if result.mask_source == "none" else "object"
    return (
        f"**Data warning** (not about the model): the mean color outside the {outside} alone tells the classes apart, "
        f"AUC {_shown(auc.overall)}. Ask whoever collected the images why."
    )


def _missing_images(result: AuditResult) -> str:
    per_class = result.gap.per_class
    few = [index for index, estimate in per_class.items() if estimate.count < MIN_IMAGES]
    if not few:
        return ""
    listed = [f"{result.class_names.name(i)} {MIN_IMAGES - per_class[i].count}" for i in few[:_MAX_CLASSES]]
    more = f" and {len(few) - _MAX_CLASSES} others" if len(few) > _MAX_CLASSES else ""
    return (
        f"Few images: reliable numbers need {MIN_IMAGES} of each class; missing: {', '.join(listed)}{more}. If the "
        f"validation data has them, Audit(num_images={MIN_IMAGES * len(per_class)}) takes them."
    )


def _next_step(result: AuditResult, verdict: Verdict) -> str:
    if verdict.found:
        return (
            "look at the picture of exchanged backgrounds; ask how the images of these classes were collected; collect "
            "or augment images whose background does not go with the class, and train again."
        )
    if verdict.state == "not learned":
        return "wait for the next looks."
    if verdict.state == "too few images":
        return "give more labeled validation images."
    if result.mask_source != "given":
        return "object masks, even for about fifty validation images, make this test more sensitive."
    return "look at the heatmaps of mistakes, and at images from another source."


def _shown(estimate: Estimate) -> str:
    if estimate.count == 0:
        return "not known"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _descending(estimate: Estimate) -> float:
    """Return a key that sorts large values first and unknown ones last."""
    return math.inf if math.isnan(estimate.value) else -estimate.value
