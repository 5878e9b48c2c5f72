"""The Python in the README and in docs/ runs as it stands there.

A section is what stands under a `##` heading. Its blocks run one after the other in one namespace; what stands before
the first such heading runs ahead of every section of the page, and alone where no section has blocks.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from pages import PAGES

from cam_callbacks import CAMMonitor, Explanation

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Section:
    """Blocks of Python under one heading, each with the number of the line it begins at."""

    page: Path
    heading: str
    blocks: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        return f"{self.page.name}: {self.heading}"

    def run(self) -> dict[str, object]:
        namespace: dict[str, object] = {"__name__": "docs"}
        for line, code in self.blocks:
            # Empty lines before it give errors the line of the page.
            exec(compile("\n" * line + code, self.page, "exec"), namespace)
        return namespace


def sections(page: Path) -> list[Section]:
    text = page.read_text(encoding="utf-8")
    starts = [0, *(match.start() for match in re.finditer(r"^## ", text, re.MULTILINE)), len(text)]
    found: list[Section] = []
    preamble: tuple[tuple[int, str], ...] = ()
    for start, end in pairwise(starts):
        blocks = tuple((text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text, start, end))
        if start == 0:
            preamble = blocks
        elif blocks:
            found.append(Section(page, text[start:].splitlines()[0].removeprefix("## "), preamble + blocks))
    if preamble and not found:
        found.append(Section(page, "the whole page", preamble))
    return found


SECTIONS = [section for page in PAGES for section in sections(page)]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_section_runs_and_skips_no_heatmap(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, value in section.run().items():
        if isinstance(value, Explanation):
            assert not value.skipped.any(), name


def monitors_in_yaml():
    """The CAMMonitors in the blocks of YAML for LightningCLI; those for Hydra are in test_hydra.py."""
    for page in PAGES:
        for block in YAML_BLOCK.findall(page.read_text(encoding="utf-8")):
            for callback in yaml.safe_load(block)["trainer"]["callbacks"]:
                if callback.get("class_path") == "cam_callbacks.CAMMonitor":
                    yield pytest.param(callback, id=page.name)


@pytest.mark.parametrize("callback", list(monitors_in_yaml()))
@pytest.mark.filterwarnings("ignore")  # a newer jsonargparse has another name for building
def test_a_monitor_in_yaml_is_built(callback, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("def my_batch_fn(batch):\n    return batch\n")
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--monitor", type=CAMMonitor)
    built = parser.instantiate_classes(parser.parse_object({"monitor": callback}))
    assert isinstance(built.monitor, CAMMonitor)
    assert built.monitor.settings.num_probes == callback["init_args"]["num_probes"]
