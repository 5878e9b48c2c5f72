"""Each task has a question, whose gap is that of networks which use the background as much as they are built to."""

from dataclasses import replace

import pytest
import torch
from task_scenes import (
    CASES,
    SIDE,
    SaysFeatures,
    SaysLabels,
    SaysNumbers,
    SaysWhere,
    audited,
    classed,
    labeled,
    numbered,
    of,
    segmented,
)
from torch import nn

from cam_callbacks import audit_model, judge
from cam_callbacks.audit.donors import in_turn
from cam_callbacks.audit.questions import question_about
from cam_callbacks.data.probes import ProbeSet


@pytest.mark.parametrize("task", CASES)
class TestEachTask:
    def test_a_network_that_reads_the_background_is_found(self, task):
        result = audited(task, 1.0)
        assert result.task == task
        first = judge(result)
        second = judge(result, first)
        assert [first.state, second.state] == ["suspicion", "alarm"]
        assert result.right.overall.value == pytest.approx(1, abs=0.1)

    def test_a_network_that_reads_the_object_is_not(self, task):
        result = audited(task, 0.0)
        assert of(result, "bg_gap").value == pytest.approx(0, abs=0.02)
        first = judge(result)
        assert [first.state, judge(result, first).state] == ["no alarm", "no alarm"]
        assert of(result, "collage_cost").value == pytest.approx(0, abs=0.05)

    def test_right_answers_are_measured_under_the_name_of_the_task(self, task):
        result = audited(task, 0.0)
        name = CASES[task][2]
        assert result.right is result[name]
        assert of(result, name).value > 0.9
        assert of(result, name).chance < 0.7

    def test_what_is_not_measured_is_explained(self, task):
        result = audited(task, 0.0)
        other = "iou" if task != "segmentation" else "skill"
        with pytest.raises(KeyError, match=f"it is of the task .*, and this one is '{task}'"):
            result[other]
        if result.right is not result.measures.get("accuracy"):
            with pytest.raises(KeyError, match=f"are measured as '{CASES[task][2]}'"):
                result["accuracy"]

    def test_a_network_that_answers_all_alike_has_learned_nothing(self, task):
        scenes, network, _ = CASES[task]
        images = torch.zeros(1, 3, SIDE, SIDE)

        class Alike(network):
            def forward(self, given):
                return super().forward(images.expand_as(given))

        result = audit_model(Alike(0.0), scenes(), task=task)
        assert judge(result).state == "not learned"

    def test_it_is_the_same_each_time_and_on_several_ranks(self, task):
        from cam_callbacks.audit.measuring import measures_of
        from cam_callbacks.audit.observations import Observations

        scenes, network, _ = CASES[task]
        observations = Observations(scenes(), task=task)
        model = network(0.5)
        whole = measures_of(observations, [observations.observe(model, torch.arange(96))])
        shares = [observations.observe(model, torch.arange(96)[rank::2]) for rank in (0, 1)]
        parts = measures_of(observations, shares)
        for name, measured in whole.measures.items():
            torch.testing.assert_close(measured.values, parts[name].values, equal_nan=True)

    def test_the_rest_of_it_is_measured_too(self, task):
        result = audited(task, 1.0, interventions=["detail"])
        assert {"outline_gap", "recolor_gap", "blur_loss", "background_only", "data_color_auc"} <= set(result)
        assert of(result, "recolor_gap").value == pytest.approx(of(result, "bg_gap").value, abs=0.1)
        assert of(result, "detail_gap").value == pytest.approx(0, abs=0.05)
        assert [result.spec_of(name).name for name in result] == list(result)
        assert "Also exchanged" in judge(result).text


