"""How the tests use an example project: one of its scripts as a module, or run as a user runs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


def printed(script: str, *options: object, timeout: float = 300) -> str:
    """What a script prints when it is run with these options; an error where it fails."""
    command = [sys.executable, EXAMPLES / script, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
