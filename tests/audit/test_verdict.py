"""The verdict says what was found, with numbers, and never clears; it seldom errs, and seldom misses a strong bias."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cam_callbacks import AuditResult, judge
from cam_callbacks.audit.interventions import Donors
from cam_callbacks.audit.statistics import measure
from cam_callbacks.audit.verdict import ALL, _suspects

DONORS = torch.arange(10_000)
"""Every image has another donor."""


def result(differences: Tensor, labels: Tensor, masks: str = "given", accuracy: float = 1.0, **more) -> AuditResult:
    count = len(labels)
    correct = (torch.arange(count) < accuracy * count).float()
    gap = {"given": "bg_gap", "estimated": "bg_gap", "none": "ring_gap"}[masks]
    measures = {"accuracy": measure(correct, labels), gap: measure(differences, labels, 0.0), **more}
    nobody = torch.full((count,), -1)
    return AuditResult(
        measures, masks, labels, ("cat", "dog"), torch.zeros(count, 3), Donors(nobody, torch.arange(count))
    )


def classes_of(size: int, count: int = 2) -> Tensor:
    return torch.arange(count).repeat_interleave(size)


def gap_of(value: float, size: int) -> Tensor:
    """Differences of two classes, those of the first with this mean, those of the second 0."""
    return torch.cat([(torch.arange(size) < value * size).float(), torch.zeros(size)])


class TestStates:
    def test_a_suspicion_found_again_is_an_alarm(self):
        look = result(gap_of(0.5, 60), classes_of(60))
        first = judge(look)
        assert first.state == "suspicion"
        assert 0 in first.suspects
        assert 1 not in first.suspects
        second = judge(look, first.suspects)
        assert second.state == "alarm"
        assert "ALARM" in second.text
        assert "cat" in second.text.split("\n")[0]
        assert "0.50 [" in second.text

    def test_a_suspicion_of_another_class_than_before_is_an_alarm_too(self):
        assert judge(result(gap_of(0.5, 60), classes_of(60)), {1}).state == "alarm"
        assert judge(result(torch.zeros(120), classes_of(60)), {1}).state == "no alarm"

    def test_where_there_is_one_look_only_a_suspicion_says_that_it_stays_one(self):
        only = judge(result(gap_of(0.5, 60), classes_of(60)), None)
        assert only.state == "suspicion"
        assert "one look alone gives no alarm" in only.text
        assert "if the next one agrees" not in only.text

    def test_exchanged_rings_warn_and_never_alarm(self):
        look = result(gap_of(0.9, 60), classes_of(60), "none")
        first = judge(look)
        assert first.state == "suspicion"
        assert "a warning if the next one agrees" in first.text
        assert judge(look, first.suspects).state == "warning"

    def test_a_small_gap_of_rings_is_nothing(self):
        assert judge(result(gap_of(0.2, 60), classes_of(60), "none"), {0, ALL}).state == "no alarm"

    def test_no_alarm_is_no_clearance(self):
        verdict = judge(result(torch.zeros(120), classes_of(60)))
        assert verdict.state == "no alarm"
        assert "No alarm is not the same as no bias." in verdict.text
        assert "Not tested: a bias inside the object's mask" in verdict.text
        assert verdict.suspects == frozenset()

    def test_nothing_is_judged_before_anything_is_learned(self):
        verdict = judge(result(gap_of(1, 60), classes_of(60), accuracy=0.55), {0, ALL})
        assert (verdict.state, verdict.suspects) == ("not learned", frozenset())

    def test_too_few_images_are_said_and_counted(self):
        verdict = judge(result(gap_of(1, 12), classes_of(12)), {0, ALL})
        assert (verdict.state, verdict.suspects) == ("too few images", frozenset())
        assert "24 of 30" in verdict.text
        assert "missing: cat 18, dog 18" in verdict.text

    def test_a_class_without_numbers_is_not_known(self):
        differences = torch.cat([torch.zeros(40), torch.full((5,), torch.nan)])
        text = judge(result(differences, torch.tensor([0] * 40 + [1] * 5))).text
        assert "dog: not known, 0 images" in text


class TestWords:
    @pytest.mark.parametrize(
        ("masks", "of_color", "words"),
        [
            ("given", 0.4, "has most of the effect: its color is what is used."),
            ("estimated", 0.4, "has most of the effect: its color is what is used."),
            ("given", 0.2, "has part of the effect: color and content or texture are both used."),
            ("given", 0.05, "has little effect: its *content or texture* is what is used."),
            ("estimated", 0.05, "is what is used, or parts of objects that the estimate of the foregrounds left"),
        ],
    )
    def test_what_of_the_background_is_used_is_said(self, masks, of_color, words):
        recolored = {"recolor_gap": measure(gap_of(of_color, 60), classes_of(60), 0.0)}
        verdict = judge(result(gap_of(0.5, 60), classes_of(60), masks, **recolored))
        assert verdict.state == "suspicion"
        assert words in verdict.text

    def test_of_many_classes_those_with_the_largest_gaps_are_named_and_the_others_counted(self):
        gaps = torch.stack([(torch.arange(40) < index).float() for index in range(13)])  # a mean of index / 40
        text = judge(result(gaps.flatten(), classes_of(40, 13))).text
        lines = text[text.index("Accuracy with a background") :].split("\n\n")[1].split("\n")
        assert [line.split(":")[0] for line in lines[:-1]] == [f"- {index}" for index in range(12, 2, -1)]
        assert lines[-1] == "- and 3 classes with smaller gaps"


class TestHolm:
    @pytest.mark.parametrize("count", [8, 40, 200])
    def test_one_strong_class_among_many_is_found_and_weak_ones_are_not(self, count):
        values = torch.zeros(count, 30)
        values[0] = 1
        values[1:, :3] = 1  # a mean of 0.1
        found = _suspects(measure(values.flatten(), classes_of(30, count)), 0.05, DONORS[: 30 * count])
        assert found - {ALL} == {0}


class TestErrorRates:
    @staticmethod
    def looks(size: int, gap: float, times: int, seed: int) -> list[AuditResult]:
        """Two classes; each arm flips 10 % of the answers; of the first the share `gap` follows the background."""
        draw = torch.Generator().manual_seed(seed)
        follows = torch.zeros(times, 2 * size, dtype=torch.bool)
        follows[:, :size] = torch.rand(times, size, generator=draw) < gap
        same, other = (torch.rand(times, 2 * size, generator=draw) >= 0.1 for _ in range(2))
        differences = same.float() - (other & ~follows).float()
        return [result(each, classes_of(size)) for each in differences]

    @pytest.mark.parametrize("size", [30, 60])
    def test_a_clean_model_is_seldom_suspected_and_hardly_ever_alarmed_about(self, size):
        suspects = [
            _suspects(each.measures["bg_gap"], 0.05, each.donors.other) for each in self.looks(size, 0.0, 600, size)
        ]
        assert sum(map(bool, suspects)) / 600 < 0.02
        alarms = [bool(a & b) for a, b in zip(suspects[::2], suspects[1::2], strict=True)]
        assert sum(alarms) / 300 < 0.005

    def test_a_gap_of_two_fifths_in_one_class_of_60_is_found(self):
        found = [
            0 in _suspects(each.measures["bg_gap"], 0.05, each.donors.other) for each in self.looks(60, 0.4, 300, 7)
        ]
        assert sum(found) / 300 > 0.9


def test_a_class_with_few_different_donors_is_not_tested():
    look = result(gap_of(0.5, 60), classes_of(60))
    few = replace(look, donors=Donors(look.donors.same, torch.arange(120) % 10))
    assert judge(look).suspects
    assert not judge(few).suspects


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 5}, "threshold=5 must be a number of at least 0 and below 1"),
        ({"threshold": "a"}, "threshold='a' must be a number"),
        ({"previous_suspects": 3}, "previous_suspects=3 must be the suspects of the verdict before, or None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        judge(result(torch.zeros(60), classes_of(30, 2)), **wrong)
