"""From blobs to the JSON of the tab: what is whole is shown, what is broken is left out, nothing fails."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cam_callbacks.review import reader, schema
from cam_callbacks.review.event_files import FileSeries


def png(value: int, size: int = 2) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def longer(png: bytes) -> bytes:
    """The picture, but its last chunk says that it has nine bytes of content; it has none, and nothing follows."""
    return png[:-12] + (9).to_bytes(4, "big") + png[-8:]


def look_json(*channels: int, rival: dict[str, Any] | None = None) -> dict[str, Any]:
    """A look at probes with so many channels each, as an earlier version wrote it if there is no rival."""
    known = {} if rival is None else {"rival": rival}
    probes = [{"channels": [[index, 0.5] for index in range(count)], **known} for count in channels]
    return {"epoch": 1, "probes": probes}


def series(**blobs: bytes | dict[str, Any] | None) -> FileSeries:
    """Looks at the steps 0 and 10, two probes with two channels and one; blobs replace those of step 10."""
    made = FileSeries()
    whole: dict[str, bytes | dict[str, Any] | None] = {
        schema.TAB_MAPS: png(1) + png(2),
        schema.TAB_CHANNELS: png(3) + png(4) + png(5),
        schema.TAB_PROBES: look_json(2, 1),
        schema.TAB_AUDIT: {"gap": "bg_gap"},
        schema.TAB_SWAPS: png(6),
    }
    made.add(schema.TAB_PHOTOS, 0, 100.0, png(8) + png(9))
    made.add(schema.TAB_SETTINGS, 0, 100.0, b'{"version": "0.1.0"}')
    for step, parts in ((0, whole), (10, whole | blobs)):
        for record, blob in parts.items():
            if blob is not None:
                made.add(record, step, 100.0 + step, blob if isinstance(blob, bytes) else json.dumps(blob).encode())
    return made


def without_words(look: dict[str, Any]) -> dict[str, Any]:
    """A look of the timeline without what is said of the task of its audit."""
    audit = look["audit"] and {name: part for name, part in look["audit"].items() if name != "words"}
    return {**look, "audit": audit}


def steps(found: FileSeries) -> list[int]:
    return [look["step"] for look in reader.timeline("run", "cam", found)["looks"]]


def test_what_is_whole_is_shown() -> None:
    timeline = reader.timeline("run", "cam", series())
    assert timeline["settings"] == {"version": "0.1.0"}
    assert len(timeline["photos"]) == 2
    assert [without_words(look) for look in timeline["looks"]] == [
        {"step": step, "epoch": 1, "wall_time": 100.0 + step, "heatmaps": True, "audit": {"gap": "bg_gap"}}
        for step in (0, 10)
    ]
    look = reader.look(series(), 10)
    assert (look["step"], len(look["maps"]), [len(each) for each in look["channels"]]) == (10, 2, [2, 1])
    assert len({*look["maps"], *look["channels"][0], *look["channels"][1]}) == 5
    assert reader.swaps(series(), 10)["swaps"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("record", [schema.TAB_MAPS, schema.TAB_CHANNELS, schema.TAB_PROBES])
def test_a_look_of_which_a_part_is_missing_is_left_out(record: str) -> None:
    found = series(**{record: None, schema.TAB_AUDIT: None})
    assert steps(found) == [0]
    with pytest.raises(reader.RecordNotFoundError):
        reader.look(found, 10)


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"probes": 3}', b'{"probes": [3]}', b'{"probes": [{}]}']
)
def test_a_look_whose_numbers_are_broken_is_left_out(broken: bytes) -> None:
    found = series(**{schema.TAB_PROBES: broken, schema.TAB_AUDIT: None})
    assert steps(found) == [0]
    with pytest.raises(reader.RecordNotFoundError):
        reader.look(found, 10)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({schema.TAB_PROBES: None, schema.TAB_AUDIT: {"no_heatmaps": "It has no layers."}}, "It has no layers."),
        ({schema.TAB_AUDIT: {"no_heatmaps": "It has no layers."}}, "It has no layers."),  # maps of an earlier run
        ({schema.TAB_PROBES: None}, "No heatmaps were recorded at this look."),
        ({schema.TAB_PROBES: b"{"}, "The heatmaps of this look are incomplete or damaged, and not shown."),
        ({schema.TAB_MAPS: None}, "The heatmaps of this look are incomplete or damaged, and not shown."),
        ({schema.TAB_MAPS: b"GIF89a"}, "The heatmaps of this look are incomplete or damaged, and not shown."),
    ],
)
def test_a_look_with_an_audit_alone_says_why_it_has_no_heatmaps(parts: dict[str, Any], why: str) -> None:
    found = series(**parts)
    assert steps(found) == [0, 10]
    shown = reader.look(found, 10)
    assert (shown["step"], shown["probes"], shown["maps"], shown["no_heatmaps"]) == (10, [], [], why)
    assert "no_heatmaps" not in reader.look(found, 0)
    assert reader.timeline("run", "cam", found)["looks"][0]["heatmaps"]
    assert reader.swaps(found, 10)["swaps"].startswith("data:image/png")


def test_a_run_of_audits_alone_has_a_timeline() -> None:
    found = FileSeries()
    for step in (0, 10):
        found.add(schema.TAB_AUDIT, step, 100.0 + step, b'{"epoch": 2, "gap": "bg_gap", "task": "embedding"}')
    looks = reader.timeline("run", "cam", found)["looks"]
    assert [(look["step"], look["epoch"], look["heatmaps"]) for look in looks] == [(0, 2, False), (10, 2, False)]
    assert "nearest" in looks[0]["audit"]["words"]["lost"]


@pytest.mark.parametrize("task", [{}, {"task": "of a later version"}, {"task": 3}, {"task": ["embedding"]}])
def test_an_audit_of_no_known_task_is_told_in_the_words_of_classes(task: dict[str, Any]) -> None:
    looks = reader.timeline("run", "cam", series(**{schema.TAB_AUDIT: {"gap": "bg_gap", **task}}))["looks"]
    assert looks[1]["audit"]["words"] == looks[0]["audit"]["words"]
    assert looks[1]["audit"]["words"]["one"] == "class"


@pytest.mark.parametrize("record", [schema.TAB_MAPS, schema.TAB_CHANNELS])
@pytest.mark.parametrize(
    "broken",
    [
        b"",
        png(1),
        png(1) * 9,
        png(1) + png(2)[:-1],
        png(1) + png(2)[:30],
        png(1) + longer(png(2)),
        b"GIF89a",
        png(1) + b"<svg>",
    ],
)
def test_a_look_whose_pictures_are_broken_is_not_shown(record: str, broken: bytes) -> None:
    with pytest.raises(reader.RecordNotFoundError):
        reader.look(series(**{record: broken, schema.TAB_AUDIT: None}), 10)


def test_probes_without_channels_need_none() -> None:
    look = reader.look(series(**{schema.TAB_PROBES: look_json(0, 0), schema.TAB_CHANNELS: None}), 10)
    assert look["channels"] == [[], []]


def test_maps_of_rivals_stand_beside_the_others_where_there_are_any() -> None:
    numbers = look_json(2, 1, rival={"label": 1, "probability": 0.1, "blank": False, "skipped": False})
    found = series(**{schema.TAB_PROBES: numbers, schema.TAB_RIVALS: png(7) + png(8)})
    assert reader.look(found, 0)["rivals"] == []
    assert len({*reader.look(found, 10)["rivals"], *reader.look(found, 10)["maps"]}) == 4
    for broken in (None, b"", png(7), png(7) * 3):
        parts = {schema.TAB_PROBES: numbers, schema.TAB_RIVALS: broken, schema.TAB_AUDIT: None}
        with pytest.raises(reader.RecordNotFoundError):
            reader.look(series(**parts), 10)


@pytest.mark.parametrize("broken", [None, b"", b"nothing", png(1)[:-1]])
def test_swaps_that_are_missing_or_broken_are_none(broken: bytes | None) -> None:
    assert reader.swaps(series(**{schema.TAB_SWAPS: broken}), 10) == {"swaps": None}


@pytest.mark.parametrize("broken", [None, b"{", b"3"])
def test_an_audit_that_is_missing_or_broken_is_none(broken: bytes | None) -> None:
    looks = reader.timeline("run", "cam", series(**{schema.TAB_AUDIT: broken}))["looks"]
    assert [without_words(look)["audit"] for look in looks] == [{"gap": "bg_gap"}, None]


def test_numbers_that_json_does_not_have_are_null() -> None:
    found = series(**{schema.TAB_AUDIT: b'{"gap": NaN, "threshold": -Infinity}'})
    (_, look) = reader.timeline("run", "cam", found)["looks"]
    assert without_words(look)["audit"] == {"gap": None, "threshold": None}


def test_photos_and_settings_that_are_broken_are_left_out() -> None:
    found = series()
    found.add(schema.TAB_PHOTOS, 5, 200.0, b"?")
    found.add(schema.TAB_SETTINGS, 5, 200.0, b"?")
    timeline = reader.timeline("run", "cam", found)
    assert (timeline["photos"], timeline["settings"]) == ([], None)


def test_looks_whose_settings_were_not_recorded_are_shown_without_them() -> None:
    found = series()
    del found.found[schema.TAB_SETTINGS]
    assert reader.timeline("run", "cam", found)["settings"] is None
    assert steps(found) == [0, 10]


def test_a_look_at_other_probes_than_the_latest_brings_its_own_photos() -> None:
    found = series()
    found.add(schema.TAB_PHOTOS, 10, 200.0, png(10) + png(11))
    latest = reader.timeline("run", "cam", found)["photos"]
    assert "photos" not in reader.look(found, 10)
    own = reader.look(found, 0)["photos"]
    assert len(own) == 2
    assert own != latest


def test_photos_that_are_written_again_after_a_resume_are_the_same() -> None:
    found = series()
    found.add(schema.TAB_PHOTOS, 10, 200.0, png(8) + png(9))
    assert "photos" not in reader.look(found, 0)


@pytest.mark.parametrize("ask", [reader.look, reader.swaps])
def test_a_step_without_a_look_is_not_recorded(ask: Any) -> None:
    with pytest.raises(reader.RecordNotFoundError, match="7"):
        ask(series(), 7)


def test_monitors_are_those_with_looks() -> None:
    tags = ["cam_test/tab_probes", "cam/tab_probes", "cam/tab_maps", "other/tab_maps", "tab_probes", "val/loss"]
    assert reader.monitors(tags) == ["cam", "cam_test"]
    assert reader.monitors(["audited/tab_audit", "cam/tab_audit", *tags]) == ["audited", "cam", "cam_test"]
