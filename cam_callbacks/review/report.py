"""The report: all that monitors have recorded in some runs, in one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from cam_callbacks.review import reader
from cam_callbacks.review.event_files import BrokenFileError, FileSeries, read
from cam_callbacks.review.report_page import page
from cam_callbacks.review.schema import ReportJson, ReportRunJson, SkippedFileJson

_EVENT_FILE = "tfevents"


class NothingRecordedError(ValueError):
    """None of the folders has a look of a CAMMonitor."""


def write_report(folders: Sequence[str | Path], path: str | Path, progress: bool = False) -> list[SkippedFileJson]:
    """Write a report of all runs in some folders.

    Args:
        folders: Log folders, searched for event files at any depth; or event files.
        path: The HTML file; it is replaced if it exists.
        progress: Whether to show a progress bar while event files are read.

    Returns:
        Event files that were left out, or from a broken place on: `[{"file": path, "why": reason, "partly": whether a
        part was read}, ...]`, with paths relative to the log folder, or to the common parent of several.

    Raises:
        FileNotFoundError: A folder does not exist.
        NothingRecordedError: None of them has a look.
    """
    content = collect(folders, progress)
    write(content, path)
    return content["skipped"]


def write(content: ReportJson, path: str | Path) -> None:
    """Write the page of what `collect` has found; leave nothing behind if it cannot be written completely."""
    complete, unfinished = Path(path), Path(f"{path}.part")
    try:
        unfinished.write_text(page(content), encoding="utf-8", errors="replace")  # names of folders may be any bytes
        os.replace(unfinished, complete)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def collect(folders: Sequence[str | Path], progress: bool = False) -> ReportJson:
    """Collect what a report shows; arguments and errors are those of `write_report`.

    Returns:
        The runs, one entry per run and monitor, and the event files that were skipped.
    """
    found, skipped = _read(folders, progress)
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


def _read(
    folders: Sequence[str | Path], progress: bool
) -> tuple[dict[Path, dict[str, FileSeries]], list[SkippedFileJson]]:
    """Read all event files: the series by folder and monitor, and the files that were skipped."""
    files = _event_files(folders)
    found: dict[Path, dict[str, FileSeries]] = {}
    skipped: list[SkippedFileJson] = []
    parent = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    if os.path.isfile(parent):
        parent = os.path.dirname(parent)
    with tqdm(total=sum(file.stat().st_size for file in files), unit="B", unit_scale=True, disable=not progress) as bar:
        for file in files:
            bar.set_description(file.parent.name, refresh=False)
            try:
                for count in read(file, found.setdefault(file.parent, {})):
                    bar.update(count)
            except BrokenFileError as error:
                skipped.append({"file": os.path.relpath(file, parent), "why": str(error), "partly": error.partly})
    return found, skipped


def _run(name: str, monitor: str, series: FileSeries) -> ReportRunJson:
    timeline = reader.timeline(name, monitor, series)
    looks, swaps = {}, {}
    for entry in timeline["looks"]:
        step = entry["step"]
        try:
            looks[str(step)] = reader.look(series, step)
        except reader.RecordNotFoundError:
            continue
        entry["heatmaps"] = "no_heatmaps" not in looks[str(step)]  # their pictures may be broken
        swaps[str(step)] = reader.swaps(series, step)["swaps"]
    timeline["looks"] = [look for look in timeline["looks"] if str(look["step"]) in looks]
    return {"timeline": timeline, "looks": looks, "swaps": swaps}


def _event_files(folders: Sequence[str | Path]) -> list[Path]:
    """Find the event files in folders, at any depth: each once, those of a run in the order of their names."""
    files: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.exists():
            raise FileNotFoundError(f"{str(folder)!r} does not exist; give a log folder, or an event file")
        files |= {Path(os.path.abspath(file)) for file in (_inside(folder) if folder.is_dir() else [folder])}
    return sorted(files)


def _inside(folder: Path) -> Iterator[Path]:
    """Find the event files in a folder and below; symbolic links are followed, but no folder is entered twice."""
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
    """Name each run after its folder, as far as it differs from the others."""
    if not folders:
        return {}
    if len(folders) == 1:
        return {folders[0]: folders[0].name}
    common = os.path.commonpath(folders)
    return {folder: str(folder.relative_to(common)) for folder in folders}
