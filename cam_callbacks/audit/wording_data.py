"""In words: what the data gives away, whatever the model does with it."""

from __future__ import annotations

from cam_callbacks.audit.properties import DataProperty
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.audit.wording_further import shown
from cam_callbacks.audit.words import words_of

_DATA_WARNING = 0.85  # AUC
_MAX_PROPERTIES = 5
_EXCHANGED = {  # which intervention exchanges a property
    "size": "size",
    "horizontal position": "position",
    "vertical position": "position",
    "sharpness": "detail",
    "contrast": "detail",
    "blocks of 8 pixels": "compression",
}


def data_warning(result: AuditResult, verdict: Verdict) -> str:
    """Say what tells the classes apart by itself, whatever the model does with it."""
    telling = []
    auc = result.measures.get("data_color_auc")
    if auc is not None and auc.overall.value >= _DATA_WARNING:
        where = "in the outer ring" if result.mask_source == "none" else "outside the object"
        telling.append(f"the mean color {where} alone tells the classes apart, AUC {shown(auc.overall)}")
    used = {finding.gap for finding in verdict.findings}
    found = [each for each in result.data if each.gives_away]
    found.sort(key=lambda each: f"{_EXCHANGED.get(each.name)}_gap" not in used)  # those of which more is known first
    telling += [_told_by(result, each) for each in found[:_MAX_PROPERTIES]]
    if not telling:
        return ""
    more = len(found) - _MAX_PROPERTIES
    rest = f" AuditResult.data has {more} more." if more > 0 else ""
    return f"**Data warning** (not about the model): {'; '.join(telling)}.{rest} Ask whoever collected the images why."


def _told_by(result: AuditResult, given: DataProperty) -> str:
    """Say that a property tells a class from the others, and how to test whether the model uses it."""
    who = class_in_words(result, given.label)
    said = (
        f"{who} is told from the rest by the {given.name} of the {given.where} alone, AUC {given.auc:.2f} (by chance "
        f"{given.chance:.2f})"
    )
    name = _EXCHANGED.get(given.name)
    if name is None or f"{name}_gap" in result:
        return said
    return f"{said}; interventions=[{name!r}] tests whether the model uses it"


def class_in_words(result: AuditResult, index: int) -> str:
    """Return the name of a class, or its number with what it is."""
    name = result.class_names.name(index)
    return f"{words_of(result.task).one} {name}" if name == str(index) else name
