"""The server's side of the CAM tab: TensorBoard's routes to what was recorded, as JSON."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from cam_callbacks.review import reader, schema
from cam_callbacks.review.glossary import terms
from cam_callbacks.review.provider_series import Place, ProviderReader, ProviderSeries

_PAGE = Path(__file__).parent / "page"
_MIME_TYPES = {".js": "text/javascript", ".css": "text/css"}

_log = logging.getLogger(__name__)


class CAMPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """Serves the files of the tab, the glossary, and what was recorded: runs, timelines, looks and swaps.

    Args:
        context: TensorBoard's.

    Raises:
        OSError: The folder with the files of the tab is missing.
        ValueError: TensorBoard has no data provider.
    """

    plugin_name = schema.PLUGIN

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        if context.data_provider is None:
            raise ValueError("this TensorBoard has no data provider")
        self._records = ProviderReader(context.data_provider)
        self._files = {file.name: file.read_bytes() for file in _PAGE.iterdir() if file.suffix in _MIME_TYPES}

    def is_active(self) -> bool:
        """Return False: TensorBoard shows the tab where there is data of this plugin, and asks here only if not."""
        return False

    def frontend_metadata(self) -> Any:
        """Return the name of the tab, and the module that draws it."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="CAM")

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the routes."""
        return {
            **{f"/{name}": self._route(self._file(name)) for name in self._files},
            "/glossary": self._route(lambda request: _json(request, {"terms": terms()})),
            "/runs": self._route(self._runs),
            "/timeline": self._route(self._timeline),
            "/look": self._route(self._look),
            "/swaps": self._route(self._swaps),
        }

    def _route(self, answer: Callable[[wrappers.Request], wrappers.Response]) -> Any:
        """Answer GET requests; turn errors into JSON."""

        def guarded(request: wrappers.Request) -> wrappers.Response:
            if request.method != "GET":
                return _refusal(request, 405, "only GET is supported", [("Allow", "GET")])
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
        return lambda request: http_util.Respond(request, self._files[name], _MIME_TYPES[Path(name).suffix])

    def _runs(self, request: wrappers.Request) -> wrappers.Response:
        experiment = plugin_util.experiment_id(request.environ)
        found = self._records.tags(plugin_util.context(request.environ), experiment)
        monitors = {run: reader.monitors(tags) for run, tags in found.items()}
        return _json(request, {"runs": [{"run": run, "monitors": of} for run, of in sorted(monitors.items()) if of]})

    def _timeline(self, request: wrappers.Request) -> wrappers.Response:
        series = self._series(request)
        state = series.state()
        if request.args.get("known") == state:
            return _json(request, {"unchanged": True})

        def packed() -> bytes:
            series.fetch([schema.TAB_PROBES, schema.TAB_AUDIT])
            timeline = reader.timeline(series.place.run, series.place.monitor, series)
            return gzip.compress(_dumped({**timeline, "state": state}), compresslevel=1)

        content = series.cached("timeline", packed)
        response: wrappers.Response = http_util.Respond(request, content, "application/json", content_encoding="gzip")
        return response

    def _look(self, request: wrappers.Request) -> wrappers.Response:
        series, step = self._series(request), _step(request)
        parts = [schema.TAB_PROBES, schema.TAB_MAPS, schema.TAB_RIVALS, schema.TAB_CHANNELS, schema.TAB_AUDIT]
        series.fetch(parts, step)
        return _json(request, reader.look(series, step))

    def _swaps(self, request: wrappers.Request) -> wrappers.Response:
        return _json(request, reader.swaps(self._series(request), _step(request)))

    def _series(self, request: wrappers.Request) -> ProviderSeries:
        run, monitor = _argument(request, "run"), _argument(request, "monitor")
        place = Place(plugin_util.experiment_id(request.environ), run, monitor)
        return self._records.series(plugin_util.context(request.environ), place)


class _BadRequestError(ValueError):
    """An argument that is missing or not understood."""


def _argument(request: wrappers.Request, name: str) -> str:
    value = request.args.get(name)
    if not value:
        raise _BadRequestError(f"the argument {name} is missing")
    return value


def _step(request: wrappers.Request) -> int:
    value = _argument(request, "step")
    if not re.fullmatch("[0-9]{1,18}", value):
        raise _BadRequestError(f"step={value!r} must be a whole number of at least 0")
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
