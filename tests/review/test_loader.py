"""TensorBoard's start with the package installed: never hindered, and nothing heavy loaded."""

from __future__ import annotations

import copy
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from servers import read_in, serving
from tab_logs import write_big_run
from tensorboard.plugins.base_plugin import TBContext

from cam_callbacks.review.loader import CAMLoader

TENSORBOARD = "import sys; from tensorboard.main import run_main; sys.argv[0] = 'tensorboard'; run_main()"


def test_the_entry_point_leads_to_the_loader() -> None:
    (entry,) = entry_points(group="tensorboard_plugins", name="cam_callbacks")
    assert entry.load() is CAMLoader


def test_loading_the_loader_loads_nothing_of_ours_but_the_schema() -> None:
    code = "import cam_callbacks.review.loader, sys; print(*(name for name in sys.modules if 'cam_callbacks' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {
        "cam_callbacks",
        "cam_callbacks.review",
        "cam_callbacks.review.loader",
        "cam_callbacks.review.schema",
    }


BROKEN = {
    "a module that the plugin imports is missing": "sys.modules['cam_callbacks.review.reader'] = None",
    "the plugin cannot be imported": "sys.modules['cam_callbacks.review.plugin'] = None",
    "a file of the tab is missing": (
        "import cam_callbacks.review.plugin as plugin, pathlib; plugin._PAGE = pathlib.Path('nowhere')"
    ),
    "the plugin cannot be made": (
        "import cam_callbacks.review.plugin as plugin; plugin.CAMPlugin.__init__ = lambda self: None"
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_tensorboard_starts_without_the_tab_where_it_is_broken(tmp_path: Path, broken: str) -> None:
    with serving(tmp_path, command=("-c", f"import sys; {broken}; {TENSORBOARD}")) as server:
        assert server.get("/data/plugins_listing").code == 200
        assert server.tab() == {}


def test_without_data_the_tab_is_there_but_not_active(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.tab()["enabled"] is False
        assert server.ours("runs").json == {"runs": []}


@pytest.mark.parametrize("loader", ["true", "false"])
def test_all_steps_are_kept(tmp_path: Path, loader: str) -> None:
    write_big_run(tmp_path / "run", looks=40, probes=2)
    with serving(tmp_path, "--load_fast", loader) as server:
        read_in(server, runs=1, last=390)
        timeline = server.ours("timeline", run="run", monitor="cam").json
    assert [look["step"] for look in timeline["looks"]] == list(range(0, 400, 10))


def test_the_user_may_keep_fewer_steps(tmp_path: Path) -> None:
    write_big_run(tmp_path / "run", looks=40, probes=2)
    with serving(tmp_path, "--samples_per_plugin", "cam_callbacks=5") as server:
        read_in(server, runs=1, last=390)
        assert 0 < len(server.ours("timeline", run="run", monitor="cam").json["looks"]) <= 5


def test_without_a_data_provider_the_tab_is_left_out_and_this_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert CAMLoader().load(TBContext()) is None
    assert "The CAM tab is left out" in caplog.text
    assert "no data provider" in caplog.text


@pytest.mark.parametrize("flags", [Namespace(), Namespace(samples_per_plugin=None), None])
def test_flags_that_are_not_understood_are_left_alone(flags: Namespace | None) -> None:
    before = copy.deepcopy(flags)
    CAMLoader().fix_flags(flags)
    assert flags == before
