"""Read what monitors have recorded from event files.

TensorBoard's own reader computes a checksum of every byte in Python, at some 3 MB a second; here only the lengths of
the messages are checked, and only our own messages are parsed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from cam_callbacks.review import schema

_HEADER, _FOOTER = 12, 4  # length and its checksum, before each message; checksum of the message, after it


class BrokenFileError(ValueError):
    """An event file cannot be read, or not to its end.

    Args:
        why: What is wrong with the file.
        partly: Whether something of ours was read before the broken place.
    """

    def __init__(self, why: str, partly: bool = False) -> None:
        super().__init__(f"{why}; everything before that was read" if partly else why)
        self.partly = partly


class _DamagedError(ValueError):
    """There is a place in an event file that cannot be read."""


@dataclass
class FileSeries:
    """What one monitor has recorded in one run, as a `cam_callbacks.review.reader.Series`.

    After a resume from an earlier step, what was written last counts, as in TensorBoard's fast reader: of several blobs
    for one step the last one; and of the training that was given up nothing after the step at which the other resumed.
    """

    found: dict[str, dict[int, tuple[float, bytes]]] = field(default_factory=dict)
    """Wall time and blob, by record and step."""

    def add(self, record: str, step: int, wall_time: float, blob: bytes) -> None:
        """Add a blob; the files of a run may be read in any order."""
        of_record = self.found.setdefault(record, {})
        if any(each < step and written > wall_time for each, (written, _) in of_record.items()):
            return
        for later in [each for each, (written, _) in of_record.items() if each > step and written <= wall_time]:
            del of_record[later]
        if step not in of_record or of_record[step][0] <= wall_time:
            of_record[step] = (wall_time, blob)

    def steps(self, record: str) -> Mapping[int, float]:
        """Return what `Series.steps` promises."""
        return {step: wall_time for step, (wall_time, _) in self.found.get(record, {}).items()}

    def blob(self, record: str, step: int) -> bytes:
        """Return what `Series.blob` promises."""
        return self.found[record][step][1]


def read(path: Path, into: dict[str, FileSeries]) -> Iterator[int]:
    """Read an event file, and yield the number of bytes of each message that was read.

    Args:
        path: The file.
        into: The series by monitor, to which everything is added, up to a broken place.

    Raises:
        BrokenFileError: The file is not an event file, is cut off, or has nothing of ours.
    """
    ours = False
    try:
        with path.open("rb") as file:
            for message in _messages(file, path.stat().st_size):
                if schema.PLUGIN.encode() in message:
                    ours |= _take(Event.FromString(message), into)
                yield _HEADER + len(message) + _FOOTER
    except OSError as error:
        raise BrokenFileError(f"cannot be read: {error.strerror or error}", ours) from error
    except DecodeError as error:
        raise BrokenFileError("is damaged", ours) from error
    except _DamagedError as error:
        raise BrokenFileError(str(error), ours) from error
    if not ours:
        raise BrokenFileError("has nothing that CAMMonitor recorded for the report")


def _messages(file: BinaryIO, size: int) -> Iterator[bytes]:
    at = 0
    while at < size:
        header = file.read(_HEADER)
        if len(header) == _HEADER:
            length, checksum = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != checksum:
                raise _DamagedError("is damaged" if at else "is not an event file")
            at += _HEADER + length + _FOOTER
        if len(header) < _HEADER or at > size:
            raise _DamagedError("is cut off")
        yield file.read(length)
        file.read(_FOOTER)


def _take(event: Event, into: dict[str, FileSeries]) -> bool:
    """Add what an event has of ours, and return whether it has anything."""
    ours = False
    for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == schema.PLUGIN and len(value.tensor.string_val) == 1:
            monitor, _, record = value.tag.rpartition("/")
            series = into.setdefault(monitor, FileSeries())
            series.add(record, event.step, event.wall_time, value.tensor.string_val[0])
            ours = True
    return ours
