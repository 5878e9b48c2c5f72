"""Write looks and audits for the tab and the report, into the event files of TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cam_callbacks import tags
from cam_callbacks._checks import is_kind
from cam_callbacks.figures.drawing import Picture
from cam_callbacks.review import schema
from cam_callbacks.review.encoding import audit_blobs, look_blobs, photos_blob, settings_blob
from cam_callbacks.review.schema import Readable
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TabWriter:
    """Writes looks and audits of one monitor to those of the trainer's loggers that are TensorBoard.

    Args:
        name: The name of the monitor.
        settings: What the monitor was made with, see `cam_callbacks.review.json_values.readable`.
    """

    def __init__(self, name: str, settings: Mapping[str, Readable]) -> None:
        self.name = name
        self.settings = dict(settings)
        self._last: dict[tuple[str, str], str] = {}  # by folder and tag: the version that was written last

    def write_look(
        self, loggers: Iterable[Any], step: int, snapshot: Snapshot, *, epoch: int, method: str, testing: bool = False
    ) -> None:
        """Write a look.

        Args:
            loggers: The loggers of the trainer.
            step: The step that Lightning's own scalars use.
            snapshot: What was found.
            epoch: The epoch of the training.
            method: The name of the method.
            testing: Whether this is a test run.
        """
        writers = _tensorboard_writers(loggers)
        if not writers:
            return
        blobs = look_blobs(snapshot, epoch, method)
        for writer in writers:
            self._write_settings(writer, step, testing)
            if self._is_new(writer, schema.TAB_PHOTOS, testing, snapshot.probes.fingerprint):
                self._write(writer, {schema.TAB_PHOTOS: photos_blob(snapshot.probes)}, step, testing)
            self._write(writer, blobs, step, testing)

    def write_audit(
        self,
        loggers: Iterable[Any],
        step: int,
        audited: AuditSnapshot,
        swaps: Picture | None,
        *,
        epoch: int,
        no_heatmaps: str = "",
        testing: bool = False,
    ) -> None:
        """Write the audit of a look, after its heatmaps if it has any.

        Args:
            loggers: The loggers of the trainer.
            step: The step of the look.
            audited: What the audit found.
            swaps: The picture of swapped backgrounds, if there is one.
            epoch: The epoch of the training.
            no_heatmaps: Why the look has none, in words; empty if it has.
            testing: Whether this is a test run.
        """
        writers = _tensorboard_writers(loggers)
        if not writers:
            return
        blobs = audit_blobs(audited, swaps, epoch, no_heatmaps)
        for writer in writers:
            self._write_settings(writer, step, testing)
            self._write(writer, blobs, step, testing)

    def flush(self, loggers: Iterable[Any]) -> list[str]:
        """Write out everything, and return the folders of the event files, as paths or as URLs."""
        writers = _tensorboard_writers(loggers)
        for writer in writers:
            writer.flush()
        return [str(writer.log_dir) for writer in writers]

    def _write_settings(self, writer: SummaryWriter, step: int, testing: bool) -> None:
        if self._is_new(writer, schema.TAB_SETTINGS, testing):
            self._write(writer, {schema.TAB_SETTINGS: settings_blob(self.settings)}, step, testing)

    def _is_new(self, writer: SummaryWriter, record: str, testing: bool, version: str = "") -> bool:
        """Check whether another version of this record, or none, was last written to this folder; remember this one."""
        place = (str(writer.log_dir), tags.tag(self.name, record, testing))
        is_new = self._last.get(place) != version
        self._last[place] = version
        return is_new

    def _write(self, writer: SummaryWriter, blobs: Mapping[str, bytes], step: int, testing: bool) -> None:
        for record, blob in blobs.items():
            write_blob(writer, tags.tag(self.name, record, testing), blob, step)


def write_blob(writer: SummaryWriter, tag: str, blob: bytes, step: int) -> None:
    """Write one record of the tab into the event file of torch's `SummaryWriter`."""
    from tensorboard.compat.proto import (
        summary_pb2,
        tensor_pb2,
        tensor_shape_pb2,
        types_pb2,
    )

    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=schema.PLUGIN),
        data_class=summary_pb2.DATA_CLASS_BLOB_SEQUENCE,
    )
    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[blob])
    value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
    files = writer._get_file_writer()  # type: ignore[no-untyped-call]
    files.add_summary(summary_pb2.Summary(value=[value]), step)


def _tensorboard_writers(loggers: Iterable[Any]) -> list[SummaryWriter]:
    """Return the writers of the loggers that are TensorBoard with torch's writer; tensorboardX lacks what we need.

    Loggers are told apart by the names of their classes, in both Lightning namespaces: nothing is imported for those
    who log elsewhere, and other loggers, which may have to wait for a server, are not asked for what they write with.
    """
    experiments: list[Any] = [logger.experiment for logger in loggers if is_kind(logger, "TensorBoardLogger")]
    return [
        experiment
        for experiment in experiments
        if any(kind.__module__.startswith("torch.utils.tensorboard") for kind in type(experiment).__mro__)
    ]
