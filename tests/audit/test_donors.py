"""Who gives a background to whom."""

import pytest
import torch

from cam_callbacks.audit.donors import choose_donors, with_rivals

LABELS = torch.arange(40) % 4
USABLE = torch.ones(40, dtype=torch.bool)


def test_of_the_same_class_are_other_images_and_each_gives_once():
    donors = choose_donors(LABELS, USABLE, "ab" * 32, 3)
    assert (LABELS[donors.same] == LABELS.unsqueeze(1)).all()
    assert not (donors.same == torch.arange(40).unsqueeze(1)).any()
    for each in donors.same.T:
        assert sorted(each.tolist()) == list(range(40))
    assert all(len(set(row)) == 3 for row in donors.same.tolist())


def test_of_another_class_give_about_equally_often():
    donors = choose_donors(LABELS, USABLE, "ab" * 32, 3)
    assert (LABELS[donors.other] != LABELS.unsqueeze(1)).all()
    assert donors.other.flatten().bincount(minlength=40).max() <= 4


def test_come_from_all_over_many_classes_not_from_neighbors_in_the_list():
    labels = torch.arange(100).repeat_interleave(3)
    donors = choose_donors(labels, torch.ones(300, dtype=torch.bool), "12" * 32)
    steps = (labels[donors.other[:, 0]] - labels) % 100
    assert (steps > 10).float().mean() > 0.8


def test_depend_on_the_fingerprint_and_on_no_global_state():
    first = choose_donors(LABELS, USABLE, "ab" * 32)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again, others = (choose_donors(LABELS, USABLE, f * 32) for f in ("ab", "cd"))
    assert torch.equal(first.same, again.same)
    assert torch.equal(first.other, again.other)
    assert not torch.equal(first.same, others.same)
    assert torch.equal(torch.get_rng_state(), before)


def test_are_missing_for_single_images_and_for_unusable_ones():
    labels, usable = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
    donors = choose_donors(labels, usable, "ab" * 32)
    assert donors.known.tolist() == [True, True, False, False]
    assert 2 not in [*donors.same.flatten().tolist(), *donors.other.flatten().tolist()]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_half_of_the_other_backgrounds_are_those_of_rivals(count):
    labels, usable = torch.arange(400) % 20, torch.ones(400, dtype=torch.bool)
    usable[:20] = False
    donors = choose_donors(labels, usable, "ab" * 32, count)
    found = with_rivals(donors, labels, usable, {3: [7, 9], 5: [5], 6: [77]}, "ab" * 32)
    assert torch.equal(found.same, donors.same)
    members = (labels == 3) & usable
    of_rivals = torch.isin(labels[found.other[members]], torch.tensor([7, 9]))
    assert int(of_rivals.sum()) >= members.sum() * count // 2
    assert (~of_rivals).float().mean() > 0.3
    if count > 1:
        assert of_rivals.any(dim=1).all()  # each image has both kinds
    givers = found.other[members][of_rivals]
    assert givers.bincount().max() <= 2  # they give in turn
    assert usable[givers].all()
    assert torch.equal(found.other[labels != 3], donors.other[labels != 3])  # its own class, and one of no image


def test_an_image_without_donors_has_none_of_a_rival():
    labels, usable = torch.tensor([0, 1, 1, 2, 2]), torch.ones(5, dtype=torch.bool)
    donors = choose_donors(labels, usable, "ab" * 32)
    found = with_rivals(donors, labels, usable, {0: [1], 1: [2]}, "ab" * 32)
    assert found.known.tolist() == donors.known.tolist()
    assert torch.equal(found.other[0], donors.other[0])
