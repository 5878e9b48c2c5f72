"""In training, the audit asks what the model is trained to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import fit, infos, loader, own_warnings, scalars
from task_runs import NETWORKS, NUM_IMAGES, Rows, Unchanged, monitored, rows_of
from task_scenes import SaysLabels, SaysNumbers, numbered
from torch import Tensor, nn

from cam_callbacks import Audit, CAMMonitor, ProbeSet


@pytest.mark.parametrize("task", NETWORKS)
def test_each_task_is_recognized_or_stated_audited_and_judged(tmp_path: Path, task: str) -> None:
    with own_warnings() as warned:
        monitor = monitored(tmp_path, task, 1.0)
    assert monitor.audit_result.task == task
    assert monitor.verdict.state == "alarm"
    logged = scalars(tmp_path)
    assert len(logged["cam/bg_gap"]) == 2
    assert logged["cam/alarm"][-1][1] == 1
    assert [text for text in warned if "ALARM" in text]
    assert len(monitor.audit_result.labels) == NUM_IMAGES


@pytest.mark.parametrize("task", NETWORKS)
def test_a_network_that_does_not_use_the_background_gives_no_alarm(tmp_path: Path, task: str) -> None:
    monitor = monitored(tmp_path, task, 0.0)
    assert monitor.verdict.state == "no alarm"
    assert abs(scalars(tmp_path)["cam/bg_gap"][-1][1]) < 0.05


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_half_of_the_images_stay_and_a_resumed_run_goes_on(tmp_path: Path, task: str) -> None:
    monitor = monitored(tmp_path / "first", task, 1.0)
    assert monitor.verdict.evidence.num_looks == 2
    count = len(monitor.verdict.evidence.images.unique())
    assert NUM_IMAGES < count < 2 * NUM_IMAGES
    state = monitor.state_dict()
    resumed = CAMMonitor("network.features", num_probes=4, audit=Audit(num_images=NUM_IMAGES), on_error="raise")
    resumed.load_state_dict(state)
    data = loader(rows_of(task), batch_size=16)
    fit(tmp_path / "second", resumed, Unchanged(NETWORKS[task](1.0)), data, data)
    assert resumed.verdict.state == "alarm"
    assert resumed.verdict.evidence.num_looks == 3


def test_images_of_which_labels_are_not_known_are_left_out(tmp_path: Path) -> None:
    rows = rows_of("multi-label")
    rows.columns["label"][:100, 1] = torch.nan
    monitor = CAMMonitor("network.features", num_probes=4, audit=Audit(num_images=NUM_IMAGES), on_error="raise")
    data = loader(rows, batch_size=16)
    fit(tmp_path, monitor, Unchanged(SaysLabels(1.0)), data, data)
    known = ProbeSet(rows.columns["image"][100:]).image_ids
    assert set(monitor.audit_result.image_ids.tolist()) <= set(known.tolist())


def test_whole_numbers_of_a_regression_are_numbers(tmp_path: Path) -> None:
    given = numbered(160)
    counts = (20 * given.annotations[:, 0]).round()

    class Counts(Unchanged):
        def __init__(self) -> None:
            super().__init__(SaysNumbers(0.6))
            self.loss = nn.MSELoss()

        def forward(self, images: Tensor) -> Tensor:
            return 20 * self.network(images)[:, :1]

    data = loader(Rows(image=given.images, label=counts.long(), mask=given.masks), batch_size=16)
    monitor = CAMMonitor("network.features", num_probes=4, audit=Audit(num_images=NUM_IMAGES), on_error="raise")
    fit(tmp_path, monitor, Counts(), data, data, max_epochs=2)
    assert monitor.audit_result.task == "regression"
    assert monitor.audit_result["bg_gap"].overall.value == pytest.approx(0.6, abs=0.05)


def test_what_has_no_heatmaps_is_audited_without_them(tmp_path: Path) -> None:
    with infos() as said, own_warnings() as warned:
        monitored(tmp_path, "embedding", 0.0)
    assert [text for text in said if "audits the embedding, which has no heatmaps" in text]
    assert f"CAMMonitor: makes no heatmaps; audits {NUM_IMAGES} images" in said
    assert not [text for text in warned if "shows nothing" in text]
    assert "cam/bg_gap" in scalars(tmp_path)
    assert "cam/passes" not in scalars(tmp_path)


class OfObjects(Unchanged):
    """A detector that is validated on batches of torchvision's form."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(torch.stack(batch[0]))


def as_torchvision_has_them(rows: list[dict[str, Tensor]]) -> tuple[Any, Any]:
    found = [{"boxes": row["boxes"][None], "labels": row["label"][None]} for row in rows]
    return [row["image"] for row in rows], found


def test_a_detector_is_audited_on_batches_of_torchvision(tmp_path: Path) -> None:
    monitor = CAMMonitor(num_probes=4, audit=Audit(num_images=NUM_IMAGES, task="detection"), on_error="raise")
    data = loader(rows_of("detection"), batch_size=16, collate_fn=as_torchvision_has_them)
    fit(tmp_path, monitor, OfObjects(NETWORKS["detection"](1.0)), data, data, max_epochs=2)
    assert monitor.verdict.state == "alarm"
    assert monitor.audit_result.mask_source == "given"


def test_one_label_that_all_images_have_is_nothing_to_audit(tmp_path: Path) -> None:
    rows = rows_of("multi-label")
    rows.columns["label"][:] = torch.tensor([1.0, 1.0, 0.0])
    monitor = CAMMonitor("network.features", num_probes=4, audit=Audit(num_images=NUM_IMAGES))
    data = loader(rows, batch_size=16)
    with own_warnings() as warned:
        fit(tmp_path, monitor, Unchanged(SaysLabels(1.0)), data, data)
    assert [text for text in warned if "skips the audit: no label is there in 2" in text]
    assert monitor.audit_result is None


def middles(images: Tensor) -> Tensor:
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    masks[:, 8:16, 8:16] = True
    return masks


@pytest.mark.parametrize("masks", [None, middles])
def test_boxes_are_not_estimated_without_any_there_is_no_audit(tmp_path: Path, masks: Any) -> None:
    rows = rows_of("detection")
    del rows.columns["boxes"]
    monitor = CAMMonitor(audit=Audit(num_images=NUM_IMAGES, task="detection", masks=masks))
    data = loader(rows, batch_size=16)
    with own_warnings() as warned:
        fit(tmp_path, monitor, Unchanged(NETWORKS["detection"](0.0)), data, data)
    assert monitor.audit_result is None
    assert any("skips the audit: a detection needs images" in text for text in warned)
