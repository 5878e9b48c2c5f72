"""`make lint` names the file that is wrong, and says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lint import complaints
from pages import ROOT

COPIED = ["cam_callbacks", "tests", "tools", "docs", "example_projects", "benchmarks", ".github", ".ci"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository."""
    folder = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def known(copy: Path) -> list[str]:
    """What is wrong with the repository as it is."""
    return complaints(copy)


@contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Have a file, or a new one, hold this for a while."""
    before = path.read_bytes() if path.exists() else None
    path.write_text(text, encoding="utf-8")
    yield
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)


ADDED = {
    "README.md": "\nSee [there](docs/nowhere.md).\n",
    "docs/index.md": "\nSee [there](audit.md#not-a-heading).\n",
    "docs/audit.md": "\n`cam_callbacks.audit.verdict.nothing_of_this_name`\n",
    "docs/tab.md": "\nRun `make tea`.\n",
    "docs/loggers.md": "\nIt is in `tests/test_of_nothing.py`.\n",
    "docs/faults.md": "\nSomething else.\n",
    "docs/coming_from.md": "\n## Another tool\n\nIt is alike.\n",
    "mkdocs.yml": "      - Nothing: nothing.md\n",
    ".github/workflows/ci.yml": "  - [\n",
    "tools/lowest.txt": "einops==0.1\n",
    "tests/test_package.py": f"\ndef test_{'a_name_' * 10}is_too_long():\n    pass\n",
    "cam_callbacks/callback/monitor.py": "\n" * 400,
}


def test_what_is_added_and_wrong_is_named(copy: Path, known: list[str]) -> None:
    with ExitStack() as all_changed:
        for name, added in ADDED.items():
            all_changed.enter_context(changed(copy / name, (ROOT / name).read_text(encoding="utf-8") + added))
        new = [line for line in complaints(copy) if line not in known]
    assert sorted(line.split(":")[0] for line in new) == sorted(ADDED)
    assert all(";" in line for line in new)


def test_a_module_and_a_page_that_are_new_have_to_be_listed(copy: Path, known: list[str]) -> None:
    module, page = copy / "cam_callbacks" / "explain" / "new_method.py", copy / "docs" / "how_to" / "new.md"
    with changed(module, "X = 1\n"), changed(page, "# New\n"):
        found = [line for line in complaints(copy) if line not in known]
    assert len(found) == 2
    assert "docs/architecture.md: cam_callbacks/explain/new_method.py is missing" in found[0]
    assert "mkdocs.yml: how_to/new.md is missing" in found[1]


def test_a_module_in_the_wrong_room_of_the_layout_is_named(copy: Path, known: list[str]) -> None:
    with changed(copy / "cam_callbacks" / "figures" / "probes.py", "X = 1\n"):
        found = [line for line in complaints(copy) if line not in known]
    assert [line.split(" is missing")[0] for line in found] == ["docs/architecture.md: cam_callbacks/figures/probes.py"]


def test_versions_that_differ_are_named(copy: Path, known: list[str]) -> None:
    with changed(copy / "cam_callbacks" / "_version.py", '__version__ = "9.9.9"\n'):
        found = [line.split(":")[0] for line in complaints(copy) if line not in known]
    assert found == ["pyproject.toml", "CITATION.cff", "docs/changelog.md"]


@pytest.mark.parametrize("name", ["ScoreCAM", "SegmentationTarget"])
def test_a_public_class_that_no_how_to_page_calls_is_named(name: str, copy: Path, known: list[str]) -> None:
    one, other = (copy / "docs" / page for page in ("coming_from.md", "tasks.md"))
    without = [page.read_text(encoding="utf-8").replace(f"{name}(", "Another(") for page in (one, other)]
    with changed(one, without[0]), changed(other, without[1]):
        found = [line for line in complaints(copy) if line not in known]
    assert found == [f"docs/tasks.md: no how-to page calls {name}; add an example"]
