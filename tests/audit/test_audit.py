"""The audit tells planted biases from none, counts what it cannot measure, and leaves no trace."""

import sys
from dataclasses import replace

import pytest
import torch
from planted import (
    Constant,
    Guessing,
    NeedsItsBackground,
    OutlineReader,
    Reader,
    TextureReader,
    noisy_scenes,
    scenes,
)
from torch import nn

from cam_callbacks import audit_model, judge
from cam_callbacks.audit.interventions import ring
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import progress


def overall(result, name):
    return result[name].overall


@pytest.fixture
def no_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)


class TestPlanted:
    def test_a_model_that_reads_the_background(self):
        result = audit_model(Reader(1), scenes())
        assert overall(result, "bg_gap").value == 1
        assert overall(result, "recolor_gap").value > 0.9
        assert overall(result, "background_only").value == 1
        assert overall(result, "heat_on_object").value < 0.05
        assert overall(result, "heat_over_area").high < 0

    def test_a_model_that_reads_the_object(self):
        result = audit_model(Reader(0), scenes())
        assert overall(result, "bg_gap").value == 0
        assert overall(result, "recolor_gap").value == 0
        assert overall(result, "background_only").low <= 0.5 <= overall(result, "background_only").high
        assert overall(result, "object_only").value == 1
        assert overall(result, "heat_on_object").value > 0.8

    def test_a_model_that_reads_the_texture_but_not_the_color(self):
        result = audit_model(TextureReader(), scenes(texture=True))
        assert overall(result, "bg_gap").value > 0.9
        assert abs(overall(result, "recolor_gap").value) < 0.1
        assert "content or texture* is what is used" in judge(result).text

    def test_a_model_that_reads_outlines_is_not_held_to_read_the_background(self):
        result = audit_model(OutlineReader(), noisy_scenes())
        assert overall(result, "accuracy").value == 1
        assert overall(result, "bg_gap").value > 0.5
        assert overall(result, "outline_gap").value > 0.5
        assert overall(result, "recolor_gap").value == 0
        first = judge(result)
        assert [first.state, judge(result, first).state] == ["no alarm", "no alarm"]
        assert "There is a gap, but the placebo has one too" in first.text

    def test_a_model_that_breaks_on_any_collage_is_not_testable(self):
        result = audit_model(NeedsItsBackground(), noisy_scenes())
        assert overall(result, "accuracy").value == 1
        assert overall(result, "collage_cost").value == 1
        assert overall(result, "blur_loss").value == 0
        first = judge(result)
        assert [first.state, judge(result, first).state] == ["not testable", "not testable"]

    def test_a_model_that_reads_the_ring_without_masks(self, no_opencv):
        probes = scenes(masks=False)
        probes.images[:, 1] *= ring((24, 24))
        result = audit_model(Reader(1), probes)
        assert result.mask_source == "none"
        assert overall(result, "ring_gap").value == 1
        assert any("only the outer ring" in note for note in result.notes)
        assert any("pip install opencv-python-headless" in note for note in result.notes)
        assert not [name for name in result.measures if name.startswith("bg_gap")]

    def test_a_constant_model(self):
        result = audit_model(Constant(), scenes())
        assert overall(result, "accuracy").value == 0.5
        assert overall(result, "bg_gap").value == 0
        assert any("Heat is not measured" in note for note in result.notes)
        assert judge(result).state == "not learned"

    def test_a_model_that_answers_at_random(self):
        torch.manual_seed(0)
        result = audit_model(Guessing(), scenes(120))
        assert overall(result, "bg_gap").low < 0 < overall(result, "bg_gap").high
        assert judge(result).state == "not learned"

    def test_chance_is_to_always_answer_the_most_frequent_class(self):
        probes = scenes()
        kept = torch.arange(40)  # 20 of each at first, then only the first class
        some = replace(probes, images=probes.images[kept], labels=probes.labels[kept], masks=probes.masks[kept])
        for wanted, each in ((0.5, probes), (float(some.labels.bincount().max()) / 40, some)):
            assert overall(audit_model(Reader(1), each), "accuracy").chance == pytest.approx(wanted)

    def test_the_worst_group_is_found(self):
        probes = scenes()
        labels = probes.labels.clone()
        labels[:6] = 1 - labels[:6]
        groups = torch.arange(60) // 6
        result = audit_model(Reader(0), replace(probes, labels=labels, groups=groups))
        assert overall(result, "worst_group_accuracy").value == 0
        assert overall(result, "worst_group_accuracy").count == 6
        assert overall(result, "worst_group_accuracy").chance is None  # one of the groups is of both classes
        by_class = audit_model(Reader(0), replace(probes, labels=labels, groups=labels))
        assert overall(by_class, "worst_group_accuracy").chance == 0


