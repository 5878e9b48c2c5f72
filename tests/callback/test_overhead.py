"""The share of a training's time that looks may take."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from lightning_runs import TinyModule, fit, infos, looks

from cam_callbacks import Audit, CAMMonitor
from cam_callbacks.callback.overhead import Overhead, Stopwatch
from cam_callbacks.callback.trainer import Misconfiguration


def looks_of(most: float | None, epoch: float, look: float, epochs: int = 100) -> tuple[list[int], float]:
    """The epochs that have a look, and the share of the time that all of them take, if each takes so many seconds."""
    time = 0.0
    overhead = Overhead(most, lambda: time)
    overhead.begin()
    had = []
    for number in range(epochs):
        time += epoch
        if overhead.allows_a_look:
            had.append(number)
            time += look
            overhead.add({"heatmaps": look / 2, "audit": look / 2})
    return had, len(had) * look / time


@pytest.mark.parametrize("most", [0.01, 0.05, 0.2, 0.5])
def test_looks_take_their_share_and_no_more(most: float) -> None:
    had, share = looks_of(most, epoch=1.0, look=0.7, epochs=1000)
    assert had[0] == 0
    assert 0.8 * most < share <= most + 0.7 / 1000
    gaps = [later - earlier for earlier, later in pairwise(had)]
    assert max(gaps[1:]) - min(gaps[1:]) <= 1  # evenly spaced


def test_every_validation_has_a_look_where_there_is_time_for_it() -> None:
    assert looks_of(None, epoch=1.0, look=5.0)[0] == list(range(100))
    assert looks_of(0.1, epoch=10.0, look=0.5)[0] == list(range(100))


def test_a_new_training_begins_with_a_look() -> None:
    times = accumulate([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    overhead = Overhead(0.1, lambda: next(times))
    overhead.add({"audit": 50.0})
    assert not overhead.allows_a_look
    overhead.begin()
    assert overhead.allows_a_look


@pytest.mark.parametrize(("most", "count"), [(None, 4), (1.0, 4), (1e-9, 1)])
def test_a_monitor_keeps_to_its_share(tmp_path: Path, most: float | None, count: int) -> None:
    fit(tmp_path, CAMMonitor(num_probes=3, audit=None, max_overhead=most), max_epochs=4)
    assert looks(tmp_path) == count


@pytest.mark.parametrize("most", [0, -0.1, 1.5, True, "5%", float("nan")])
def test_a_share_that_is_none_is_refused(most: object) -> None:
    with pytest.raises(Misconfiguration, match=r"max_overhead=.* must be a share of the training's time"):
        CAMMonitor(max_overhead=most)  # type: ignore[arg-type]


def test_what_a_look_does_and_takes_is_said_once(tmp_path: Path) -> None:
    with infos() as said:
        fit(tmp_path, CAMMonitor(num_probes=3, audit=Audit(num_images=12)), TinyModule(), max_epochs=3)
    (does,) = [text for text in said if "explains 3 probes" in text]
    assert does == "CAMMonitor: explains 3 probes, then audits 12 images"
    (took,) = [text for text in said if "the first look took" in text]
    for stage in ("heatmaps", "audit", "pictures and logging"):
        assert stage in took
    assert said.index(does) < said.index(took)


def test_a_stopwatch_adds_up_what_has_one_name() -> None:
    stopwatch = Stopwatch()
    for name in ("a", "b", "a"):
        with stopwatch.of(name):
            pass
    assert list(stopwatch.seconds) == ["a", "b"]
    assert str(stopwatch) == "0.0 s: a 0.0, b 0.0"
