"""What a monitor has recorded for the tab, from blobs to the JSON that the tab and the report show.

Standard library and `records` only.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from cam_callbacks.review import schema

_PNG = b"\x89PNG\r\n\x1a\n"


class RecordNotFoundError(LookupError):
    """What is asked for is not there, or not whole."""


class Series(Protocol):
    """The blobs that one monitor has recorded in one run."""

    def steps(self, record: str) -> Mapping[int, float]:
        """The steps of a record of `cam_callbacks.tags`, with their wall times; empty if it is not there."""

    def blob(self, record: str, step: int) -> bytes:
        """The blob of one of these steps."""


def monitors(tags: Iterable[str]) -> list[str]:
    """The monitors whose looks are among the tags of a run: `["cam", "cam_test"]`."""
    ending = f"/{schema.TAB_PROBES}"
    return sorted({tag.removesuffix(ending) for tag in tags if tag.endswith(ending)})


def timeline(run: str, monitor: str, series: Series) -> dict[str, Any]:
    """The looks of a monitor, without their heatmaps.

    Returns:
        `{"run", "monitor", "settings": {...} or None, "photos": [data URI, ...], "looks": [{"step", "epoch",
        "wall_time", "audit": {...} or None}, ...]}`: the latest settings and photos, the looks by step. Looks of which
        a part is missing or broken are left out.
    """
    looks = []
    probes, audits = series.steps(schema.TAB_PROBES), series.steps(schema.TAB_AUDIT)
    for step in sorted(probes):
        try:
            found = _look_json(series, step)
        except RecordNotFoundError:
            continue
        looks.append(
            {
                "step": step,
                "epoch": found.get("epoch"),
                "wall_time": probes[step],
                "audit": _audit(series, step) if step in audits else None,
            }
        )
    try:
        settings = _latest_json(series, schema.TAB_SETTINGS)
    except RecordNotFoundError:
        settings = None
    return {
        "run": run,
        "monitor": monitor,
        "settings": settings,
        "photos": [_data_uri(png) for png in _photos_at(series, None)],
        "looks": looks,
    }


def look(series: Series, step: int) -> dict[str, Any]:
    """One look.

    Returns:
        What `schema.TAB_PROBES` describes, with `"step"`, `"maps"`: [data URI, ...] and `"channels"`: [[data URI, ...]
        a probe]. Where the probes are not those of the latest photos also `"photos"`: [data URI, ...], its own.

    Raises:
        RecordNotFoundError: No such step, or a part of it is missing or broken.
    """
    found = _look_json(series, step)
    counts = [len(probe["channels"]) for probe in found["probes"]]
    maps = _split(_blob(series, schema.TAB_MAPS, step))
    channels = _split(_blob(series, schema.TAB_CHANNELS, step)) if any(counts) else []
    if len(maps) != len(counts) or len(channels) != sum(counts):
        raise RecordNotFoundError(f"the look at step {step} is not whole")
    following = iter([_data_uri(png) for png in channels])
    shown = found | {
        "step": step,
        "maps": [_data_uri(png) for png in maps],
        "channels": [[next(following) for _ in range(count)] for count in counts],
    }
    photos = _photos_at(series, step)
    if photos != _photos_at(series, None):
        shown["photos"] = [_data_uri(png) for png in photos]
    return shown


def swaps(series: Series, step: int) -> dict[str, Any]:
    """`{"swaps": data URI or None}`: the picture of exchanged backgrounds, if the look has one.

    Raises:
        RecordNotFoundError: No look at this step.
    """
    if step not in series.steps(schema.TAB_PROBES):
        raise RecordNotFoundError(f"there is no look at step {step}")
    try:
        (png,) = _split(_blob(series, schema.TAB_SWAPS, step))
    except (RecordNotFoundError, ValueError):
        return {"swaps": None}
    return {"swaps": _data_uri(png)}


def _look_json(series: Series, step: int) -> dict[str, Any]:
    """The JSON of a look, if all its records are there."""
    found = _json(series, schema.TAB_PROBES, step)
    probes = found.get("probes")
    if not isinstance(probes, list) or not all(
        isinstance(probe, dict) and isinstance(probe.get("channels"), list) for probe in probes
    ):
        raise RecordNotFoundError(f"the look at step {step} is not understood")
    needed = [schema.TAB_MAPS, *([schema.TAB_CHANNELS] if any(probe["channels"] for probe in probes) else [])]
    for record in needed:
        if step not in series.steps(record):
            raise RecordNotFoundError(f"the look at step {step} has no {record}")
    return found


def _audit(series: Series, step: int) -> dict[str, Any] | None:
    try:
        return _json(series, schema.TAB_AUDIT, step)
    except RecordNotFoundError:
        return None


def _latest_json(series: Series, record: str) -> dict[str, Any]:
    steps = series.steps(record)
    if not steps:
        raise RecordNotFoundError(f"there is no {record}")
    return _json(series, record, max(steps))


def _photos_at(series: Series, step: int | None) -> list[bytes]:
    """The photos of the probes at a step, by default of the latest; none if they are missing or broken."""
    before = [each for each in series.steps(schema.TAB_PHOTOS) if step is None or each <= step]
    try:
        return _split(_blob(series, schema.TAB_PHOTOS, max(before))) if before else []
    except RecordNotFoundError:
        return []


def _json(series: Series, record: str, step: int) -> dict[str, Any]:
    blob = _blob(series, record, step)
    try:
        found = json.loads(blob, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise RecordNotFoundError(f"{record} of step {step} is not JSON") from error
    if not isinstance(found, dict):
        raise RecordNotFoundError(f"{record} of step {step} is not understood")
    return found


def _blob(series: Series, record: str, step: int) -> bytes:
    if step not in series.steps(record):
        raise RecordNotFoundError(f"there is no {record} at step {step}")
    return series.blob(record, step)


def _split(blob: bytes) -> list[bytes]:
    """PNGs that lie one behind the other; each is a signature and chunks, the last of them called IEND."""
    pngs, start = [], 0
    while start < len(blob):
        at, kind = start + len(_PNG), b""
        if blob[start:at] != _PNG:
            raise RecordNotFoundError("a picture is not PNG")
        while kind != b"IEND":
            if at + 12 > len(blob):
                raise RecordNotFoundError("a picture is cut off")
            (length,) = struct.unpack_from(">I", blob, at)
            kind = blob[at + 4 : at + 8]
            at += length + 12  # length, kind, content, checksum
        if at > len(blob):
            raise RecordNotFoundError("a picture is cut off")
        pngs.append(blob[start:at])
        start = at
    return pngs


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
