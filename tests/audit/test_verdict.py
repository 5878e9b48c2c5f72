"""The verdict says what was found, with numbers, and never clears; it seldom errs, and seldom misses a strong bias."""

import json
from dataclasses import replace

import pytest
import torch
from made_up import classes_of, gap_of, result

from cam_callbacks import Verdict, judge
from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.statistics import measure


def found_in(index: int) -> Verdict:
    """A verdict on the look before that found something in one class."""
    return Verdict("suspicion", (index,), False, {}, "", 0.05)


def nothing_found(verdict: Verdict) -> bool:
    return (verdict.classes, verdict.overall, verdict.found) == ((), False, False)


class TestStates:
    def test_a_suspicion_found_again_is_an_alarm(self):
        look = result(gap_of(0.5, 60), classes_of(60))
        first = judge(look)
        assert (first.state, first.classes, first.overall, first.found) == ("suspicion", (0,), True, True)
        second = judge(look, first)
        assert (second.state, second.classes, second.overall, second.found) == ("alarm", (0,), True, True)
        assert "ALARM" in second.text
        assert (
            "(found in: all classes together, cat). Found at this look, and at the one before."
            in second.text.split("\n")[0]
        )
        assert "0.50 [" in second.text

    def test_a_suspicion_of_another_class_than_before_is_an_alarm_too(self):
        assert judge(result(gap_of(0.5, 60), classes_of(60)), found_in(1)).state == "alarm"
        assert judge(result(torch.zeros(120), classes_of(60)), found_in(1)).state == "no alarm"

    def test_a_suspicion_says_whether_there_was_a_look_before(self):
        look = result(gap_of(0.5, 60), classes_of(60))
        alone, next_one = judge(look), judge(look, judge(result(torch.zeros(120), classes_of(60))))
        assert alone.state == next_one.state == "suspicion"
        assert "one look alone gives no alarm" in alone.text
        assert "an alarm if the next one is as sure" in next_one.text

    def test_swapped_rings_warn_and_never_alarm(self):
        look = result(gap_of(0.9, 60), classes_of(60), "none")
        before = judge(result(torch.zeros(120), classes_of(60), "none"))
        first = judge(look, before)
        assert first.state == "suspicion"
        assert "a warning if the next one is as sure" in first.text
        second = judge(look, first)
        assert (second.state, second.found) == ("warning", True)

    def test_a_small_gap_of_rings_is_nothing(self):
        assert judge(result(gap_of(0.2, 60), classes_of(60), "none"), found_in(0)).state == "no alarm"

    def test_a_gap_that_is_not_sure_enough_is_said_to_be_that_and_no_placebo(self):
        look = result(gap_of(0.26, 60), classes_of(60))
        before = judge(look)
        for _ in range(30):
            before = judge(result(torch.zeros(120), classes_of(60)), before)
        verdict = judge(look, before)
        assert look.gap.overall.low > 0.05
        assert verdict.state == "no alarm"
        assert "There is a gap, but it is not surely enough above 0.05" in verdict.text

    def test_what_is_judged_are_the_last_looks_together_and_it_is_said(self):
        labels = classes_of(60)
        outline = {"outline_gap": measure(gap_of(0.1, 60), labels, 0.0)}
        costs = {name: measure(torch.zeros(120), labels, 0.0) for name in ("collage_cost", "blur_loss")}
        first, second = (result(gap_of(gap, 60), labels, **outline, **costs) for gap in (0.4, 0.6))
        before = judge(first)
        verdict = judge(second, before)
        assert "Judged are" not in before.text
        assert "the last 2 looks together: a gap of 0.25 over 240 images; minus the placebo 0.20" in verdict.text

    def test_no_alarm_is_no_clearance(self):
        verdict = judge(result(torch.zeros(120), classes_of(60)))
        assert verdict.state == "no alarm"
        assert "No alarm is not the same as no bias." in verdict.text
        assert "Not tested: a bias inside the object's mask" in verdict.text
        assert nothing_found(verdict)

    def test_nothing_is_judged_before_anything_is_learned(self):
        verdict = judge(result(gap_of(1, 60), classes_of(60), accuracy=0.55), found_in(0))
        assert verdict.state == "not learned"
        assert nothing_found(verdict)

    def test_too_few_images_are_said_and_counted(self):
        verdict = judge(result(gap_of(1, 12), classes_of(12)), found_in(0))
        assert verdict.state == "too few images"
        assert nothing_found(verdict)
        assert "24 of 30" in verdict.text
        assert "reliable numbers need 30 of each class (cat: 18 more, dog: 18 more). The audit used 24;" in verdict.text

    def test_no_number_of_images_is_advised_that_may_be_below_the_one_set(self):
        differences = torch.zeros(64)
        differences[:3] = torch.nan  # without a donor
        look = replace(result(differences, classes_of(32)), class_names=())
        text = judge(look).text
        assert "(class 0: 1 more). The audit used 64; if the validation data has more" in text
        assert "a larger Audit(num_images=...)" in text

    @pytest.mark.parametrize(
        ("masks", "size", "masked", "missing", "step"),
        [
            ("estimated", 64, 8, "dog: 8 of 64). Give masks of the object, or Audit(masks=...)", "give masks"),
            ("given", 64, 29, "dog: 29 of 64). Give masks of the object", "look at"),
            ("estimated", 14, 5, "dog: 5 of 14). Give masks", "or Audit(masks=...); and more labeled"),
            ("estimated", 1, 0, "cat: 30 more", "train on"),
            ("none", 8, 8, "cat: 22 more", "give more labeled"),
        ],
    )
    def test_where_masks_failed_masks_are_advised_and_not_images(self, masks, size, masked, missing, step):
        labels = classes_of(size)
        has_donor = torch.arange(2 * size) % size < masked
        look = result(torch.where(has_donor, 0.0, torch.nan), labels, masks)
        donor = torch.where(has_donor, torch.arange(2 * size), -1).unsqueeze(1)
        text = judge(replace(look, donors=Donors(donor, donor))).text
        assert missing in text
        assert step in text[text.index("Next:") :]
        assert ("more labeled" in text) == ("more labeled" in step)

    def test_a_class_without_numbers_is_not_known(self):
        differences = torch.cat([torch.zeros(40), torch.full((5,), torch.nan)])
        text = judge(result(differences, torch.tensor([0] * 40 + [1] * 5))).text
        assert "dog: not known, 0 images" in text