class TestDegenerate:
    @pytest.mark.parametrize("masks", [True, False])
    def test_the_heat_of_coarse_maps_is_left_out_and_the_verdict_says_so(self, masks, no_opencv):
        class Coarse(Reader):
            """Its features are pooled, to few positions."""

            def __init__(self, side):
                super().__init__(1)
                self.pool = nn.AdaptiveAvgPool2d(side)

            def forward(self, images):
                return self.head(self.pool(self.features(images)).mean(dim=(2, 3)))

        probes = scenes(masks=masks)
        fine, coarse = (audit_model(Coarse(side), probes, "pool") for side in (4, 3))
        heat = {"border_share", "delete_hot"}
        heat |= {"heat_on_object", "heat_over_area", "rank_accuracy", "pointing"} if masks else set()
        assert set(fine) - set(coarse) == heat
        assert coarse.heat_method is None
        assert judge(fine).heat.keys() == ({0, 1} if masks else set())
        verdict = judge(coarse)
        assert not verdict.heat
        assert "Note: Heat is not measured: 3 x 3 positions of 'pool' are too few to say where it lies" in verdict.text
        assert (verdict.state, verdict.classes) == (judge(fine).state, judge(fine).classes)
        assert len(probes) == fine.passes - coarse.passes

    @pytest.mark.parametrize("seed", range(3))
    def test_without_masks_noise_gives_no_class_away(self, seed):
        """What the label has no say in is compared: not what is hot for the class of the label."""
        draw = torch.Generator().manual_seed(seed)
        images, labels = torch.rand(60, 3, 16, 16, generator=draw), torch.arange(60) % 2
        nothing = torch.zeros(60, 16, 16, dtype=torch.bool)
        result = audit_model(Reader(1), ProbeSet(images, labels, nothing, masks_estimated=True))
        assert result.mask_source == "none"
        assert overall(result, "data_color_auc").value < 0.8

    @pytest.mark.parametrize("channel", [0, 1])
    def test_a_background_of_a_single_row_is_a_background(self, channel):
        probes = scenes()
        masks = torch.ones_like(probes.masks)
        masks[:, 0] = False
        sign = (2.0 * probes.labels - 1).view(-1, 1, 1)
        images = torch.stack([sign * masks, sign * ~masks, 0 * sign * masks], dim=1)
        result = audit_model(Reader(channel), replace(probes, images=images, masks=masks))
        assert overall(result, "bg_gap").value == overall(result, "recolor_gap").value == channel
        assert overall(result, "outline_gap").value == 0

    @pytest.mark.parametrize(("size", "count"), [((1, 40), 60), ((7, 5), 0)])
    def test_a_ring_leaves_the_object_or_is_not_swapped(self, no_opencv, size, count):
        labels = torch.arange(60) % 2
        images = torch.rand(60, 3, *size, generator=torch.Generator().manual_seed(0))
        images[:, 0] = 0
        images[:, 0, 0, size[1] // 2] = 2.0 * labels - 1
        result = audit_model(Reader(0), ProbeSet(images, labels))
        gap = overall(result, "ring_gap")
        assert (gap.count, gap.skipped) == (count, 60 - count)
        assert not count or gap.value == 0
        assert any("no ring" in note for note in result.notes) == (count == 0)
        assert judge(result).state == ("no alarm" if count else "too few images")

    def test_empty_and_full_masks_are_counted_and_left_out(self):
        probes = scenes()
        masks = probes.masks.clone()
        masks[:3], masks[3:5] = False, True
        result = audit_model(Reader(1), replace(probes, masks=masks))
        for name in ("bg_gap", "recolor_gap", "background_only", "heat_on_object", "rank_accuracy", "pointing"):
            assert overall(result, name).skipped >= 5, name
            assert overall(result, name).value == overall(result, name).value
        assert overall(result, "data_color_auc").skipped == 5
        assert "3 masks are empty and 2 cover all: left out" in result.notes

    def test_if_no_foreground_could_be_estimated_the_ring_is_swapped(self):
        probes = scenes()
        nothing = torch.zeros_like(probes.masks)
        result = audit_model(Reader(1), replace(probes, masks=nothing, masks_estimated=True))
        assert result.mask_source == "none"
        assert "bg_gap" not in result.measures
        assert overall(result, "ring_gap").count == len(probes)
        assert "a foreground was found in none of 60 images" in result.notes[0]
        assert "only the outer ring is swapped, a weak test; give masks" in result.notes[0]

    def test_without_opencv_it_is_said_what_is_lacking(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cv2", None)
        note = audit_model(Reader(1), scenes(masks=False)).notes[0]
        assert "none could be estimated (GrabCut needs OpenCV)" in note
        assert "pip install opencv-python-headless" in note

    def test_a_class_of_a_single_image_is_counted_not_averaged(self):
        probes = scenes()
        labels = probes.labels.clone()
        labels[0] = 2
        model = nn.Sequential(Reader(1), nn.ConstantPad1d((0, 1), -9.0))
        gap = audit_model(model, replace(probes, labels=labels), "0.features")["bg_gap"]
        assert (gap.per_class[2].count, gap.per_class[2].skipped) == (0, 1)
        assert gap.overall.count == 59

    def test_blank_maps_are_counted_not_averaged(self):
        result = audit_model(Reader(1), replace(scenes(), images=torch.zeros(60, 3, 24, 24)))
        for name in ("heat_on_object", "border_share", "delete_hot"):
            assert overall(result, name).count == 0, name

    def test_answers_that_are_not_finite_are_left_out(self):
        model = Reader(1)
        with torch.no_grad():
            model.head.weight.fill_(torch.nan)
        result = audit_model(model, scenes())
        assert overall(result, "accuracy").count == 0
        assert judge(result).state == "not learned"

    @pytest.mark.parametrize("shape", [(1, 24, 24), (3, 200, 160), (3, 24)])
    def test_works_for_gray_large_and_one_dimensional_images(self, shape):
        model = nn.Sequential(nn.Flatten(2), nn.Conv1d(shape[0], 4, 1), nn.ReLU())
        model = nn.Sequential(model, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
        result = audit_model(model, ProbeSet(torch.rand(6, *shape), torch.arange(6) % 2))
        assert overall(result, "accuracy").count == 6


class TestArguments:
    @pytest.mark.parametrize("wrong", [0, -1, 2.5])
    def test_a_batch_size_that_is_none_is_refused(self, wrong):
        with pytest.raises(ValueError, match=f"batch_size={wrong} must be a whole number of at least 1, or None"):
            audit_model(Reader(1), scenes(), batch_size=wrong)

    def test_probes_that_are_none_are_refused(self):
        with pytest.raises(TypeError, match=r"probes=tuple\(\.\.\.\) must be a ProbeSet\(images, labels\)"):
            audit_model(Reader(1), (torch.rand(4, 3, 8, 8), torch.arange(4) % 2))

    def test_targets_may_be_whole_numbers_of_any_kind(self):
        probes = scenes()
        few = replace(probes, labels=probes.labels.to(torch.uint8))
        assert audit_model(Reader(1), few).rows() == audit_model(Reader(1), probes).rows()


class TestTraces:
    @pytest.mark.parametrize("masks", [True, False])
    def test_the_default_type_of_tensors_changes_nothing(self, masks, no_opencv):
        model, probes = Reader(1), scenes(masks=masks)
        expected = audit_model(model, probes)
        torch.set_default_dtype(torch.float64)
        try:
            found = audit_model(model, probes)
            text = judge(found, judge(found)).text
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.rows() == expected.rows()
        assert text == judge(expected, judge(expected)).text

    def test_it_is_deterministic_and_touches_no_random_state(self):
        torch.manual_seed(5)
        first = audit_model(Reader(1), scenes()).rows()
        model = Reader(1)
        torch.manual_seed(77)
        between = torch.get_rng_state()
        assert str(audit_model(model, scenes()).rows()) == str(first)
        assert torch.equal(torch.get_rng_state(), between)

    @pytest.mark.parametrize("fails", [False, True])
    def test_train_flags_and_hooks_are_left_as_they_were_also_after_an_error(self, fails):
        class Failing(Reader):
            calls = 0

            def forward(self, images):
                self.calls += 1
                if fails and self.calls > 6:
                    raise KeyError("planned")
                return super().forward(images)

        model = Failing(1).train()
        model.head.eval()
        try:
            audit_model(model, scenes())
        except KeyError:
            assert fails
        assert (model.training, model.features.training, model.head.training) == (True, True, False)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize("masks", [True, False])
    def test_passes_are_the_samples_that_the_model_saw_without_the_heatmaps(self, forwarded, masks):
        model = Reader(1)
        sizes = forwarded(model)
        result = audit_model(model, scenes(masks=masks))
        heatmaps = 60 + 1  # the layer is chosen with one image
        again = sum(sizes) - result.passes - heatmaps  # scores in [0, 1] are asked once more: are they sigmoids?
        assert 0 <= again <= 12
        assert result.passes <= (7 + 8 * 3) * 60


@pytest.mark.filterwarnings("ignore:out of memory with")
def test_memory_that_runs_out_is_an_error():
    """It is no reason to leave the heat out, as a method that does not apply would be."""

    class NoRoomForGradients(Reader):
        def forward(self, images):
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError(f"no room for the gradients of {len(images)}")
            return super().forward(images)

    with pytest.raises(torch.OutOfMemoryError, match="no room for the gradients of 1"):
        audit_model(NoRoomForGradients(1), scenes(4), "features")


class TestProgress:
    @pytest.mark.parametrize("model", [Reader(1), Constant()], ids=["with heat", "without heat"])
    def test_all_that_is_expected_is_done_in_the_end(self, model):
        shown = []
        with progress.shown(lambda done, total: shown.append((done, total))):
            result = audit_model(model, scenes(12))
        expected = (7 + 6 * 3) * 12  # as many answers as the audit takes with given masks
        of_heat = 12 if result.heat_method is not None else 0
        assert {total for _, total in shown} == {expected, expected + of_heat}
        assert shown[-1] == (expected + of_heat, expected + of_heat)

    def test_estimated_masks_count_one_by_one(self):
        pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
        shown = []
        with progress.shown(lambda done, total: shown.append((done, total))):
            audit_model(Reader(1), scenes(12, masks=False))
        assert shown[:12] == [(done, 12) for done in range(1, 13)]
        assert shown[-1] == ((7 + 8 * 3 + 2) * 12, (7 + 8 * 3 + 2) * 12)


class TestBadInput:
    def test_no_targets(self):
        with pytest.raises(ValueError, match="probes have no labels"):
            audit_model(Reader(1), ProbeSet(torch.rand(4, 3, 24, 24)))

    def test_more_than_three_dimensions(self):
        with pytest.raises(ValueError, match="with one to three spatial dimensions"):
            audit_model(Reader(1), ProbeSet(torch.rand(4, 3, 2, 2, 2, 2), torch.arange(4) % 2))

    def test_one_class_only(self):
        with pytest.raises(ValueError, match="two are needed"):
            audit_model(Reader(1), ProbeSet(torch.rand(4, 3, 24, 24), torch.ones(4, dtype=torch.int64)))

    def test_groups_of_another_shape(self):
        with pytest.raises(ValueError, match=r"groups has shape \(3,\); 60 images need \(60,\)"):
            replace(scenes(), groups=torch.zeros(3, dtype=torch.long))

    @pytest.mark.parametrize("label", [7, -1])
    def test_a_label_that_the_model_has_no_class_for(self, label):
        labels = scenes().labels.clone()
        labels[0] = label
        with pytest.raises(ValueError, match=rf"labels contains \[{label}\], but the model has 2 classes"):
            audit_model(Reader(1), replace(scenes(), labels=labels))

    def test_masks_of_another_shape_are_refused_by_the_probe_set(self):
        with pytest.raises(ValueError, match="masks has shape"):
            ProbeSet(torch.rand(4, 3, 24, 24), torch.arange(4), torch.ones(4, 12, 12, dtype=torch.bool))

    def test_several_labels_are_read_by_their_sigmoids(self):
        result = audit_model(Reader(1), scenes(), multi_label=True)
        assert overall(result, "bg_gap").value == 1
