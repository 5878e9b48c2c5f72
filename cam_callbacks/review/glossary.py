"""The glossary of the tab and the report: all measures, and the other terms that need a sentence."""

from __future__ import annotations

from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.review.schema import TermJson

_BEFORE_MEASURES = {
    "verdict": (
        "What was found. Suspicion: the lower end of a class's gap is above the threshold at this look. Alarm: at two "
        "looks in a row. Warning: the same without masks, a weak test. No alarm: nothing was found; this does not mean "
        "that there is no bias. Too few images: fewer than 30 could be tested, nothing is judged. Not learned: the "
        "accuracy is not yet clearly above that of always answering the most frequent class, nothing is judged."
    ),
    "interval": (
        "In square brackets: 95% bootstrap interval over images. With few images, [0, 0] does not mean that the "
        "number is certain."
    ),
}
_AFTER_MEASURES = {
    "heatmap": (
        "Bright: parts whose features raise the score of the explained class, each map scaled to its own range. The "
        "largest activation is its height before that."
    ),
    "error": "1 minus the correlation of the heatmap with the exact one, estimated; 0 if it is exact.",
}


def terms() -> list[TermJson]:
    """Return the entries of the glossary, in the order in which they are shown."""
    measures = [
        TermJson(name=spec.name, definition=spec.definition, chance=spec.chance, by_class=spec.is_in_class_table)
        for spec in MEASURES.values()
    ]
    return [*_plain(_BEFORE_MEASURES), *measures, *_plain(_AFTER_MEASURES)]


def _plain(definitions: dict[str, str]) -> list[TermJson]:
    return [
        TermJson(name=name, definition=definition, chance="", by_class=False)
        for name, definition in definitions.items()
    ]
