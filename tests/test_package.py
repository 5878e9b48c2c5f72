"""What importing the package loads, and which way its imports run."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cam_callbacks

ROOT = Path(cam_callbacks.__file__).parent
MODULES = {
    ".".join(("cam_callbacks", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
FLOORS = {"explain": 0, "data": 0, "audit": 1, "snapshot": 2, "figures": 3, "review": 4, "callback": 5}
"""Each room of the package and the floor it is on: it may import itself, and the rooms on the floors below."""
LEAVES = {"_version", "_checks", "_threads", "_warnings", "tags", "history"}
"""Modules that any room may import, and that import each other at most."""
WRITERS = {f"cam_callbacks.review.{name}" for name in ("writer", "encoding", "json_values")}
"""The part of `review` that runs in the training; all else of it runs in TensorBoard, which has no torch."""
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"}
HEAVY = {*LIGHTNING, "torch", "torchvision", "matplotlib"}


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those that only a type checker runs."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from nodes(child)


@functools.cache
def imports(module: str) -> set[str]:
    """Return the dotted names of what a module imports when it runs, at any depth of its code."""
    found = set()
    for node in nodes(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return which modules of ours each of them imports."""
    return {module: imports(module) & set(MODULES) for module in MODULES}


def room(module: str) -> str:
    """Return the part of the package a module stands in: a folder, or the module itself; of the root, nothing."""
    return module.split(".")[1] if "." in module else ""


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def reached(module: str) -> set[str]:
    """Return the module and all modules of ours that its import loads, however far away."""
    found, new = {module}, {module}
    while new := {imported for each in new for imported in graph()[each]} - found:
        found |= new
    return found


def allowed(module: str, imported: str) -> bool:
    here, there = room(module), room(imported)
    if there in LEAVES:
        return True
    return here in FLOORS and there in FLOORS and (here == there or FLOORS[there] < FLOORS[here])


def test_each_module_imports_only_its_own_room_and_those_below() -> None:
    against = [
        f"{module} -> {name}" for module in graph() for name in sorted(graph()[module]) if not allowed(module, name)
    ]
    assert against == []


def test_each_module_stands_in_a_room_or_is_a_leaf() -> None:
    assert {room(module) for module in MODULES} - {""} - set(FLOORS) <= LEAVES


def test_no_import_runs_in_a_circle() -> None:
    try:
        list(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        raise AssertionError(f"imports in a circle: {' -> '.join(error.args[1])}") from error


def test_nobody_imports_the_callback_or_the_root() -> None:
    """What the root offers it loads on first use: a module of ours that asked it would import in a circle."""
    asking = {module: {name for name in graph()[module] if room(name) in ("", "callback")} for module in graph()}
    assert {module: names for module, names in asking.items() if names and room(module) != "callback"} == {}
    assert [module for module, names in asking.items() if "cam_callbacks" in names] == []


def test_importing_a_room_imports_none_of_its_modules() -> None:
    """So that e.g. the registry of measures can be read without torch."""
    rooms = [module for module, path in MODULES.items() if path.name == "__init__.py" and module != "cam_callbacks"]
    assert {module: imports(module) for module in rooms if imports(module)} == {}


def test_only_the_callback_knows_lightning() -> None:
    assert [module for module in MODULES if packages(module) & LIGHTNING and room(module) != "callback"] == []


def test_what_runs_in_tensorboard_reaches_no_torch() -> None:
    reading = [module for module in MODULES if room(module) == "review" and module not in WRITERS]
    heavy = {each for each in MODULES if packages(each) & HEAVY}
    assert {module: found for module in reading if (found := reached(module) & heavy)} == {}


READS = ["import cam_callbacks.tags", "import cam_callbacks.audit.measures"] + [
    f"import {module}" for module in MODULES if room(module) == "review" and module not in WRITERS
]
EXPLAINS = ["from cam_callbacks import ScoreCAM, Explanation, ProbeSet, audit_model, judge"]


@pytest.mark.parametrize(
    ("statements", "not_loaded"),
    [
        (["import cam_callbacks"], {*HEAVY, "numpy", "PIL", "tensorboard"}),
        (["import cam_callbacks.review.loader"], HEAVY),
        (READS, HEAVY),
        (EXPLAINS, {*LIGHTNING, "torchvision", "matplotlib", "cv2"}),
    ],
    ids=["the root", "the tab's loader", "all that reads", "all that explains"],
)
@pytest.mark.slow
def test_importing_a_part_loads_only_what_it_needs(statements: list[str], not_loaded: set[str]) -> None:
    code = "\n".join([*statements, "import sys", "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert not_loaded & set(done.stdout.split()) == set()


def test_each_public_name_is_there() -> None:
    for name in cam_callbacks.__all__:
        assert getattr(cam_callbacks, name).__name__ == name
    assert {*cam_callbacks.__all__, "__version__"} <= set(dir(cam_callbacks))
    assert cam_callbacks.__version__.count(".") == 2


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cam_callbacks' has no attribute 'GradCamera'"):
        cam_callbacks.GradCamera  # noqa: B018
