"""The server's side of the CAM tab: what was recorded, read through TensorBoard's data provider, as JSON."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from cam_callbacks import tags
from cam_callbacks.review import reader, schema

_STATIC = Path(__file__).parent / "page"
_KINDS = {".js": "text/javascript", ".css": "text/css"}
_BYTES_KEPT = 256 * 2**20
_READERS = 8
_SECONDS_KEPT = 1.0
_ALL = 10**9  # TensorBoard wants to know how many steps at most

_Found = dict[str, dict[int, tuple[float, str]]]  # by record and step: wall time, and the key of the blob

_log = logging.getLogger(__name__)


class CAMPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the pages of the tab, and `/runs`, `/timeline`, `/look`, `/swaps`; see `cam_callbacks.review.reader`.

    Args:
        context: TensorBoard's.

    Raises:
        OSError: The folder of the tab's files is missing.
        ValueError: TensorBoard has no data provider.
    """

    plugin_name = schema.PLUGIN

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        if context.data_provider is None:
            raise ValueError("this TensorBoard has no data provider")
        self._provider = context.data_provider
        self._files = {file.name: file.read_bytes() for file in _STATIC.iterdir() if file.suffix in _KINDS}
        self._kept = _ByteCache(_BYTES_KEPT)
        self._found: dict[tuple[str, str, str], tuple[float, _Found]] = {}
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=schema.PLUGIN)

    def is_active(self) -> bool:
        """TensorBoard itself shows the tab where there is data of this plugin's name; it asks here only if not."""
        return False

    def frontend_metadata(self) -> Any:
        """The name of the tab, and the module that draws it."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="CAM")

    def get_plugin_apps(self) -> dict[str, Any]:
        """The routes."""
        return {
            **{f"/{name}": self._route(self._file(name)) for name in self._files},
            "/runs": self._route(self._runs),
            "/timeline": self._route(self._timeline),
            "/look": self._route(self._look),
            "/swaps": self._route(self._swaps),
        }

    def _route(self, answer: Callable[[wrappers.Request], wrappers.Response]) -> Any:
        """Answer GET; turn whatever goes wrong into JSON."""

        def guarded(request: wrappers.Request) -> wrappers.Response:
            if request.method != "GET":
                return _refusal(request, 405, "only GET is answered", [("Allow", "GET")])
            try:
                return answer(request)
            except _BadRequestError as error:
                return _refusal(request, 400, str(error))
            except reader.RecordNotFoundError as error:
                return _refusal(request, 404, str(error))
            except errors.PublicError as error:
                return _refusal(request, error.http_code, str(error), error.headers)
            except Exception:
                _log.exception("The CAM tab could not answer %s", request.path)
                return _refusal(request, 500, "this could not be read; the terminal of TensorBoard says why")

        return wrappers.Request.application(guarded)

    def _file(self, name: str) -> Callable[[wrappers.Request], wrappers.Response]:
        return lambda request: http_util.Respond(request, self._files[name], _KINDS[Path(name).suffix])

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        found = self._provider.list_blob_sequences(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=schema.PLUGIN,
        )
        monitors = {run: reader.monitors(of_run) for run, of_run in found.items()}
        runs = [{"run": run, "monitors": names} for run, names in sorted(monitors.items()) if names]
        return _json(request, {"runs": runs})

    def _timeline(self, request: wrappers.Request) -> wrappers.Response:
        series = self._series(request)
        _, run, monitor = series.place
        state = series.state()
        if request.args.get("known") == state:
            return _json(request, {"unchanged": True})

        def packed() -> bytes:
            series.fetch(self._readers, [schema.TAB_PROBES, schema.TAB_AUDIT])
            timeline = reader.timeline(run, monitor, series) | {"state": state}
            return gzip.compress(_dumped(timeline), compresslevel=1)

        content = self._kept.get((*series.place, "timeline", state), packed)
        response: wrappers.Response = http_util.Respond(request, content, "application/json", content_encoding="gzip")
        return response

    def _look(self, request: wrappers.Request) -> wrappers.Response:
        series, step = self._series(request), _step(request)
        series.fetch(self._readers, [schema.TAB_PROBES, schema.TAB_MAPS, schema.TAB_CHANNELS], step)
        return _json(request, reader.look(series, step))

    def _swaps(self, request: wrappers.Request) -> wrappers.Response:
        return _json(request, reader.swaps(self._series(request), _step(request)))

    def _series(self, request: wrappers.Request) -> _Series:
        """What is recorded under the run and the monitor of a request; asked for anew every second at most."""
        run, monitor = _argument(request, "run"), _argument(request, "monitor")
        place = (plugin_util.experiment_id(request.environ), run, monitor)
        context = plugin_util.context(request.environ)
        asked, found = self._found.get(place, (-_SECONDS_KEPT, {}))
        if time.monotonic() - asked >= _SECONDS_KEPT:
            found = _find(self._provider, context, *place)
            self._found[place] = (time.monotonic(), found)
        return _Series(found, place, lambda key: bytes(self._provider.read_blob(context, blob_key=key)), self._kept)


class _BadRequestError(ValueError):
    """An argument that is missing or not understood."""


class _ByteCache:
    """What was read or made last, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._size = most_bytes, 0
        self._blobs: OrderedDict[Any, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """What is kept under a key; made if there is nothing."""
        with self._lock:
            if key in self._blobs:
                self._blobs.move_to_end(key)
                return self._blobs[key]
        made = make()
        with self._lock:
            if key not in self._blobs:
                self._blobs[key] = made
                self._size += len(made)
            while self._size > self._most:
                _, oldest = self._blobs.popitem(last=False)
                self._size -= len(oldest)
        return made


def _find(data: Any, context: Any, experiment: str, run: str, monitor: str) -> _Found:
    """The steps of all records of a monitor in a run.

    Raises:
        RecordNotFoundError: There are none.
    """
    recorded = {tags.tag(monitor, record): record for record in schema.RECORDS}
    found = data.read_blob_sequences(
        context,
        experiment_id=experiment,
        plugin_name=schema.PLUGIN,
        downsample=_ALL,
        run_tag_filter=provider.RunTagFilter(runs=[run], tags=list(recorded)),
    ).get(run)
    if not found:
        raise reader.RecordNotFoundError(f"there is no monitor {monitor!r} in a run {run!r}")
    return {
        recorded[tag]: {datum.step: (datum.wall_time, datum.values[0].blob_key) for datum in series if datum.values}
        for tag, series in found.items()
    }


class _Series:
    """What one monitor has recorded in one run, as a `reader.Series`.

    Args:
        found: Its records.
        place: Experiment, run and monitor.
        read: From the key of a blob to the blob.
        kept: Where blobs are kept.
    """

    def __init__(
        self, found: _Found, place: tuple[str, str, str], read: Callable[[str], bytes], kept: _ByteCache
    ) -> None:
        self.place = place
        self._found, self._read, self._kept = found, read, kept

    def steps(self, record: str) -> Mapping[int, float]:
        return {step: wall_time for step, (wall_time, _) in self._found.get(record, {}).items()}

    def blob(self, record: str, step: int) -> bytes:
        wall_time, key = self._found[record][step]
        return self._kept.get((*self.place, record, step, wall_time), lambda: self._read(key))

    def fetch(self, readers: Executor, names: Iterable[str], step: int | None = None) -> None:
        """Read records side by side, to be kept: one after the other, each would wait for the network.

        Args:
            readers: Who read.
            names: Of the records.
            step: Of this step only; None for all.
        """
        wanted = [(name, each) for name in names for each in self.steps(name) if step in (None, each)]
        list(readers.map(self.blob, *zip(*wanted, strict=True)) if wanted else ())

    def state(self) -> str:
        """A hash that changes with whatever is recorded."""
        steps = [(record, *sorted(self.steps(record).items())) for record in schema.RECORDS]
        return hashlib.sha256(repr(steps).encode()).hexdigest()[:16]


def _argument(request: wrappers.Request, name: str) -> str:
    value = request.args.get(name)
    if not value:
        raise _BadRequestError(f"the argument {name} is missing")
    return value


def _step(request: wrappers.Request) -> int:
    value = _argument(request, "step")
    if not re.fullmatch("[0-9]{1,18}", value):
        raise _BadRequestError(f"step={value!r} is not a step: a whole number, 0 or more")
    return int(value)


def _dumped(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _json(request: wrappers.Request, content: Mapping[str, Any], code: int = 200) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, _dumped(content), "application/json", code=code)
    return response


def _refusal(
    request: wrappers.Request, code: int, why: str, headers: Sequence[tuple[str, str]] = ()
) -> wrappers.Response:
    response = _json(request, {"error": why}, code)
    response.headers.extend(headers)
    return response
