"""A real TensorBoard on the log folder of real small trainings."""

from __future__ import annotations

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