class TestSeveralLabels:
    def test_a_single_logit_is_that_of_the_label(self):
        class SaysOne(SaysLabels):
            def forward(self, images):
                return super().forward(images)[:, :1]

        probes = labeled()
        result = audit_model(SaysOne(1.0), replace(probes, annotations=probes.annotations[:, :1]))
        assert of(result, "accuracy").value == of(result, "bg_gap").value == 1

    def test_each_label_is_judged_by_itself(self):
        result = audited("multi-label", 1.0)
        gaps = [of(result, "bg_gap", label).value for label in range(3)]
        assert gaps == pytest.approx([1, 0, 0], abs=0.02)
        first = judge(result)
        assert 0 in first.classes
        assert not {1, 2} & set(first.classes)
        assert "ruler" in first.text.split("\n")[0]

    def test_labels_and_what_is_true_of_them_come_as_often(self):
        question = question_about(labeled())
        counts = torch.zeros(3, 2)
        for label, is_there in zip(question.about.tolist(), question.is_there.tolist(), strict=True):
            counts[label, int(is_there)] += 1
        assert counts.min() >= 14
        assert question.chance == pytest.approx(0.5, abs=0.1)

    def test_images_without_any_object_are_asked_too(self):
        probes = labeled()
        empty = ~probes.masks.flatten(1).any(dim=1)
        assert empty.any()
        result = audit_model(SaysLabels(1.0), probes)
        assert not result["bg_gap"].values[empty & (result.labels == 0)].isnan().any()
        assert result["heat_on_object"].values[empty].isnan().all()
        assert not [note for note in result.notes if "empty" in note]

    def test_donors_agree_in_the_label_or_do_not(self):
        probes = labeled()
        question = question_about(probes)
        donors = question.donors(question.usable(probes.masks, True), 2)
        for row, label in enumerate(question.about.tolist()):
            own = probes.annotations[row, label]
            assert (probes.annotations[donors.same[row], label] == own).all()
            assert (probes.annotations[donors.other[row], label] != own).all()
            assert row not in donors.same[row]
            assert len(set(donors.same[row].tolist())) == 2

    def test_a_label_that_all_images_have_is_not_asked_about(self):
        probes = labeled()
        probes.annotations[:, 1] = True
        assert 1 not in question_about(probes).about

    def test_without_such_a_label_there_is_nothing_to_compare(self):
        probes = replace(labeled(), annotations=torch.ones(96, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="no label is there in 2 of the 96 images and missing in 2"):
            audit_model(SaysLabels(0.0), probes)

    def test_the_model_has_to_have_all_labels(self):
        with pytest.raises(ValueError, match=r"labels contains \[2\], but the model has 2 classes"):
            audit_model(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 2)), labeled())

    def test_images_whose_object_was_not_found_are_left_out(self):
        probes = labeled()
        masks = probes.masks.clone()
        masks[::2] = False
        for given in (replace(probes, masks=masks), replace(probes, masks=masks, masks_estimated=True)):
            result = audit_model(SaysLabels(0.0), given)
            assert of(result, "bg_gap").value == pytest.approx(0, abs=0.02)
            asked = ~result["bg_gap"].values.isnan()
            assert not (asked[::2] & probes.annotations[::2].any(dim=1)).any()


