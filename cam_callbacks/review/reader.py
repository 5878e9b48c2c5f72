"""Read what a monitor has recorded: from blobs to the JSON that the tab and the report show.

The standard library, `schema` and the words of each task only: the tab works without torch.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol, cast

from cam_callbacks.audit.words import TASKS, words_of
from cam_callbacks.review import schema
from cam_callbacks.review.schema import (
    LookJson,
    SettingsJson,
    ShownAuditJson,
    ShownLookJson,
    SwapsJson,
    TimelineJson,
    WordsJson,
)

_PNG = b"\x89PNG\r\n\x1a\n"
_NOT_RECORDED = "No heatmaps were recorded at this look."
_INCOMPLETE = "The heatmaps of this look are incomplete or damaged, and not shown."


class RecordNotFoundError(LookupError):
    """What was asked for is missing or incomplete."""


class Series(Protocol):
    """The blobs that one monitor has recorded in one run."""

    def steps(self, record: str) -> Mapping[int, float]:
        """Return the steps of a record of `schema`, with their wall times; empty if it is missing."""

    def blob(self, record: str, step: int) -> bytes:
        """Return the blob of one of these steps."""


def monitors(tags: Iterable[str]) -> list[str]:
    """Return the monitors whose looks are among the tags of a run: `["cam", "cam_test"]`."""
    endings = [f"/{record}" for record in (schema.TAB_PROBES, schema.TAB_AUDIT)]
    return sorted({tag.removesuffix(ending) for tag in tags for ending in endings if tag.endswith(ending)})


def timeline(run: str, monitor: str, series: Series) -> TimelineJson:
    """Return the looks of a monitor, without their heatmaps.

    A look whose heatmaps are missing or broken is there for its audit; without one it is left out.
    """
    looks = []
    for step, wall_time in sorted(_looks(series).items()):
        audit = _audit(series, step)
        found: Mapping[str, Any] | None = audit
        heatmaps = False
        if not _said_not_to_have_heatmaps(audit):
            with suppress(RecordNotFoundError):
                found, heatmaps = _look(series, step), True
        if found is None:
            continue
        looks.append(
            schema.TimelineLookJson(
                step=step, epoch=found.get("epoch"), wall_time=wall_time, heatmaps=heatmaps, audit=audit
            )
        )
    return TimelineJson(
        run=run,
        monitor=monitor,
        settings=_latest_settings(series),
        photos=[_data_uri(png) for png in _photos(series, None)],
        looks=looks,
    )


def look(series: Series, step: int) -> ShownLookJson:
    """Return one look with its pictures; one that has an audit only, or whose heatmaps are broken, has no probes.

    Raises:
        RecordNotFoundError: There is no such step, or a part of it is missing or broken and it has no audit.
    """
    audit = _audit(series, step)
    why = _said_not_to_have_heatmaps(audit)
    if not why:
        try:
            return _look_with_pictures(series, step)
        except RecordNotFoundError:
            if audit is None:
                raise
            why = _INCOMPLETE if step in series.steps(schema.TAB_PROBES) else _NOT_RECORDED
    assert audit is not None
    return _look_without_heatmaps(step, audit, why)


def _said_not_to_have_heatmaps(audit: ShownAuditJson | None) -> str:
    """Return why a look has no heatmaps, as its audit says; any that are there are of an earlier run."""
    return "" if audit is None else audit.get("no_heatmaps", "")


def _looks(series: Series) -> dict[int, float]:
    """Return the steps of all looks, with heatmaps or with an audit, and their wall times."""
    return {**series.steps(schema.TAB_AUDIT), **series.steps(schema.TAB_PROBES)}


def _look_without_heatmaps(step: int, audit: ShownAuditJson, why: str) -> ShownLookJson:
    return ShownLookJson(
        step=step,
        epoch=audit.get("epoch"),
        layer="",
        signals=False,
        coarse="",
        method="",
        score="",
        class_names=None,
        seconds=None,
        passes=0,
        probes=[],
        maps=[],
        rivals=[],
        channels=[],
        no_heatmaps=why,
    )


def _look_with_pictures(series: Series, step: int) -> ShownLookJson:
    found = _look(series, step)
    counts = [len(probe["channels"]) for probe in found["probes"]]
    maps = _split(_blob(series, schema.TAB_MAPS, step))
    has_rivals = _has_rivals(found)
    rivals = _split(_blob(series, schema.TAB_RIVALS, step)) if has_rivals else []
    channels = _split(_blob(series, schema.TAB_CHANNELS, step)) if any(counts) else []
    wanted = (len(counts), len(counts) if has_rivals else 0, sum(counts))
    if tuple(map(len, (maps, rivals, channels))) != wanted:
        raise RecordNotFoundError(f"the look at step {step} is incomplete")
    following = iter([_data_uri(png) for png in channels])
    pictures = {
        "step": step,
        "maps": [_data_uri(png) for png in maps],
        "rivals": [_data_uri(png) for png in rivals],
        "channels": [[next(following) for _ in range(count)] for count in counts],
    }
    shown = cast(ShownLookJson, found | pictures)
    photos = _photos(series, step)
    if photos != _photos(series, None):
        shown["photos"] = [_data_uri(png) for png in photos]
    return shown


def swaps(series: Series, step: int) -> SwapsJson:
    """Return the picture of swapped backgrounds, if the look has one.

    Raises:
        RecordNotFoundError: There is no look at this step.
    """
    if step not in _looks(series):
        raise RecordNotFoundError(f"there is no look at step {step}")
    try:
        (png,) = _split(_blob(series, schema.TAB_SWAPS, step))
    except (RecordNotFoundError, ValueError):
        return {"swaps": None}
    return {"swaps": _data_uri(png)}


def _look(series: Series, step: int) -> LookJson:
    """Return the numbers of a look, if all its records are there."""
    found = _json(series, schema.TAB_PROBES, step)
    probes = found.get("probes")
    if not isinstance(probes, list) or not all(
        isinstance(probe, dict) and isinstance(probe.get("channels"), list) for probe in probes
    ):
        raise RecordNotFoundError(f"the look at step {step} is not understood")
    look = cast(LookJson, found)
    has_channels = any(probe["channels"] for probe in look["probes"])
    needed = {schema.TAB_MAPS: True, schema.TAB_RIVALS: _has_rivals(look), schema.TAB_CHANNELS: has_channels}
    for record, is_needed in needed.items():
        if is_needed and step not in series.steps(record):
            raise RecordNotFoundError(f"the look at step {step} has no {record}")
    return look


def _has_rivals(look: LookJson) -> bool:
    return any(probe.get("rival") for probe in look["probes"])


def _audit(series: Series, step: int) -> ShownAuditJson | None:
    """Return an audit with what is said of its task; None if there is none, or it is broken."""
    try:
        found = _json(series, schema.TAB_AUDIT, step)
    except RecordNotFoundError:
        return None
    words = words_of(found["task"] if found.get("task") in TASKS else TASKS[0])
    parts = {name: getattr(words, name) for name in WordsJson.__annotations__}
    return cast(ShownAuditJson, {**found, "words": parts})


def _latest_settings(series: Series) -> SettingsJson | None:
    steps = series.steps(schema.TAB_SETTINGS)
    try:
        return cast(SettingsJson, _json(series, schema.TAB_SETTINGS, max(steps))) if steps else None
    except RecordNotFoundError:
        return None


def _photos(series: Series, step: int | None) -> list[bytes]:
    """Return the photos of the probes at a step, or the latest; none if they are missing or broken."""
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
        raise RecordNotFoundError(f"{record} at step {step} is not JSON") from error
    if not isinstance(found, dict):
        raise RecordNotFoundError(f"{record} at step {step} is not understood")
    return found


def _blob(series: Series, record: str, step: int) -> bytes:
    if step not in series.steps(record):
        raise RecordNotFoundError(f"there is no {record} at step {step}")
    return series.blob(record, step)


def _split(blob: bytes) -> list[bytes]:
    """Split PNGs that follow each other; each is a signature and chunks, the last of which is called IEND."""
    pngs, start = [], 0
    while start < len(blob):
        at, kind = start + len(_PNG), b""
        if blob[start:at] != _PNG:
            raise RecordNotFoundError("a picture is not a PNG")
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
