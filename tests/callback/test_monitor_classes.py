"""In training, the audit of more classes than it has images."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from biased_runs import SIZE, ReadsOneThing
from lightning_runs import fit, loader
from torch import Tensor
from torch.utils.data import TensorDataset

from cam_callbacks import Audit, CAMMonitor


class ReadsALevel(ReadsOneThing):
    """Tells forty classes apart by how green the background is, or how blue the object."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images).flatten(2)
        level = maps[:, 1].amin(dim=1) if self.background else maps[:, 2].amax(dim=1)
        return -((40 * level.unsqueeze(1) - torch.arange(40)) ** 2) * self.scale / 30


@pytest.mark.parametrize("reads_background", [True, False])
def test_of_more_classes_than_images_all_together_are_judged(tmp_path: Path, reads_background: bool) -> None:
    labels = torch.arange(320) % 40
    images, masks = torch.zeros(320, 3, SIZE, SIZE), torch.zeros(320, SIZE, SIZE, dtype=torch.bool)
    masks[:, 4 : SIZE - 4, 4 : SIZE - 4] = True
    images[:, 1] = (labels / 40).view(-1, 1, 1) + 0.001 * torch.rand(320, SIZE, SIZE)
    images[:, 2] = torch.where(masks, (labels / 40).view(-1, 1, 1), 0)
    images[:, 1][masks] = 1
    data = loader(TensorDataset(images, labels, masks), batch_size=16)
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=64), on_error="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, monitor, ReadsALevel(reads_background), data, data, max_epochs=2)
    assert monitor.verdict.state == ("alarm" if reads_background else "no alarm")
    result = monitor.audit_result
    assert result.drawn_for is not None
    assert len(result.labels) == 64
    at_random = int((~result.drawn_for).sum())
    for name in ("bg_gap", "accuracy", "recolor_gap"):  # what is logged is of images that were drawn at random
        assert result[name].overall.count == at_random
    assert len(result.image_ids) > 64  # the others give backgrounds
    assert len(set(result.labels.tolist())) > 20
    evidence = monitor.verdict.evidence
    assert evidence is not None
    assert (len(evidence.followed) > 0) == reads_background
    assert bool(result.drawn_for.any()) == reads_background
    if reads_background:  # of the two donors of each image of a class that is followed, one is of a class like it
        all_labels = monitor.audit_images.labels
        own = result.labels[result.drawn_for].unsqueeze(1)
        steps = (all_labels[result.donors.other[result.drawn_for]] - own).abs()
        assert own.shape[0] > 10
        assert ((steps <= 2).sum(dim=1) >= 1).float().mean() > 0.9
        assert (steps.amax(dim=1) > 2).float().mean() > 0.5
