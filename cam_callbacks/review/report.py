"""The report: all that monitors have recorded in some runs, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from cam_callbacks.review import reader
from cam_callbacks.review.event_files import BrokenFileError, FileSeries, read

_STATIC = Path(__file__).parent / "page"
_EVENT_FILE = "tfevents"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<noscript>This report needs JavaScript. It runs in this page only and loads nothing.</noscript>
<script type="application/json" id="data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""
_IMPORT = re.compile(r"^import [^;]*? from '\./(.*?)';\n", re.MULTILINE)


class NothingRecordedError(ValueError):
    """No look of a CAMMonitor in any of the folders."""


def write_report(folders: Sequence[str | Path], path: str | Path, progress: bool = False) -> list[dict[str, Any]]:
    """Write a report of all runs in some folders.

    Args:
        folders: Log folders, searched for event files at any depth; or event files.
        path: Of the HTML file, which is replaced if it is there.
        progress: Whether to show a progress bar while the event files are read.

    Returns:
        Event files that were left out, or from a broken place on, their paths relative to the log folder, or to what
        several of them have in common: `[{"file": path, "why": reason, "partly": whether a part was read}, ...]`.

    Raises:
        FileNotFoundError: A folder that does not exist.
        NothingRecordedError: No look in any of them.
    """
    content = collect(folders, progress)
    write(content, path)
    skipped: list[dict[str, Any]] = content["skipped"]
    return skipped


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write the page of what `collect` has found; nothing is left of one that cannot be written whole."""
    whole, unfinished = Path(path), Path(f"{path}.part")
    try:
        unfinished.write_text(page(content), encoding="utf-8", errors="replace")  # names of folders may be any bytes
        os.replace(unfinished, whole)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def collect(folders: Sequence[str | Path], progress: bool = False) -> dict[str, Any]:
    """What a report shows.

    Args:
        folders: As in `write_report`.
        progress: As in `write_report`.

    Returns:
        `{"runs": [{"timeline", "looks": {step: look}, "swaps": {step: data URI}}, ...], "skipped": [{"file", "why",
        "partly"}, ...]}`, one entry a run and monitor; the parts are those of `cam_callbacks.review.reader`.

    Raises:
        FileNotFoundError: As in `write_report`.
        NothingRecordedError: As in `write_report`.
    """
    files = _event_files(folders)
    found: dict[Path, dict[str, FileSeries]] = {}
    skipped: list[dict[str, Any]] = []
    above = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    if os.path.isfile(above):
        above = os.path.dirname(above)
    with tqdm(total=sum(file.stat().st_size for file in files), unit="B", unit_scale=True, disable=not progress) as bar:
        for file in files:
            bar.set_description(file.parent.name, refresh=False)
            try:
                for count in read(file, found.setdefault(file.parent, {})):
                    bar.update(count)
            except BrokenFileError as error:
                file_name = os.path.relpath(file, above)
                skipped.append({"file": file_name, "why": str(error), "partly": error.partly})
    names = _names([folder for folder, monitors in found.items() if monitors])
    runs = [_run(name, monitor, found[at][monitor]) for at, name in names.items() for monitor in sorted(found[at])]
    runs = [run for run in runs if run["timeline"]["looks"]]
    if not runs:
        where = ", ".join(str(folder) for folder in folders)
        why = "".join(f"\n{each['file']} {each['why']}" for each in skipped)
        raise NothingRecordedError(
            f"no looks of a CAMMonitor in {where}: the report is made from what it writes to a TensorBoardLogger{why}"
        )
    return {"runs": runs, "skipped": skipped}


def page(content: dict[str, Any]) -> str:
    """The HTML of a report.

    Args:
        content: Of `collect`.
    """
    script = "".join(_modules("report.js", set()))
    names = list(dict.fromkeys(run["timeline"]["run"] for run in content["runs"]))
    return _PAGE.format(
        title=html.escape(f"CAM report: {', '.join(names)}"),
        style=(_STATIC / "style.css").read_text(encoding="utf-8"),
        data=json.dumps(content, separators=(",", ":")).replace("<", r"\u003c"),
        script=script,
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),  # no other script runs
    )


def _modules(name: str, read: set[str]) -> Iterator[str]:
    """A module of the view and all that it imports, each once and after those that it needs, to be one module."""
    if name in read:
        return
    read.add(name)
    code = (_STATIC / name).read_text(encoding="utf-8")
    for needed in _IMPORT.findall(code):
        yield from _modules(needed, read)
    yield re.sub("^export ", "", _IMPORT.sub("", code), flags=re.MULTILINE)


def _run(name: str, monitor: str, series: FileSeries) -> dict[str, Any]:
    timeline = reader.timeline(name, monitor, series)
    looks, swaps = {}, {}
    for step in [look["step"] for look in timeline["looks"]]:
        try:
            looks[str(step)] = reader.look(series, step)
        except reader.RecordNotFoundError:
            continue
        swaps[str(step)] = reader.swaps(series, step)["swaps"]
    timeline["looks"] = [look for look in timeline["looks"] if str(look["step"]) in looks]
    return {"timeline": timeline, "looks": looks, "swaps": swaps}


def _event_files(folders: Sequence[str | Path]) -> list[Path]:
    """The event files in folders, at any depth; each once, those of a run in the order of their names."""
    files: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.exists():
            raise FileNotFoundError(f"{str(folder)!r} does not exist; give a log folder, or an event file")
        files |= {Path(os.path.abspath(file)) for file in (_inside(folder) if folder.is_dir() else [folder])}
    return sorted(files)


def _inside(folder: Path) -> Iterator[Path]:
    """The event files in a folder and those below it, symbolic links followed; no folder is entered twice."""
    entered = set()
    for at, below, names in os.walk(folder, followlinks=True):
        if os.path.realpath(at) in entered:
            below.clear()
            continue
        entered.add(os.path.realpath(at))
        below.sort(key=lambda name: (os.path.islink(os.path.join(at, name)), name))
        files = (Path(at, name) for name in names if _EVENT_FILE in name)
        yield from (file for file in files if file.is_file())


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each run: its folder, as far as it differs from that of the others."""
    if not folders:
        return {}
    if len(folders) == 1:
        return {folders[0]: folders[0].name}
    common = os.path.commonpath(folders)
    return {folder: str(folder.relative_to(common)) for folder in folders}
