"""What a real TensorBoard answers for the tab."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import Server
from tab_logs import HOSTILE, NAMES, SIZE
from tensorboard import errors
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client, TestResponse

import cam_callbacks.review
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.review.loader import CAMLoader

LOOKS, PROBES = 3, 4
BIASED = {"run": "biased/run", "monitor": "cam"}


def picture(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def steps(server: Server) -> list[int]:
    return [look["step"] for look in server.ours("timeline", **BIASED).json["looks"]]


def test_the_tab_is_there_by_itself(server: Server) -> None:
    tab = server.tab()
    assert (tab["enabled"], tab["tab_name"]) == (True, "CAM")
    assert tab["loading_mechanism"] == {"type": "IFRAME", "module_path": "/data/plugin/cam_callbacks/index.js"}


PAGE = Path(cam_callbacks.review.__file__).parent / "page"
KINDS = {".js": "text/javascript", ".css": "text/css"}


def test_the_files_of_the_tab_are_served(server: Server) -> None:
    for path in PAGE.iterdir():
        if path.suffix in KINDS:
            answer = server.ours(path.name)
            assert (answer.code, answer.kind) == (200, KINDS[path.suffix]), path.name
            assert answer.body == path.read_bytes()


def test_the_glossary_explains_all_measures(server: Server) -> None:
    terms = {term["name"]: term for term in server.ours("glossary").json["terms"]}
    others = {"verdict", "interval", "heatmap", "error", "cost", "property", "…_score", "…_cosine"}
    assert others | set(MEASURES) == set(terms)
    assert terms["bg_gap"]["definition"] == MEASURES["bg_gap"].definition
    assert all(term["definition"] for term in terms.values())


def test_runs_are_listed_with_their_monitors(server: Server) -> None:
    runs = [{"run": run, "monitors": ["cam"]} for run in ("balanced/run", "biased/run")]
    assert server.ours("runs").json == {"runs": runs}


def test_the_timeline_has_all_looks_in_order_with_their_audits(server: Server) -> None:
    timeline = server.ours("timeline", **BIASED).json
    assert (timeline["run"], timeline["monitor"]) == ("biased/run", "cam")
    looks = timeline["looks"]
    assert [look["epoch"] for look in looks] == list(range(LOOKS))
    assert steps(server) == sorted(steps(server))
    assert all(look["wall_time"] > 1e9 for look in looks)
    last = looks[-1]["audit"]
    assert (last["verdict"]["state"], last["gap"], last["threshold"], last["masks"]) == (
        "alarm",
        "bg_gap",
        0.05,
        "given",
    )
    assert "ALARM" in last["verdict"]["text"]
    gap = last["measures"]["bg_gap"]
    assert set(gap["per_class"]) == set(NAMES)
    assert set(gap["overall"]) == {"value", "low", "high", "count", "skipped", "chance"}
    assert gap["overall"]["low"] <= gap["overall"]["value"] <= gap["overall"]["high"]


def test_a_timeline_that_is_known_is_not_sent_again(server: Server) -> None:
    state = server.ours("timeline", **BIASED).json["state"]
    assert server.ours("timeline", **BIASED, known=state).json == {"unchanged": True}
    assert server.ours("timeline", **BIASED, known="another").json["looks"]


def test_the_timeline_has_the_photos_and_the_settings(server: Server) -> None:
    timeline = server.ours("timeline", **BIASED).json
    assert [picture(uri).shape for uri in timeline["photos"]] == [(SIZE, SIZE, 3)] * PROBES
    assert timeline["settings"]["settings"]["num_probes"] == PROBES
    assert set(timeline["settings"]["versions"]) == {"torch", "lightning", "python"}


def test_a_look_has_a_map_and_numbers_for_each_probe(server: Server) -> None:
    step = steps(server)[-1]
    look = server.ours("look", **BIASED, step=step).json
    assert look["step"] == step
    assert (look["layer"], look["method"], look["class_names"]) == ("features", "Score-CAM", list(NAMES))
    assert len(look["maps"]) == len(look["probes"]) == PROBES
    for probe, uri in zip(look["probes"], look["maps"], strict=True):
        heat = picture(uri)
        assert heat.shape == (SIZE // 2, SIZE // 2)  # of the layer
        assert (heat.min(), heat.max()) == ((0, 0) if probe["blank"] else (0, 255))
        assert 0 <= probe["probability_predicted"] <= 1
    assert "photos" not in look


def test_a_look_has_the_channels_of_each_probe(server: Server) -> None:
    look = server.ours("look", **BIASED, step=steps(server)[0]).json
    assert [len(channels) for channels in look["channels"]] == [4] * PROBES
    assert [len(probe["channels"]) for probe in look["probes"]] == [4] * PROBES
    assert picture(look["channels"][0][0]).shape == (SIZE // 2, SIZE // 2)


def test_the_swaps_are_the_logged_picture(server: Server) -> None:
    step = steps(server)[-1]
    shown = picture(server.ours("swaps", **BIASED, step=step).json["swaps"])
    logged = server.get("/data/plugin/images/images", run="biased/run", tag="cam/swaps", sample=0).json[-1]
    image = server.get(f"/data/plugin/images/individualImage?{logged['query']}").body
    assert np.array_equal(shown, np.asarray(Image.open(io.BytesIO(image))))


def test_names_are_unchanged_in_json_that_no_browser_takes_for_a_page(server: Server) -> None:
    answer = server.ours("look", **BIASED, step=steps(server)[0])
    assert HOSTILE in answer.json["class_names"]
    assert answer.kind == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("route", "arguments", "code"),
    [
        ("timeline", {}, 400),
        ("timeline", {"run": "biased/run"}, 400),
        ("timeline", {"monitor": "cam"}, 400),
        ("timeline", {"run": "", "monitor": "cam"}, 400),
        ("timeline", {"run": "nobody", "monitor": "cam"}, 404),
        ("timeline", {"run": "../../../etc", "monitor": "cam"}, 404),
        ("timeline", {"run": "biased/run", "monitor": "nobody"}, 404),
        ("timeline", {"run": "biased/run", "monitor": "../cam"}, 404),
        ("timeline", {"run": "\x00\ud7ff\u2028", "monitor": "'; DROP TABLE"}, 404),
        ("look", BIASED, 400),
        ("look", BIASED | {"step": "-1"}, 400),
        ("look", BIASED | {"step": "1.5"}, 400),
        ("look", BIASED | {"step": "NaN"}, 400),
        ("look", BIASED | {"step": "../1"}, 400),
        ("look", BIASED | {"step": "\u0661"}, 400),
        ("look", BIASED | {"step": "9" * 400}, 400),
        ("look", BIASED | {"step": "999999"}, 404),
        ("swaps", BIASED | {"step": "999999"}, 404),
        ("swaps", BIASED | {"step": "x"}, 400),
        ("look", {"run": "nobody", "monitor": "cam", "step": "1"}, 404),
    ],
)
def test_bad_requests_are_refused_in_words(server: Server, route: str, arguments: dict[str, Any], code: int) -> None:
    answer = server.ours(route, **arguments)
    assert (answer.code, answer.kind) == (code, "application/json")
    assert list(answer.json) == ["error"]
    assert "Traceback" not in answer.json["error"]


@pytest.mark.parametrize(
    ("route", "method"),
    [("runs", "POST"), ("timeline", "PUT"), ("look", "DELETE"), ("index.js", "POST"), ("glossary", "POST")],
)
def test_only_get_is_answered(server: Server, route: str, method: str) -> None:
    answer = server.ours(route, method=method)
    assert (answer.code, answer.headers["Allow"]) == (405, "GET")
    assert list(answer.json) == ["error"]


@pytest.mark.parametrize(
    "path", ["nothing", "plugin.py", "../plugin.py", "%2e%2e/plugin.py", "static/index.js", "index.js/../../plugin.py"]
)
def test_no_other_file_is_served(server: Server, path: str) -> None:
    assert server.ours(path).code == 404


class Unwell:
    """A data provider of TensorBoard's that raises an error, whatever it is asked for."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def list_blob_sequences(self, *_: Any, **__: Any) -> Any:
        raise self.error

    read_blob_sequences = list_blob_sequences


