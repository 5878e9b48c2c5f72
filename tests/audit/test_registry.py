"""Exchanges besides the background: each finds the network that uses it, and no other."""

import pickle
from dataclasses import replace

import pytest
import torch
from cues import Reads, compressed_scenes, cued_scenes, facing_scenes

from cam_callbacks import Audit, Intervention, ProbeSet, audit_model, judge
from cam_callbacks.audit.measuring import measures_of
from cam_callbacks.audit.observations import Observations
from cam_callbacks.audit.registry import intervention
from cam_callbacks.audit.verdict import Verdict

NAMES = ("position", "size", "detail", "compression", "mirror")
SCENES = {"compression": compressed_scenes, "mirror": facing_scenes}


def corner_of(images, masks, donors, donor_masks):
    changed = images.clone()
    changed[..., :6, :6] = donors[..., :6, :6]
    return changed


def audited(what, probes, *interventions):
    return audit_model(Reads(what), probes, num_donors=1, interventions=interventions or NAMES)


def gaps(result):
    return {each.gap: result[each.gap].overall.value for each in result.further}


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("position", "warning"),
        ("size", "warning"),
        ("detail", "alarm"),
        ("compression", "warning"),
        ("mirror", "warning"),
    ],
)
def test_a_network_that_uses_it_has_a_gap_and_is_named_at_the_second_look(name, worst):
    result = audited(name, SCENES.get(name, cued_scenes)())
    found = gaps(result)
    assert found[f"{name}_gap"] > 0.6
    first = judge(result)
    second = judge(result, first)
    (finding,) = (each for each in second.findings if each.gap == f"{name}_gap")
    assert finding.state == worst
    assert finding.overall
    assert [each.state for each in first.findings if each.gap == f"{name}_gap"] == ["suspicion"]
    assert finding.title in second.text
    if name not in ("detail", "compression"):  # by which the background differs, too
        assert second.state == worst


@pytest.mark.parametrize("scenes", [cued_scenes, compressed_scenes, facing_scenes])
@pytest.mark.parametrize("agreement", [1.0, 0.5])
def test_a_network_that_uses_the_object_has_none(agreement, scenes):
    result = audited("stripes", scenes(agreement=agreement))
    assert all(abs(gap) < 0.03 for gap in gaps(result).values())
    verdict = judge(result, judge(result))
    assert verdict.state == "no alarm"
    assert verdict.findings == ()


def test_what_lies_where_is_not_taken_for_how_large_it_is():
    found = gaps(audited("position", cued_scenes()))
    assert found["position_gap"] == pytest.approx(1, abs=0.02)
    assert abs(found["size_gap"]) < 0.03
    assert abs(found["detail_gap"]) < 0.03


def test_placebos_of_a_network_that_sees_no_traces_are_0():
    result = audited("stripes", cued_scenes())
    for each in result.further:
        assert each.cost == pytest.approx(0, abs=0.03)
        if each.placebo is not None:
            assert result[each.placebo].overall.value == pytest.approx(0, abs=0.03)


def test_without_masks_those_that_need_them_are_left_out_and_this_is_said(monkeypatch):
    monkeypatch.setattr("cam_callbacks.audit.foreground.can_estimate", lambda: False)
    result = audited("detail", replace(cued_scenes(), masks=None))
    assert [each.gap for each in result.further] == ["detail_gap", "compression_gap"]
    assert "position_gap" not in result
    assert any("needs masks: position, size, mirror" in note for note in result.notes)
    (finding,) = judge(result, judge(result)).findings
    assert finding.state == "warning"


def test_with_estimated_masks_there_is_a_warning_and_no_alarm():
    result = audited("position", replace(cued_scenes(), masks_estimated=True), "position")
    (finding,) = judge(result, judge(result)).findings
    assert finding.state == "warning"


def test_one_that_breaks_the_images_is_not_judged():
    def nothing(images, masks, donors, donor_masks):
        return torch.zeros_like(images)

    result = audit_model(Reads("stripes"), cued_scenes(), interventions=[Intervention("nothing", nothing)])
    assert result.further[0].cost > 0.2
    verdict = judge(result, judge(result))
    assert verdict.findings == ()
    assert "too much to be judged" in verdict.text


def test_with_them_the_background_has_half_of_the_level():
    probes = cued_scenes(agreement=0.5)
    alone, beside = (judge(audited("stripes", probes, *names)) for names in ((corner(),), ("detail",)))
    assert alone.detectable == beside.detectable
    without = judge(audit_model(Reads("stripes"), probes, num_donors=1))
    assert without.detectable < alone.detectable


def corner():
    return Intervention("corner", corner_of, title="the upper left corner")


def test_one_of_the_user_becomes_a_measure_and_is_judged():
    probes = cued_scenes(agreement=0.5)
    images = probes.images.clone()
    images[:, 1, :6, :6] += torch.where(probes.labels == 1, 30.0, -30.0).view(-1, 1, 1)
    marked = ProbeSet(images, probes.labels, probes.masks, probes.class_names)
    result = audited("tint", marked, corner())
    assert result["corner_gap"].overall.value > 0.6
    assert result["corner_gap_probability"].overall.value > 0.3
    verdict = judge(result, judge(result))
    assert "answers depend on the upper left corner" in verdict.text
    again = Verdict.from_state_dict(verdict.state_dict())
    assert again == verdict
    assert again.findings == verdict.findings


