"""In training, the audit finds a planted bias and clears a model without one; numbers, pictures, verdict, alarm."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from biased_runs import AUDITED, SIZE, ReadsOneThing, run, samples
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_runs import Squares, TinyModule, fit, image_steps, infos, loader, own_warnings, quiet, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import TensorDataset

from cam_callbacks import Audit, CAMMonitor, ProbeSet, RegressionTarget, ScoreCAM, Verdict


@dataclass
class Ran:
    """A run of three looks at a model that reads the background, and what was said to the user."""

    folder: Path
    monitor: CAMMonitor
    warned: list[str]
    told: list[str]


@pytest.fixture(scope="module")
def alarmed(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("alarmed")
    with own_warnings() as warned, infos() as told:
        monitor = run(folder, True, samples(True), epochs=3, method=ScoreCAM("probability"))
    return Ran(folder, monitor, warned, told)


def assert_alarm(folder: Path, monitor: CAMMonitor, gap: str, looks: int) -> None:
    """The model answers by the background: an alarm from the second look on."""
    assert monitor.verdict.state == "alarm"
    assert set(monitor.verdict.classes) == {0, 1}
    assert monitor.verdict.overall
    assert monitor.audit_result["bg_gap"].overall.low > 0.9
    assert "the model uses its color" in monitor.verdict.text
    logged = scalars(folder)
    assert ("cam/mask_agreement" in logged) == (gap == "bg_gap_estimated")
    assert [value for _, value in logged["cam/alarm"]] == [0, *[1] * (looks - 1)]
    for tag in (
        f"cam/{gap}",
        f"cam/{gap}_low",
        f"cam/{gap}_high",
        f"cam/{gap}_by_class/0",
        f"cam/{gap}_by_class/1_low",
    ):
        assert len(logged[tag]) == looks
        assert logged[tag][-1][1] > 0.9
    assert logged["cam/audit_passes"][0][1] <= 15 * len(monitor.audit_result.labels) + 2 * 4
    assert logged["cam/audit_seconds"][0][1] > 0


def test_reading_the_background_raises_the_alarm_at_the_second_look(alarmed: Ran) -> None:
    assert_alarm(alarmed.folder, alarmed.monitor, "bg_gap", looks=3)


def test_so_it_does_with_estimated_masks(tmp_path: Path) -> None:
    said: list[Verdict] = []
    monitor = run(tmp_path, True, samples(True, masks=False), num_images=48, on_alarm=said.append)
    assert_alarm(tmp_path, monitor, "bg_gap_estimated", looks=2)
    assert [verdict.state for verdict in said] == ["alarm"]


@pytest.mark.parametrize("biased", [True, False], ids=["biased data", "unbiased data"])
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "estimated"])
def test_a_model_that_reads_the_object_raises_none(tmp_path: Path, masks: bool, biased: bool) -> None:
    monitor = run(tmp_path, False, samples(biased, masks))
    assert monitor.verdict.state == "no alarm"
    assert abs(monitor.audit_result.gap.overall.value) < 0.02
    assert "No alarm is not the same as no bias" in monitor.verdict.text
    assert ("Data warning" in monitor.verdict.text) == biased


def test_pictures_and_the_verdict_are_logged(alarmed: Ran) -> None:
    assert {"cam/swaps", "cam/heat_over_chance"} <= set(image_steps(alarmed.folder))
    events = EventAccumulator(str(alarmed.folder / "run"), size_guidance={"tensors": 0}).Reload()
    texts = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("cam/verdict/text_summary")]
    assert len(texts) == 3
    assert texts[-1] == alarmed.monitor.verdict.text


def test_the_console_hears_of_a_change_of_the_verdict_once(alarmed: Ran) -> None:
    assert [text for text in alarmed.warned if "ALARM" in text] == [
        "CAMMonitor, epoch 1: ALARM: answers depend on the background (found in: all classes together, 0, 1). "
        "Found at this look, and at the one before."
    ]
    assert len([text for text in alarmed.told if "Suspicion" in text]) == 1


def test_an_alarm_can_stop_the_training(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED, on_alarm="stop"))
    data = samples(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, max_epochs=6)
    assert trainer.current_epoch == 2


def test_the_numbers_can_be_monitored_in_the_same_validation(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="cam/bg_gap", mode="min")
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED))
    data = samples(True)
    fit(tmp_path, [monitor, checkpoint], ReadsOneThing(True), data, data, enable_checkpointing=True)
    assert float(checkpoint.best_model_score) == pytest.approx(1)


def test_suspicions_outlive_a_resume(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED))
    data = samples(True)
    trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, max_epochs=1)
    assert monitor.verdict.state == "suspicion"
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED))
    fit(tmp_path / "again", again, ReadsOneThing(True), data, data, ckpt_path=str(tmp_path / "last.ckpt"), max_epochs=2)
    assert again.verdict.state == "alarm"


def fixed_half(monitor: CAMMonitor) -> str:
    """The fingerprint of the images that all looks share, as the checkpoint knows it."""
    return monitor.state_dict()["audit"]["images"]["fingerprint"]


def test_a_resumed_run_goes_on_with_the_half_that_stays(tmp_path: Path) -> None:
    first, again = (CAMMonitor("features", num_probes=4, audit=Audit(num_images=40)) for _ in range(2))
    trainer = fit(tmp_path, first, ReadsOneThing(True), samples(True), samples(True), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    others, checkpoint = samples(True, seed=5), str(tmp_path / "last.ckpt")
    fit(tmp_path / "again", again, ReadsOneThing(True), others, others, ckpt_path=checkpoint, max_epochs=2)
    assert fixed_half(again) == fixed_half(first)
    assert len(again.audit_images) == 40
    assert again.verdict.state == "alarm"


def test_suspicions_are_dropped_when_other_images_are_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_callbacks.callback.memory._MAX_BYTES_IN_CHECKPOINT", 10_000)
    first, again = (CAMMonitor("features", num_probes=4, audit=Audit(num_images=40)) for _ in range(2))
    trainer = fit(tmp_path, first, ReadsOneThing(True), samples(True), samples(True), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    others, checkpoint = samples(True, seed=5), str(tmp_path / "last.ckpt")
    with own_warnings() as said:
        fit(tmp_path / "again", again, ReadsOneThing(True), others, others, ckpt_path=checkpoint, max_epochs=2)
    assert again.verdict.state == "suspicion"
    assert any("suspicions reset" in text for text in said)


def test_validate_judges_a_finished_model(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED))
    Trainer(callbacks=[monitor], **quiet(tmp_path)).validate(ReadsOneThing(True), samples(True), verbose=False)
    assert monitor.verdict.state == "suspicion"
    assert "one look alone gives no alarm" in monitor.verdict.text


def test_an_unknown_number_and_its_chance_level_are_not_logged(tmp_path: Path) -> None:
    images, targets = torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 2
    nowhere = torch.zeros(40, SIZE, SIZE, dtype=torch.bool)
    monitor = CAMMonitor(
        "features", probes=ProbeSet(images[:4], targets[:4]), batch_fn=lambda batch: (*batch, nowhere[: len(batch[0])])
    )
    data = loader(TensorDataset(images, targets), batch_size=16)
    trainer = Trainer(callbacks=[monitor], **quiet(tmp_path))
    trainer.validate(ReadsOneThing(True), data, verbose=False)
    assert monitor.audit_result.measures["bg_gap"].overall.count == 0
    logged = {tag.removeprefix("cam/") for tag in trainer.logged_metrics}
    assert "accuracy" in logged
    assert not [tag for tag in logged if tag.startswith(("bg_gap", "background_only", "heat_on_object"))]


def broken(*_: Any) -> Any:
    raise OSError("libGL.so.1 is missing")


def test_an_error_in_the_audit_costs_no_heatmap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_callbacks.audit.foreground.estimate_masks", broken)
    data, monitor = samples(True, masks=False), CAMMonitor("features", num_probes=4, audit=Audit(num_images=12))
    with own_warnings() as said:
        trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, max_epochs=5)
    assert trainer.current_epoch == 5
    assert len(image_steps(tmp_path)["cam/heatmaps"]) == 5
    failures = [text for text in said if "failed to audit" in text]
    assert len(failures) == 3
    assert "disabled for this run. Heatmaps are not affected" in failures[-1]
    assert "libGL" in failures[0]


def test_a_repeated_look_at_the_same_weights_is_no_second_finding(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=AUDITED))
    data = samples(True)
    trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, max_epochs=1)
    trainer.validate(trainer.lightning_module, data, verbose=False)
    assert monitor.verdict.state == "suspicion"


def test_test_images_are_audited_in_tests_only(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=20), every_n_epochs=2)
    data, others = samples(True), samples(True, seed=5)
    trainer = fit(tmp_path, monitor, TestsToo(True), data, data, max_epochs=2)
    stays, audited = fixed_half(monitor), monitor.audit_images.fingerprint
    trainer.test(trainer.lightning_module, others, verbose=False)
    assert monitor.audit_images.fingerprint != audited
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, data, data)
    assert fixed_half(monitor) == stays


class TestsToo(ReadsOneThing):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))


class WithoutLabels(ReadsOneThing):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self(batch[0]).mean())


@pytest.mark.parametrize("labels", [(), (torch.ones(12, dtype=torch.int64),)], ids=["no labels", "one class"])
def test_without_two_classes_nothing_is_audited_and_this_is_said_once(
    tmp_path: Path, labels: tuple[Tensor, ...]
) -> None:
    data = loader(TensorDataset(torch.rand(12, 3, SIZE, SIZE), *labels))
    monitor = CAMMonitor("features", num_probes=4, explain="prediction")
    with own_warnings() as warned, infos() as told:
        fit(tmp_path, monitor, WithoutLabels(True), data, data, max_epochs=2)
    assert monitor.verdict is None
    assert monitor.explanation is not None
    says = "skips the audit: no labels of two or more classes" if labels else "No audit, which needs labels"
    assert len([text for text in [*warned, *told] if says in text]) == 1


def test_what_is_no_classifier_is_not_audited(tmp_path: Path) -> None:
    monitor = CAMMonitor("features", explain=RegressionTarget(1), num_probes=4)
    with own_warnings() as said:
        fit(tmp_path, monitor, TinyModule())
    assert monitor.verdict is None
    assert said == []


def test_given_probes_are_explained_if_batches_are_not_understood(tmp_path: Path) -> None:
    class OddBatches(TinyModule):
        def _loss_of(self, batch: Any) -> Tensor:
            return super()._loss_of((batch["picture"], batch["kind"]))

    def odd(items: list[Any]) -> Any:
        return dict(zip(("picture", "kind"), torch.utils.data.default_collate(items), strict=True))

    data = loader(Squares(12), collate_fn=odd)
    probes = ProbeSet(Squares(4).images, Squares(4).labels)
    monitor = CAMMonitor(probes=probes)
    with own_warnings() as said:
        fit(tmp_path, monitor, OddBatches(), data, data)
    assert monitor.explanation is not None
    assert monitor.verdict is None
    assert len([text for text in said if "skips the audit: the batch is not understood" in text]) == 1


class ReadsMappings(ReadsOneThing):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch["image"], batch["label"]), batch_idx)


def test_trimaps_and_groups_are_read_from_the_batches(tmp_path: Path) -> None:
    images, targets, inside = samples(True).dataset.tensors
    trimap = torch.where(inside, 1, 2)
    trimap[:, 0] = 3
    groups = torch.arange(len(targets)) // 2 % 2

    def collate(items: list[Any]) -> Any:
        return dict(zip(("image", "label", "mask", "group"), torch.utils.data.default_collate(items), strict=True))

    data = loader(TensorDataset(images, targets, trimap, groups), batch_size=16, collate_fn=collate)
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=20, foreground_values=[1]), on_error="raise")
    fit(tmp_path, monitor, ReadsMappings(True), data, data)
    assert monitor.audit_result.mask_source == "given"
    assert monitor.audit_result.measures["bg_gap"].overall.value > 0.9
    assert monitor.audit_result.measures["worst_group_accuracy"].overall.value == 1


def test_masks_that_are_not_understood_are_said_once_and_estimated(tmp_path: Path) -> None:
    images, targets, inside = samples(True).dataset.tensors
    data = loader(
        TensorDataset(images, targets, inside.long() + torch.arange(len(images)).view(-1, 1, 1) % 2), batch_size=16
    )
    with own_warnings() as said:
        monitor = run(tmp_path, False, data, num_images=12)
    assert monitor.audit_result.mask_source == "estimated"
    assert (
        len([text for text in said if "have 3 values (0, 1, 2) and are not used; give Audit(foreground_values" in text])
        == 1
    )


def test_a_function_makes_the_masks_of_a_set_of_images_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def left_half(images: Tensor) -> Tensor:
        seen.append(len(images))
        return (torch.arange(SIZE) < SIZE // 2).expand(len(images), SIZE, SIZE)

    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=20, masks=left_half), on_error="raise")
    data = samples(True, masks=False)
    trainer = fit(tmp_path, monitor, ReadsOneThing(True), data, data, num_sanity_val_steps=1, max_epochs=2)
    assert trainer.current_epoch == 2
    assert seen == [2, 20, 10]
    assert monitor.audit_result.mask_source == "estimated"
    assert monitor.audit_images.masks[:, :, : SIZE // 2].all()
    logged = scalars(tmp_path)
    assert "cam/bg_gap_estimated" in logged
    assert "cam/mask_agreement" not in logged


@pytest.mark.parametrize("sanity_steps", [0, 1])
def test_wrong_masks_of_a_function_end_the_run_before_it_trains(tmp_path: Path, sanity_steps: int) -> None:
    """Without a sanity check they cost the audit alone."""
    monitor = CAMMonitor("features", num_probes=4, audit=Audit(num_images=20, masks=lambda images: images * 255))
    data = samples(True, masks=False)
    run = {"num_sanity_val_steps": sanity_steps, "max_epochs": 1}
    if sanity_steps:
        with pytest.raises(MisconfigurationException, match=r"CAMMonitor: Audit\(masks=...\) returns shape"):
            fit(tmp_path, monitor, ReadsOneThing(True), data, data, **run)
        return
    with own_warnings() as said:
        fit(tmp_path, monitor, ReadsOneThing(True), data, data, **run)
    assert any("failed to audit" in text and "Audit(masks=...) returns shape" in text for text in said)
    assert image_steps(tmp_path)["cam/heatmaps"]


def test_how_far_the_heatmaps_deserve_trust_is_logged(tmp_path: Path) -> None:
    fit(tmp_path, CAMMonitor(num_probes=6, audit=Audit(num_images=12)))
    logged = scalars(tmp_path)
    assert 0 <= logged["cam/average_drop"][0][1] <= 1
    assert 0 <= logged["cam/increase_in_confidence"][0][1] <= 1
    assert -1 <= logged["cam/mean_activation_correlation"][0][1] <= 1


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat", "dog", "owl"), ["cat", "dog", "owl"]),
        (("risk", "risk_low", "a"), ["risk", "risk_low_1", "a"]),
        (("a_2", "a", "a"), ["a_2_0", "a", "a_2"]),
        (("", "é", "?"), ["_0", "_", "__2"]),
    ],
)
def test_no_two_classes_have_the_same_tag(tmp_path: Path, names: tuple[str, ...], labels: list[str]) -> None:
    fit(tmp_path, CAMMonitor(num_probes=4, audit=Audit(num_images=12), class_names=names))
    tags = {tag.split("/")[-1] for tag in scalars(tmp_path) if "gap" in tag and "_by_class" in tag}
    assert tags == {f"{label}{ending}" for label in labels for ending in ("", "_low", "_high")}


def test_without_masks_and_without_opencv_it_says_that_the_audit_is_weak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with own_warnings() as said:
        fit(tmp_path, CAMMonitor(num_probes=4, audit=Audit(num_images=12)), max_epochs=2)
    assert len(said) == 1
    assert "only the outer ring" in said[0]
    assert "pip install opencv-python-headless" in said[0]


PLAIN_MEAN = "the plain mean of the layer's channels"


def test_maps_that_tell_no_classes_apart_are_said_once(alarmed: Ran) -> None:
    assert len([text for text in alarmed.told if PLAIN_MEAN in text]) == 1


def test_of_maps_that_do_nothing_is_said(tmp_path: Path) -> None:
    with infos() as told:
        run(tmp_path, True, samples(True), method=ScoreCAM("increase"), num_images=20)
    assert not [text for text in told if PLAIN_MEAN in text]
