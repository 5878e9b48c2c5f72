"""What was exchanged, one beside the other: the background first, then all else, with what came of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cam_callbacks.audit.result import MAX_COST, MIN_IMAGES, AuditResult, Further
from cam_callbacks.audit.verdict import WORST_FIRST, State, Verdict
from cam_callbacks.audit.wording_further import found_in

_COSTLY = "the exchange itself costs too much"
_UNJUDGED: dict[State, str] = {
    "not testable": _COSTLY,
    "too few images": "too few images",
    "not learned": "not learned",
}


@dataclass(frozen=True)
class Dependence:
    """What was exchanged, and what came of it.

    Attributes:
        title: What answers would depend on, in words.
        gap: The name of its measure.
        placebo: The name of the measure of its placebo; None if it has none.
        cost: Right answers lost by an exchange with an image of the same class; NaN if it is not known.
        state: The state of a `Finding`; `"none"` if nothing was found; or `"not judged"`.
        about: What it was found in, or why it was not judged; else empty.
    """

    title: str
    gap: str
    placebo: str | None
    cost: float
    state: State | Literal["none", "not judged"]
    about: str = ""


def dependences(result: AuditResult, verdict: Verdict) -> list[Dependence]:
    """Return the background, and what else was exchanged, with what the verdict says of each."""
    return [_of_background(result, verdict), *(_of(result, verdict, each) for each in result.further)]


def _of_background(result: AuditResult, verdict: Verdict) -> Dependence:
    state = verdict.background or verdict.state
    title = "what lies at the edge" if result.mask_source == "none" else "the background"
    placebo = "outline_gap" if "outline_gap" in result else None
    cost = result["collage_cost"].overall.value if "collage_cost" in result else math.nan
    if state in WORST_FIRST:
        return Dependence(title, result.gap_name, placebo, cost, state, found_in(result, verdict))
    if state in _UNJUDGED:
        return Dependence(title, result.gap_name, placebo, cost, "not judged", _UNJUDGED[state])
    return Dependence(title, result.gap_name, placebo, cost, "none")


def _of(result: AuditResult, verdict: Verdict, given: Further) -> Dependence:
    parts = (given.title, given.gap, given.placebo, given.cost)
    for finding in verdict.findings:
        if finding.gap == given.gap:
            return Dependence(*parts, finding.state, found_in(result, finding))
    why = _why_unjudged(verdict, given)
    return Dependence(*parts, "not judged" if why else "none", why)


def _why_unjudged(verdict: Verdict, given: Further) -> str:
    """Say why something was not judged; nothing if it was."""
    if verdict.background in ("too few images", "not learned"):
        return _UNJUDGED[verdict.background]
    if given.cost > MAX_COST:
        return _COSTLY
    is_few = verdict.evidence is not None and verdict.evidence.count(given.gap) < MIN_IMAGES
    return _UNJUDGED["too few images"] if is_few else ""
