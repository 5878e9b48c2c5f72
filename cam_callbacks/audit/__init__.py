"""Numbers that prove a bias, or clear of one: interventions, heat against masks, a verdict. Knows no Lightning.

`audit` makes them for a model and labelled images, `judge` makes a verdict of them.
"""

from cam_callbacks.audit.audit import AuditResult, audit
from cam_callbacks.audit.estimates import Estimate, Measure
from cam_callbacks.audit.verdict import Verdict, judge

__all__ = ["AuditResult", "Estimate", "Measure", "Verdict", "audit", "judge"]
