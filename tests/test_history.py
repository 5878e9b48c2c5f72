"""The maps of earlier looks."""

from __future__ import annotations

from itertools import pairwise

import torch

from cam_callbacks.history import History, PastMaps


def history_of(count: int, shape: tuple[int, ...] = (2, 3, 3)) -> History:
    history = History()
    for number in range(count):
        history.add(PastMaps(10 * number, number, torch.full(shape, float(number))))
    return history


def epochs(history: History, count: int = 1000) -> list[int]:
    return [look.epoch for look in history.selected(count, history.looks[-1])]


def test_looks_are_kept_in_order() -> None:
    history = history_of(4)
    assert [(look.step, look.epoch) for look in history.looks] == [(0, 0), (10, 1), (20, 2), (30, 3)]


def test_a_look_at_the_same_step_takes_the_place_of_the_earlier_one() -> None:
    history = history_of(3)
    history.add(PastMaps(20, 2, torch.full((2, 3, 3), 9.0)))
    assert epochs(history) == [0, 1, 2]
    assert history.looks[-1].layer_maps.max() == 9


def test_maps_of_another_shape_begin_the_history_anew() -> None:
    history = history_of(3)
    history.add(PastMaps(30, 3, torch.zeros(2, 5, 5)))
    assert epochs(history) == [3]


def test_the_first_the_current_and_evenly_spaced_looks_are_selected() -> None:
    assert epochs(history_of(21), 6) == [0, 4, 8, 12, 16, 20]
    assert epochs(history_of(3), 6) == [0, 1, 2]
    assert epochs(history_of(7), 2) == [0, 6]


def test_a_long_history_is_thinned_but_keeps_the_first_and_last() -> None:
    for count in range(1, 300):
        kept = epochs(history_of(count, (1, 1, 1)))
        assert kept[0] == 0
        assert kept[-1] == count - 1
        assert len(kept) <= 64
        assert kept == sorted(set(kept))


def test_the_gaps_of_a_long_history_differ_by_a_small_factor_only() -> None:
    kept = epochs(history_of(1000, (1, 1, 1)), 6)
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) <= 3 * min(gaps)


def test_the_brightest_value_is_that_of_all_looks_but_nan() -> None:
    history = history_of(3)
    history.add(PastMaps(1000, 9, torch.full_like(history.looks[0].layer_maps, torch.nan)))
    assert history.brightest() == 2
    assert History().brightest() == 0


def test_the_state_is_taken_over() -> None:
    history, other = history_of(3), history_of(1)
    other.load_state_dict(history.state_dict(room=10**6))
    assert [(look.step, look.epoch) for look in other.looks] == [(look.step, look.epoch) for look in history.looks]
    assert all(torch.equal(a.layer_maps, b.layer_maps) for a, b in zip(history.looks, other.looks, strict=True))


def test_the_state_keeps_as_many_looks_as_there_is_room_for() -> None:
    history = History()
    for step in range(9):
        history.add(PastMaps(step, step, torch.zeros(2, 4, 4)))
    each = history.nbytes // 9
    kept = [look["step"] for look in history.state_dict(room=4 * each)["looks"]]
    assert len(kept) == 4
    assert (kept[0], kept[-1]) == (0, 8)
    assert len(history.looks) == 9
    assert history.state_dict(room=each)["looks"] == []
