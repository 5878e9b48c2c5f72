"""Progress reaches whoever watches, wherever the work is done."""

import pytest

from cam_callbacks.explain import progress


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
