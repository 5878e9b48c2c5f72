"""What is handed out: the wheel, the documentation, the example projects, and the files around them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version
from pages import PAGES, ROOT

import cam_callbacks

DOCS = ROOT / "docs"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by what pyproject.toml names, without a network."""
    pytest.importorskip("hatchling", reason="needs what builds the wheel: pip install hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "cam_callbacks").rglob("*") if path.is_file()}
    assert held == {name for name in package if "__pycache__" not in name}
    assert "cam_callbacks/py.typed" in held
    assert {Path(name).suffix for name in held} == {".py", ".typed", ".js", ".css"}


def test_the_entry_points_of_the_wheel_can_be_loaded(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    parser = ConfigParser(delimiters="=")
    parser.read_string(wheel.read(name).decode())
    found = {section: dict(parser[section]) for section in parser.sections()}
    assert found.keys() == {"console_scripts", "tensorboard_plugins"}
    for target in (target for section in found.values() for target in section.values()):
        module, attribute = target.split(":")
        assert callable(getattr(import_module(module), attribute)), target


def test_the_wheel_carries_license_and_readme(wheel: zipfile.ZipFile) -> None:
    (legal,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert wheel.read(legal).decode() == text("LICENSE")
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    assert f"Version: {cam_callbacks.__version__}\n" in wheel.read(metadata).decode()
    assert text("README.md").splitlines()[2] in wheel.read(metadata).decode()


# The documentation


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whatever tags it has."""


def pages_of_the_navigation() -> list[str]:
    def leaves(entries: Any) -> Iterator[str]:
        if isinstance(entries, str):
            yield entries
        else:
            for entry in entries.values() if isinstance(entries, dict) else entries:
                yield from leaves(entry)

    return list(leaves(yaml.load(text("mkdocs.yml"), _Loader)["nav"]))


def test_the_navigation_has_each_page_once() -> None:
    listed = pages_of_the_navigation()
    assert len(listed) == len(set(listed))
    outside = {"CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in ROOT.glob("example_projects/**/README.md"))}
    assert set(listed) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | outside


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason='needs the extra "docs"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        fetched = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text("utf-8"))
        assert [address for address in fetched if "//" in address] == [], page


def test_the_reference_has_each_public_name(site: Path) -> None:
    pages = "".join(page.read_text("utf-8") for page in (site / "reference").glob("*.html"))
    missing = [name for name in cam_callbacks.__all__ if not re.search(rf'id="cam_callbacks\.[\w.]+\.{name}"', pages)]
    assert missing == []


def test_each_picture_is_shown_and_made_by_a_script() -> None:
    shown = "".join(path.read_text("utf-8") for path in DOCS.rglob("*.md"))
    scripts = text("Makefile") + "".join(path.read_text("utf-8") for path in DOCS.glob("pictures*.py"))
    for picture in (DOCS / "images").iterdir():
        assert f"images/{picture.name}" in shown, picture
        assert re.search(rf'"{picture.stem}"|[/"]{picture.stem}\.png', scripts), picture


def test_scripts_that_pages_name_are_there() -> None:
    for page in PAGES:
        named = re.findall(r"\b(?:benchmarks|docs|tests|example_projects)/[\w/]+\.py\b", page.read_text("utf-8"))
        not_made = {"tests/methods/test_your_cam.py"}
        assert [name for name in named if name not in not_made and not (ROOT / name).is_file()] == [], page


# The example projects

EXAMPLES = sorted(path.parent.name for path in ROOT.glob("example_projects/*/README.md"))


def test_each_example_project_has_a_readme() -> None:
    folders = {path.parent.name for path in ROOT.glob("example_projects/*/*.py")}
    assert folders == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_project_is_listed_and_tested(name: str) -> None:
    assert f"({name}/README.md)" in text("example_projects/README.md")
    assert (ROOT / "tests" / "example_projects" / f"test_{name}.py").is_file()


# The files around them


def test_all_files_name_the_same_version() -> None:
    version = cam_callbacks.__version__
    assert f'\nversion = "{version}"\n' in text("pyproject.toml")
    assert yaml.safe_load(text("CITATION.cff"))["version"] == version
    assert f"\n## {version}" in text("docs/changelog.md")


def test_commit_hooks_run_the_tools_that_make_lint_installs() -> None:
    hooks = [hook for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    linted = re.findall(r"\$\(BIN\)/(ruff check|ruff format|mypy)", text("Makefile"))
    assert {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks} == set(linted)


def test_the_lowest_versions_that_are_tested_are_those_that_are_required() -> None:
    project = text("pyproject.toml")
    (dependencies,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    dependencies += "".join(re.findall(r"^(?:masks|examples) = (.*)$", project, re.MULTILINE))
    required = {name: Version(lowest) for name, lowest in re.findall(r'"([\w-]+)>=([\d.]+)', dependencies)}
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text("tests/lowest.txt"), re.MULTILINE))
    assert tested.pop("lightning") == tested["pytorch-lightning"]
    assert tested.keys() == required.keys()
    for name, version in tested.items():
        assert Version(version).release[: len(required[name].release)] == required[name].release, name


@pytest.mark.parametrize("page", [*PAGES, WORKFLOW], ids=lambda page: page.name)
def test_targets_of_make_that_are_named_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    |run: )make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named - targets == set()


def test_forms_and_workflow_can_be_read() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    assert all(job["steps"] for job in jobs.values())
    for form in WORKFLOW.parents[1].glob("ISSUE_TEMPLATE/*.yml"):
        read = yaml.safe_load(form.read_text("utf-8"))
        assert form.stem == "config" or read.keys() >= {"name", "description", "body"}, form
