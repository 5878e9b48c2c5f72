"""Scripts that run in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PATIENCE = 600
"""Seconds after which a script is taken to hang, however busy the machine may be."""


@dataclass(frozen=True)
class Ended:
    """The exit code of a script, and what its processes printed."""

    code: int
    printed: str


def run_script(folder: Path, script: str, *arguments: str) -> Ended:
    """Run a script that may import what the tests share; it is ended, with all its processes, where it hangs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.py").write_text(script)
    # A seed that another test has set would be taken over; a measurement of coverage handles SIGTERM itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "COVERAGE"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(folder / "script.py"), *arguments]
    with open(folder / "printed.txt", "w+") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed, start_new_session=True)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"it hangs\n{(folder / 'printed.txt').read_text()[-4000:]}")
        printed.seek(0)
        return Ended(process.returncode, printed.read())