class TestNumbers:
    @pytest.mark.parametrize("reads", [0.0, 0.25, 0.6, 1.0])
    def test_the_gap_is_the_slope_on_the_number_of_the_background(self, reads):
        result = audited("regression", reads)
        assert of(result, "bg_gap", 0).value == pytest.approx(reads, abs=0.03)
        assert of(result, "bg_gap", 1).value == pytest.approx(0, abs=0.03)
        assert result.endings == ("",)

    def test_it_does_not_hang_on_the_unit(self):
        probes = numbered()

        class Scaled(SaysNumbers):
            def forward(self, images):
                return 1000 * super().forward(images) - 50

        scaled = replace(probes, annotations=1000 * probes.annotations - 50)
        found, wanted = audit_model(Scaled(0.6), scaled), audited("regression", 0.6)
        for name in ("bg_gap", "skill"):  # which image is asked for which number differs
            assert of(found, name).value == pytest.approx(of(wanted, name).value, abs=0.03)

    def test_answers_in_other_units_than_the_labels_are_explained(self):
        class InCentimeters(SaysNumbers):
            def forward(self, images):
                return 100 * super().forward(images)

        result = audit_model(InCentimeters(0.0), numbered())
        assert judge(result).state == "not learned"
        assert sum("in other units" in remark for remark in result.remarks) == 2  # of each number
        assert judge(result).text.startswith("**Not judged**: the answers are far from")
        for reads in (0.0, 1.0):
            assert not audited("regression", reads).remarks
        noise = audit_model(nn.Identity(), numbered(), forward_fn=lambda _, images: torch.rand(len(images), 2) * 9)
        assert not noise.remarks

        class UpsideDown(SaysNumbers):
            def forward(self, images):
                return -super().forward(images)

        assert not audit_model(UpsideDown(0.0), numbered()).remarks  # no unit turns the order round

    def test_the_skill_of_always_answering_the_median_is_0(self):
        probes = numbered()
        medians = probes.annotations.median(dim=0).values

        class Median(SaysNumbers):
            def forward(self, images):
                return medians.expand(len(images), 2)

        assert of(audit_model(Median(0.0), probes), "skill").value == pytest.approx(0, abs=0.02)

    def test_far_numbers_do_not_make_the_median_skilled(self):
        torch.manual_seed(0)
        probes = replace(numbered(400), annotations=torch.randn(400, 2).mul(1.5).exp())
        medians = probes.annotations.median(dim=0).values
        result = audit_model(
            nn.Identity(), probes, forward_fn=lambda _, images: medians.expand(len(images), 2), num_donors=1
        )
        assert of(result, "skill").value == pytest.approx(of(result, "skill").chance)
        assert of(result, "skill").chance > 0.05
        assert judge(result).state == "not learned"

    def test_donors_are_near_or_half_of_the_images_away(self):
        probes = numbered()
        question = question_about(probes)
        donors = question.donors(torch.ones(96, dtype=torch.bool), 2)
        numbers = probes.annotations.gather(1, question.about.unsqueeze(1))
        of_same, of_other = (
            probes.annotations[each, question.about.unsqueeze(1)] for each in (donors.same, donors.other)
        )
        assert (of_same - numbers).abs().max() < 0.15
        assert (of_other - numbers).abs().min() > 0.3
        assert (donors.same != torch.arange(96).unsqueeze(1)).all()

    def test_numbers_of_which_most_are_equal_are_counted_out(self):
        probes = numbered()
        probes.annotations[:70] = 0.5
        result = audit_model(SaysNumbers(1.0), probes)
        assert of(result, "bg_gap").skipped > 10
        assert of(result, "bg_gap").count + of(result, "bg_gap").skipped == 96

    def test_answers_that_go_against_the_background_are_named(self):
        probes = numbered()
        result = audit_model(SaysNumbers(-0.8), probes)
        assert of(result, "bg_gap", 0).value == pytest.approx(-0.8, abs=0.03)
        first = judge(result)
        assert first.state == "no alarm"
        assert "a dependence on the background" in first.text.split("\n")[0]

    def test_what_is_not_finite_is_not_asked_for(self):
        probes = numbered()
        probes.annotations[3, 0], probes.annotations[5, 1] = torch.inf, torch.nan
        result = audit_model(SaysNumbers(0.6), probes)
        assert of(result, "bg_gap", 0).value == pytest.approx(0.6, abs=0.05)
        assert of(result, "skill").value < 1

    def test_equal_numbers_are_nothing_to_compare(self):
        with pytest.raises(ValueError, match="all 96 probes have the same numbers"):
            audit_model(SaysNumbers(0.0), replace(numbered(), annotations=torch.full((96, 2), 0.5)))

    def test_the_model_has_to_return_as_many(self):
        with pytest.raises(ValueError, match="of an image 2 numbers are known"):
            audit_model(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 3)), numbered())


