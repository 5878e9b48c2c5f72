"""What the tests share: which of them are slow, the data folder, a small network, a count of forward samples.

Importing this imports no torch: the process that hands the tests out to others needs none.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

TESTS = Path(__file__).parent
SLOW = {
    "callback/": "trainings, many of them in processes of their own",
    "example_projects/": "what is documented",
    "test_commands.py": "what is documented",
    "test_docs.py": "what is documented",
    "test_release.py": "what is handed out is built",
    "test_cuda.py": "trainings",
    "strangers/": "trainings",
    "review/test_report_browser.py": "a real browser",
    "review/test_report_of_a_run.py": "trainings",
    "review/test_tab_browser.py": "a real browser",
    "review/test_loader.py": "servers in processes of their own",
    "review/test_plugin.py": "servers in processes of their own",
    "explain/test_compilation.py": "a compiler",
    "explain/test_parts_that_run_as_one.py": "a compiler",
    "explain/test_gradient_methods_against_peers.py": "other libraries",
    "explain/test_models.py": "large models",
    "explain/test_score_cam_against_peers.py": "other libraries",
}
"""Folders and files all of whose tests are marked `slow`, and why; a slow test elsewhere has the marker itself."""
FAST = {
    "callback/test_loggers.py",
    "callback/test_monitor_errors.py",
    "callback/test_monitor_when.py",
}
"""Files of those folders that are not slow: a handful of trainings tells whether the callback works at all."""

LONGEST = (
    "explain/test_models.py",
    "callback/test_monitor_ddp.py",
    "callback/test_training_is_not_harmed.py",
    "test_docs.py",
    "explain/test_score_cam_against_peers.py",
    "example_projects/test_color_bias.py",
    "example_projects/test_pets_background.py",
    "review/test_tab_browser.py",
    "explain/test_compilation.py",
    "review/test_loader.py",
)
"""The files that take longest, which come first: where files are shared out, no process is left with one at the end."""


@functools.cache
def name_of(path: Path) -> str:
    return path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""


@functools.cache
def is_slow(path: Path) -> bool:
    name = name_of(path)
    return path.suffix == ".py" and name.startswith(tuple(SLOW)) and name not in FAST


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no slow test is wanted, do not even import the files of slow ones: that alone takes long."""
    return (config.option.markexpr == "not slow" and is_slow(collection_path)) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(name_of(item.path), len(LONGEST)))


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage, of which some tests ask for one, has to go through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real photos and weights, where there is one."""
    value = os.environ.get("CAM_CALLBACKS_DATA")
    if not value:
        pytest.skip("needs real data: set the environment variable CAM_CALLBACKS_DATA to its folder")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"needs real data: CAM_CALLBACKS_DATA={value} is not a folder")
    return folder


@pytest.fixture(scope="session")
def small_cnn() -> Callable[..., nn.Module]:
    """Build a small network from a seed."""
    import small_networks

    return small_networks.small_cnn


@pytest.fixture(scope="session")
def blobs() -> Callable[..., Any]:
    """Make images from a seed."""
    import small_networks

    return small_networks.blobs


class Sizes(list[int]):
    """A list that can be known weakly: what a hook itself holds on to is put back after each call."""


@pytest.fixture
def forwarded() -> Iterator[Callable[[nn.Module], list[int]]]:
    """Given a model, a list that grows by the number of images of each of its forward calls."""
    handles, kept = [], []

    def count(model: nn.Module) -> list[int]:
        kept.append(sizes := Sizes())
        known = weakref.ref(sizes)

        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            known().append(len(inputs[0]))

        handles.append(model.register_forward_pre_hook(keep))
        return sizes

    yield count
    for handle in handles:
        handle.remove()


@pytest.fixture
def handler_of_ctrl_c() -> Iterator[None]:
    """Lightning ignores all further Ctrl-C once there was one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)
