"""In words: which of many classes were followed, and what came of it."""

from __future__ import annotations

from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.audit.words import words_of

_MAX_CLASSES = 10  # that are listed


def followed_lines(result: AuditResult, verdict: Verdict) -> list[str]:
    """Return lines that say which classes look worst, by images that did not make them suspect; none if none are known.

    Args:
        result: The numbers of the look.
        verdict: What they mean, with the evidence.
    """
    evidence, many = verdict.evidence, words_of(result.task).many
    if evidence is None or not evidence.followed:
        return [f"There are many {many}; as soon as single ones look bad, they are followed."]
    name = result.gap_name
    known = {label: evidence.pooled(name, label) for label in evidence.followed if evidence.count(name, label)}
    lines = [
        f"There are many {many}. Those that looked worst at some look, {len(evidence.followed)} so far, were followed; "
        "they are judged by images that were drawn since, so that what made them suspect does not count.",
    ]
    if not known:
        return [*lines, "No such images have come yet."]
    lines += [f"`{name}` of these images, with intervals of which 95% hold for all of them at once:", ""]
    for label in sorted(known, key=lambda each: -known[each].observed)[:_MAX_CLASSES]:
        low, high = known[label].interval(len(evidence.followed))
        said = f"{known[label].observed:.2f} [{low:.2f}, {high:.2f}], {evidence.count(name, label)} images"
        lines.append(f"- {result.class_names.name(label)}: {said}{confusion_text(result, label)}")
    if len(known) > _MAX_CLASSES:
        lines.append(f"- and {len(known) - _MAX_CLASSES} {many} with smaller gaps")
    return lines


def confusion_text(result: AuditResult, label: int) -> str:
    """Say what a class is answered as before which backgrounds, if most of its changed answers are that."""
    found = result.confusions.get(label)
    if found is None or found.count <= found.changed / 2 or found.changed < 2:
        return ""
    names = result.class_names
    return (
        f"; of {found.changed} answers that change, {found.count} become {names.name(found.answer)} before a "
        f"background of {names.name(found.background)}"
    )
