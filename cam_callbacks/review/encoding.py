"""Looks and audits as the blobs that `schema` describes."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cam_callbacks._version import __version__
from cam_callbacks.audit.attention import heat_by_chance, heat_on_object
from cam_callbacks.audit.dependences import Dependence, dependences
from cam_callbacks.audit.measure_spec import MeasureSpec
from cam_callbacks.audit.properties import DataProperty
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Estimate, Measure
from cam_callbacks.audit.wording_data import COLOR_WARNING, color_shows_object
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation, coarse_note, min_max, scaled
from cam_callbacks.explain.targets import score_name
from cam_callbacks.figures.drawing import Picture, as_png, as_pngs, heat_layout, to_pictures
from cam_callbacks.review import schema
from cam_callbacks.review.json_values import as_json, number
from cam_callbacks.review.schema import (
    AuditJson,
    DependenceJson,
    EstimateJson,
    LookJson,
    MeasureJson,
    ProbeJson,
    PropertyJson,
    Readable,
    RivalJson,
    SettingsJson,
    VerdictJson,
)
from cam_callbacks.snapshot import MAX_CLASSES, AuditSnapshot, Snapshot

_PHOTO_SIDE = 256
_MAX_CHANNELS = 4


def settings_blob(settings: Mapping[str, Readable]) -> bytes:
    """Encode `TAB_SETTINGS`: the settings, and the versions of what is installed."""
    versions = {
        "torch": str(torch.__version__),
        "lightning": _installed("pytorch-lightning") or _installed("lightning"),
        "python": platform.python_version(),
    }
    return as_json(SettingsJson(version=__version__, versions=versions, settings=dict(settings)))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def photos_blob(probes: ProbeSet) -> bytes:
    """Encode `TAB_PHOTOS`: each probe in color or gray, no larger than the tab shows it."""
    photos = []
    for picture in to_pictures(probes.images, probes.normalization, probes.bands):
        image = Image.fromarray(picture)
        if (picture == picture[..., :1]).all():
            image = image.convert("L")
        image.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
        photos.append(image)
    return as_pngs(photos)


def look_blobs(snapshot: Snapshot, epoch: int, method: str) -> dict[str, bytes]:
    """Encode a look.

    Args:
        snapshot: What was found.
        epoch: The epoch of the training.
        method: The name of the method.

    Returns:
        Blobs by record, in the order in which they are to be written.
    """
    size, rivals = snapshot.probes.images.shape[2:], snapshot.of_rivals
    blobs = {schema.TAB_MAPS: _maps(snapshot.explanation, size)}
    if rivals is not None:
        blobs[schema.TAB_RIVALS] = _maps(rivals, size)
    channels = _channels(snapshot)
    if channels:
        blobs[schema.TAB_CHANNELS] = channels
    blobs[schema.TAB_PROBES] = as_json(_look(snapshot, epoch, method))
    return blobs


def _maps(explanation: Explanation, size: Sequence[int]) -> bytes:
    maps = scaled(explanation.layer_maps, explanation.layer_maps.shape[1:], "none")
    maps[explanation.blank] = 0
    nothing = torch.zeros(1, 1)
    return as_pngs(
        _gray(nothing if skipped else heat_layout(heat, size))
        for heat, skipped in zip(maps, explanation.skipped, strict=True)
    )


def _channels(snapshot: Snapshot) -> bytes:
    """Encode the heaviest channels of each probe that is not skipped."""
    explanation, size = snapshot.explanation, snapshot.probes.images.shape[2:]
    if explanation.channels is None:
        return b""
    activations = explanation.channels.activations[:, :_MAX_CHANNELS]
    return as_pngs(
        _gray(heat_layout(channel, size))
        for maps, skipped in zip(activations, explanation.skipped, strict=True)
        if not skipped
        for channel in min_max(maps.nan_to_num())
    )


def _look(snapshot: Snapshot, epoch: int, method: str) -> LookJson:
    layer = snapshot.explanation.target_layer
    return LookJson(
        epoch=epoch,
        layer=layer if isinstance(layer, str) else ", ".join(layer),
        signals=snapshot.probes.images.ndim == 3,
        coarse=coarse_note(snapshot.explanation.positions),
        method=method,
        score=score_name(snapshot.explanation.score_kind),
        class_names=list(snapshot.probes.class_names) or None,
        seconds=number(snapshot.seconds),
        passes=snapshot.passes,
        probes=_probes(snapshot),
    )


def _probes(snapshot: Snapshot) -> list[ProbeJson]:
    explanation, count = snapshot.explanation, len(snapshot.probes)
    labels = _classes(snapshot.probes.labels, count)
    explained = _classes(explanation.targets, count)
    predicted = _classes(explanation.predicted, count)
    scores, errors = explanation.target_scores.tolist(), explanation.estimated_error.tolist()
    largest = _largest(explanation).tolist()
    passes, blank, skipped = (part.tolist() for part in (explanation.passes, explanation.blank, explanation.skipped))
    heat, heat_chance = (part.tolist() for part in _heat_on_object(snapshot))
    channels = _channel_weights(explanation)
    rivals = _rivals(snapshot.of_rivals, count)
    return [
        ProbeJson(
            label=labels[index],
            truth=snapshot.probes.annotation_in_words(index, snapshot.probes.class_names.name),
            explained=explained[index],
            predicted=None if skipped[index] else predicted[index],
            probability_label=_probability(explanation, index, labels[index]),
            probability_predicted=_probability(explanation, index, predicted[index]),
            score=number(scores[index]),
            largest=number(largest[index]),
            error=number(errors[index]),
            passes=passes[index],
            blank=blank[index],
            skipped=skipped[index],
            heat_on_object=number(heat[index]),
            heat_on_object_chance=number(heat_chance[index]),
            rival=rivals[index],
            channels=channels[index],
        )
        for index in range(count)
    ]


def _rivals(explanation: Explanation | None, count: int) -> list[RivalJson | None]:
    if explanation is None or explanation.targets is None:
        return [None] * count
    parts = (explanation.targets, explanation.blank, explanation.skipped, _largest(explanation))
    columns = [part.tolist() for part in parts]
    return [
        None
        if skipped
        else RivalJson(label=label, probability=_probability(explanation, index, label), blank=blank, largest=largest)
        for index, (label, blank, skipped, largest) in enumerate(zip(*columns, strict=True))
    ]


def _largest(explanation: Explanation) -> Tensor:
    return explanation.layer_maps.flatten(1).amax(dim=1)


def _classes(classes: Tensor | None, count: int) -> list[int | None]:
    return [None] * count if classes is None else [int(each) for each in classes]


def _probability(explanation: Explanation, index: int, label: int | None) -> float | None:
    probabilities = explanation.probabilities
    if probabilities is None or label is None or explanation.skipped[index]:
        return None
    return number(float(probabilities[index, label])) if 0 <= label < probabilities.shape[1] else None


def _heat_on_object(snapshot: Snapshot) -> tuple[Tensor, Tensor]:
    """Measure the share of the heat on the object, (N,), and its chance level, (N,); NaN where unknown, or coarse."""
    probes, unknown = snapshot.probes, torch.full((len(snapshot.probes),), torch.nan)
    if probes.masks is None or snapshot.explanation.is_coarse:
        return unknown, unknown
    heatmaps = snapshot.explanation.scaled_to(None)
    on_object = heat_on_object(heatmaps, probes.masks)
    return on_object, unknown if probes.labels is None else heat_by_chance(heatmaps, probes.masks, probes.labels)


def _channel_weights(explanation: Explanation) -> list[list[tuple[int, float | None]]]:
    """List the index and weight of each channel of which there is a PNG, by probe, heaviest first."""
    channels = explanation.channels
    if channels is None:
        return [[] for _ in range(len(explanation))]
    indices, weights = (part[:, :_MAX_CHANNELS].tolist() for part in (channels.index, channels.weight))
    return [
        [] if skipped else [(index, number(weight)) for index, weight in zip(*pair, strict=True)]
        for *pair, skipped in zip(indices, weights, explanation.skipped, strict=True)
    ]


def audit_blobs(audited: AuditSnapshot, swaps: Picture | None, epoch: int, no_heatmaps: str) -> dict[str, bytes]:
    """Encode an audit.

    Args:
        audited: What was found.
        swaps: The picture of swapped backgrounds, if there is one.
        epoch: The epoch of the training.
        no_heatmaps: Why the look has none, in words; empty if it has.

    Returns:
        Blobs by record, in the order in which they are to be written.
    """
    blobs = {} if swaps is None else {schema.TAB_SWAPS: as_png(Image.fromarray(swaps))}
    blobs[schema.TAB_AUDIT] = as_json(_audit(audited, epoch, no_heatmaps))
    return blobs


def _audit(audited: AuditSnapshot, epoch: int, no_heatmaps: str) -> AuditJson:
    result, verdict = audited.result, audited.verdict
    labels = result.class_names.unique([*result.labels.tolist(), *verdict.classes])  # none of it may be in this look
    measures = {**result.measures, **audited.trust}
    return AuditJson(
        epoch=epoch,
        no_heatmaps=no_heatmaps,
        task=result.task,
        verdict=VerdictJson(
            state=verdict.state,
            text=verdict.text,
            background=verdict.background or verdict.state,
            classes=[labels[index] for index in verdict.classes],
            overall=verdict.overall,
        ),
        gap=result.gap_name,
        threshold=verdict.threshold,
        masks=result.mask_source,
        images=len(result.labels),
        notes=list(result.notes),
        measures={name: _measure(result.spec_of(name), measured, labels) for name, measured in measures.items()},
        dependences=[_dependence(each) for each in dependences(result, verdict)],
        data=[*_mean_color(result), *(_property(each, result, labels) for each in result.data)],
    )


def _dependence(given: Dependence) -> DependenceJson:
    return DependenceJson(
        title=given.title,
        gap=given.gap,
        placebo=given.placebo,
        cost=number(given.cost),
        state=given.state,
        about=given.about,
    )


def _mean_color(result: AuditResult) -> Iterator[PropertyJson]:
    """Yield what the mean color tells of all classes together, if it is known."""
    if "data_color_auc" not in result or not result["data_color_auc"].overall.count:
        return
    found = result["data_color_auc"].overall
    yield PropertyJson(
        name="mean color",
        where="outer ring" if result.mask_source == "none" else "background",
        label="all",
        auc=number(found.value),
        chance=number(found.chance),
        p_value=None,
        count=found.count,
        gives_away=found.value >= COLOR_WARNING,
        shows_object=color_shows_object(result),
    )


def _property(given: DataProperty, result: AuditResult, labels: Mapping[int, str]) -> PropertyJson:
    return PropertyJson(
        name=given.name,
        where=given.where,
        label=labels.get(given.label) or result.class_names.name(given.label),
        auc=number(given.auc),
        chance=number(given.chance),
        p_value=number(given.p_value),
        count=given.count,
        gives_away=given.gives_away,
        shows_object=given.shows_object,
    )


def _measure(spec: MeasureSpec, measured: Measure, labels: Mapping[int, str]) -> MeasureJson:
    """Encode a measure, with its classes if they are few or the measure is one of the main ones."""
    many = len(measured.per_class) > MAX_CLASSES
    shown = {} if many and not spec.is_kept_per_class else measured.per_class
    return MeasureJson(
        overall=_estimate(measured.overall),
        per_class={labels.get(index, str(index)): _estimate(estimate) for index, estimate in shown.items()},
    )


def _estimate(estimate: Estimate) -> EstimateJson:
    return EstimateJson(
        value=number(estimate.value),
        low=number(estimate.low),
        high=number(estimate.high),
        count=estimate.count,
        skipped=estimate.skipped,
        chance=number(estimate.chance),
    )


def _gray(values: Tensor) -> Image.Image:
    """Return values (h, w) in [0, 1] as a picture."""
    return Image.fromarray((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy().astype(np.uint8))
