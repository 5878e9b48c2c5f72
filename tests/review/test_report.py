"""The report, from real event files: several runs, broken files, hostile names, one file that needs nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tab_logs import HOSTILE, event_file, write_big_run, write_logs
from tensorboard.summary.writer.record_writer import RecordWriter

from cam_callbacks import tags
from cam_callbacks.review import schema
from cam_callbacks.review.command import main
from cam_callbacks.review.event_files import BrokenFileError, FileSeries, read
from cam_callbacks.review.report import NothingRecordedError, collect, write_report
from cam_callbacks.review.report_page import bundled, page

LOOKS, PROBES = 2, 3
HEAVY = {"torch", "torchvision", "lightning", "pytorch_lightning", "lightning_fabric"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real small training."""
    return write_logs(tmp_path_factory.mktemp("logs"), ["biased"], looks=LOOKS, probes=PROBES)[0]


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A log folder with two runs."""
    for run in ("one/version_0", "two/version_0"):
        shutil.copytree(trained, tmp_path / "logs" / run)
    return tmp_path / "logs"


class Parts(HTMLParser):
    """The scripts of a page by their kinds, its style, and whatever names another place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.places: list[str] = []
        self._kind: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag in ("script", "style"):
            self._kind = dict(attrs).get("type", tag)

    def handle_endtag(self, tag: str) -> None:
        self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self.scripts[self._kind] = self.scripts.get(self._kind, "") + data


def parts(path: Path) -> Parts:
    return Parts(path.read_text(encoding="utf-8"))


def content(path: Path) -> Any:
    return json.loads(parts(path).scripts["application/json"])


def test_all_looks_of_all_runs_are_in_it(logs: Path, tmp_path: Path) -> None:
    assert write_report([logs], tmp_path / "report.html") == []
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


def test_runs_are_named_by_what_tells_them_apart(logs: Path, trained: Path) -> None:
    def names(*folders: Path) -> list[str]:
        return [run["timeline"]["run"] for run in collect(folders)["runs"]]

    one, two = logs / "one" / "version_0", logs / "two" / "version_0"
    assert names(one) == names(logs / "one") == ["version_0"]
    assert names(one, two) == names(two, one, logs) == [str(Path("one/version_0")), str(Path("two/version_0"))]
    assert names(event_file(one)) == ["version_0"]
    shutil.copytree(trained, logs, dirs_exist_ok=True)
    assert names(logs)[0] == "."


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


def test_event_files_of_one_run_are_one_run(logs: Path) -> None:
    run = logs / "one" / "version_0"
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


def cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def overwritten(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = os.urandom(len(data) - len(data) // 2)
    file.write_bytes(data)


def with_a_message_that_is_none(file: Path) -> None:
    """Whole and with the right checksums, but no event."""
    with file.open("ab") as stream:
        RecordWriter(stream).write(schema.PLUGIN.encode())


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off in a message": (lambda file: cut(file, file.stat().st_size - 7), "is cut off"),
    "cut off in a header": (lambda file: cut(file, 5), "is cut off"),
    "damaged": (overwritten, "is damaged"),
    "a message that is no event": (with_a_message_that_is_none, "is damaged; everything before that was read"),
    "foreign": (lambda file: file.write_bytes(b"PK\x03\x04" * 99), "is not an event file"),
    "text": (lambda file: file.write_text("a note"), "is cut off"),
    "empty": (lambda file: file.write_bytes(b""), "has nothing"),
    "a link to itself": (lambda file: (file.unlink(), file.symlink_to(file)), ""),
}


@pytest.mark.parametrize(("damage", "why"), BREAKS.values(), ids=BREAKS.keys())
def test_a_broken_file_is_named_and_the_others_are_read(logs: Path, damage: Callable[[Path], Any], why: str) -> None:
    file = event_file(logs / "one" / "version_0")
    damage(file)
    found = collect([logs])
    if why:
        (skipped,) = found["skipped"]
        assert skipped["file"] == str(file.relative_to(logs))
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


def test_a_look_with_broken_pictures_is_left_out_and_the_others_are_there(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    from cam_callbacks.review.writer import write_blob

    write_big_run(tmp_path, looks=3, probes=2)
    with SummaryWriter(str(tmp_path)) as writer:
        write_blob(writer, tags.tag("cam", schema.TAB_MAPS), b"no picture", 20)
    (found,) = collect([tmp_path])["runs"]
    assert [look["step"] for look in found["timeline"]["looks"]] == [0, 10]
    assert list(found["looks"]) == list(found["swaps"]) == ["0", "10"]


def test_what_stands_before_the_end_of_a_file_that_is_cut_off_is_shown(tmp_path: Path) -> None:
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


def test_event_files_of_others_are_named(logs: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(logs / "other")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    (skipped,) = collect([logs])["skipped"]
    assert skipped["file"] == str(event_file(logs / "other").relative_to(logs))
    assert "has nothing that CAMMonitor recorded" in skipped["why"]


def test_names_are_escaped(logs: Path, tmp_path: Path) -> None:
    (logs / "two").rename(logs / "<b>&bold")
    path = tmp_path / "report.html"
    write_report([logs], path)
    text = path.read_text(encoding="utf-8")
    assert HOSTILE in json.dumps(content(path))
    assert HOSTILE not in text
    assert "<b>" not in text
    assert not {"img", "b"} & set(parts(path).tags)


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "{title}", "\u2028"])
def test_no_text_ends_the_data(name: str) -> None:
    runs = [{"timeline": {"run": name, "monitor": "cam", "looks": []}, "looks": {}, "swaps": {}}]
    found = Parts(page({"runs": runs, "skipped": []}))
    assert found.tags.count("script") == 2
    assert json.loads(found.scripts["application/json"])["runs"] == runs


def test_it_needs_no_other_file_and_no_other_host(logs: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report([logs], path)
    text = path.read_text(encoding="utf-8")
    assert parts(path).places == []
    namespaces = {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"""\bhttps?://[^\s'"`)]+""", text)) <= namespaces
    assert not re.search(r"@import|url\((?!['\"]?data:)", parts(path).scripts["style"])
    assert not re.search(r"^\s*import\s|\bimport\(|\bfrom '", parts(path).scripts["module"], re.MULTILINE)
    assert "default-src 'none'" in text


def test_the_view_of_the_tab_is_in_it(logs: Path, tmp_path: Path) -> None:
    write_report([logs], tmp_path / "report.html")
    assert "new EmbeddedSource(" in parts(tmp_path / "report.html").scripts["module"]
    assert "class EmbeddedSource" in parts(tmp_path / "report.html").scripts["module"]


def test_a_report_takes_the_place_of_the_one_before(logs: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report([logs], path)
    assert "old" not in path.read_text(encoding="utf-8")[:100]
    assert [file.name for file in tmp_path.glob("report*")] == ["report.html"]


@pytest.mark.skipif(os.name != "posix", reason="names of files are text elsewhere")
def test_a_folder_may_have_a_name_that_is_no_text(logs: Path, tmp_path: Path) -> None:
    try:
        (logs / "two").rename(os.fsdecode(os.fsencode(logs) + b"/\xff"))
    except OSError:
        pytest.skip("this file system keeps text only")
    write_report([logs], tmp_path / "report.html")
    assert len(content(tmp_path / "report.html")["runs"]) == 2


def test_a_report_that_cannot_be_written_leaves_nothing(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report([logs], tmp_path / "report.html")
    assert not (tmp_path / "report.html.part").exists()


def test_without_looks_there_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(b"not one of TensorBoard's")
    with pytest.raises(
        NothingRecordedError, match=r"no looks of a CAMMonitor in .*\n.*tfevents.1 is not an event file"
    ):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_two_monitors_of_a_run_are_two_entries(logs: Path) -> None:
    run = logs / "one" / "version_0"
    write_again(run, testing=True)
    timelines = [each["timeline"] for each in collect([run])["runs"]]
    assert [(each["run"], each["monitor"]) for each in timelines] == [("version_0", "cam"), ("version_0", "cam_test")]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "cam-callbacks"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_command_writes_the_report(logs: Path, tmp_path: Path) -> None:
    cut(event_file(logs / "one" / "version_0"), 5)
    done = command("report", logs, "-o", tmp_path / "out.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out.html'}\n")
    assert re.fullmatch(r"Left out: one.*tfevents.* is cut off\n", done.stderr)
    assert len(content(tmp_path / "out.html")["runs"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "nowhere"], "'nowhere' does not exist; give a log folder"),
        (["report", "."], "no looks of a CAMMonitor in .: the report is made from what it writes to a TensorBoard"),
        (["report", ".", "-o", "no/such/report.html"], "there is no folder 'no/such'; make it first"),
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


def test_the_command_does_not_blame_the_output_for_a_log_folder_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", "x" * 300]) == 1  # a name that no file can have
    assert capsys.readouterr().err.startswith(("cam-callbacks: 'xxx", "cam-callbacks: xxx"))


@pytest.mark.parametrize(
    "name", ["x" * 252, "x" * 300, "taken"], ids=["too long a name", "far too long", "a folder in the way"]
)
def test_the_command_says_that_a_report_cannot_be_written_and_leaves_nothing(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "taken.part").mkdir()
    assert main(["report", str(logs), "-o", str(tmp_path / name)]) == 1
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


def test_the_command_loads_neither_torch_nor_lightning() -> None:
    code = "import cam_callbacks.review.command, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & HEAVY


def test_the_progress_bar_shows_what_is_read(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect([logs], progress=True)
    assert "100%" in capsys.readouterr().err
    collect([logs])
    assert capsys.readouterr().err == ""


def test_the_modules_of_the_page_are_one_in_the_report(logs: Path, tmp_path: Path) -> None:
    write_report([logs], tmp_path / "report.html")
    script = parts(tmp_path / "report.html").scripts["module"]
    for module in (Path(schema.__file__).parent / "page").glob("*.js"):
        first = module.read_text(encoding="utf-8").split("\n", 1)[0]
        assert script.count(first) == (module.name != "index.js"), module.name


def test_a_module_comes_once_and_after_those_that_it_imports() -> None:
    sources = {
        "a.js": "import { b } from './b.js';\nimport {\n  c as other,\n} from './c.js';\n",
        "b.js": "import { c } from './c.js';\nexport const b = c;\nconst own = 1;\n",
        "c.js": "const own = 2;\nexport async function c() {}\n",
    }
    script = bundled("a.js", sources)
    assert re.findall(r"^modules\['(.*)'\]", script, re.MULTILINE) == ["c.js", "b.js", "a.js"]
    assert "const { c } = modules['c.js'];" in script
    assert re.search(r"const \{\s*c: other,\s*\} = modules\['c.js'\];", script)
    assert re.findall(r"^return .*", script, re.MULTILINE) == ["return { c };", "return { b };", "return {  };"]


@pytest.mark.parametrize(
    "line",
    ["export default 3;", "export { b };", "import './b.js';", "import * as b from './b.js';", "export let b = 1;"],
)
def test_a_module_that_the_report_cannot_join_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.js: .*is not understood"):
        bundled("a.js", {"a.js": f"{line}\n", "b.js": "export const b = 1;\n"})


def test_modules_that_import_each_other_are_refused() -> None:
    sources = {"a.js": "import { b } from './b.js';\n", "b.js": "import { a } from './a.js';\n"}
    with pytest.raises(ValueError, match=r"circle: a\.js -> b\.js -> a\.js"):
        bundled("a.js", sources)
