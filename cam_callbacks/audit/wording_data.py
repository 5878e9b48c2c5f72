"""In words: what the data gives away, whatever the model does with it."""

from __future__ import annotations

from collections.abc import Sequence

from cam_callbacks.audit.properties import DataProperty
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.audit.wording_further import shown
from cam_callbacks.audit.words import words_of

COLOR_WARNING = 0.85
"""The AUC of the mean color from which on it gives the truth away."""

_MAX_PROPERTIES, _MAX_NOTED = 5, 3
_EXCHANGED = {  # which intervention exchanges a property
    "size": "size",
    "horizontal position": "position",
    "vertical position": "position",
    "sharpness": "detail",
    "contrast": "detail",
    "edge density": "detail",
    "blocks of 8 pixels": "compression",
}
_MOVED, _ASKED_FOR_PLACE = ("size", "position"), ("segmentation", "detection")  # where these are left out


def data_warning(result: AuditResult, verdict: Verdict) -> str:
    """Say what tells the truth by itself, though the object has no part in it, whatever the model does with it."""
    telling = []
    auc = result.measures.get("data_color_auc")
    if auc is not None and auc.overall.value >= COLOR_WARNING:
        where = "in the outer ring" if result.mask_source == "none" else "outside the object"
        telling.append(
            f"the mean color {where} alone tells {words_of(result.task).told_apart}, AUC {shown(auc.overall)}"
        )
    used = {finding.gap for finding in verdict.findings}
    found = _suspicious(result)
    found.sort(key=lambda each: f"{_EXCHANGED.get(each.name)}_gap" not in used)  # those of which more is known first
    telling += [_told(result, each, "alone") for each in found[:_MAX_PROPERTIES]]
    if not telling:
        return ""
    more = len(found) - _MAX_PROPERTIES
    rest = f" AuditResult.data has {more} more." if more > 0 else ""
    return (
        f"**Data warning** (not about the model): {'; '.join(telling)}.{rest}{_how_to_test(result, found)} Ask whoever "
        "collected the images why."
    )


def data_note(result: AuditResult) -> str:
    """Say what tells the truth together with the object, which it may, unless the background gives away as much."""
    named = {(each.name, each.label) for each in _suspicious(result)}
    found = [each for each in result.data if each.gives_away and each.shows_object]
    found = [each for each in found if (each.name, each.label) not in named]
    if not found:
        return ""
    said = "; ".join(_told(result, each) for each in found[:_MAX_NOTED])
    return f"Data note (the object is part of what was measured, so this may be right): {said}."


def _suspicious(result: AuditResult) -> list[DataProperty]:
    return [each for each in result.data if each.gives_away and not each.shows_object]


def _told(result: AuditResult, given: DataProperty, alone: str = "") -> str:
    """Say how well a property tells a class, a label or a number."""
    words = words_of(result.task)
    what = f"{words.told} the {given.name} of the {given.where} {alone}".rstrip()
    return f"{class_in_words(result, given.label)} {what}, {words.area} {given.auc:.2f} (by chance {given.chance:.2f})"


def _how_to_test(result: AuditResult, found: Sequence[DataProperty]) -> str:
    """Say which interventions test whether the model uses properties; nothing of those that have been tried."""
    names = dict.fromkeys(_EXCHANGED[each.name] for each in found if each.name in _EXCHANGED)
    possible = [name for name in names if not (name in _MOVED and result.task in _ASKED_FOR_PLACE)]
    left = [name for name in possible if f"{name}_gap" not in result]
    return f" interventions={left} tests whether the model uses them." if left else ""


def class_in_words(result: AuditResult, index: int) -> str:
    """Return the name of a class, or its number with what it is."""
    name = result.class_names.name(index)
    return f"{words_of(result.task).one} {name}" if name == str(index) else name
