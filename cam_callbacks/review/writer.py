"""What CAMMonitor records for its tab in TensorBoard and for the report: blobs in the event files of the run."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks._checks import is_kind
from cam_callbacks._version import __version__
from cam_callbacks.audit.attention import heat_by_chance, heat_on_object
from cam_callbacks.audit.measures import MEASURES
from cam_callbacks.audit.statistics import Estimate, Measure
from cam_callbacks.data.datasets import ALL
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation, min_max, scaled
from cam_callbacks.figures.drawing import Picture, heat_layout, to_pictures
from cam_callbacks.review import schema
from cam_callbacks.snapshot import MOST_CLASSES, AuditSnapshot, Snapshot

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LONGEST_SIDE = 256
_CHANNELS = 4
_LONGEST_SETTING = 200
_DIGITS = 4


class TabData:
    """Writes looks and audits of one monitor for the tab, to those loggers that are TensorBoard.

    Args:
        name: Of the monitor.
        settings: What the monitor was made with, see `readable`.
    """

    def __init__(self, name: str, settings: Mapping[str, str | float | bool | None]) -> None:
        self.name = name
        self.settings = dict(settings)
        self._written: set[tuple[str, ...]] = set()  # folder, tag, what: once in a process

    def write_look(
        self, loggers: Iterable[Any], step: int, looked: Snapshot, *, epoch: int, method: str, testing: bool = False
    ) -> None:
        """Write a look.

        Args:
            loggers: Those of the trainer.
            step: The step that Lightning's own scalars use.
            looked: The look.
            epoch: Of the training.
            method: Name of the method.
            testing: Whether this is a test run.
        """
        writers = _writers(loggers)
        if not writers:
            return
        explanation = looked.explanation
        blobs = {schema.TAB_MAPS: b"".join(_maps(looked))}
        if any(channels := _channels(looked)):
            blobs[schema.TAB_CHANNELS] = b"".join(png for of_probe in channels for png in of_probe)
        described = _described(looked) | {"epoch": epoch, "layer": _layer(explanation), "method": method}
        for probe, pngs, found in zip(described["probes"], channels, _heaviest(explanation), strict=True):
            probe["channels"] = found[: len(pngs)]
        blobs[schema.TAB_PROBES] = _as_json(described)
        fingerprint = looked.probes.fingerprint
        for writer in writers:
            if self._is_first(writer, schema.TAB_SETTINGS, testing):
                about = {"version": __version__, "versions": _versions(), "settings": self.settings}
                self._write(writer, schema.TAB_SETTINGS, _as_json(about), step, testing)
            if self._is_first(writer, schema.TAB_PHOTOS, testing, fingerprint):
                photos = b"".join(_photos(looked.probes))
                self._write(writer, schema.TAB_PHOTOS, photos, step, testing)
            for record, blob in blobs.items():
                self._write(writer, record, blob, step, testing)

    def write_audit(
        self, loggers: Iterable[Any], step: int, audited: AuditSnapshot, swaps: Picture | None, *, testing: bool = False
    ) -> None:
        """Write the audit of a look.

        Args:
            loggers: Those of the trainer.
            step: Of the look.
            audited: The audit.
            swaps: The picture of exchanged backgrounds, if there is one.
            testing: Whether this is a test run.
        """
        writers = _writers(loggers)
        if not writers:
            return
        blobs = {} if swaps is None else {schema.TAB_SWAPS: _png(Image.fromarray(swaps))}
        blobs[schema.TAB_AUDIT] = _as_json(_audit(audited))
        for writer in writers:
            for record, blob in blobs.items():
                self._write(writer, record, blob, step, testing)

    def flush(self, loggers: Iterable[Any]) -> list[Path]:
        """Have everything written to disk; the folders of the event files."""
        writers = _writers(loggers)
        for writer in writers:
            writer.flush()
        return [Path(writer.log_dir) for writer in writers]

    def _is_first(self, writer: SummaryWriter, record: str, testing: bool, what: str = "") -> bool:
        """Whether this record is not yet in this writer's folder, or differs from what was written last."""
        place = (str(writer.log_dir), tags.tag(self.name, record, testing))
        first = (*place, what) not in self._written
        if first:
            self._written = {each for each in self._written if each[:2] != place} | {(*place, what)}
        return first

    def _write(self, writer: SummaryWriter, record: str, blob: bytes, step: int, testing: bool) -> None:
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


