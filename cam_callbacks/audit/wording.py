"""The verdict in words, for people: Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cam_callbacks.audit.measures import OTHER_MASKS, SECOND_TESTS
from cam_callbacks.audit.result import MAX_COST, MIN_IMAGES, AuditResult
from cam_callbacks.audit.statistics import Estimate
from cam_callbacks.audit.verdict import WORST_FIRST, Verdict
from cam_callbacks.audit.wording_data import class_in_words, data_note, data_warning
from cam_callbacks.audit.wording_followed import confusion_text, followed_lines
from cam_callbacks.audit.wording_further import DIGITS, finding_text, found_in, further_text, shown
from cam_callbacks.audit.words import Words, words_of

_MAX_CLASSES = 10  # that are listed
_MAX_DIGITS = 4  # decimals
_SECOND_TESTS = dict(zip(SECOND_TESTS, ("recoloring the background", "blurring it"), strict=True))
_LARGE_SHARE, _SMALL_SHARE = 0.6, 0.25  # of the effect

_MASKS = "masks of the object, or Audit(masks=...)"


def verdict_text(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    """Return the verdict in words: what was found, how sure that is, what was not tested, and what to do next.

    Args:
        result: The numbers that were judged.
        verdict: The decision; its text is not read.
        is_alone: Whether this is the first look, which cannot be an alarm.
    """
    parts = [
        *_headlines(result, verdict, is_alone),
        _second_test(result, verdict),
        _what_is_used(result, verdict),
        _numbers(result, verdict),
        _placebo(result),
        further_text(result),
        _pooled(result, verdict),
        _power(result, verdict),
        _heat(result, verdict),
        data_warning(result, verdict),
        data_note(result),
        _missing_images(result),
        *(f"Note: {note}" for note in result.notes),
        _not_tested(result),
        f"Next: {_next_step(result, verdict)}",
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    is_weak = result.mask_source == "none"
    what = "ring" if is_weak else "background"
    words = words_of(result.task)
    who = found_in(result, verdict)
    weakness = "Without masks this is a weak test." if is_weak else "Swapping is not a fair test of this model."
    return {
        "alarm": f"**ALARM: answers depend on the {what}** (found in: {who}). Found at this look, and at the "
        "one before.",
        "suspicion": f"**Suspicion: answers seem to depend on the {what}** (found in: {who}). Found at this look; "
        f"{_outlook(result, verdict, is_alone)}.",
        "warning": f"**Warning: answers seem to depend on {'what lies at the edge' if is_weak else 'the background'}** "
        f"(found in: {who}). {weakness}",
        "no alarm": _no_alarm(result, verdict, what),
        "not testable": f"**Not testable by swapping.** A background {_same(words)} already costs too many right "
        "answers, so the gap says nothing: the model may depend on its background, or may not take pasted images. "
        "Recoloring the background found nothing.",
        "too few images": f"**Too few images to say anything**: {_num_judged(result, verdict)} of {MIN_IMAGES}.",
        "not learned": _not_learned(result, words),
    }[verdict.state]


def _not_learned(result: AuditResult, words: Words) -> str:
    if result.remarks:
        return f"**Not judged**: {'; and '.join(result.remarks)}."
    return f"**Nothing to judge yet**: {words.right_is} is not clearly above {words.chance}."


def _num_judged(result: AuditResult, verdict: Verdict) -> int:
    return result.gap.overall.count if verdict.evidence is None else verdict.evidence.count(result.gap_name)


def _same(words: Words) -> str:
    return words.of_same.replace("same", "*same*")


def _headlines(result: AuditResult, verdict: Verdict, is_alone: bool) -> list[str]:
    """Say what answers depend on, the worst first, and what was found of the background."""
    said = [(each.state, finding_text(result, each, is_alone)) for each in verdict.findings]
    of_background = _headline(result, verdict, is_alone)
    if _is_of_background(verdict) or not said:
        said.insert(0, (verdict.state, of_background))
    else:
        said.append((verdict.state, f"Of the background: {of_background}"))
    said.sort(key=lambda each: WORST_FIRST.index(each[0]) if each[0] in WORST_FIRST else len(WORST_FIRST))
    return [text for _, text in said]


def _is_of_background(verdict: Verdict) -> bool:
    return verdict.overall or bool(verdict.classes)


def _not_tested(result: AuditResult) -> str:
    is_tested = any(each.gap == "detail_gap" and not each.cost > MAX_COST for each in result.further)
    words = words_of(result.task)
    blur = f"blurrier {'objects' if is_tested else 'images'} of one {words.one}"
    return (
        f"Not tested: a bias inside the object's mask (a collar, a watermark on it), {blur}, the texture of the "
        f"object, and anything that all {words.many} share. No alarm is not the same as no bias."
    )


def _no_alarm(result: AuditResult, verdict: Verdict, what: str) -> str:
    if result.gap.overall.high < -verdict.threshold:
        return (
            f"**No alarm, but a dependence on the {what}**: the gap is clearly below 0, so that answers go against it, "
            "as those of a contrast do."
        )
    if not result.gap.overall.low > verdict.threshold:
        return f"**No alarm.** No dependence on the {what} clearly above {verdict.threshold:g} was found."
    if "outline_gap" in result and result["outline_gap"].overall.low > 0:
        return (
            "**No alarm.** There is a gap, but the placebo has one too (see below): what is left of it is not clearly "
            f"above {verdict.threshold:g}."
        )
    return (
        f"**No alarm.** There is a gap, but it is not surely enough above {verdict.threshold:g}: each look of a run "
        "asks for more certainty, so that a run of any length seldom errs. More images would tell."
    )


def _outlook(result: AuditResult, verdict: Verdict, is_alone: bool) -> str:
    if is_alone:
        return "one look alone gives no alarm"
    if verdict.second_test == "needed":
        return "an alarm needs a second test that agrees, see below"
    return f"{'a warning' if result.mask_source == 'none' else 'an alarm'} if the next one is as sure"


def _second_test(result: AuditResult, verdict: Verdict) -> str:
    """Say whether the tests that paste nothing agree with what was found, and why that is asked for."""
    if not verdict.found or "blur_loss" not in result:
        return ""
    of_tests = {how: (name, result[name].overall) for name, how in _SECOND_TESTS.items() if name in result}
    said = {how: f"{how} (`{name}` {shown(found)})" for how, (name, found) in of_tests.items()}
    tests = " or ".join(said.values())
    if verdict.second_test == "agrees":
        silent = [how for how, (_, found) in of_tests.items() if not found.value > verdict.threshold]
        agreeing = " and ".join(words for how, words in said.items() if how not in silent) or tests
        rest = f"; {' and '.join(said[how] for how in silent)} does not" if 0 < len(silent) < len(said) else ""
        return f"A second test agrees, which pastes nothing: {agreeing}{rest}."
    other_gaps = [result[name].overall for name in OTHER_MASKS if name in result]
    if any(gap.value <= verdict.threshold for gap in other_gaps):
        larger, smaller = map(shown, other_gaps)
        return (
            f"The gap hangs on the edges of the estimated masks: it is {larger} with larger ones, {smaller} with "
            "smaller ones. An alarm needs both to be above the threshold."
        )
    missing = f"No second test agrees: {tests}"
    if verdict.second_test == "silent":
        return f"{missing}. The gap is found by swapping alone."
    why = "masks are estimated" if result.mask_source == "estimated" else "swapping itself costs right answers"
    return f"{missing}. An alarm needs one here, because {why}."


def _what_is_used(result: AuditResult, verdict: Verdict) -> str:
    """Say whether the color or the content of the background is used, if both were measured and something was found."""
    if not verdict.found or "recolor_gap" not in result.measures:
        return ""
    gap, recolored = result.gap, result["recolor_gap"]
    pairs = [(gap.overall, recolored.overall)] * verdict.overall
    pairs += [(gap.per_class[index], recolored.per_class[index]) for index in verdict.classes if index in gap.per_class]
    if not pairs:
        return ""
    share = sum(color.value / whole.value if whole.value > 0 else 0.0 for whole, color in pairs) / len(pairs)
    if share > _LARGE_SHARE:
        return "Changing only the background's *color* accounts for most of the effect: the model uses its color."
    if share >= _SMALL_SHARE:
        return (
            "Changing only the background's color has part of the effect: color and content or texture are both used."
        )
    little = "Changing only the background's color has little effect"
    if result.mask_source == "estimated":
        return (
            f"{little}: either its *content or texture* is what is used, or parts of objects that the estimated masks "
            "left in it. To find out, mask about fifty images by hand, and audit again."
        )
    return f"{little}: its *content or texture* is what is used."


def _numbers(result: AuditResult, verdict: Verdict) -> str:
    gap, words = result.gap, words_of(result.task)
    in_probability = result.measures.get(result.forms_of(result.gap_name)[1]) if len(result.endings) > 1 else None
    arms = "ring" if result.mask_source == "none" else "background"
    made = ", masks estimated" if result.mask_source == "estimated" else ""
    meaning = words.gap or (
        f"{words.right_is} with {arms}s {words.of_same} minus {words.right_is} with those {words.of_other}"
    )
    lines = [
        f"`{result.gap_name}`: {meaning} (0: no dependence{made}), with 95% intervals: {shown(gap.overall)} over "
        f"{gap.overall.count} images of this look{', drawn at random' * (result.drawn_for is not None)}.",
        "",
    ]
    if result.drawn_for is not None:
        return "\n".join([*lines, *followed_lines(result, verdict)])
    asked = [index for index, estimate in result.right.per_class.items() if estimate.count]
    worst_first = sorted(asked, key=lambda index: _descending(gap.per_class[index]))
    for index in worst_first[:_MAX_CLASSES]:
        estimate = gap.per_class[index]
        line = f"- {result.class_names.name(index)}: {shown(estimate)}, {estimate.count} images"
        line += confusion_text(result, index) if index in verdict.classes else ""
        if index in verdict.classes and in_probability is not None:  # which may be where it was found
            line += f"; in {words.shown} {shown(in_probability.per_class[index])}"
        lines.append(line)
    if len(worst_first) > _MAX_CLASSES:
        lines.append(f"- and {len(worst_first) - _MAX_CLASSES} {words.many} with smaller gaps")
    if in_probability is not None:
        lines += ["", f"The same in {words.shown}: {shown(in_probability.overall)}."]
    return "\n".join(lines)


def _placebo(result: AuditResult) -> str:
    if "outline_gap" not in result:
        return ""
    words = words_of(result.task)
    return (
        f"Placebo, `outline_gap`: each image keeps its own background, and only the place of the other image's object "
        f"is filled in. The gap is {shown(result['outline_gap'].overall)}; it should be near 0. Swapping itself, for "
        f"a background {words.of_same}, lowers {words.right_is} by {shown(result['collage_cost'].overall)} "
        "(`collage_cost`; above 0.2 swapping is not a fair test)."
    )


def _pooled(result: AuditResult, verdict: Verdict) -> str:
    evidence, name = verdict.evidence, result.gap_name
    looks = 0 if evidence is None else len(set(evidence.looks.tolist()))
    if evidence is None or looks < 2 or verdict.state in ("not learned", "too few images", "not testable"):
        return ""
    said = (
        f"Judged are the last {looks} looks together: a gap of {evidence.pooled(name).observed:.2f} over "
        f"{evidence.count(name)} images"
    )
    if "outline_gap" in result:
        said += f"; minus the placebo {evidence.pooled(name, minus='outline_gap').observed:.2f}"
    return f"{said}."


def _power(result: AuditResult, verdict: Verdict) -> str:
    if math.isnan(verdict.detectable) or verdict.state == "alarm":
        return ""
    words = words_of(result.task)
    with_more = verdict.threshold + (verdict.detectable - verdict.threshold) / 2
    return (
        f"A look like this one suspects a gap of {verdict.detectable:.2f} in all {words.many} together four times in "
        f"five; a smaller one, or one in one {words.one}, may be missed. With four times as many images it would be "
        f"{with_more:.2f}."
    )


def _heat(result: AuditResult, verdict: Verdict) -> str:
    if not verdict.heat:
        return ""
    heat, over_area = result["heat_on_object"].per_class, result["heat_over_area"].per_class
    lines = [
        f"Heat by {result.heat_method} of {words_of(result.task).heated}, which the pictures may show by another "
        "method (evidence, not proof: heat shows where, not which):",
        "",
    ]
    for index in list(verdict.heat)[:_MAX_CLASSES]:
        estimate = heat[index]
        area = estimate.value - over_area[index].value
        where, chance = verdict.heat[index], estimate.chance
        is_judged_by_area = where == "away from the object" and chance is not None and not estimate.value < chance
        levels = {"area": area} if chance is None or is_judged_by_area else {"chance": chance, "area": area}
        is_told_apart = where != "indistinguishable from chance"
        digits = _telling_digits(estimate.value, levels.values()) if is_told_apart else DIGITS
        others = ", ".join(f"{name} {level:.{digits}f}" for name, level in levels.items())
        lines.append(f"- {result.class_names.name(index)}: {where} ({shown(estimate, digits)}; {others})")
    return "\n".join(lines)


def _missing_images(result: AuditResult) -> str:
    """Say which classes have few numbers, and what would help: masks where these failed, images where there are few."""
    if result.drawn_for is not None:
        return ""
    one, many = words_of(result.task).one, words_of(result.task).many
    asked = [index for index, estimate in result.right.per_class.items() if estimate.count]
    few = [index for index in asked if result.gap.per_class[index].count < MIN_IMAGES]
    lack_masks = [index for index in few if _lacks_masks(result, index)]
    lack_images = [index for index in few if index not in lack_masks]
    parts = []
    if lack_masks:
        sizes = result.labels.bincount().tolist()
        listed = [
            f"{class_in_words(result, index)}: {_masked(result, index)} of {sizes[index]}" for index in lack_masks
        ]
        parts.append(
            f"Few foregrounds: reliable numbers need {MIN_IMAGES} images of each {one} whose foreground is known "
            f"({_listed(listed)}). Give {_MASKS}."
        )
    if lack_images:
        missing = {index: MIN_IMAGES - result.gap.per_class[index].count for index in lack_images}
        listed = [f"{class_in_words(result, index)}: {number} more" for index, number in missing.items()]
        parts.append(
            f"Few images: reliable numbers need {MIN_IMAGES} of each {one} ({_listed(listed)}). The audit used "
            f"{len(result.labels)}; if the validation data has more of these {many}, a larger Audit(num_images=...) "
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


def _next_step(result: AuditResult, verdict: Verdict) -> str:
    further, words = "", words_of(result.task)
    if verdict.findings:
        titles = " and ".join(each.title for each in verdict.findings)
        further = (
            f"ask why images of different {words.many} differ in {titles}; collect or augment images in which they do "
            "not; "
        )
        if not _is_of_background(verdict):
            return f"{further}and train again."
    if verdict.found and verdict.second_test == "needed":
        return (
            f"{further}look at the picture of swapped backgrounds: are the objects cut out well? Masks, even of fifty "
            "images, would tell."
        )
    if verdict.found:
        return (
            f"{further}look at the picture of swapped backgrounds; ask how the images of these {words.many} were "
            f"collected; collect or augment images whose background does not go with the {words.one}, and train again."
        )
    if verdict.state == "not learned":
        if result.remarks:
            return "mend that; nothing else here means anything before."
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
    return "look at the pictures of mistakes, and try images from another source."


def _telling_digits(value: float, levels: Iterable[float]) -> int:
    """Return how many decimals it takes to see on which side of each level a value lies."""
    for digits in range(DIGITS, _MAX_DIGITS):
        if all(f"{value:.{digits}f}" != f"{level:.{digits}f}" for level in levels):
            return digits
    return _MAX_DIGITS


def _descending(estimate: Estimate) -> float:
    """Return a key that sorts large values first and unknown ones last."""
    return math.inf if math.isnan(estimate.value) else -estimate.value
