"""The question of an embedding: whose images is this one most like?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.classes import only_known
from cam_callbacks.audit.donors import Donors, choose_donors
from cam_callbacks.audit.question import AuditTask, Question, Read, Readings, check_labels, most_frequent_share
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader, logits_of
from cam_callbacks.explain.targets import Targets


class Features(Question):
    """Each image is asked whether its features are more like the mean of its own class than that of any other.

    Likeness is the cosine. The mean of a class is that of the directions of its images as they are, without the image
    that is asked about, and without those that give it a background of its class. It may also be asked for the cosine
    to the mean of its own class.

    Args:
        probes: Images with labels of two classes or more.

    Raises:
        ValueError: There are no labels, or of one class only.
    """

    task: ClassVar[AuditTask] = "embedding"
    endings: ClassVar[tuple[str, ...]] = ("", "_cosine")
    reads_classes: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet) -> None:
        super().__init__(probes, check_labels(probes))
        self._classes, self._places = torch.unique(self.about, return_inverse=True)
        self._givers = torch.zeros(len(self.about), 0, dtype=torch.long)
        self._means = self._own_means = torch.empty(0)

    @property
    def chance(self) -> float:
        """The share of the largest class."""
        return most_frequent_share(self.about)

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images of the same class, and of another one."""
        donors = choose_donors(self.about, usable, self.probes.fingerprint, count)
        self._givers = donors.same
        return donors

    def prepare(self, ask: Callable[[Read], Readings]) -> None:
        """Find the mean of each class."""
        directions = ask(lambda output, _, __: _directions(output).T).T.double().nan_to_num()  # (N, D)
        sums = torch.zeros(len(self._classes), directions.shape[1], dtype=torch.float64)
        sums.index_add_(0, self._places, directions)
        is_left_out = torch.cat([torch.arange(len(directions)).unsqueeze(1), self._givers], dim=1)
        left_out = (directions[is_left_out.clamp_min(0)] * (is_left_out >= 0).unsqueeze(2)).sum(dim=1)
        own = sums[self._places] - left_out
        rest = self._places.bincount()[self._places] - (is_left_out >= 0).sum(dim=1)
        self._means = F.normalize(sums, dim=1).float()
        self._own_means = F.normalize(own, dim=1).float().where((rest > 0).unsqueeze(1), torch.nan)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return whether features are most like those of the own class, and the cosine to the mean of these."""
        directions = _directions(output)
        rows = rows.cpu()
        own = (directions * self._own_means[rows].to(directions.device)).sum(dim=1)
        others = directions @ self._means.to(directions.device).T
        is_own = F.one_hot(self._places[rows], len(self._classes)).bool().to(directions.device)
        nearest = others.masked_fill(is_own, -torch.inf).amax(dim=1)
        return only_known(torch.stack([(own > nearest).float(), own]), own.unsqueeze(1))

    def targets(self, rows: Tensor) -> Targets:
        """Return None: no class of the model is the answer."""
        return None


def _directions(output: Any) -> Tensor:
    """Return the features (n, D) in what a model returned, of length 1."""
    return F.normalize(logits_of(output).detach().float().flatten(1), dim=1)
