"""What is handed out: the wheel and the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest
from pages import ROOT

import cam_callbacks

DOCS = ROOT / "docs"


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
    assert {Path(name).suffix for name in held} <= {".py", ".typed", ".js", ".css", ".html"}


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
