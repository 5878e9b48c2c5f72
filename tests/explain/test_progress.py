"""Progress reaches whoever watches, wherever the work is done."""

import pytest
import torch
from torch import nn

from cam_callbacks import CAM, GradCAM
from cam_callbacks.explain import progress
from cam_callbacks.explain.method import Method


def work() -> None:
    progress.expect(5)
    progress.advance(2)
    progress.advance(3)


@pytest.fixture
def seen() -> list[tuple[int, int]]:
    return []


def test_is_shown_as_done_and_total(seen: list[tuple[int, int]]) -> None:
    with progress.shown(lambda *counts: seen.append(counts)):
        work()
        work()
    assert seen == [(2, 5), (5, 5), (7, 10), (10, 10)]


def test_does_nothing_outside(seen: list[tuple[int, int]]) -> None:
    work()
    with progress.shown(lambda *counts: seen.append(counts)):
        pass
    work()
    assert not seen


def test_never_exceeds_its_total(seen: list[tuple[int, int]]) -> None:
    with progress.shown(lambda *counts: seen.append(counts)):
        progress.advance(2)
        progress.expect(1)
        progress.advance(3)
    assert seen == [(2, 2), (5, 5)]


def test_what_was_reserved_is_in_the_total_from_the_beginning(seen: list[tuple[int, int]]) -> None:
    with progress.shown(lambda *counts: seen.append(counts)):
        progress.reserve(7)
        work()
        work()
        work()
    assert seen == [(2, 7), (5, 7), (7, 10), (10, 10), (12, 15), (15, 15)]


@pytest.mark.parametrize("method", [GradCAM(batch_size=2), CAM(batch_size=2)])
def test_passes_over_unmasked_images_are_counted(seen: list[tuple[int, int]], method: Method) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with progress.shown(lambda *counts: seen.append(counts)):
        method(model, torch.rand(5, 3, 8, 8))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_is_not_shown_again_where_nothing_was_done(seen: list[tuple[int, int]]) -> None:
    with progress.shown(lambda *counts: seen.append(counts)):
        progress.expect(3)
        progress.advance(0)
    assert not seen


def test_goes_to_the_innermost_and_then_back_to_the_outer(seen: list[tuple[int, int]]) -> None:
    inner: list[tuple[int, int]] = []
    with progress.shown(lambda *counts: seen.append(counts)):
        progress.expect(4)
        progress.advance(1)
        with progress.shown(lambda *counts: inner.append(counts)):
            progress.expect(2)
            progress.advance(2)
        progress.advance(3)
    assert inner == [(2, 2)]
    assert seen == [(1, 4), (4, 4)]


def test_ends_with_an_error_too(seen: list[tuple[int, int]]) -> None:
    def fail(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress.shown(fail):
        work()
    work()
    assert seen == [(2, 5)]
