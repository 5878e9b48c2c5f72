"""The command `cam-callbacks`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cam_callbacks._version import __version__
from cam_callbacks.review.report import NothingRecordedError, collect, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The arguments on the command line; None for those of this process.

    Returns:
        0; or 1 if there is nothing to report on, or something cannot be read or written.
    """
    options = _parser().parse_args(arguments)
    path = Path(options.output)
    if not os.path.isdir(path.absolute().parent):
        return _fail(f"--output {options.output}: there is no folder {str(path.parent)!r}; create it first")
    if os.path.isdir(path):
        return _fail(f"--output {options.output} is a folder; give the name of a file, such as report.html")
    try:
        content = collect(options.logdir, progress=sys.stderr.isatty() and not options.quiet)
    except (FileNotFoundError, NothingRecordedError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename} cannot be read: {error.strerror or error}")
    try:
        write(content, path)
    except OSError as error:
        return _fail(f"--output {options.output} cannot be written: {error.strerror or error}")
    for each in content["skipped"]:
        sys.stderr.write(f"{'Read in part' if each['partly'] else 'Left out'}: {each['file']} {each['why']}\n")
    if not options.quiet:
        sys.stdout.write(f"{path}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cam-callbacks", description="Show what CAMMonitor has seen in your trainings."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    report = commands.add_parser(
        "report",
        help="write one HTML page to share, from the event files of one or several runs",
        description="Write one HTML page with all looks of all runs in the log folders; it needs no network.",
    )
    report.add_argument("logdir", nargs="+", help="log folder, searched at any depth, e.g. lightning_logs")
    report.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: %(default)s")
    report.add_argument("-q", "--quiet", action="store_true", help="show nothing but errors")
    return parser


def _fail(why: str) -> int:
    sys.stderr.write(f"cam-callbacks: {why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
