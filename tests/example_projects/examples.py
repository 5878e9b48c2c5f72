"""How the tests use an example project: one of its scripts as a module, or run as a user runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from processes import Ended, run_script

EXAMPLES = Path(__file__).parents[2] / "example_projects"


def loaded(script: str) -> ModuleType:
    """A script such as `live_camera/live.py` as a module, under a name that it shares with no other."""
    name = script.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = """
import runpy
import sys

path = sys.argv[0] = {path!r}
sys.path[0] = {folder!r}
runpy.run_path(path, run_name="__main__")
"""


def started(folder: Path, script: str, *options: object) -> Ended:
    """How a script ends that is run in this folder with these options, as a user runs it."""
    path = EXAMPLES / script
    return run_script(folder, RUN.format(path=str(path), folder=str(path.parent)), *map(str, options))


def printed(folder: Path, script: str, *options: object) -> str:
    """What such a script prints; an error where it fails."""
    ended = started(folder, script, *options)
    assert ended.well, ended.printed[-3000:]
    return ended.printed
