"""What several looks tell together: what would be found, and how often a whole run errs."""

from dataclasses import replace

import pytest
import torch
from made_up import classes_of, gap_of, result

from cam_callbacks import judge
from cam_callbacks.audit.donors import Donors, choose_donors
from cam_callbacks.audit.evidence import Evidence
from cam_callbacks.audit.statistics import Measure, measure


class TestPower:
    def test_the_smallest_gap_that_would_be_found_is_said(self):
        few, many = (judge(result(gap_of(0.1, size), classes_of(size))) for size in (30, 480))
        assert 0.05 < many.detectable < few.detectable < 1
        assert few.detectable - 0.05 == pytest.approx(4 * (many.detectable - 0.05), rel=0.4)
        assert f"suspects a gap of {few.detectable:.2f} in all classes together four times in five" in few.text

    def test_evidence_is_pooled_over_looks_at_other_images(self):
        verdict, found = None, []
        for _ in range(5):
            verdict = judge(result(gap_of(0.3, 60), classes_of(60)), verdict)
            found.append(verdict.detectable)
        assert found == sorted(found, reverse=True)
        assert verdict.state == "alarm"

    def test_the_same_images_again_are_no_further_evidence(self):
        look = result(gap_of(0.1, 60), classes_of(60))
        first = judge(look)
        assert judge(look, first).evidence.pooled("bg_gap").error == pytest.approx(
            first.evidence.pooled("bg_gap").error, rel=0.01
        )

    def test_looks_that_are_long_ago_are_forgotten(self):
        verdict = None
        for share in (0.6, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0):
            verdict = judge(result(gap_of(share, 60), classes_of(60)), verdict)
        assert verdict.state == "no alarm"
        assert set(verdict.evidence.looks.tolist()) == {3, 4, 5, 6, 7}
        assert verdict.evidence.num_looks == 7


@pytest.mark.slow
class TestErrorRates:
    """Runs of looks at two classes of 60; each arm flips a twentieth of the answers; `gap` follow the background."""

    @staticmethod
    def run(gap: float, looks: int, seed: int, is_same: bool) -> list[str]:
        draw = torch.Generator().manual_seed(seed)
        states, verdict, labels = [], None, classes_of(60)
        look = result(torch.zeros(120), labels)
        follows = torch.rand(120, generator=draw) < gap
        for _ in range(looks):
            if not is_same:
                follows = torch.rand(120, generator=draw) < gap
                look = result(torch.zeros(120), labels)
            same, other = (torch.rand(120, generator=draw) >= 0.05 for _ in range(2))
            values = same.float() - (other & ~follows).float()
            gap_now = Measure(look.gap.overall, look.gap.per_class, values, labels)
            verdict = judge(replace(look, measures={**look.measures, "bg_gap": gap_now}), verdict)
            states.append(verdict.state)
        return states

    @pytest.mark.parametrize("is_same", [True, False])
    def test_a_gap_at_the_threshold_is_hardly_ever_suspected_in_a_whole_run(self, is_same):
        runs = [self.run(0.05, 6, seed, is_same) for seed in range(20)]
        assert sum("suspicion" in states for states in runs) <= 4  # 5% are promised: more than 4 of 20 in 1 of 400
        assert not any("alarm" in states for states in runs)

    def test_a_gap_of_a_third_is_found_within_three_looks(self):
        runs = [self.run(0.33, 3, seed, is_same=False) for seed in range(20)]
        assert sum("alarm" in states for states in runs) >= 18


def test_an_answer_with_each_donor_is_evidence_and_an_image_counts_once():
    look = result(gap_of(0.5, 60), classes_of(60))
    donors = torch.stack([torch.arange(120), torch.arange(120).roll(1)], dim=1)
    with_each = torch.stack([look.gap.values, torch.zeros(120)], dim=1)
    gap = measure(with_each, look.labels, 0.0, Donors(donors, donors))
    evidence = judge(replace(look, donors=Donors(donors, donors), measures={**look.measures, "bg_gap": gap})).evidence
    assert evidence.values["bg_gap"].tolist() == with_each.flatten().tolist()
    assert evidence.count("bg_gap") == 120
    assert evidence.pooled("bg_gap").observed == pytest.approx(0.125)


class TestFewerDonorsOfAnotherMeasure:
    """Two donors give a background, but only the first is tried with another measure; a rare class gives to many."""

    @staticmethod
    def evidence(draw, of_placebo=1):
        labels = torch.arange(2).repeat_interleave(torch.tensor([100, 12]))
        donors = choose_donors(
            labels,
            torch.ones(112, dtype=torch.bool),
            f"{int(torch.randint(9**9, (1,), generator=draw)):x}" + "0" * 15,
            2,
        )
        gives = torch.rand(2, 112, generator=draw)

        def values(count, share):
            follows = [
                (gives[kind][each[:, :count]] < share).float() for kind, each in enumerate((donors.same, donors.other))
            ]
            return follows[0] - follows[1]

        look = result(torch.zeros(112), labels)
        parts = {"bg_gap": values(2, 0.5), "outline_gap": values(of_placebo, 0.3), "recolor_gap": values(1, 0.4)}
        measures = {name: measure(each, labels, 0.0, donors) for name, each in parts.items()}
        return Evidence.of(replace(look, donors=donors, measures={**look.measures, **measures})), parts

    def test_stands_on_these_donors_alone(self):
        evidence, parts = self.evidence(torch.Generator().manual_seed(0))
        assert evidence.values["recolor_gap"][::2].tolist() == parts["recolor_gap"].flatten().tolist()
        assert evidence.values["recolor_gap"][1::2].isnan().all()

    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "minus"), [("recolor_gap", None), ("bg_gap", None), ("bg_gap", "outline_gap")])
    def test_errors_are_those_of_means_drawn_again_and_again(self, name, minus):
        draw = torch.Generator().manual_seed(0)
        found = [self.evidence(draw)[0].pooled(name, minus=minus) for _ in range(150)]
        spread = torch.tensor([each.observed for each in found]).std()
        assert sum(each.error for each in found) / 150 > 0.85 * spread


def test_all_classes_together_have_half_of_the_level():
    """A gap that all of many classes share a little is found; none of them alone would be."""
    labels, values = classes_of(12, 10), (torch.arange(120) % 7 == 0).float()
    verdict = judge(result(values, labels))
    assert verdict.overall
    assert verdict.classes == ()


def test_a_class_whose_gap_is_due_to_few_donors_is_not_suspect():
    look = result(gap_of(0.5, 60), classes_of(60))
    by_donor = torch.where(look.gap.values > 0, 0, 1 + torch.arange(120) % 3).unsqueeze(1)
    few = replace(look, donors=Donors(look.donors.same, by_donor))
    assert judge(look).found
    assert not judge(few).found
