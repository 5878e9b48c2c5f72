"""MeasureSpec: what can be known of a measure before anything is computed. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Masks = Literal["needed", "optional", "excluded", "estimated", "unused"]


@dataclass(frozen=True)
class MeasureSpec:
    """What is known of a measure.

    Attributes:
        name: The key in `AuditResult.measures`, and its tag behind the name of the monitor: `cam/bg_gap`.
        title: A few words for people.
        definition: What the number is and how to read it.
        chance: The chance level in words; empty if there is none.
        source: The paper, or "ours".
        masks: `"needed"`: the value needs masks. `"optional"`: masks are used if there are any. `"excluded"`:
            there is a value only without masks. `"estimated"`: there is a value only where masks are estimated.
            `"unused"`: masks make no difference.
        per_class: Where values per class are shown. `"logged"`: as a scalar each, and in the tab's table. `"table"`: in
            the tab's table, however many classes there are. `"table of few"`: in it if there are few classes.
            `"nowhere"`: only in `AuditResult`.
        has_interval: Whether the bounds of the interval over all images are logged.
        intervention: The intervention that has to be asked for; empty if it is always measured.
        task: The only task in which it is measured; empty for several.
    """

    name: str
    title: str
    definition: str
    chance: str = ""
    source: str = "ours"
    masks: Masks = "unused"
    per_class: Literal["logged", "table", "table of few", "nowhere"] = "nowhere"
    has_interval: bool = False
    intervention: str = ""
    task: str = ""

    @property
    def needs_masks(self) -> bool:
        """Whether the value needs masks."""
        return self.masks == "needed"

    @property
    def depends_on_masks(self) -> bool:
        """Whether a value on estimated masks differs from one on given masks, so that its tag has to say so."""
        return self.masks in ("needed", "optional")

    @property
    def is_logged_per_class(self) -> bool:
        """Whether each class has a scalar, unless there are too many classes."""
        return self.per_class == "logged"

    @property
    def is_kept_per_class(self) -> bool:
        """Whether the tab gets the values per class, however many classes there are."""
        return self.per_class in ("logged", "table")

    @property
    def is_in_class_table(self) -> bool:
        """Whether it is a column of the tab's table by class."""
        return self.per_class != "nowhere"


OF_THE_PROBABILITY = "The gap in the probability of the true class instead of accuracy. It varies less than the gap."


def of_exchange(
    name: str, definition: str, placebo: str = "", masks: Masks = "needed", source: str = "ours"
) -> Iterator[MeasureSpec]:
    """Yield what is known of the measures of an exchange besides that of the background, and of its placebo.

    Args:
        name: That of the intervention.
        definition: Of its gap.
        placebo: Of that of its placebo; empty for none.
        masks: As in `MeasureSpec`.
        source: The paper, or "ours".
    """
    of_name = name.replace("_", " ")
    parts = [("gap", f"{of_name.capitalize()} gap", definition)]
    if placebo:
        parts.append(("trace_gap", f"Trace of the {of_name} gap", placebo))
    for ending, title, meaning in parts:
        yield MeasureSpec(
            f"{name}_{ending}",
            title=title,
            definition=meaning,
            chance="0",
            source=source,
            masks=masks,
            per_class="logged" if ending == "gap" else "nowhere",
            has_interval=True,
            intervention=name,
        )
        yield MeasureSpec(
            f"{name}_{ending}_probability",
            title=f"{title} in probability",
            definition=OF_THE_PROBABILITY,
            chance="0",
            masks=masks,
            has_interval=True,
            intervention=name,
        )


@dataclass(frozen=True)
class Form:
    """A form of the gaps that a task has in place of that in probability.

    Attributes:
        title: What stands in place of "probability" in their titles.
        definition: What they are.
        limit: How far from 0 they are at most.
    """

    title: str
    definition: str
    limit: float = 1.0


FORMS = {
    "_score": Form("IoU times score", "The gap in the largest IoU times score of the boxes of the class."),
    "_cosine": Form("likeness", "The gap in the cosine to the mean of the own class.", limit=2.0),
}
"""By what follows the name of a gap."""
