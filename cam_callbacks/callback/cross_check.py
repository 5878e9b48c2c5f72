"""Compare the audit's accuracy with the one that the validation logs: does `forward` return what the steps judge?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from cam_callbacks.audit.result import AuditResult


def contradiction(metrics: Mapping[str, Tensor], result: AuditResult, own: str) -> str | None:
    """Say so if the audit finds fewer right answers than guessing would give, and the validation finds many.

    A model that has learned nothing, or always answers with one class, is right by chance on images that are balanced
    over the classes. Features that are taken for class scores are right less often than that.

    Args:
        metrics: What was logged, by name.
        result: The audit of the same validation.
        own: The first part of the names of what the monitor itself has logged.
    """
    if result.task != "single-label":
        return None
    accuracy, chance = result["accuracy"].overall, 1 / len(set(result.labels.tolist()))
    if not accuracy.count or not accuracy.high < chance:
        return None
    for name, value in metrics.items():
        is_accuracy = re.search(r"(^|[^a-z])acc(uracy)?($|[^a-z])", name.lower()) and "train" not in name.lower()
        if name.startswith(f"{own}/"):
            continue
        if not is_accuracy or value.numel() != 1:
            continue
        logged = float(value) / (100 if float(value) > 1 else 1)  # percent
        if max(accuracy.high, chance) < logged <= 1:
            return (
                f"CAMMonitor finds {accuracy.value:.2f} of the answers right, fewer than guessing would give, where "
                f"{name!r} is {float(value):.2f}: forward does not seem to return what validation_step judges, but "
                "perhaps features. Give forward_fn, a callable (pl_module, images) -> logits"
            )
    return None
