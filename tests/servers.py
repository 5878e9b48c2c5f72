"""A real TensorBoard in a process of its own, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

_PATIENCE = 300
"""Seconds; machines may be busy."""


@dataclass(frozen=True)
class Answer:
    code: int
    kind: str
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A TensorBoard that runs."""

    address: str

    def get(self, path: str, method: str = "GET", **arguments: Any) -> Answer:
        query = f"?{urlencode(arguments)}" if arguments else ""
        try:
            with urlopen(Request(f"{self.address}{path}{query}", method=method)) as answer:
                return Answer(answer.status, answer.headers.get_content_type(), answer.read(), answer.headers)
        except HTTPError as error:
            with error:
                return Answer(error.code, error.headers.get_content_type(), error.read(), error.headers)

    def ours(self, route: str, method: str = "GET", **arguments: Any) -> Answer:
        return self.get(f"/data/plugin/cam_callbacks/{route}", method, **arguments)

    def tab(self) -> dict[str, Any]:
        """What TensorBoard says of our tab; empty if it does not know it."""
        return dict(self.get("/data/plugins_listing").json.get("cam_callbacks", {}))


@contextmanager
def serving(logdir: Path, *flags: str, command: Sequence[str] = ("-m", "tensorboard.main")) -> Iterator[Server]:
    """TensorBoard on a log folder, in a process of its own, at a port that is free."""
    arguments = ["--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0", *flags]
    process = subprocess.Popen([sys.executable, *command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "http://" in line:
                yield Server(next(word for word in line.split() if word.startswith("http://")).rstrip("/"))
                break
        else:
            raise AssertionError("TensorBoard has not started:\n" + "".join(said))
    finally:
        process.terminate()
        process.communicate()


def read_in(server: Server, runs: int, last: int) -> Server:
    """The server, once it has read so many runs, each to the end of the look at step `last`."""
    until = time.monotonic() + _PATIENCE
    while not _has_read(server, runs, last):
        assert time.monotonic() < until, f"TensorBoard has not read {runs} runs to step {last}"
        time.sleep(0.1)
    return server


def _has_read(server: Server, runs: int, last: int) -> bool:
    found = server.ours("runs").json["runs"]
    if len(found) < runs:
        return False
    timelines = [server.ours("timeline", run=each["run"], monitor="cam").json for each in found]
    looks = [timeline["looks"][-1:] for timeline in timelines]
    return all(look and look[0]["step"] == last and look[0]["audit"] for look in looks)