def readable(arguments: Mapping[str, Any]) -> dict[str, str | float | bool | None]:
    """Arguments of any kind as what JSON has and people can read; never an error."""
    return {name: _readable(value) for name, value in arguments.items()}


def _readable(value: Any) -> str | float | bool | None:
    if value is None or isinstance(value, (bool, int, str)):
        return value if not isinstance(value, str) else _cut(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path):
        return _cut(str(value))
    if isinstance(value, ProbeSet):
        return f"ProbeSet of {len(value)} images"
    name = getattr(value, "__qualname__", None)
    if callable(value) and isinstance(name, str):
        return _cut(f"{getattr(value, '__module__', '')}.{name}")
    try:
        text = repr(value)
    except Exception:  # of the user's own class
        text = type(value).__name__
    return type(value).__name__ if " at 0x" in text else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 3] + "..."


def _writers(loggers: Iterable[Any]) -> list[SummaryWriter]:
    """The writers of those loggers that are TensorBoard with torch's writer; that of tensorboardX lacks what we need.

    Told by the names of classes, of both Lightning namespaces: nothing is imported for those who log elsewhere, and
    other loggers are not asked, which may have to wait for a server.
    """
    experiments: list[Any] = [logger.experiment for logger in loggers if is_kind(logger, "TensorBoardLogger")]
    return [
        experiment
        for experiment in experiments
        if any(kind.__module__.startswith("torch.utils.tensorboard") for kind in type(experiment).__mro__)
    ]


def _versions() -> dict[str, str | None]:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "torch": str(torch.__version__),
        "lightning": installed("pytorch-lightning") or installed("lightning"),
        "python": platform.python_version(),
    }


def _photos(probes: ProbeSet) -> list[bytes]:
    """Each probe as PNG, in color or gray, no larger than the tab shows it."""
    pngs = []
    for picture in to_pictures(probes.images, probes.normalization):
        image = Image.fromarray(picture)
        if (picture == picture[..., :1]).all():
            image = image.convert("L")
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        pngs.append(_png(image))
    return pngs


def _maps(looked: Snapshot) -> list[bytes]:
    explanation, size = looked.explanation, looked.probes.images.shape[2:]
    maps = scaled(explanation.layer_maps, explanation.layer_maps.shape[1:], "none")
    maps[explanation.blank] = 0
    nothing = torch.zeros(1, 1)
    return [
        _gray(nothing if skipped else heat_layout(heat, size))
        for heat, skipped in zip(maps, explanation.skipped, strict=True)
    ]


def _channels(looked: Snapshot) -> list[list[bytes]]:
    """Of each probe its heaviest channels; none of those that are skipped."""
    explanation, size = looked.explanation, looked.probes.images.shape[2:]
    if explanation.channels is None:
        return [[] for _ in range(len(explanation))]
    activations = explanation.channels.activations[:, :_CHANNELS]
    return [
        [] if skipped else [_gray(heat_layout(each, size)) for each in min_max(maps.nan_to_num())]
        for maps, skipped in zip(activations, explanation.skipped, strict=True)
    ]


def _heaviest(explanation: Explanation) -> list[list[list[float | None]]]:
    """Of each probe the index and weight of its channels, heaviest first."""
    channels = explanation.channels
    if channels is None:
        return [[] for _ in range(len(explanation))]
    pairs = zip(channels.index.tolist(), channels.weight.tolist(), strict=True)
    return [[[i, _number(w)] for i, w in zip(index, weight, strict=True)] for index, weight in pairs]


