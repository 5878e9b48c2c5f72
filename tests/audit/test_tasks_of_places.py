"""Tasks whose answer is a place: segmentation and detection."""

import warnings
from dataclasses import replace

import pytest
import torch
from task_scenes import SIDE, SaysBoxes, SaysFeatures, SaysWhere, audited, classed, of, segmented
from torch import nn

from cam_callbacks import audit_model, judge
from cam_callbacks.audit.detection import iou_of_boxes
from cam_callbacks.audit.questions import question_about


class TestSegments:
    def test_iou_is_that_of_the_pixels_that_are_known(self):
        result = audited("segmentation", 0.0)
        assert of(result, "iou").value == pytest.approx(1, abs=0.01)
        assert of(result, "iou").chance == pytest.approx(36 / (SIDE * (SIDE - 1)), abs=0.01)

    def test_255_in_bytes_is_not_known_as_a_negative_class_is(self):
        probes = segmented()
        given = probes.annotations.clone()
        given[:, :8] = -100
        bytes_ = torch.where(given < 0, 255, given).to(torch.uint8)
        found, wanted = (audit_model(SaysWhere(0.5), replace(probes, annotations=each)) for each in (bytes_, given))
        for name in ("iou", "bg_gap", "leak"):
            assert of(found, name).value == of(wanted, name).value

    def test_what_is_seen_on_the_pasted_background_is_a_leak(self):
        class Leaks(SaysWhere):
            def forward(self, images):
                logits = super().forward(images)
                around = self.features(images)[:, 1]
                logits[:, 1] += 20 * (around > 0.5) * (~self.seen(images)[0])
                return logits

        result = audit_model(Leaks(0.0), segmented())
        assert of(result, "leak", 1).value == pytest.approx(1, abs=0.1)
        assert of(result, "leak", 2).value == pytest.approx(0, abs=0.01)
        assert of(result, "bg_gap", 1).value > 0.5

    def test_donors_of_another_class_have_nothing_of_the_own_one(self):
        probes = segmented()
        probes.annotations[::3, 1, 0] = 2  # a pixel
        question = question_about(probes)
        donors = question.donors(question.usable(question.probes.masks, True), 1)
        for row, label in enumerate(question.about.tolist()):
            assert not (probes.annotations[donors.other[row, 0]] == label).any()

    def test_a_smaller_answer_is_read_at_the_size_of_the_image(self):
        class Small(SaysWhere):
            def forward(self, images):
                return nn.functional.avg_pool2d(super().forward(images), 2)

        assert of(audit_model(Small(0.0), segmented()), "iou").value > 0.7

    def test_a_single_class_is_compared_with_images_without_it(self):
        class SeesOne(SaysWhere):
            def forward(self, images):
                where, sign = self.seen(images)
                return torch.where(where & (sign > 0).view(-1, 1, 1), 5.0, -5.0).unsqueeze(1)  # the logit of class 1

        probes = segmented()
        ones = replace(probes, annotations=(probes.annotations == 2).short(), class_names=("background", "dog"))
        ones.images[::2, 0] = 0  # no cats either
        for reads, gap in ((1.0, 1.0), (0.0, 0.0)):
            result = audit_model(SeesOne(reads), ones)
            assert of(result, "bg_gap").value == pytest.approx(gap, abs=0.02)
            assert of(result, "bg_gap").count == 48

    def test_a_class_that_all_images_have_is_nothing_to_compare(self):
        probes = segmented()
        ones = replace(probes, annotations=probes.annotations.clamp(0, 1), class_names=("background", "animal"))
        with pytest.raises(ValueError, match="no class is the object of 2 of the 96 images and missing in another"):
            audit_model(SaysWhere(0.0), ones)

    def test_images_without_an_object_are_left_out(self):
        probes = segmented()
        probes.annotations[:5] = 0
        result = audit_model(SaysWhere(0.0), probes)
        assert result["iou"].overall.skipped == 5
        assert result["bg_gap"].values[:5].isnan().all()


@pytest.mark.parametrize("kind", ["arrays", "lists", "whole numbers"])
def test_boxes_may_come_in_other_containers_than_tensors(kind):
    class Says(SaysBoxes):
        def forward(self, images):
            return [{key: converted(key, value) for key, value in each.items()} for each in super().forward(images)]

    def converted(key, value):
        if kind == "whole numbers":
            return value.round().long() if key == "boxes" else value
        return value.numpy() if kind == "arrays" else value.tolist()

    found, wanted = (
        audit_model(network, classed(24), task="detection", num_donors=1) for network in (Says(1.0), SaysBoxes(1.0))
    )
    for name in ("recall", "bg_gap", "bg_gap_score"):
        assert of(found, name).value == pytest.approx(of(wanted, name).value)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_what_moves_objects_is_left_out_where_their_place_is_asked_for(task):
    result = audited(task, 0.0, interventions=["position", "size", "detail", "mirror"])
    assert [each.gap for each in result.further] == ["detail_gap"]
    (note,) = [note for note in result.notes if "Not measured" in note]
    assert note.endswith("which it moves: position, size, mirror")


class TestBoxes:
    def test_iou_of_boxes(self):
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]])
        torch.testing.assert_close(iou_of_boxes(boxes[:1], boxes), torch.tensor([[1.0, 1 / 7, 0.0]]))

    def test_the_score_is_the_largest_iou_times_score(self):
        result = audited("detection", 0.0)
        torch.testing.assert_close(result.swap_answers[:, 0], torch.full((96,), 0.9))
        assert of(result, "bg_gap_score").value == pytest.approx(0, abs=0.01)

    def test_images_of_a_detector_do_not_influence_each_other(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            audited("detection", 0.0)

    def test_nothing_found_is_not_right(self):
        class Blind(SaysBoxes):
            def forward(self, images):
                return [{name: each[:0] for name, each in found.items()} for found in super().forward(images)]

        result = audit_model(Blind(0.0), classed(), task="detection")
        assert of(result, "recall").value == 0
        assert judge(result).state == "not learned"

    def test_what_is_no_box_is_said(self):
        with pytest.raises(
            TypeError, match=r"a detector returns for each image a mapping with boxes, scores and labels"
        ):
            audit_model(SaysFeatures(0.0), classed(), task="detection")

    def test_masks_are_needed(self):
        with pytest.raises(ValueError, match="a detection needs images"):
            audit_model(SaysBoxes(0.0), replace(classed(), masks=None), task="detection")

    def test_a_detector_of_torchvision(self):
        detection = pytest.importorskip("torchvision.models.detection", reason="needs torchvision")
        model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
        given = classed(8)
        result = audit_model(model, given, task="detection", num_donors=1)
        assert of(result, "recall").count == 8
