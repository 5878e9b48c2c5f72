"""Which question an audit asks: as the user says, or as what is known of the images says."""

from __future__ import annotations

from typing import Literal

import torch

from cam_callbacks._checks import check_choice
from cam_callbacks.audit.classes import Classes
from cam_callbacks.audit.detection import Boxes
from cam_callbacks.audit.embedding import Features
from cam_callbacks.audit.question import AuditTask, Question
from cam_callbacks.audit.regression import Numbers
from cam_callbacks.audit.segmentation import Segments
from cam_callbacks.audit.several_labels import SeveralLabels
from cam_callbacks.data.probes import ProbeSet

_QUESTIONS: dict[str, type[Question]] = {
    each.task: each for each in (Classes, SeveralLabels, Numbers, Segments, Boxes, Features)
}
TASKS = ("auto", *_QUESTIONS)


def question_about(probes: ProbeSet, task: AuditTask | Literal["auto"] = "auto") -> Question:
    """Return the question of a task.

    Args:
        probes: The images.
        task: `"auto"`: what `annotations` say, several labels, numbers or a class for each pixel; without them one
            class for each image.

    Raises:
        ValueError: There is no such task, or the images lack what it needs.
    """
    check_choice("task", task, TASKS)
    return _QUESTIONS[_task_of(probes) if task == "auto" else task](probes)  # type: ignore[call-arg]


def _task_of(probes: ProbeSet) -> AuditTask:
    given = probes.annotations
    if given is None:
        return "single-label"
    if given.dtype == torch.bool:
        return "multi-label"
    if not given.is_floating_point():
        return "segmentation"
    if given.shape[1] > 1 and bool(((given == 0) | (given == 1)).all()):
        raise ValueError(
            "annotations are 0.0 and 1.0 only: if they mark labels, give them as bool; if they are numbers, say "
            "task='regression'"
        )
    return "regression"
