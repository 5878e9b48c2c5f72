"""By what images are drawn for an audit, so that all that it is about comes up: a stand-in for classes."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.segmentation import largest_classes
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet

_NO_CLASS = -1  # of images that are passed over
_TASK_OF: dict[str | None, AuditTask] = {
    "multi-label": "multi-label",
    "dense": "segmentation",
    "value": "regression",
    "class": "single-label",
    "soft": "single-label",
}


def as_drawn(samples: Samples, task: AuditTask | None, has_background: bool = True) -> Samples | None:
    """Return samples with one class each, by which an audit is balanced; those of a class below 0 are passed over.

    Of an image with several labels it is one of these, or one more class if it has none; images of which some labels
    are not known are passed over. Of a segmentation it is the class of most pixels, of objects if there are any.
    Numbers are drawn at random.

    Args:
        samples: As they were read.
        task: What the model is trained to answer; None for what the labels say.
        has_background: Whether class 0 of a segmentation is the background.

    Returns:
        On the CPU as far as classes go; None if the labels are not of this task.
    """
    given, labels = samples.annotations, samples.labels
    if task is None:
        task = _TASK_OF.get(samples.label_kind, "single-label" if labels is not None else None)
        if samples.label_kind == "class" and given is not None and given.ndim == 2:
            task = "multi-label"  # rows that mark one label each may be of images that could have several
    if task in ("single-label", "detection", "embedding"):
        return None if labels is None else replace(samples, labels=labels.cpu(), annotations=None)
    if task == "regression":
        if given is None and labels is not None:
            given = labels.float().unsqueeze(1)
        if given is None or given.ndim != 2:
            return None
        known = torch.isfinite(given).all(dim=1).cpu()
        return _drawn_by(samples, torch.where(known, 0, _NO_CLASS), given, "value")
    if task == "multi-label" and given is not None and given.ndim == 2:
        return _drawn_by(samples, _one_of(given.cpu()), given, "multi-label")
    if task == "segmentation" and given is not None and not given.is_floating_point() and given.ndim > 2:
        classes = largest_classes(given.cpu(), has_background)
        return _drawn_by(samples, classes.clamp_min(0 if has_background else _NO_CLASS), given, "dense")
    return None


def num_drawn_classes(task: AuditTask, outputs: int) -> int:
    """Return how many classes there are by which images are drawn, of a model with so many outputs."""
    return {"regression": 1, "multi-label": outputs + 1}.get(task, outputs)


def as_asked(drawn: ProbeSet, task: AuditTask) -> ProbeSet:
    """Return images that were drawn before it was known that their classes are numbers, or exclude each other."""
    if task == "regression" and drawn.annotations is None and drawn.labels is not None:
        return replace(drawn, annotations=drawn.labels.float().unsqueeze(1))
    if task in ("single-label", "detection", "embedding"):
        return replace(drawn, annotations=None)
    return drawn


def _drawn_by(samples: Samples, classes: Tensor, annotations: Tensor, kind: str) -> Samples:
    return replace(samples, labels=classes, annotations=annotations, label_kind=kind)  # type: ignore[arg-type]


def _one_of(rows: Tensor) -> Tensor:
    """Return (N,) one of the labels that each row (N, labels) of 0 and 1 marks, always the same one of the same row."""
    found = torch.full((len(rows),), _NO_CLASS)
    for place, row in enumerate(rows):
        if row.isnan().any():
            continue
        marked = (row == 1).nonzero().flatten().tolist()
        found[place] = Random(f"labels {marked}").choice(marked) if marked else len(row)
    return found
