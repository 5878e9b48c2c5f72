"""Commands that the pages name are understood by the scripts they run: no option that there is not, no wrong choice."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT

COMMAND = re.compile(r"^    python (?P<script>\S+\.py)(?P<arguments>.*?)(?:\s+#.*)?$", re.MULTILINE)
OF_THE_READER = {"docs/configuration.md", "docs/how_to/lightning_cli.md"}
"""Pages whose commands run a script that the reader writes; tests of LightningCLI and Hydra run those."""


def commands() -> Iterator[Any]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for match in COMMAND.finditer(page.read_text("utf-8")) if name not in OF_THE_READER else ():
            script = next(
                (path for path in (ROOT / match["script"], page.parent / match["script"]) if path.is_file()), None
            )
            yield pytest.param(script, shlex.split(match["arguments"]), id=f"{name}: {match[0].strip()}")


class Understood(Exception):  # noqa: N818 - no error
    """The arguments were parsed."""


@pytest.mark.parametrize(("script", "arguments"), list(commands()))
def test_a_command_is_understood(
    script: Path | None, arguments: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert script is not None, "there is no such script"
    if script.name == "live.py":
        pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    parse = argparse.ArgumentParser.parse_args

    def stop_there(self: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> None:
        parse(self, given, namespace)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_there)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    # As Python does for a script; the modules beside it have the same names in several projects.
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    for file in script.parent.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    before = set(sys.modules)
    request.addfinalizer(
        lambda: [sys.modules.pop(name) for name in set(sys.modules) - before if _is_beside(name, script)]
    )
    with pytest.raises(Understood):
        runpy.run_path(str(script), run_name="__main__")


def _is_beside(name: str, script: Path) -> bool:
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and Path(file).parent in (script.parent, script.parents[1])
