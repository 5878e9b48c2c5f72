"""The command `cam-callbacks`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_parts import content
from tab_logs import cut, event_file

from cam_callbacks.review.command import main


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "cam-callbacks"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_command_writes_the_report(two_runs: Path, tmp_path: Path) -> None:
    cut(event_file(two_runs / "one" / "version_0"), 5)
    done = command("report", two_runs, "-o", tmp_path / "out.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out.html'}\n")
    assert re.fullmatch(r"Left out: one.*tfevents.* is cut off\n", done.stderr)
    assert len(content(tmp_path / "out.html")["runs"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere"], "'nowhere' does not exist; give a log folder"),
        (["report", "."], "no looks of a CAMMonitor in .: the report is made from what it writes to a TensorBoard"),
        (["report", ".", "-o", "no/such/report.html"], "there is no folder 'no/such'; create it first"),
        (["report", ".", "-o", "."], "--output . is a folder; give the name of a file, such as report.html"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert f"cam-callbacks: {words}" in capsys.readouterr().err.replace("--output no/such/report.html: ", "")
    assert not list(tmp_path.iterdir())


def test_the_command_blames_a_log_folder_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", "x" * 300]) == 1  # a name that no file can have
    assert capsys.readouterr().err.startswith(("cam-callbacks: 'xxx", "cam-callbacks: xxx"))


@pytest.mark.parametrize(
    "name", ["x" * 252, "x" * 300, "taken"], ids=["too long a name", "far too long", "a folder in the way"]
)
def test_the_command_says_when_a_report_cannot_be_written(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "taken.part").mkdir()
    assert main(["report", str(two_runs), "-o", str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"cam-callbacks: --output .*{name} cannot be written: .+\n", said.err)
    assert said.out == ""
    assert not os.path.exists(tmp_path / name)


@pytest.mark.parametrize("arguments", [[], ["report"], ["nothing"], ["report", ".", "--color"]])
def test_the_command_shows_how_it_is_used(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: cam-callbacks")