class TestWords:
    @pytest.mark.parametrize(
        ("masks", "of_color", "words"),
        [
            ("given", 0.4, "accounts for most of the effect: the model uses its color."),
            ("estimated", 0.4, "accounts for most of the effect: the model uses its color."),
            ("given", 0.2, "has part of the effect: color and content or texture are both used."),
            ("given", 0.05, "its *content or texture* is what is used."),
            ("estimated", 0.05, "or parts of objects that the estimated masks left"),
        ],
    )
    def test_what_of_the_background_is_used_is_said(self, masks, of_color, words):
        recolored = {"recolor_gap": measure(gap_of(of_color, 60), classes_of(60), 0.0)}
        verdict = judge(result(gap_of(0.5, 60), classes_of(60), masks, **recolored))
        assert verdict.state == "suspicion"
        assert words in verdict.text

    @pytest.mark.parametrize(
        ("heat", "area", "chance", "state", "words"),
        [
            (0.0697, 0.0702, 0.0712, "away from the object", "0.0697 [0.0697, 0.0697]; chance 0.0712, area 0.0702"),
            (0.071, 0.07, 0.07, "on the object", "0.071 [0.071, 0.071]; chance 0.070, area 0.070"),
            (0.2, 0.1, 0.3, "away from the object", "0.20 [0.20, 0.20]; chance 0.30, area 0.10"),
            (0.2, 0.1, 0.2, "indistinguishable from chance", "0.20 [0.20, 0.20]; chance 0.20, area 0.10"),
            (0.2, 0.2, 0.1, "indistinguishable from chance", "0.20 [0.20, 0.20]; chance 0.10, area 0.20"),
            (0.1, 0.2, 0.1, "away from the object", "0.10 [0.10, 0.10]; area 0.20"),
        ],
    )
    def test_heat_is_shown_with_the_digits_that_tell_it_from_chance(self, heat, area, chance, state, words):
        labels = classes_of(60)
        measured = {
            "heat_on_object": measure(torch.full((120,), heat), labels, chance),
            "heat_over_area": measure(torch.full((120,), heat - area), labels, 0.0),
        }
        look = result(torch.zeros(120), labels, **measured)
        of_others, shifted = torch.full((200,), chance), torch.full((200,), area)
        verdict = judge(
            replace(
                look,
                heat_chance_distribution={0: of_others, 1: of_others},
                heat_shifted_distribution={0: shifted, 1: shifted},
            )
        )
        assert f"- cat: {state} ({words})" in verdict.text

    def test_of_many_classes_the_largest_gaps_are_named_and_others_counted(self):
        gaps = torch.stack([(torch.arange(40) < index).float() for index in range(13)])  # a mean of index / 40
        text = judge(result(gaps.flatten(), classes_of(40, 13))).text
        lines = text[text.index("`bg_gap`: accuracy with") :].split("\n\n")[1].split("\n")
        assert [line.split(":")[0] for line in lines[:-1]] == [f"- {index}" for index in range(12, 2, -1)]
        assert lines[-1] == "- and 3 classes with smaller gaps"