def _described(looked: Snapshot) -> dict[str, Any]:
    probes, explanation = looked.probes, looked.explanation
    skipped = explanation.skipped.tolist()
    targets, predicted = _listed(probes.labels, looked), _listed(explanation.predicted, looked)
    probabilities = explanation.probabilities
    heat, chance = _heat(looked)

    def probability(index: int, label: int | None) -> float | None:
        if probabilities is None or label is None or not 0 <= label < probabilities.shape[1] or skipped[index]:
            return None
        return _number(probabilities[index, label])

    listed = {
        "target": targets,
        "explained": _listed(explanation.targets, looked),
        "predicted": [None if gone else label for gone, label in zip(skipped, predicted, strict=True)],
        "probability_target": [probability(index, label) for index, label in enumerate(targets)],
        "probability_predicted": [probability(index, label) for index, label in enumerate(predicted)],
        "score": [_number(value) for value in explanation.target_scores.tolist()],
        "largest": [_number(value) for value in explanation.layer_maps.flatten(1).amax(dim=1).tolist()],
        "error": [_number(value) for value in explanation.estimated_error.tolist()],
        "passes": explanation.passes.tolist(),
        "blank": explanation.blank.tolist(),
        "skipped": skipped,
        "heat_on_object": [_number(value) for value in heat.tolist()],
        "heat_on_object_chance": [_number(value) for value in chance.tolist()],
    }
    return {
        "class_names": list(probes.class_names) or None,
        "seconds": _number(looked.seconds),
        "passes": int(looked.scalars()[tags.PASSES]),
        "probes": [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)],
    }


def _listed(labels: Tensor | None, looked: Snapshot) -> list[int | None]:
    return [None] * len(looked.probes) if labels is None else [int(label) for label in labels]


def _heat(looked: Snapshot) -> tuple[Tensor, Tensor]:
    """(N,) share of the heat on the object, and (N,) what it would be by chance; NaN where it is not known."""
    probes, unknown = looked.probes, torch.full((len(looked.probes),), torch.nan)
    if probes.masks is None:
        return unknown, unknown
    heatmaps = looked.explanation.scaled_to(None)
    on_object = heat_on_object(heatmaps, probes.masks)
    return on_object, unknown if probes.labels is None else heat_by_chance(heatmaps, probes.masks, probes.labels)


def _layer(explanation: Explanation) -> str:
    layer = explanation.target_layer
    return layer if isinstance(layer, str) else ", ".join(layer)


def _audit(audited: AuditSnapshot) -> dict[str, Any]:
    result, verdict = audited.result, audited.verdict
    labels = result.class_names.unique(result.labels.tolist())
    return {
        "verdict": {
            "state": verdict.state,
            "text": verdict.text,
            "classes": ["all" if index == ALL else labels[index] for index in verdict.classes],
        },
        "gap": result.gap_name,
        "threshold": verdict.threshold,
        "masks": result.mask_source,
        "images": len(audited.images),
        "notes": list(result.notes),
        "measures": {
            name: _measure(name, measured, labels) for name, measured in {**result.measures, **audited.trust}.items()
        },
    }


def _measure(name: str, measured: Measure, labels: Mapping[int, str]) -> dict[str, Any]:
    """All classes of a measure; where they are many, those of the main measures only."""
    many = len(measured.per_class) > MOST_CLASSES
    shown = {} if many and not MEASURES[name].is_kept_per_class else measured.per_class
    return {
        "overall": _estimate(measured.overall),
        "per_class": {labels.get(index, str(index)): _estimate(estimate) for index, estimate in shown.items()},
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {name: _number(value) for name, value in vars(estimate).items()}


def _number(value: Any) -> float | None:
    """With as many digits as are read; None for what is not finite."""
    if value is None or isinstance(value, int):
        return value
    found = float(value)
    return float(f"{found:.{_DIGITS}g}") if math.isfinite(found) else None


def _as_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _gray(values: Tensor) -> bytes:
    """(h, w) in [0, 1] as PNG."""
    return _png(Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy().astype(np.uint8)))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
