"""A real TensorBoard on the log folder of real small trainings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, read_in, serving
from tab_logs import write_logs


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of a biased and a balanced training."""
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder, looks=3, probes=4)
    return folder


@pytest.fixture(scope="session", params=["true", "false"], ids=["fast loader", "slow loader"])
def server(request: pytest.FixtureRequest, logs: Path) -> Iterator[Server]:
    """A TensorBoard that has read both runs."""
    with serving(logs, "--load_fast", request.param) as server:
        yield read_in(server, runs=2, last=14)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small training: two looks at three probes."""
    return write_logs(tmp_path_factory.mktemp("trained"), ["biased"], looks=2, probes=3)[0]


@pytest.fixture
def two_runs(trained: Path, tmp_path: Path) -> Path:
    """A log folder with two copies of that training, to be changed."""
    for run in ("one/version_0", "two/version_0"):
        shutil.copytree(trained, tmp_path / "logs" / run)
    return tmp_path / "logs"
