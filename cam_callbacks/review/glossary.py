"""The glossary of the tab and the report: all measures, and the other terms that need a sentence."""

from __future__ import annotations

from cam_callbacks.audit.measure_spec import FORMS
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.review.schema import TermJson

_BEFORE_MEASURES = {
    "verdict": (
        "What was found. Suspicion: the gap of all images or of a class (a label, a number), in right answers or in "
        "what varies less, is above the threshold with confidence. Alarm: with more confidence, and at two looks in a "
        "row; a clean run has one in 100 "
        "at most. Warning: the same without masks, a weak test. No alarm: nothing was found; this does not mean that "
        "there is no bias. Not testable: to paste objects costs many answers by itself. Too few images: fewer than 30 "
        "could be tested. Not learned: right answers are not yet clearly more than by chance."
    ),
    "interval": (
        "In square brackets: the 95% interval over images; of gaps by Student's t, which knows that images share "
        "donors, of other numbers by the bootstrap. With few images, [0, 0] does not mean that the number is certain."
    ),
}
_AFTER_MEASURES = {
    "heatmap": (
        "Bright: parts whose features raise the score of the explained class, each map scaled to its own range; those "
        "of two classes of one image to the range of both. The largest activation is its height before that."
    ),
    "cost": (
        "Right answers lost by an exchange with an image of the same class: by the exchange itself. Above 0.2 it is "
        "not judged; above 0.1 it needs a second test, or gives no alarm."
    ),
    "property": (
        "How well a simple property of the images tells a class, a label or a number, whatever the model does: an AUC "
        "of 0.5, not at all, to 1, always; of numbers the rank agreement, how often the larger number has the larger "
        "value. By chance: the same, images permuted. The p-value: how often, images permuted, anything is told as "
        "surely by any of the properties. It gives something away at 0.75 or more with a p-value of 0.01 or less; the "
        "mean color (`data_color_auc`, no p-value) at 0.85 or more."
    ),
    "error": "1 minus the correlation of the heatmap with the exact one, estimated; 0 if it is exact.",
}


def terms() -> list[TermJson]:
    """Return the entries of the glossary, in the order in which they are shown."""
    measures = [
        TermJson(name=spec.name, definition=spec.definition, chance=spec.chance, by_class=spec.is_in_class_table)
        for spec in MEASURES.values()
    ]
    forms = {f"…{ending}": form.definition for ending, form in FORMS.items()}
    return [*_plain(_BEFORE_MEASURES), *measures, *_plain(forms), *_plain(_AFTER_MEASURES)]


def _plain(definitions: dict[str, str]) -> list[TermJson]:
    return [
        TermJson(name=name, definition=definition, chance="", by_class=False)
        for name, definition in definitions.items()
    ]
