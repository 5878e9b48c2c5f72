"""In training, the audit exchanges more than backgrounds."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from biased_runs import AUDITED, SIZE, ReadsOneThing, samples
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_runs import fit, own_warnings, scalars
from torch import Tensor

from cam_callbacks import Audit, CAMMonitor, Intervention, ProbeSet, Verdict


def upper_part_of(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
    changed = images.clone()
    changed[:, :, : 3 * SIZE // 4] = donors[:, :, : 3 * SIZE // 4]
    return changed


def test_what_else_is_exchanged_is_logged_judged_and_kept(tmp_path: Path) -> None:
    upper = Intervention("upper", upper_part_of, title="the upper edge")
    said: list[Verdict] = []
    wanted = Audit(num_images=AUDITED, interventions=["position", "detail", upper], on_alarm=said.append)
    monitor = CAMMonitor("features", num_probes=4, audit=wanted, on_error="raise")
    data = samples(True)
    with own_warnings() as warned:
        trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, max_epochs=2)
    logged = scalars(tmp_path)
    assert {"cam/position_gap", "cam/detail_gap_low", "cam/upper_gap", "cam/upper_gap_by_class/0"} <= set(logged)
    assert logged["cam/upper_gap"][-1][1] > 0.2
    assert abs(logged["cam/position_gap"][-1][1]) < 0.05
    assert [finding.gap for finding in monitor.verdict.findings if finding.state == "alarm"] == ["upper_gap"]
    assert len(said) == 1
    assert [text for text in warned if "ALARM" in text]
    resumed = CAMMonitor("features", num_probes=4, audit=wanted)
    resumed.load_state_dict(monitor.state_dict())
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    again = CAMMonitor("features", num_probes=4, audit=wanted, on_error="raise")
    fit(tmp_path / "resumed", again, ReadsOneThing(True), data, data, max_epochs=3, ckpt_path=tmp_path / "kept.ckpt")
    assert "upper_gap" in [finding.gap for finding in again.verdict.findings if finding.state == "alarm"]


def test_a_wrong_exchange_ends_the_run_before_it_trains(tmp_path: Path) -> None:
    wrong = Intervention("wrong", lambda images, masks, donors, donor_masks: images[:1])
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=20, interventions=[wrong]))
    data = samples(True)
    with pytest.raises(MisconfigurationException, match=r"Intervention\('wrong', ...\) must return images"):
        fit(tmp_path, monitor, ReadsOneThing(True), data, data, num_sanity_val_steps=1, max_epochs=1)


def test_the_check_of_an_exchange_leaves_the_images_of_the_user_alone(tmp_path: Path) -> None:
    given = next(iter(samples(True)))
    images, labels = given[0][:8].clone(), given[1][:8]
    wipes = Intervention("wipes", lambda images, masks, donors, donor_masks: images.zero_())
    probes = ProbeSet(images.clone(), labels)
    monitor = CAMMonitor("features", probes=probes, audit=Audit(num_images=20, interventions=[wipes]))
    data = samples(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, monitor, ReadsOneThing(True), data, data, num_sanity_val_steps=1, max_epochs=1)
    assert torch.equal(probes.images, images)
