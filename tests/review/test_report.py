"""What the report collects from real event files: several runs, resumed ones, broken files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_parts import content
from tab_logs import cut, event_file, write_big_run
from tensorboard.summary.writer.record_writer import RecordWriter

from cam_callbacks import tags
from cam_callbacks.review import schema
from cam_callbacks.review.event_files import BrokenFileError, FileSeries, read
from cam_callbacks.review.report import NothingRecordedError, collect, write_report

LOOKS, PROBES = 2, 3


def test_all_looks_of_all_runs_are_in_it(two_runs: Path, tmp_path: Path) -> None:
    assert write_report([two_runs], tmp_path / "report.html") == []
    found = content(tmp_path / "report.html")
    assert found["skipped"] == []
    assert [run["timeline"]["run"] for run in found["runs"]] == [
        str(Path("one/version_0")),
        str(Path("two/version_0")),
    ]
    for run in found["runs"]:
        steps = [str(look["step"]) for look in run["timeline"]["looks"]]
        assert len(steps) == LOOKS
        assert list(run["looks"]) == list(run["swaps"]) == steps
        assert len(run["timeline"]["photos"]) == PROBES
        assert all(len(look["maps"]) == len(look["probes"]) == PROBES for look in run["looks"].values())
        assert all(uri.startswith("data:image/png;base64,") for uri in run["swaps"].values())
        assert run["timeline"]["looks"][-1]["audit"]["verdict"]["text"]
        assert run["timeline"]["settings"]["settings"]["num_probes"] == PROBES


def test_runs_are_named_by_what_tells_them_apart(two_runs: Path, trained: Path) -> None:
    def names(*folders: Path) -> list[str]:
        return [run["timeline"]["run"] for run in collect(folders)["runs"]]

    one, two = two_runs / "one" / "version_0", two_runs / "two" / "version_0"
    assert names(one) == names(two_runs / "one") == ["version_0"]
    assert names(one, two) == names(two, one, two_runs) == [str(Path("one/version_0")), str(Path("two/version_0"))]
    assert names(event_file(one)) == ["version_0"]
    shutil.copytree(trained, two_runs, dirs_exist_ok=True)
    assert names(two_runs)[0] == "."


def write_again(run: Path, later: int = 0, testing: bool = False) -> None:
    """Write what is recorded in a run into another event file of it, some steps later."""
    from torch.utils.tensorboard import SummaryWriter

    from cam_callbacks.review.writer import write_blob

    found: dict[str, FileSeries] = {}
    list(read(event_file(run), found))
    with SummaryWriter(str(run)) as writer:
        for record, blobs in found["cam"].found.items():
            for step, (_, blob) in blobs.items():
                write_blob(writer, tags.tag("cam", record, testing=testing), blob, step + later)


def test_event_files_of_one_run_are_one_run(two_runs: Path) -> None:
    run = two_runs / "one" / "version_0"
    before = [look["step"] for look in collect([run])["runs"][0]["timeline"]["looks"]]
    write_again(run, later=100)
    (found,) = collect([run])["runs"]
    steps = [look["step"] for look in found["timeline"]["looks"]]
    assert steps == [*before, *(step + 100 for step in before)]


def test_what_was_written_last_counts_after_a_resume(tmp_path: Path) -> None:
    write_big_run(tmp_path, looks=3, probes=2)
    write_big_run(tmp_path, looks=2, probes=4)
    (found,) = collect([tmp_path])["runs"]
    assert {step: len(look["maps"]) for step, look in found["looks"].items()} == {"0": 4, "10": 4}
    assert len(found["timeline"]["photos"]) == 4


def test_the_file_of_a_training_that_was_given_up_may_be_read_last() -> None:
    series = FileSeries()
    for wall_time, step in ((4, 0), (5, 10), (1, 0), (2, 10), (3, 20)):
        series.add(schema.TAB_PROBES, step, wall_time, b"{}")
    assert series.steps(schema.TAB_PROBES) == {0: 4, 10: 5}


def test_looks_of_a_training_that_was_given_up_are_left_out() -> None:
    series = FileSeries()
    for wall_time, step in enumerate((0, 10, 20, 30, 15, 40)):
        series.add(schema.TAB_PROBES, step, wall_time, b"{}")
    series.add(schema.TAB_AUDIT, 20, 2.0, b"{}")
    assert sorted(series.steps(schema.TAB_PROBES)) == [0, 10, 15, 40]
    assert sorted(series.steps(schema.TAB_AUDIT)) == [20]


def test_links_are_followed_under_their_own_names(trained: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "kept").mkdir(parents=True)
    (logs / "kept" / "best").symlink_to(trained)
    (logs / "kept" / "again").symlink_to(logs)
    (logs / "file").mkdir()
    (logs / "file" / event_file(trained).name).symlink_to(event_file(trained))
    names = [run["timeline"]["run"] for run in collect([logs])["runs"]]
    assert names == ["file", str(Path("kept/best"))]


def overwritten(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = os.urandom(len(data) - len(data) // 2)
    file.write_bytes(data)


def with_a_message_of_another_kind(file: Path) -> None:
    """Append a message with the right checksums that is not an event."""
    with file.open("ab") as stream:
        RecordWriter(stream).write(schema.PLUGIN.encode())


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off in a message": (lambda file: cut(file, file.stat().st_size - 7), "is cut off"),
    "cut off in a header": (lambda file: cut(file, 5), "is cut off"),
    "damaged": (overwritten, "is damaged"),
    "a message that is not an event": (with_a_message_of_another_kind, "is damaged; everything before that was read"),
    "foreign": (lambda file: file.write_bytes(b"PK\x03\x04" * 99), "is not an event file"),
    "text": (lambda file: file.write_text("a note"), "is cut off"),
    "empty": (lambda file: file.write_bytes(b""), "has nothing"),
    "a link to itself": (lambda file: (file.unlink(), file.symlink_to(file)), ""),
}


@pytest.mark.parametrize(("damage", "why"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_file_is_named_and_the_others_are_read(
    two_runs: Path, damage: Callable[[Path], Any], why: str
) -> None:
    file = event_file(two_runs / "one" / "version_0")
    damage(file)
    found = collect([two_runs])
    if why:
        (skipped,) = found["skipped"]
        assert skipped["file"] == str(file.relative_to(two_runs))
        assert why in skipped["why"]
        assert not skipped["partly"] or "everything before that was read" in skipped["why"]
    assert len(found["runs"][-1]["looks"]) == LOOKS


@pytest.mark.parametrize("there", [False, True], ids=["gone", "a folder"])
def test_a_file_that_cannot_be_opened_is_broken(tmp_path: Path, there: bool) -> None:
    file = tmp_path / "events.out.tfevents.1.host"
    if there:
        file.mkdir()
    with pytest.raises(BrokenFileError, match=r"^cannot be read: .") as broken:
        list(read(file, {}))
    assert not broken.value.partly


def test_a_look_with_broken_pictures_shows_its_audit_alone(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    from cam_callbacks.review.writer import write_blob

    write_big_run(tmp_path, looks=3, probes=2)
    with SummaryWriter(str(tmp_path)) as writer:
        write_blob(writer, tags.tag("cam", schema.TAB_MAPS), b"no picture", 20)
    (found,) = collect([tmp_path])["runs"]
    looks = found["timeline"]["looks"]
    assert [(look["step"], look["heatmaps"]) for look in looks] == [(0, True), (10, True), (20, False)]
    assert "incomplete or damaged" in found["looks"]["20"]["no_heatmaps"]
    assert list(found["looks"]) == list(found["swaps"]) == ["0", "10", "20"]


def test_the_looks_before_the_end_of_a_cut_off_file_are_shown(tmp_path: Path) -> None:
    write_big_run(tmp_path, looks=10, probes=2)
    file = event_file(tmp_path)
    cut(file, file.stat().st_size * 2 // 3)
    collected = collect([tmp_path])
    (found,) = collected["runs"]
    assert collected["skipped"] == [
        {"file": file.name, "why": "is cut off; everything before that was read", "partly": True}
    ]
    steps = [int(step) for step in found["looks"]]
    assert 2 <= len(steps) <= 8
    assert steps == list(range(0, 10 * len(steps), 10))


def test_event_files_of_others_are_named(two_runs: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(two_runs / "other")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    (skipped,) = collect([two_runs])["skipped"]
    assert skipped["file"] == str(event_file(two_runs / "other").relative_to(two_runs))
    assert "has nothing that CAMMonitor recorded" in skipped["why"]


def test_a_report_takes_the_place_of_the_one_before(two_runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report([two_runs], path)
    assert "old" not in path.read_text(encoding="utf-8")[:100]
    assert [file.name for file in tmp_path.glob("report*")] == ["report.html"]


@pytest.mark.skipif(os.name != "posix", reason="names of files are text elsewhere")
def test_the_name_of_a_folder_may_be_any_bytes(two_runs: Path, tmp_path: Path) -> None:
    try:
        (two_runs / "two").rename(os.fsdecode(os.fsencode(two_runs) + b"/\xff"))
    except OSError:
        pytest.skip("this file system keeps text only")
    write_report([two_runs], tmp_path / "report.html")
    assert len(content(tmp_path / "report.html")["runs"]) == 2


def test_a_report_that_cannot_be_written_leaves_nothing(two_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report([two_runs], tmp_path / "report.html")
    assert not (tmp_path / "report.html.part").exists()


def test_without_looks_there_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(b"not one of TensorBoard's")
    with pytest.raises(
        NothingRecordedError, match=r"no looks of a CAMMonitor in .*\n.*tfevents.1 is not an event file"
    ):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_two_monitors_of_a_run_are_two_entries(two_runs: Path) -> None:
    run = two_runs / "one" / "version_0"
    write_again(run, testing=True)
    timelines = [each["timeline"] for each in collect([run])["runs"]]
    assert [(each["run"], each["monitor"]) for each in timelines] == [("version_0", "cam"), ("version_0", "cam_test")]


def test_the_progress_bar_shows_what_is_read(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect([two_runs], progress=True)
    assert "100%" in capsys.readouterr().err
    collect([two_runs])
    assert capsys.readouterr().err == ""
