"""Which images all ranks choose from what each of them offers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cam_callbacks.callback.audit_offers import Choice, Kept, Offer, chosen
from cam_callbacks.data.balancing import Candidate
from cam_callbacks.data.reservoir import Form, Found

SMALL, LARGE = (Form((3, size, size), torch.float32, False, False) for size in (4, 8))


def candidate(key: int, label: int, rank: int = 0, content: int | None = None) -> Candidate:
    """One with a key of so many thousandths, of its own content unless that is given."""
    return Candidate(key / 1000, label, 0, bytes([label, (key if content is None else content) % 256]), rank)


def offer(*candidates: Candidate, form: Form = SMALL, is_whole: bool = False, seen: int | None = None) -> Offer:
    """An offer of the same images for both halves."""
    found = {form: Found(len(candidates) if seen is None else seen, is_whole, list(candidates))}
    return Offer(found, found)


def keys(choice: Choice) -> tuple[list[int], list[int]]:
    """The keys of both halves, in thousandths."""
    fixed, fresh = ([round(1000 * each.key) for each in part] for part in (choice.fixed, choice.fresh))
    return fixed, fresh


TWO = [offer(*(candidate(key, key % 2, rank) for key in range(10 + rank, 30, 2 + rank))) for rank in range(2)]


def test_half_is_chosen_to_stay_and_the_rest_for_this_look() -> None:
    choice = chosen(TWO, 6, None, None)
    fixed, fresh = keys(choice)
    assert len(fixed) == len(fresh) == 3
    assert not set(fixed) & set(fresh)
    assert Counter(each.label for each in choice) == {0: 3, 1: 3}
    assert {each.rank for each in choice} == {0, 1}
    assert not choice.are_all


def test_those_that_stay_are_not_drawn_anew_and_count_for_the_balance() -> None:
    stay = [candidate(10, 0), candidate(12, 0)]
    choice = chosen(TWO, 5, Kept.of(stay), None)
    assert keys(choice) == ([], [11, 14, 17])


@pytest.mark.parametrize(("is_whole", "count", "are_all"), [(True, 20, True), (True, 3, False), (False, 12, False)])
def test_all_stay_only_if_there_are_no_more(is_whole: bool, count: int, are_all: bool) -> None:
    offers = [
        offer(*(candidate(key, key % 2, rank) for key in range(rank, 8, 2)), is_whole=is_whole) for rank in (0, 1)
    ]
    choice = chosen(offers, count, None, None)
    assert choice.are_all == are_all
    assert (keys(choice)[1] == []) == are_all
    assert len(list(choice)) == min(count, 8)


def test_an_image_that_several_ranks_have_counts_once() -> None:
    offers = [offer(*(candidate(key + 500 * rank, key % 2, rank, key) for key in range(6))) for rank in range(2)]
    assert keys(chosen(offers, 9, None, None)) == ([0, 1, 2, 3, 4], [5])


def test_the_form_of_most_images_of_all_ranks_is_chosen() -> None:
    offers = [
        offer(candidate(1, 0), candidate(2, 1), seen=5),
        offer(candidate(3, 0, 1), candidate(4, 1, 1), form=LARGE, seen=4),
        offer(candidate(5, 0, 2), candidate(6, 1, 2), form=LARGE, seen=3),
    ]
    choice = chosen(offers, 9, None, None)
    assert choice.form == LARGE
    assert keys(choice) == ([3, 4, 5, 6], [])
    assert choice.left_out == {"of another size": 5}


def test_labels_that_no_class_has_are_named_and_not_chosen() -> None:
    choice = chosen([offer(candidate(1, 0), candidate(2, 5), candidate(3, 1))], 9, None, 2)
    assert choice.unknown_labels == {5}
    assert {each.label for each in choice} == {0, 1}


def test_where_nothing_is_offered_nothing_is_chosen() -> None:
    for kept in (None, Kept.of([candidate(1, 0)])):
        choice = chosen([Offer(), Offer()], 9, kept, 2)
        assert choice.form is None
        assert not list(choice)
        assert not choice.are_all
