"""What must hold in the repository and what no linter of Python sees: `make lint` runs it.

Each check yields one line for each thing that is wrong: the file, what is wrong, and what to do.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from make_pages import outdated
from packaging.version import Version
from pages import CODE, ROOT, pages

MAX_LINES = 400
MAX_LINES_OF = {"cam_callbacks/callback/monitor.py": 350}
MAX_TEST_NAME = 69
FOLDERS_OF_CODE = ("cam_callbacks", "tests", "tools", "benchmarks", "example_projects", "docs")
HOW_TO_PAGES = ("docs/coming_from.md", "docs/tasks.md")
OF_THE_READER = {"cam_callbacks/explain/your_cam.py", "tests/explain/test_your_cam.py"}
"""Files that a page asks the reader to write."""
NAMES_OTHERS = {"tests/conftest.py", "tests/test_lint.py"}
"""Files that name paths from elsewhere, and wrong ones."""

CHECKS: list[Callable[[Path], Iterator[str]]] = []


def check(function: Callable[[Path], Iterator[str]]) -> Callable[[Path], Iterator[str]]:
    """Add the function to the checks that run."""
    CHECKS.append(function)
    return function


def text(path: Path) -> str:
    """Return what a file holds."""
    return path.read_text(encoding="utf-8")


def code_files(root: Path, suffix: str = ".py") -> Iterator[tuple[str, Path]]:
    """Yield the path from the root, and the path, of each file of code."""
    for folder in FOLDERS_OF_CODE:
        for path in sorted((root / folder).rglob(f"*{suffix}")):
            yield path.relative_to(root).as_posix(), path


# The code


@check
def files_are_short(root: Path) -> Iterator[str]:
    """Files of Python and of the tab hold one idea."""
    for suffix in (".py", ".js"):
        for name, path in code_files(root, suffix):
            lines, most = text(path).count("\n"), MAX_LINES_OF.get(name, MAX_LINES)
            if lines > most:
                yield f"{name}: {lines} lines; divide it into files of {most} at most, one idea each"


@check
def names_of_tests_are_short(root: Path) -> Iterator[str]:
    """The name of a test is a statement; the long story stands in its docstring."""
    for name, path in code_files(root):
        if path.name.startswith("test_"):
            for test in re.findall(r"^\s*def (test_\w+)", text(path), re.MULTILINE):
                if len(test) > MAX_TEST_NAME:
                    yield f"{name}: {test} has {len(test)} letters; {MAX_TEST_NAME} at most, the rest into a docstring"


@check
def files_of_slow_tests_exist(root: Path) -> Iterator[str]:
    """A file that is renamed would else be no longer slow, unnoticed."""
    for name in re.findall(r'^    "([\w/]+(?:/|\.py))"', text(root / "tests" / "conftest.py"), re.MULTILINE):
        if not (root / "tests" / name).exists():
            yield f"tests/conftest.py: {name} does not exist; correct it, or take it out of SLOW and FAST"


# The pages


@check
def the_layout_names_each_module(root: Path) -> Iterator[str]:
    """docs/architecture.md has each module in its room, and no module that does not exist."""
    page = "docs/architecture.md"
    named = set(_layout(text(root / page)))
    package = root / "cam_callbacks"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    empty = {name for name in modules if name.endswith("/__init__.py") and not _runs_code(package / name)}
    for name in sorted(modules - empty - named):
        yield f"{page}: cam_callbacks/{name} is missing in its room; add a line that says what it is for"
    for name in sorted(named - modules):
        if name.endswith(".py"):
            yield f"{page}: the layout names cam_callbacks/{name}, which does not exist; take the line out"


def _layout(page: str) -> Iterator[str]:
    """Yield the files that the indented blocks of the first section with some list, by their path in the package."""
    stack: list[tuple[int, str]] = []
    for line in page.split("\n## ")[1].splitlines():
        match = re.match(r"^( {4,})([\w./]+(?:/|\.\w+))(?:\s|$)", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        stack = [(deep, folder) for deep, folder in stack if deep < depth]
        if name.endswith("/"):
            stack.append((depth, name))
        else:
            yield "".join([*(folder for _, folder in stack), name]).removeprefix("cam_callbacks/")


def _runs_code(path: Path) -> bool:
    """Check whether a module holds more than a docstring."""
    return len(ast.parse(text(path)).body) > 1


@check
def links_lead_somewhere(root: Path) -> Iterator[str]:
    """Links between the pages name files and headings that exist."""
    for page in pages(root):
        for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text(page))):
            if "://" in target or target.startswith("mailto:"):
                continue
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            if not path.exists():
                yield f"{page.relative_to(root)}: the link to {target} leads nowhere; correct its path"
            elif anchor and path.suffix == ".md" and not _has_anchor(path, anchor):
                yield f"{page.relative_to(root)}: {target} names no heading of that page; correct it"


def _has_anchor(page: Path, anchor: str) -> bool:
    """Check for a heading; those that mkdocstrings makes of code are checked by `make docs`."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text(page)), re.MULTILINE)
    return anchor.startswith("cam_callbacks.") or anchor in {_slug(heading) for heading in headings}


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"[\s-]+", "-", words)


