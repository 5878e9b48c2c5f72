"""What importing the package loads, and which way its imports run."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cam_callbacks

ROOT = Path(cam_callbacks.__file__).parent
MODULES = {
    ".".join(("cam_callbacks", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
HEAVY = {*LIGHTNING, "torch", "torchvision", "matplotlib"}


def only_for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and "not" not in ast.unparse(node.test)
    )


def nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those that only a type checker runs."""
    found = []
    for child in ast.iter_child_nodes(tree):
        if not only_for_types(child):
            found += [child, *nodes(child)]
    return found


def imports(module: str) -> set[str]:
    """The dotted names of what a module imports when it runs, at any depth of its code."""
    found = set()
    for node in nodes(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            own = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= own or {node.module}
    return found


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


READS = (
    "import cam_callbacks.tags, cam_callbacks.review.reader, cam_callbacks.review.plugin, cam_callbacks.review.command"
)
EXPLAINS = "from cam_callbacks import ScoreCAM, Explanation, ProbeSet; from cam_callbacks import audit_model"


@pytest.mark.parametrize(
    ("statement", "not_loaded"),
    [
        ("import cam_callbacks", {*HEAVY, "numpy", "PIL", "tensorboard"}),
        ("import cam_callbacks.review.loader", HEAVY),
        (READS, HEAVY),
        (EXPLAINS, {*LIGHTNING, "torchvision", "matplotlib", "cv2"}),
    ],
)
def test_importing_a_part_loads_only_what_it_needs(statement: str, not_loaded: set[str]) -> None:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not_loaded & set(done.stdout.split()) == set()


@pytest.mark.parametrize("name", cam_callbacks.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(cam_callbacks, name).__name__ == name
    assert name in dir(cam_callbacks)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cam_callbacks' has no attribute 'GradCamera'"):
        cam_callbacks.GradCamera  # noqa: B018


@pytest.mark.parametrize("module", [name for name in MODULES if ".methods" in name or ".audit." in name])
def test_methods_and_audit_know_no_lightning_and_no_callback(module: str) -> None:
    assert not packages(module) & {*LIGHTNING, "lightning_utilities"}
    above = {f"cam_callbacks.{name}" for name in ("monitor", "trainer", "auditor", "loggers", "render", "pictures")}
    assert not imports(module) & above


READERS = ("cam_callbacks.tab", "cam_callbacks.report")


@pytest.mark.parametrize("module", [name for name in MODULES if f"{name}.".startswith(tuple(f"{r}." for r in READERS))])
def test_tab_and_report_know_only_what_is_recorded(module: str) -> None:
    assert not packages(module) & HEAVY
    part = ".".join(module.split(".")[:2])
    own = {name for name in imports(module) if name.startswith("cam_callbacks.")}
    shared = {"cam_callbacks.tags", "cam_callbacks.review.reader", "cam_callbacks.__version__"}
    assert all(name in shared or name.startswith(part) for name in own)


@pytest.mark.parametrize("module", MODULES)
def test_each_file_stands_in_the_layout(module: str) -> None:
    layout = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    path = MODULES[module]
    assert path.name in layout.split("## The values that flow")[0] or path.read_text(encoding="utf-8").count("\n") == 1


def test_the_records_import_nothing() -> None:
    assert packages("cam_callbacks.tags") <= {"__future__"}


def test_nothing_imports_the_monitor() -> None:
    assert [module for module in MODULES if "cam_callbacks.callback.monitor" in imports(module)] == []


def test_only_the_monitor_and_the_trainer_know_lightning() -> None:
    knowing = {name for name in MODULES if packages(name) & LIGHTNING}
    assert knowing <= {"cam_callbacks.callback.monitor", "cam_callbacks.callback.trainer"}


def test_no_import_runs_in_a_circle() -> None:
    graph = {module: imports(module) & set(MODULES) - {"cam_callbacks"} for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"imports in a circle: {' -> '.join(error.args[1])}") from error