def answer_of(provider: Unwell, route: str) -> TestResponse:
    """What the tab answers; afterwards it still serves its files."""
    apps = CAMLoader().load(TBContext(data_provider=provider)).get_plugin_apps()
    answer = Client(apps[f"/{route}"]).get(f"/{route}", query_string=BIASED | {"step": "4"})
    assert Client(apps["/view.js"]).get("/view.js").status_code == 200
    return answer


@pytest.mark.parametrize(
    ("route", "error", "code"),
    [
        ("runs", errors.NotFoundError("no experiment"), 404),
        ("timeline", errors.NotFoundError("no experiment"), 404),
        ("look", errors.PermissionDeniedError("not yours"), 403),
        ("swaps", errors.UnauthenticatedError("who are you", challenge='Basic realm="logs"'), 401),
    ],
)
def test_what_tensorboard_cannot_read_is_said_in_its_words(route: str, error: errors.PublicError, code: int) -> None:
    answer = answer_of(Unwell(error), route)
    assert answer.status_code == code
    assert answer.headers.get("WWW-Authenticate") == dict(error.headers).get("WWW-Authenticate")
    assert answer.json == {"error": str(error)}


@pytest.mark.parametrize("route", ["runs", "timeline", "look", "swaps"])
def test_an_unexpected_error_is_told_to_the_terminal_and_ends_no_server(
    route: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = answer_of(Unwell(OSError("/home/me/logs is gone")), route)
    assert answer.status_code == 500
    assert answer.json == {"error": "this could not be read; the terminal of TensorBoard says why"}
    assert f"could not answer /{route}" in caplog.text
    assert "OSError: /home/me/logs is gone" in caplog.text
