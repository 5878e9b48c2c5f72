"""In words: what the data gives away, whatever the model does with it."""

from __future__ import annotations

from collections.abc import Sequence

from cam_callbacks.audit.image_properties import JPEG
from cam_callbacks.audit.properties import DataProperty
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.verdict import Verdict
from cam_callbacks.audit.wording_further import shown
from cam_callbacks.audit.words import words_of

COLOR_WARNING = 0.85
"""The AUC of the mean color from which on it gives the truth away."""

_ALIKE = 0.05  # AUC
_MAX_PROPERTIES, _MAX_NOTED = 5, 3
_EXCHANGED = {  # which intervention exchanges a property
    "size": "size",
    "horizontal position": "position",
    "vertical position": "position",
    "sharpness": "detail",
    "contrast": "detail",
    "edge density": "detail",
    JPEG: "compression",
}
_RECOLORED = ("brightness", "saturation")
_COMPARED = {  # of what is larger, and smaller
    "size": ("the larger size", "the smaller size"),
    "aspect ratio": ("the larger aspect ratio", "the smaller aspect ratio"),
    "horizontal position": ("the horizontal position (further right)", "the horizontal position (further left)"),
    "vertical position": ("the vertical position (further down)", "the vertical position (further up)"),
}
_MOVED, _ASKED_FOR_PLACE = ("size", "position"), ("segmentation", "detection")  # where these are left out


def data_warning(result: AuditResult, verdict: Verdict) -> str:
    """Say what tells the truth by itself, though the object has no part in it, whatever the model does with it."""
    used = {finding.gap for finding in verdict.findings}
    found = _suspicious(result)
    found.sort(key=lambda each: f"{_EXCHANGED.get(each.name)}_gap" not in used)  # those of which more is known first
    telling = [] if color_shows_object(result) else _color(result)
    telling += [_told(result, each, "alone") for each in found[:_MAX_PROPERTIES]]
    if not telling:
        return ""
    return (
        f"**Data warning** (not about the model): {'; '.join(telling)}.{_rest(len(found) - _MAX_PROPERTIES)}"
        f"{_how_to_test(result, found)} Ask whoever collected the images why."
    )


def data_note(result: AuditResult) -> str:
    """Say what tells the truth together with the object, which it may, unless the background gives away as much."""
    named = {(each.name, each.label) for each in _suspicious(result)}
    found = [each for each in result.data if each.gives_away and each.shows_object]
    found = [each for each in found if (each.name, each.label) not in named]
    telling = _color(result) if color_shows_object(result) else []
    telling += [_told(result, each) for each in found[:_MAX_NOTED]]
    if not telling:
        return ""
    return (
        "Data note (the object is part of what was measured, or its size or place tells about as much, so this may be "
        f"right): {'; '.join(telling)}.{_rest(len(found) - _MAX_NOTED)}"
    )


def _suspicious(result: AuditResult) -> list[DataProperty]:
    return [each for each in result.data if each.gives_away and not each.shows_object]


def _color(result: AuditResult) -> list[str]:
    """Say that the mean color tells the truth, if it does."""
    auc = result.measures.get("data_color_auc")
    if auc is None or not auc.overall.value >= COLOR_WARNING:
        return []
    where = (
        "in the outer ring, which the object may reach into," if result.mask_source == "none" else "outside the object"
    )
    return [f"the mean color {where} alone tells {words_of(result.task).told_apart}, AUC {shown(auc.overall)}"]


def color_shows_object(result: AuditResult) -> bool:
    """Return whether the mean color may tell no more than the place and the shape of the object, or be of it."""
    auc = result.measures.get("data_color_auc")
    of_objects = [each.auc for each in result.data if each.gives_away and each.where == "object"]
    follows = auc is not None and any(each >= auc.overall.value - _ALIKE for each in of_objects)
    return follows or result.mask_source == "none"


def _rest(count: int) -> str:
    return f" AuditResult.data has {count} more." if count > 0 else ""


def _told(result: AuditResult, given: DataProperty, alone: str = "") -> str:
    """Say how well a property tells a class, a label or a number, and which way."""
    what = class_in_words(result, given.label)
    where = f"of the {given.where} {alone}".rstrip()
    if given.where == "outer ring":
        where += ", which the object may reach into"
    number = f"{given.auc:.2f} (by chance {given.chance:.2f})"
    if result.task == "regression":
        more = "larger" if given.is_larger else "smaller"
        return f"{what}: larger numbers come with a {more} {given.name} {where}, rank agreement {number}"
    compared = _COMPARED.get(given.name, (f"the higher {given.name}", f"the lower {given.name}"))
    return f"{what} {words_of(result.task).told} {compared[not given.is_larger]} {where}, AUC {number}"


def _how_to_test(result: AuditResult, found: Sequence[DataProperty]) -> str:
    """Say what tests whether the model uses properties: interventions that were not tried, or the gap of the colors."""
    tested = {each.name: _EXCHANGED[each.name] for each in found if each.name in _EXCHANGED}
    tested = {name: by for name, by in tested.items() if not (by in _MOVED and result.task in _ASKED_FOR_PLACE)}
    tested = {name: by for name, by in tested.items() if f"{by}_gap" not in result}
    text = ""
    if tested:
        names = list(dict.fromkeys(tested.values()))
        text = f" `Audit(interventions={names})` tests whether the model uses {_either(list(tested))}."
    colors = {each.name for each in found if each.name in _RECOLORED and each.where == "background"}
    if colors and "recolor_gap" in result:
        text += f" `recolor_gap` above tells whether it uses {_either(sorted(colors))}."
    return text


def _either(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def class_in_words(result: AuditResult, index: int) -> str:
    """Return the name of a class, or its number with what it is."""
    name = result.class_names.name(index)
    return f"{words_of(result.task).one} {name}" if name == str(index) else name