def test_a_verdict_of_before_there_were_findings_can_be_read():
    state = judge(audited("stripes", cued_scenes(), "detail")).state_dict()
    del state["findings"]
    assert Verdict.from_state_dict(state).findings == ()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda images: images[:, :1], "must return images of shape"),
        (lambda images: None, "it returned NoneType"),
        (lambda images: images / 0, "returned NaN or infinity"),
        (lambda images: images["red"], "fails ("),
    ],
)
def test_one_that_fails_is_left_out_and_this_is_said(returned, message):
    wrong = Intervention("wrong", lambda images, masks, donors, donor_masks: returned(images))
    with pytest.raises(ValueError, match="Intervention"):
        audit_model(Reads("tint"), cued_scenes(), interventions=[wrong])
    observations = Observations(cued_scenes(), 1, further=[wrong, "position"], goes_on=True)
    result = measures_of(observations, [observations.observe(Reads("tint"), torch.arange(120))])
    assert [each.gap for each in result.further] == ["position_gap"]
    assert "wrong_gap" not in result
    assert "bg_gap" in result
    assert any("Intervention('wrong', ...)" in note and message in note for note in result.notes)
    assert judge(result).state in ("suspicion", "no alarm")


def test_one_that_changes_nothing_is_suspected_of_that():
    nothing = Intervention("nothing", lambda images, masks, donors, donor_masks: images)
    text = judge(audited("stripes", cued_scenes(), nothing)).text
    assert "all answers are the same with both: does it change the images?" in text
    text = judge(audited("stripes", cued_scenes(), "compression")).text
    assert "all answers are the same with both: they use none of it, or no image shows traces of JPEG" in text


def test_images_without_an_object_or_a_donor_are_not_given_to_it():
    seen = []

    def mean_of_objects(images, masks, donors, donor_masks):
        seen.extend(masks.flatten(1).any(dim=1).tolist() + donor_masks.flatten(1).any(dim=1).tolist())
        return images

    probes = cued_scenes(40)
    masks = probes.masks.clone()
    masks[3] = False
    given = Intervention("mean", mean_of_objects, masks="needed")
    result = audit_model(Reads("tint"), replace(probes, masks=masks), num_donors=1, interventions=[given])
    assert all(seen)
    assert len(seen) == 2 * 2 * 39
    assert result["mean_gap"].overall.count == 39
    assert result["mean_gap"].overall.skipped == 1


def test_measures_that_come_and_go_leave_the_evidence_of_the_background():
    probes = cued_scenes(agreement=0.5)
    first = judge(audited("stripes", probes, "position"))
    second = judge(audited("stripes", probes, "detail"), first)
    assert second.evidence.num_looks == 2
    assert len(second.evidence.looks.unique()) == 2
    assert second.evidence.count("bg_gap") == 120
    assert second.evidence.values["detail_gap"].isnan().sum() == 120
    assert "position_gap" not in second.evidence.values


def test_the_verdict_begins_with_the_worst():
    probes = cued_scenes()
    result = audited("position", probes)
    text = judge(result, judge(result)).text.split("\n\n")
    assert text[0].startswith("**Warning: answers seem to depend on the position of the object**")
    assert text[0].endswith("A weak test: this exchange changes other things, too.")
    assert text[1].startswith("Of the background: **No alarm.**")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Intervention("two words", corner_of), ValueError, "name='two words'"),
        (lambda: Intervention("one", lambda images: images), TypeError, "does not take 4 arguments"),
        (lambda: Intervention("one", None), TypeError, "exchange=None"),
        (lambda: Audit(interventions=["place"]), ValueError, "interventions='place' is unknown"),
        (lambda: Audit(interventions="position"), TypeError, "must be a list"),
        (lambda: audit_model(Reads("tint"), cued_scenes(12), interventions="size"), TypeError, "must be a list"),
        (lambda: Audit(interventions=[3]), TypeError, "neither a name nor an Intervention"),
        (lambda: Audit(interventions=["size", "size"]), ValueError, "size is given twice"),
        (lambda: Audit(interventions=[Intervention("bg", corner_of)]), ValueError, "bg is the name of a measure"),
        (lambda: Audit(interventions=[Intervention("margin", corner_of)]), ValueError, "margin is the name"),
        (lambda: Audit(interventions=[Intervention("size", corner_of)]), ValueError, "size is the name"),
        (lambda: Intervention("a_trace", corner_of), ValueError, "must not end in _trace"),
        (lambda: audited("tint", cued_scenes(12), Intervention("bg", corner_of)), ValueError, "bg is the name"),
    ],
)
def test_settings_that_are_wrong_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_is_a_value():
    assert corner() == corner()
    assert pickle.loads(pickle.dumps(corner())) == corner()
    assert intervention("position").name == "position"
    assert Audit(interventions=["position"]) == Audit(interventions=("position",))