class TestFeatures:
    def test_likeness_is_to_the_mean_of_the_other_images_of_the_class(self):
        torch.manual_seed(0)
        features = torch.randn(96, 5)
        probes = classed()

        def looked_up(_model, images, rows):
            return features[rows]

        result = audit_model(nn.Identity(), probes, forward_fn=looked_up, task="embedding", num_donors=1)
        directions = nn.functional.normalize(features, dim=1)
        row = 7
        donor = int(result.donors.same[row, 0])
        others = [
            other for other in range(96) if probes.labels[other] == probes.labels[row] and other not in (row, donor)
        ]
        mean = nn.functional.normalize(directions[others].sum(dim=0), dim=0)
        assert float(result.swap_answers[row, 0]) == pytest.approx(float(directions[row] @ mean), abs=1e-5)

    def test_backgrounds_that_say_nothing_make_no_gap_however_few_images(self):
        torch.manual_seed(0)
        backgrounds = torch.randn(48, 32)
        objects = torch.randn(12, 32)
        probes = replace(classed(48), labels=torch.arange(48) % 12)
        probes.images[:] = torch.arange(48.0).view(-1, 1, 1, 1)  # each pixel says whose it is

        def mixed(_model, images, rows):
            giver = images[:, 0, 0, 0].round().long().clamp(0, 47)
            return objects[probes.labels[rows.cpu()]] + 1.5 * backgrounds[giver]

        result = audit_model(nn.Identity(), probes, forward_fn=mixed, task="embedding", num_donors=1)
        assert of(result, "bg_gap").low < 0 < of(result, "bg_gap").high
        assert of(result, "bg_gap_cosine").low < 0.02
        assert of(result, "accuracy").count == 48

    def test_an_interval_of_cosines_holds_its_value(self):
        found = of(audited("embedding", 1.0), "bg_gap_cosine")
        assert found.low <= found.value <= found.high
        assert found.value > 0.9

    def test_a_class_needs_three_images(self):
        probes = classed(40)
        few = replace(probes, labels=torch.arange(40) % 20)
        result = audit_model(SaysFeatures(0.0), few, task="embedding", num_donors=1)
        assert of(result, "accuracy").count == 0
        assert judge(result).state == "too few images"

    def test_by_chance_as_many_are_nearest_as_there_are_classes(self):
        torch.manual_seed(0)
        features = torch.randn(960, 64)
        given = classed(960)
        result = audit_model(
            nn.Identity(), given, forward_fn=lambda _, __, rows: features[rows], task="embedding", num_donors=1
        )
        assert of(result, "accuracy").low < 0.5 < of(result, "accuracy").high + 0.05
        assert judge(result).state == "not learned"


def test_a_task_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="task='segment' is unknown"):
        audit_model(SaysWhere(0.0), segmented(), task="segment")


def test_marks_that_are_numbers_have_to_be_told_apart():
    probes = labeled()
    marks = replace(probes, annotations=probes.annotations.float())
    with pytest.raises(ValueError, match="give them as bool"):
        audit_model(SaysLabels(0.0), marks)
    assert audit_model(SaysLabels(0.0), marks, task="regression").task == "regression"


def test_what_a_task_needs_is_said():
    for task, message in (
        ("multi-label", "probes have no labels"),
        ("regression", "probes have no numbers"),
        ("segmentation", "probes have no class of each pixel"),
    ):
        with pytest.raises(ValueError, match=message):
            audit_model(SaysFeatures(0.0), classed(), task=task)


def test_donors_take_turns():
    takers, givers = torch.arange(6), torch.tensor([0, 1, 2, 9])
    draw = torch.Generator().manual_seed(0)
    found = in_turn(takers, givers, 2, draw)
    assert all(len(set(row)) == 2 for row in found.tolist())
    assert all(taker not in row for taker, row in enumerate(found.tolist()))
    assert (in_turn(takers, givers[:1], 1, draw)[1:] == 0).all()
    assert in_turn(takers[:1], givers[:1], 1, draw).tolist() == [[-1]]


def test_labels_are_classes_unless_the_task_says_otherwise():
    probes = ProbeSet(torch.rand(40, 3, 8, 8), torch.arange(40) % 4)
    assert question_about(probes).task == "single-label"