class TestManyClasses:
    @pytest.mark.parametrize("count", [8, 40, 200])
    def test_one_strong_class_among_many_is_found_and_weak_ones_are_not(self, count):
        values = torch.zeros(count, 30)
        values[0] = 1
        values[1:, :3] = 1  # a mean of 0.1
        verdict = judge(result(values.flatten(), classes_of(30, count)))
        assert verdict.classes == (0,)


class TestPlacebo:
    @pytest.mark.parametrize(("of_outline", "state"), [(0.0, "suspicion"), (0.5, "no alarm"), (-0.5, "suspicion")])
    def test_what_the_outline_explains_is_not_held_against_the_model(self, of_outline, state):
        labels = classes_of(60)
        outline = {"outline_gap": measure(of_outline * gap_of(1.0, 60), labels, 0.0)}
        costs = {name: measure(torch.zeros(120), labels, 0.0) for name in ("collage_cost", "blur_loss")}
        assert judge(result(gap_of(0.5, 60), labels, **outline, **costs)).state == state

    def test_an_outline_that_speaks_against_the_class_makes_no_gap(self):
        """Both have to be above the threshold: the gap, and the gap minus the placebo."""
        labels = classes_of(60)
        outline = {"outline_gap": measure(-gap_of(0.5, 60), labels, 0.0)}
        costs = {name: measure(torch.zeros(120), labels, 0.0) for name in ("collage_cost", "blur_loss")}
        assert judge(result(torch.zeros(120), labels, **outline, **costs)).state == "no alarm"


class TestSecondInstrument:
    @staticmethod
    def look(cost: float = 0.0, blur: float = 0.0, color: float = 0.0, masks: str = "given", smaller: float = 0.2):
        labels = classes_of(60)
        of_all = {"collage_cost": cost, "blur_loss": blur, "recolor_gap": color, "outline_gap": 0.0}
        if masks == "estimated":
            of_all |= {"bg_gap_larger_masks": 0.2, "bg_gap_smaller_masks": smaller}
        values = {name: (torch.arange(120) % 20 < 20 * value).float() for name, value in of_all.items()}
        more = {name: measure(each, labels, 0.0) for name, each in values.items()}
        return result(gap_of(0.5, 60), labels, masks, **more)

    @pytest.mark.parametrize(
        ("told", "states", "second_test", "words"),
        [
            ({}, ("suspicion", "alarm"), "silent", "found by swapping alone"),
            ({"blur": 0.3}, ("suspicion", "alarm"), "agrees", "A second test agrees, which pastes nothing"),
            ({"color": 0.3}, ("suspicion", "alarm"), "agrees", "A second test agrees, which pastes nothing"),
            ({"masks": "estimated"}, ("suspicion", "suspicion"), "needed", "because masks are estimated"),
            (
                {"masks": "estimated", "color": 0.3},
                ("suspicion", "alarm"),
                "agrees",
                "A second test agrees, which pastes nothing",
            ),
            (
                {"masks": "estimated", "color": 0.3, "smaller": 0},
                ("suspicion", "suspicion"),
                "needed",
                "hangs on the edges",
            ),
            ({"cost": 0.15}, ("suspicion", "suspicion"), "needed", "because swapping itself costs right answers"),
            (
                {"cost": 0.15, "blur": 0.3},
                ("suspicion", "alarm"),
                "agrees",
                "A second test agrees, which pastes nothing",
            ),
            ({"cost": 0.3}, ("not testable", "not testable"), "needed", "Not testable by swapping"),
            ({"cost": 0.3, "blur": 0.5}, ("not testable", "not testable"), "needed", "Not testable by swapping"),
            (
                {"cost": 0.3, "color": 0.5},
                ("suspicion", "warning"),
                "agrees",
                "Swapping is not a fair test of this model.",
            ),
        ],
    )
    def test_an_alarm_needs_it_where_the_first_may_err(self, told, states, second_test, words):
        first = judge(self.look(**told))
        second = judge(self.look(**told), first)
        assert (first.state, second.state) == states
        assert second.second_test == second_test
        assert words in second.text


