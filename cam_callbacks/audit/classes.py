"""The question of a classifier: of which class is the image?"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cam_callbacks.audit.donors import Donors, choose_donors
from cam_callbacks.audit.question import AuditTask, Question, Readings, check_labels, most_frequent_share
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader


class Classes(Question):
    """Right is an answer that is the class of the image; it may also be asked for the probability of that class.

    Args:
        probes: Images with labels of two classes or more.

    Raises:
        ValueError: There are no labels, or all images belong to one class.
    """

    task: ClassVar[AuditTask] = "single-label"

    def __init__(self, probes: ProbeSet) -> None:
        super().__init__(probes, check_labels(probes))

    @property
    def chance(self) -> float:
        """The share of the largest class."""
        return most_frequent_share(self.about)

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images of the same class, and of another one."""
        return choose_donors(self.about, usable, self.probes.fingerprint, count)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return whether answers are right, the probability of the true class, the class that is answered, its rival.

        The rival is the most probable class that is not the true one.

        Raises:
            ValueError: The model does not have a class.
        """
        probabilities = outputs.class_scores(output).probabilities
        labels = checked_classes(self.about[rows.cpu()], probabilities).to(probabilities.device)
        answered = probabilities.argmax(dim=1)
        correct = (answered == labels).float()
        probability = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        rival = probabilities.scatter(1, labels.unsqueeze(1), -1).argmax(dim=1)
        return only_known(torch.stack([correct, probability, answered.float(), rival.float()]), probabilities)


def checked_classes(labels: Tensor, scores: Tensor) -> Tensor:
    """Return labels (n,) that are columns of scores (n, classes, ...).

    Raises:
        ValueError: Some are not.
    """
    count = scores.shape[1]
    unknown = labels[(labels < 0) | (labels >= count)]
    if len(unknown):
        raise ValueError(f"labels contains {sorted(set(unknown.tolist()))}, but the model has {count} classes")
    return labels


def only_known(readings: Readings, answers: Tensor) -> Readings:
    """Return readings (R, n) with NaN where an answer, a row of (n, ...), is not finite."""
    return readings.where(torch.isfinite(answers).flatten(1).all(dim=1), torch.nan)
