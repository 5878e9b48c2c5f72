"""Verdict: what was found at a look, with what it stands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cam_callbacks.audit.evidence import Evidence

State = Literal["alarm", "suspicion", "warning", "no alarm", "not testable", "too few images", "not learned"]
SecondTest = Literal["agrees", "silent", "needed"]
WORST_FIRST: tuple[State, ...] = ("alarm", "warning", "suspicion")
HeatState = Literal["on the object", "indistinguishable from chance", "away from the object"]


@dataclass(frozen=True)
class Finding:
    """A dependence on something else than the background.

    Attributes:
        gap: The name of the measure.
        title: What answers depend on, in words.
        state: As in `Verdict`: `"alarm"`, `"suspicion"` or `"warning"`.
        classes: The indices of the classes for which it was found.
        overall: Whether it was found for all classes together.
    """

    gap: str
    title: str
    state: State
    classes: tuple[int, ...]
    overall: bool


@dataclass(frozen=True)
class Verdict:
    """What was found at a look.

    Attributes:
        state: The worst that was found. `"alarm"`: answers depend on the background, or on what else is exchanged,
            found after a look that found it, too. `"suspicion"`: found, but not at two looks in a row, not surely
            enough for an alarm, or without the second test where that is needed. `"warning"`: found at two looks in a
            row, by a weak test; it never becomes an alarm. `"no alarm"`: nothing was found, which does not mean that
            nothing is there. `"not testable"`: the exchange itself costs the model too much of its accuracy. `"too few
            images"`: nothing can be said. `"not learned"`: nothing can be said yet, because the accuracy is not clearly
            above chance.
        classes: The indices of the classes for which a dependence on the background was found.
        overall: Whether it was found for all classes together.
        heat: Where the heat lies, by class of ten maps or more; empty without masks.
        text: All of it in words, Markdown.
        threshold: What a gap has to exceed.
        detectable: The smallest gap, of all classes together, that four of five looks like this one would find; NaN if
            nothing was judged.
        second_test: Whether the second test `"agrees"` with what was found; if not, whether it is `"needed"` for an
            alarm, or just `"silent"`.
        evidence: What the last looks have found, for the next verdict; None before anything is learned.
        findings: What else answers depend on.
        background: The state of the background alone.
        followed: Where there are too many classes to have images of all: those that get more at the next look.
    """

    state: State
    classes: tuple[int, ...]
    overall: bool
    heat: Mapping[int, HeatState] = field(hash=False)
    text: str
    threshold: float
    detectable: float = math.nan
    second_test: SecondTest = "silent"
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    findings: tuple[Finding, ...] = ()
    background: State | None = None
    followed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.background is None:
            object.__setattr__(self, "background", self.state)

    @property
    def found(self) -> bool:
        """Whether a dependence was found: an alarm, a suspicion, or a warning."""
        return self.state in ("alarm", "suspicion", "warning")

    def state_dict(self) -> dict[str, Any]:
        """Return the verdict as primitives, e.g. for a checkpoint or as JSON."""
        evidence = None if self.evidence is None else self.evidence.state_dict()
        detectable = None if math.isnan(self.detectable) else self.detectable
        findings = [{**vars(each), "classes": list(each.classes)} for each in self.findings]
        parts = {
            "classes": list(self.classes),
            "followed": list(self.followed),
            "heat": dict(self.heat),
            "findings": findings,
        }
        return {**vars(self), **parts, "detectable": detectable, "evidence": evidence}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Verdict:
        """Make a verdict from its `state_dict`."""
        heat = {int(index): found for index, found in state["heat"].items()}  # the keys of JSON are strings
        detectable = math.nan if state["detectable"] is None else state["detectable"]
        evidence = None if state["evidence"] is None else Evidence.from_state_dict(state["evidence"])
        findings = tuple(Finding(**{**each, "classes": tuple(each["classes"])}) for each in state.get("findings", ()))
        classes = {name: tuple(state.get(name, ())) for name in ("classes", "followed")}
        parts = {**classes, "heat": heat, "findings": findings}
        return cls(**{**state, **parts, "detectable": detectable, "evidence": evidence})
