"""What the data gives away of several labels, of numbers and of boxes: what was planted, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch
from task_scenes import CASES, audited

from cam_callbacks import judge
from cam_callbacks.audit.concordance import concordance
from cam_callbacks.audit.properties import DataProperty, data_properties
from cam_callbacks.review import schema
from cam_callbacks.review.encoding import audit_blobs
from cam_callbacks.snapshot import AuditSnapshot

BRIGHTER = {("outer ring", "brightness"), ("image", "brightness")}
RUNS = 25


def noise(seed=0, count=80, side=32):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxes(count=80, side=32, size=12):
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    for mask, (top, left) in zip(masks, (drawn((count, 2)) * (side - size)).long().tolist(), strict=True):
        mask[top : top + size, left : left + size] = True
    return masks


def telling(found):
    return {(each.where, each.name, each.label) for each in found if each.gives_away}


class TestSeveralLabels:
    def test_the_label_that_a_property_goes_with_is_named(self):
        labels = drawn((80, 4)) < 0.5
        images = noise() + 0.1 * labels[:, 2].view(-1, 1, 1, 1)
        assert telling(data_properties(images, labels)) == {(*place, 2) for place in BRIGHTER}

    def test_each_property_has_one_row_of_the_label_it_tells_most_surely(self):
        labels = drawn((80, 3)) < 0.5
        labels[:, 1] = True
        found = data_properties(noise() + 0.1 * labels[:, 2].view(-1, 1, 1, 1), labels)
        assert len({(each.name, each.where) for each in found}) == len(found)
        assert {each.label for each in found} <= {0, 2}
        assert {each.label for each in found if each.name == "brightness"} == {2}

    def test_many_labels_do_not_hide_what_is_sure(self):
        labels = drawn((80, 40)) < 0.5
        images = noise() + 0.1 * labels[:, 7].view(-1, 1, 1, 1)
        assert telling(data_properties(images, labels)) == {(*place, 7) for place in BRIGHTER}

    def test_a_single_label_is_as_two_classes(self):
        labels = drawn((80, 1)) < 0.5
        images = noise() + 0.003 * labels.view(-1, 1, 1, 1)
        of_label, of_classes = (data_properties(images, each) for each in (labels, labels[:, 0].long()))
        assert [(each.name, each.where, each.auc, each.p_value) for each in of_label] == [
            (each.name, each.where, pytest.approx(each.auc), each.p_value) for each in of_classes
        ]


class TestNumbers:
    def test_the_number_that_a_property_goes_with_is_named(self):
        numbers = drawn((80, 3))
        images = noise() - 0.1 * numbers[:, 1].view(-1, 1, 1, 1)
        assert telling(data_properties(images, numbers)) == {(*place, 1) for place in BRIGHTER}

    def test_images_whose_number_is_not_known_are_left_out(self):
        numbers = drawn((80, 2))
        images = noise() + 0.1 * numbers[:, :1].view(-1, 1, 1, 1)
        numbers[:20, 0] = torch.nan
        numbers[::2, 1] = torch.nan
        found = data_properties(images, numbers)
        assert telling(found) == {(*place, 0) for place in BRIGHTER}
        assert {(each.label, each.count) for each in found} <= {(0, 60), (1, 40)}

    def test_it_says_which_way_they_go(self):
        numbers = drawn((80, 1))
        for sign in (-1, 1):
            found = data_properties(noise() + sign * 0.1 * numbers.view(-1, 1, 1, 1), numbers)
            (of_all,) = (each for each in found if (each.name, each.where) == ("brightness", "image"))
            assert of_all.is_larger == (sign > 0)

    def test_neither_scale_nor_shape_of_the_numbers_matters(self):
        numbers = drawn((80, 1))
        images = noise() + 0.02 * numbers.view(-1, 1, 1, 1)
        plain, bent = (data_properties(images, each) for each in (numbers, 1e4 * numbers.exp()))
        assert plain == bent

    def test_numbers_that_are_all_alike_tell_nothing(self):
        assert data_properties(noise(), torch.full((80, 2), 3.0)) == []


class TestConcordance:
    @pytest.mark.parametrize("levels", [2, 3, 80])
    def test_it_counts_pairs_by_how_far_apart_their_truths_are(self, levels):
        truth = (drawn((80,)) * levels).floor().double()
        values = (20 * (drawn((80,), 2) + 0.5 * truth / levels)).round()
        ranks = torch.tensor([float((truth < each).sum()) + (float((truth == each).sum()) + 1) / 2 for each in truth])
        apart = ranks.unsqueeze(1) - ranks
        alike = 0.5 + 0.5 * (values.unsqueeze(1) - values).sign() * apart.sign()
        expected = (apart.abs() * alike).sum() / apart.abs().sum()
        assert concordance(values, truth.unsqueeze(1)).areas.item() == pytest.approx(float(expected))

    def test_it_is_the_area_under_the_curve_of_two_classes(self):
        truth, values = drawn((60,)) < 0.4, drawn((60,), 2)
        pairs = values[truth].unsqueeze(1) > values[~truth]
        assert concordance(values, truth.unsqueeze(1)).areas.item() == pytest.approx(float(pairs.double().mean()))

    def test_it_is_half_of_a_rank_correlation_of_numbers(self):
        truth, values = drawn((60,)), drawn((60,), 2) + drawn((60,))
        ranks = torch.stack([each.argsort().argsort().double() for each in (truth, values)])
        expected = (1 + torch.corrcoef(ranks)[0, 1]) / 2
        assert concordance(values, truth.unsqueeze(1)).areas.item() == pytest.approx(float(expected))

    def test_sureness_is_in_standard_deviations(self):
        found = concordance(drawn((60,), 2), drawn((60, 1)))
        assert float(found.by_chance.square().mean()) == pytest.approx(1, abs=0.1)


class TestBoxes:
    def test_what_differs_within_boxes_is_found_there_and_is_no_suspicion(self):
        masks, labels = boxes(), torch.arange(80) % 2
        images = noise() + 0.1 * (labels.view(-1, 1, 1) * masks).unsqueeze(1)
        found = data_properties(images, labels, masks, are_boxes=True)
        told = {(each.where, each.name) for each in found if each.gives_away}
        assert {place for place in told if place[0] != "image"} == {("box", "brightness")}
        assert all(each.shows_object for each in found if each.gives_away)

    def test_what_differs_around_boxes_is_not_found_within(self):
        masks, labels = boxes(), torch.arange(80) % 2
        images = noise() + 0.1 * (labels.view(-1, 1, 1) * ~masks).unsqueeze(1)
        found = telling(data_properties(images, labels, masks, are_boxes=True))
        assert {place[:2] for place in found if place[0] != "image"} == {("background", "brightness")}

    def test_only_boxes_are_looked_into(self):
        found = data_properties(noise(), torch.arange(80) % 2, boxes())
        assert "box" not in {each.where for each in found}


@pytest.mark.parametrize(
    "labels_of",
    [
        lambda seed: drawn((60, 5), seed) < 0.3,
        lambda seed: drawn((60, 3), seed),
        lambda seed: drawn((60, 3), seed).where(drawn((60, 3), -seed - 1) < 0.7, torch.nan),
        lambda seed: (3 * drawn((60,), seed)).long(),
    ],
    ids=["labels", "numbers", "numbers that are not all known", "classes of boxes"],
)
def test_where_nothing_goes_with_them_few_data_sets_have_anything(labels_of):
    masks, is_false = boxes(60, 16, 6), 0
    for seed in range(RUNS):
        found = data_properties(noise(seed, 60, 16), labels_of(100 + seed), masks, are_boxes=True)
        is_false += any(each.p_value <= 0.05 for each in found)
    assert is_false <= 5  # 1.25 are expected, 5 or fewer in 99.9% of the cases


OTHERS = "cat can be told apart from the others by"
TOLD = {
    "multi-label": "ruler can be told apart from images without it by the higher brightness of the background alone",
    "regression": "number 0: larger numbers come with a larger brightness of the background alone, rank agreement 1.00",
    "segmentation": f"{OTHERS} the lower brightness of the background alone, AUC 1.00",
    "detection": f"{OTHERS} the lower brightness of the background alone, AUC 1.00",
    "embedding": f"{OTHERS} the lower brightness of the background alone, AUC 1.00",
}


@pytest.mark.parametrize("task", CASES)
def test_the_tab_and_the_report_say_so_in_the_words_of_the_task(task):
    result = audited(task, 0, num_donors=1)
    images = CASES[task][0]()
    audited_once = AuditSnapshot(images, result, judge(result), {}, 0, torch.ones(len(images), dtype=torch.bool))
    audit = json.loads(audit_blobs(audited_once, None, 0, "")[schema.TAB_AUDIT])
    (warning,) = (part for part in audit["verdict"]["text"].split("\n\n") if part.startswith("**Data warning**"))
    assert TOLD[task] in warning
    assert "of the image" not in warning


@pytest.mark.parametrize(
    ("task", "names", "used"),
    [
        ("multi-label", ["size", "detail"], "size or sharpness"),
        ("segmentation", ["detail"], "sharpness"),
        ("detection", ["detail"], "sharpness"),
    ],
)
def test_an_intervention_is_named_where_the_task_allows_it(task, names, used):
    told = [DataProperty(name, "object", 1, 0.9, 0.5, 0.001, 90) for name in ("size", "sharpness")]
    result = replace(audited(task, 0, num_donors=1), data=tuple(told))
    assert f" `Audit(interventions={names})` tests whether the model uses {used}." in judge(result).text


def test_of_colors_the_gap_of_moved_colors_is_named():
    told = (DataProperty("brightness", "background", 1, 0.9, 0.5, 0.001, 90, is_larger=False),)
    text = judge(replace(audited("multi-label", 0, num_donors=1), data=told)).text
    assert "by the lower brightness of the background alone" in text
    assert "`recolor_gap` above tells whether it uses brightness." in text


def test_a_note_says_how_many_more_there_are():
    names = ("brightness", "contrast", "saturation", "sharpness", "edge density")
    told = tuple(DataProperty(name, "outer ring", 1, 0.9, 0.5, 0.001, 90) for name in names)
    (note,) = (
        part
        for part in judge(replace(audited("multi-label", 0, num_donors=1), data=told)).text.split("\n\n")
        if part.startswith("Data note")
    )
    assert "the higher brightness of the outer ring, which the object may reach into, AUC 0.90" in note
    assert note.endswith("AuditResult.data has 2 more.")


def test_what_the_object_is_a_part_of_is_a_note():
    result = audited("regression", 0, num_donors=1)
    (note,) = (part for part in judge(result).text.split("\n\n") if part.startswith("Data note"))
    assert "number 1: larger numbers come with a larger contrast of the image, rank agreement 1.00" in note
    assert "number 0: larger numbers come with a larger brightness" not in note  # said of the background
