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

_FEWEST = 3  # images of a class: one that is asked about, one that gives its background, one to be compared with


class Features(Question):
    """Each image is asked whether its features are more like the mean of its own class than that of any other.

    Likeness is the cosine. The mean of a class is that of the directions of its images as they are, without the image
    that is asked about, and without those that give it a background. It may also be asked for the cosine to the mean
    of its own class.

    Args:
        probes: Images with labels of two classes or more.

    Raises:
        ValueError: There are no labels, or all images belong to one class.
    """

    task: ClassVar[AuditTask] = "embedding"
    endings: ClassVar[tuple[str, ...]] = ("", "_cosine")
    reads_classes: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet) -> None:
        super().__init__(probes, check_labels(probes))
        self._classes, self._places = torch.unique(self.about, return_inverse=True)
        nobody = torch.zeros(len(self.about), 0, dtype=torch.long)
        self._donors = Donors(nobody, nobody)
        self._means = torch.empty(0)  # of each class
        # Of each image: classes whose mean it, or an image that gives it a background, is a part of; their means
        # without these.
        self._changed, self._changed_means = torch.empty(0, dtype=torch.long), torch.empty(0)

    @property
    def chance(self) -> float:
        """The share of the largest class."""
        return most_frequent_share(self.about)

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images of the same class, and of another one."""
        sizes = self._places.bincount()
        left = sizes[sizes > _FEWEST - 1] - _FEWEST + 1  # without the image itself, and one to be compared with
        count = min(count, int(left.min())) if len(left) else 1
        self._donors = choose_donors(self.about, usable, self.probes.fingerprint, count)
        return self._donors

    def prepare(self, ask: Callable[[Read], Readings]) -> None:
        """Find the mean of each class."""
        directions = ask(lambda output, _, __: _directions(output).T).T.double().nan_to_num()  # (N, D)
        sums = torch.zeros(len(self._classes), directions.shape[1], dtype=torch.float64)
        sums.index_add_(0, self._places, directions)
        self._means = F.normalize(sums, dim=1).float()
        itself, same, other = torch.arange(len(directions)).unsqueeze(1), self._donors.same, self._donors.other
        self._changed = self._places[torch.cat([itself, other.clamp_min(0)], dim=1)]
        left_out = torch.cat([itself, same, other], dim=1)
        again = (left_out.unsqueeze(2) == left_out.unsqueeze(1)).tril(-1).any(dim=2)
        is_left_out = (left_out >= 0) & ~again
        means = []
        for classes in self._changed.unbind(dim=1):
            counts = is_left_out & (self._places[left_out.clamp_min(0)] == classes.unsqueeze(1))
            rest = sums[classes] - (directions[left_out.clamp_min(0)] * counts.unsqueeze(2)).sum(dim=1)
            size = self._places.bincount()[classes] - counts.sum(dim=1)
            means.append(F.normalize(rest, dim=1).float().where((size > 0).unsqueeze(1), torch.nan))
        self._changed_means = torch.stack(means, dim=1)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return whether features are most like those of the own class, and the cosine to the mean of these."""
        directions = _directions(output)
        rows = rows.cpu()
        likeness = directions @ self._means.to(directions.device).T
        changed = (self._changed_means[rows].to(directions.device) @ directions.unsqueeze(2)).squeeze(2)
        likeness = likeness.scatter(1, self._changed[rows].to(directions.device), changed)
        is_own = F.one_hot(self._places[rows], len(self._classes)).bool().to(directions.device)
        own = likeness[is_own]
        nearest = likeness.masked_fill(is_own, -torch.inf).nan_to_num(nan=-torch.inf).amax(dim=1)
        return only_known(torch.stack([(own > nearest).float(), own]), own.unsqueeze(1))

    def targets(self, rows: Tensor) -> Targets:
        """Return None: no class of the model is the answer."""
        return None


def _directions(output: Any) -> Tensor:
    """Return the features (n, D) in what a model returned, of length 1."""
    return F.normalize(logits_of(output).detach().float().flatten(1), dim=1)
