"""Scripts that run in processes of their own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

TESTS = Path(__file__).parent
PATIENCE = 600
"""Seconds after which a script is taken to hang, however busy the machine may be."""
PRELOADED = ["lightning_runs", "fault_makers", "torch._dynamo", "torchvision", "PIL.Image"]
"""To import these takes far longer than what the scripts do. So it is done once, in a process that forks the others."""


@dataclass(frozen=True)
class Ended:
    """The exit codes of a script, one of each rank, and what was printed, rank after rank."""

    codes: tuple[int, ...]
    printed: str

    @property
    def well(self) -> bool:
        return not any(self.codes)


def run_script(
    folder: Path,
    script: str,
    *arguments: str,
    name: str = "script",
    ranks: int = 1,
    settings: Mapping[str, str] | None = None,
) -> Ended:
    """Run a script that may import what the tests share; it is ended, with all its processes, where it hangs.

    Args:
        folder: Where the script and what it prints are written, and where it runs.
        script: Python code.
        *arguments: Arguments of the script.
        name: Of its file, without `.py`.
        ranks: How many processes run it, to train together; Lightning finds them launched, as by torchrun.
        settings: More variables of the environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(script)
    environment = _environment() | dict(settings or {})
    if ranks > 1:
        environment["MASTER_PORT"] = str(find_free_network_port())
    printed = [folder / f"printed{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank, file in enumerate(printed):
        own = environment | ({"LOCAL_RANK": str(rank)} if ranks > 1 else {})
        processes.append(_forks().Process(target=_become, args=(path, arguments, own, file)))
        processes[-1].start()
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    said = "".join(file.read_text() for file in printed)
    if hanging:
        pytest.fail(f"it hangs\n{said[-4000:]}")
    return Ended(tuple(process.exitcode for process in processes), said)


def _environment() -> dict[str, str]:
    """Without a seed that another test has set, or a measurement of coverage, which handles SIGTERM itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "COVERAGE"))}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return kept | {"PYTHONPATH": path}


@functools.cache
def _forks() -> multiprocessing.context.ForkServerContext:
    """What starts processes that have imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    own = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(_environment())
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(own)
    return context


def _become(script: Path, arguments: tuple[str, ...], environment: dict[str, str], printed: Path) -> None:
    """Be the process of a script: in a group of its own, with its folder, environment, arguments and output."""
    os.setsid()
    os.chdir(script.parent)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")