def test_a_verdict_survives_a_checkpoint_that_holds_primitives_only(tmp_path):
    verdict = replace(
        judge(result(gap_of(0.5, 60), classes_of(60))), heat={0: "on the object", 1: "away from the object"}
    )
    torch.save(verdict.state_dict(), tmp_path / "verdict.pt")
    state = torch.load(tmp_path / "verdict.pt", weights_only=True)
    again, look = Verdict.from_state_dict(state), result(gap_of(0.2, 60), classes_of(60))
    assert again == verdict
    assert judge(look, again).text == judge(look, verdict).text


class TestResult:
    def test_a_measure_is_read_by_its_name(self):
        look = result(gap_of(0.5, 60), classes_of(60))
        assert look["bg_gap"] is look.gap is look.measures["bg_gap"]
        rings = result(gap_of(0.5, 60), classes_of(60), "none")
        assert rings["ring_gap"] is rings.gap

    @pytest.mark.parametrize(
        ("masks", "name", "why"),
        [
            ("none", "bg_gap", "it needs masks"),
            ("given", "ring_gap", "only without masks; 'bg_gap' takes its place"),
            ("given", "pointing", "could not be measured on these images"),
            ("estimated", "bg_gap_estimated", "no measure has this name; the nearest are .*'bg_gap'"),
        ],
    )
    def test_a_measure_that_is_missing_says_why(self, masks, name, why):
        with pytest.raises(KeyError, match=f"'{name}' is not in this result: .*{why}"):
            result(gap_of(0.5, 60), classes_of(60), masks)[name]

    def test_the_table_has_a_row_for_each_measure_and_class(self):
        look = replace(result(gap_of(0.5, 60), classes_of(60)), class_names=("all", "dog"))
        rows = look.rows()
        assert [(row["measure"], row["class"]) for row in rows] == [
            (name, label) for name in ("accuracy", "bg_gap") for label in ("all", "all", "dog")
        ]
        assert {"value", "low", "high", "count", "skipped", "chance"} < rows[0].keys()
        assert rows[3]["value"] == look.gap.overall.value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 5}, "threshold=5 must be a number of at least 0 and below 1"),
        ({"threshold": "a"}, "threshold='a' must be a number"),
        ({"previous": "alarm"}, "previous='alarm' must be the verdict on the look before, or None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        judge(result(torch.zeros(60), classes_of(30, 2)), **wrong)


class TestValues:
    def test_a_result_is_asked_for_measures_by_name(self):
        look = result(torch.zeros(120), classes_of(60))
        assert list(look) == ["accuracy", "bg_gap"]
        assert "bg_gap" in look
        assert "ring_gap" not in look
        assert 3 not in look
        with pytest.raises(TypeError, match="name=3 must be the name of a measure"):
            look[3]

    def test_a_verdict_is_the_same_after_json_and_can_be_hashed(self):
        verdict = Verdict("alarm", (0, 2), True, {0: "on the object", 2: "off the object"}, "ALARM", 0.05)
        again = Verdict.from_state_dict(json.loads(json.dumps(verdict.state_dict())))
        assert again == verdict
        assert {again, verdict} == {verdict}
