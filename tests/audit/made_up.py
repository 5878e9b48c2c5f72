"""Results of audits that were never made: their differences are given."""

import itertools

import torch
from torch import Tensor

from cam_callbacks import AuditResult
from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.statistics import measure

NUMBERS = itertools.count()
"""Of the looks: each has images of its own."""


def result(differences: Tensor, labels: Tensor, masks: str = "given", accuracy: float = 1.0, **more) -> AuditResult:
    count = len(labels)
    correct = (torch.arange(count) < accuracy * count).float()
    gap = {"given": "bg_gap", "estimated": "bg_gap", "none": "ring_gap"}[masks]
    measures = {
        "accuracy": measure(correct, labels, float(labels.bincount().max() / count)),
        gap: measure(differences, labels, 0.0),
        **more,
    }
    donors = torch.arange(count).unsqueeze(1)  # every image has others
    ids = torch.arange(count) + 10_000 * next(NUMBERS)
    return AuditResult(measures, masks, labels, ("cat", "dog"), torch.zeros(count, 3), Donors(donors, donors), ids)


def classes_of(size: int, count: int = 2) -> Tensor:
    return torch.arange(count).repeat_interleave(size)


def gap_of(value: float, size: int) -> Tensor:
    """Differences of two classes, those of the first with this mean, those of the second 0."""
    return torch.cat([(torch.arange(size) < value * size).float(), torch.zeros(size)])
