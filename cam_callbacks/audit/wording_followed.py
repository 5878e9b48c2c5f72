"""In words: which of many classes were followed, and what came of it."""

from __future__ import annotations

from cam_callbacks.audit.result import MIN_PER_CLASS, AuditResult
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.audit.words import words_of

_MAX_CLASSES = 10  # that are listed
_FEWEST = 2  # images, to say a gap


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
    counts = {label: evidence.count(name, label) for label in evidence.followed}
    known = {label: evidence.pooled(name, label) for label, count in counts.items() if count >= _FEWEST}
    lines = [
        f"There are too many {many} to test each of them. Those that looked worst, {len(counts)} so far, are followed: "
        "they get more images, and are judged only by images that were drawn since, so that what made them suspect "
        "does not count.",
    ]
    if known:
        lines += [f"`{name}` of these images, with intervals of which 95% hold for all of them at once:", ""]
    for label in sorted(known, key=lambda each: -known[each].observed)[:_MAX_CLASSES]:
        low, high = known[label].interval(len(counts))
        said = f"{known[label].observed:.2f} [{low:.2f}, {high:.2f}], {counts[label]} images"
        lines.append(f"- {result.class_names.name(label)}: {said}{confusion_text(result, label)}")
    if len(known) > _MAX_CLASSES:
        lines.append(f"- and {len(known) - _MAX_CLASSES} {many} with smaller gaps")
    few = sum(count < MIN_PER_CLASS for count in counts.values())
    if few:
        lines += [
            "",
            f"{few} of them have fewer than {MIN_PER_CLASS} such images, too few to be judged. If no more come at the "
            "next looks, the data has no more: add images, or give those of these classes to `audit_model`.",
        ]
    return lines


def confusion_text(result: AuditResult, label: int) -> str:
    """Say what a class is answered as before which backgrounds, if most of its changed answers are that."""
    found = result.confusions.get(label)
    if found is None or found.count <= found.changed / 2 or found.changed < 2:
        return ""
    names = result.class_names
    who = f"all {found.count}" if found.count == found.changed else f"{found.count} of {found.changed}"
    answer, background = names.name(found.answer), names.name(found.background)
    return f"; {who} changed answers become {answer} on a background of {background}"