@check
def files_that_are_named_exist(root: Path) -> Iterator[str]:
    """Scripts, tests and modules that a page or the code names by their path exist."""
    named = re.compile(
        r"(?<![\w/.-])(?:benchmarks|cam_callbacks|docs|tests|tools|example_projects)/[\w/]+\.(?:py|txt|js)\b"
    )
    code = [path for name, path in code_files(root) if name not in NAMES_OTHERS]
    for page in [*pages(root), *code, root / "Makefile", *_workflows(root)]:
        for name in sorted(set(named.findall(text(page))) - OF_THE_READER):
            if not (root / name).is_file():
                yield f"{page.relative_to(root)}: {name} does not exist; correct its path"


@check
def names_of_the_package_exist(root: Path) -> Iterator[str]:
    """Dotted names such as `cam_callbacks.audit.verdict.judge` in pages lead to a module, and to a name in it."""
    for page in [*pages(root), root / "mkdocs.yml", root / "pyproject.toml"]:
        for name in sorted(set(re.findall(r"\bcam_callbacks(?:[.:][A-Za-z_]\w*)+", text(page)))):
            if not _is_defined(root, name.replace(":", ".").split(".")):
                yield f"{page.relative_to(root)}: {name} does not exist; correct it"


def _is_defined(root: Path, parts: list[str]) -> bool:
    folder, rest = root, parts
    while rest and (folder / rest[0]).is_dir():
        folder, rest = folder / rest[0], rest[1:]
    module = folder / "__init__.py"
    if rest and (folder / f"{rest[0]}.py").is_file():
        module, rest = folder / f"{rest[0]}.py", rest[1:]
    return not rest or re.search(rf"^(?:\s*(?:class|def) |\s*\"|)({rest[0]})\b", text(module), re.MULTILINE) is not None


@check
def targets_of_make_that_are_named_exist(root: Path) -> Iterator[str]:
    """Pages, the workflow and .ci/run name targets that the Makefile has."""
    targets = set(re.findall(r"^([a-z-]+):", text(root / "Makefile"), re.MULTILINE))
    for page in [*pages(root), *_workflows(root)]:
        named = set(re.findall(r"(?:`|^    |^|run: )make ([a-z-]+)", text(page), re.MULTILINE))
        for target in sorted(named - targets):
            yield f"{page.relative_to(root)}: `make {target}` does not exist; name one that `make` lists"


