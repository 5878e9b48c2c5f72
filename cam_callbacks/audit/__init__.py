"""Numbers that prove a bias, or clear of one: interventions, heat against masks, a verdict. Knows no Lightning.

`audit` makes them for a model and labeled images, `judge` makes a verdict of them.
"""

from __future__ import annotations

import torch
from torch import nn

from cam_callbacks.audit.foreground import estimate_masks
from cam_callbacks.audit.interventions import Donors
from cam_callbacks.audit.measuring import conclude
from cam_callbacks.audit.observations import Observations
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Estimate, Measure, measure
from cam_callbacks.audit.verdict import Verdict, judge
from cam_callbacks.data.datasets import ALL
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import ForwardFn
from cam_callbacks.explain.network import TargetLayer

__all__ = [
    "ALL",
    "AuditResult",
    "Donors",
    "Estimate",
    "Measure",
    "Verdict",
    "audit",
    "estimate_masks",
    "judge",
    "measure",
]


def audit(
    model: nn.Module,
    probes: ProbeSet,
    target_layer: TargetLayer = None,
    *,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
    batch_size: int | None = None,
) -> AuditResult:
    """Audit a classifier on labeled images; with masks if they have them, else with estimated ones.

    At most eleven forward passes per image, and one forward and backward pass for the heatmaps.

    Args:
        model: The classifier; it is left as it was.
        probes: Images with labels; 30 or more of each class tell something.
        target_layer: Of the heatmaps, as in `Method.__call__`.
        forward_fn: As in `Method.__call__`.
        multi_label: As in `Method`.
        batch_size: As in `Method`.

    Returns:
        The numbers.

    Raises:
        TypeError: `probes` that are no ProbeSet.
        ValueError: Images without labels, or all of one class; as `Method.__call__` otherwise.
    """
    plan = Observations(probes)
    rows = torch.arange(len(probes))
    return conclude(plan, [plan.observe(model, rows, target_layer, forward_fn, multi_label, batch_size)])