def _workflows(root: Path) -> list[Path]:
    return [*sorted((root / ".github" / "workflows").glob("*.yml")), root / ".ci" / "run"]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whatever tags it has."""


@check
def the_navigation_has_each_page_once(root: Path) -> Iterator[str]:
    """mkdocs.yml lists all pages but the README."""
    listed = list(_leaves(yaml.load(text(root / "mkdocs.yml"), _Loader)["nav"]))
    there = {page.relative_to(root).as_posix().removeprefix("docs/") for page in pages(root)} - {"README.md"}
    for page in sorted(there - set(listed)):
        yield f"mkdocs.yml: {page} is missing; add it to the navigation"
    for page in sorted({page for page in listed if page not in there or listed.count(page) > 1}):
        yield f"mkdocs.yml: {page} does not exist, or is listed twice; take it out of the navigation"


def _leaves(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from _leaves(entry)


@check
def pictures_are_shown_and_made_by_a_script(root: Path) -> Iterator[str]:
    """Each picture can be made anew with `make docs-pictures`."""
    shown = "".join(text(page) for page in pages(root))
    scripts = text(root / "Makefile") + "".join(text(path) for path in (root / "docs").glob("pictures*.py"))
    for picture in sorted((root / "docs" / "images").iterdir()):
        if f"images/{picture.name}" not in shown:
            yield f"docs/images/{picture.name}: no page shows it; remove it"
        if not re.search(rf'"{picture.stem}"|[/"]{picture.stem}\.png', scripts):
            yield f"docs/images/{picture.name}: no script makes it; add it to docs/pictures.py"


@check
def sections_of_how_to_pages_show_code(root: Path) -> Iterator[str]:
    """Who looks for a task there finds Python to copy."""
    for page in HOW_TO_PAGES:
        for section in text(root / page).split("\n## ")[1:]:
            if "\n```python\n" not in section:
                yield f"{page}: the section {section.splitlines()[0]!r} shows no Python; add a block"


@check
def how_to_pages_show_each_method_and_target(root: Path) -> Iterator[str]:
    """A class of the package that derives from `Method` or `Target`, and is public, is called in an example."""
    shown = "".join(text(root / page) for page in HOW_TO_PAGES)
    public = _public_names(root)
    for path in sorted((root / "cam_callbacks").rglob("*.py")):
        for node in ast.walk(ast.parse(text(path))):
            if not isinstance(node, ast.ClassDef) or node.name not in public or f"{node.name}(" in shown:
                continue
            if {"Method", "Target"} & {ast.unparse(base) for base in node.bases}:
                yield f"{HOW_TO_PAGES[-1]}: no how-to page calls {node.name}; add an example"


def _public_names(root: Path) -> set[str]:
    for node in ast.parse(text(root / "cam_callbacks" / "__init__.py")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@check
def generated_pages_are_up_to_date(root: Path) -> Iterator[str]:
    """Pages that are made from lists in the code say what these lists say."""
    for page in outdated(root):
        yield f"{page}: it is not what its source says; run `make pages`"


@check
def example_projects_are_complete(root: Path) -> Iterator[str]:
    """Each has a page with the command that runs it, a place in the list, and a test."""
    projects = root / "example_projects"
    for name in sorted({path.parent.name for path in projects.glob("*/*.py")}):
        page = projects / name / "README.md"
        if not page.is_file():
            yield f"example_projects/{name}: it has no README.md; write one"
        elif not re.search(r"^    (?:python \S+\.py|make \w+)", text(page), re.MULTILINE):
            yield f"example_projects/{name}/README.md: no command runs the project; add one"
        if f"({name}/README.md)" not in text(projects / "README.md"):
            yield f"example_projects/README.md: {name} is missing; add a link to its page"
        if not (root / "tests" / "example_projects" / f"test_{name}.py").is_file():
            yield f"example_projects/{name}: no test runs it; add tests/example_projects/ test_{name}.py"


# The files around them


@check
def all_files_name_the_same_version(root: Path) -> Iterator[str]:
    """The version stands in four files."""
    (version,) = re.findall(r'^__version__ = "(.*)"', text(root / "cam_callbacks" / "_version.py"), re.MULTILINE)
    for name, said in (
        ("pyproject.toml", f'\nversion = "{version}"\n'),
        ("CITATION.cff", f"\nversion: {version}\n"),
        ("docs/changelog.md", f"\n## {version}"),
    ):
        if said not in text(root / name):
            yield f"{name}: it lacks version {version}, which cam_callbacks/_version.py names; change one of them"


@check
def lowest_versions_are_those_that_are_required(root: Path) -> Iterator[str]:
    """What CI installs the wheel with is what pyproject.toml promises to work."""
    project, name = text(root / "pyproject.toml"), "tools/lowest.txt"
    (dependencies,) = re.findall(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    dependencies += "".join(re.findall(r"^(?:masks|examples) = (.*)$", project, re.MULTILINE))
    required = dict(re.findall(r'"([\w-]+)>=([\d.]+)', dependencies))
    required["lightning"] = required["pytorch-lightning"]
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text(root / name), re.MULTILINE))
    for package in sorted(required.keys() ^ tested.keys()):
        yield f"{name}: {package} is in this file or in pyproject.toml only; add it to both or to none"
    for package in sorted(required.keys() & tested.keys()):
        lowest = Version(required[package]).release
        if Version(tested[package]).release[: len(lowest)] != lowest:
            yield f"{name}: {package}=={tested[package]}, but pyproject.toml requires {required[package]}; change one"


@check
def commit_hooks_run_the_tools_of_make_lint(root: Path) -> Iterator[str]:
    """So that a commit that the hooks let through is one that CI lets through."""
    name = ".pre-commit-config.yaml"
    hooks = [hook for repo in yaml.safe_load(text(root / name))["repos"] for hook in repo["hooks"]]
    hooked = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks}
    linted = set(re.findall(r"\$\(BIN\)/(ruff check|ruff format|mypy|python tools/lint\.py)", text(root / "Makefile")))
    if hooked != linted:
        yield f"{name}: its hooks run {sorted(hooked)}, `make lint` runs {sorted(linted)}; make them the same"


@check
def forms_and_workflows_can_be_read(root: Path) -> Iterator[str]:
    """GitHub says nothing where it cannot read one."""
    for path in sorted((root / ".github").rglob("*.yml")):
        name = path.relative_to(root)
        try:
            read = yaml.safe_load(text(path))
        except yaml.YAMLError as error:
            yield f"{name}: it is not YAML; {error}"
            continue
        if path.parent.name == "workflows":
            yield from (
                f"{name}: the job {job} has no steps" for job, does in read["jobs"].items() if not does["steps"]
            )
        elif path.stem != "config" and (missing := {"name", "description", "body"} - read.keys()):
            yield f"{name}: the form lacks {sorted(missing)}; GitHub needs them"


def complaints(root: Path = ROOT) -> list[str]:
    """Return what is wrong, one line each."""
    return [line for each in CHECKS for line in each(root)]


if __name__ == "__main__":
    found = complaints()
    print("\n".join(found) if found else f"{len(CHECKS)} checks of the repository passed")
    sys.exit(bool(found))
