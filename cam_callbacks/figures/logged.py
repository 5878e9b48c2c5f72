"""The pictures of one look: what CAMMonitor logs, made of probes, explanations and their history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks.audit.interventions import ring, with_background_of, with_ring_of
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation, Upsampling, scaled
from cam_callbacks.figures.drawing import (
    ALERT,
    MUTED,
    Cell,
    Line,
    Picture,
    Style,
    grid,
    histogram,
    outlined,
    overlay,
    to_pictures,
)
from cam_callbacks.figures.notebook import channel_cells
from cam_callbacks.history import PastMaps
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

_TOP = 3
_SWAPS = 6
_SWAP_SIDE = 160
_HISTOGRAM_WIDTH = 300
_CHANNELS = 4
_PROBES_WITH_CHANNELS = 4
_CELLS_IN_A_ROW = {1: 1, 2: 2, 3: 1}  # by the spatial dimensions of the images
_SIDE = {1: 224, 2: 96, 3: 192}
_SIDE_IN_HISTORY = {1: 160, 2: 64, 3: 128}


def snapshot_pictures(
    snapshot: Snapshot,
    past: Sequence[PastMaps],
    style: Style,
    brightest: float | None,
    channels: bool,
) -> dict[str, Picture]:
    """The pictures that are logged, by record.

    Args:
        snapshot: What was seen.
        past: The looks of the history picture, this one the last; empty for none.
        style: How overlays are drawn.
        brightest: As in `Explanation.scaled_to`.
        channels: Whether to show what the heatmaps are made of.
    """
    probes, explanation = snapshot.probes, snapshot.explanation
    shown = explanation.scaled_to(brightest)
    of_predicted = {}
    if snapshot.of_predicted is not None:
        maps = snapshot.of_predicted.scaled_to(brightest)
        of_predicted = dict(zip(snapshot.mistaken.tolist(), maps, strict=True))
    pictures = {tags.HEATMAPS: heatmaps_picture(probes, explanation, shown, style, of_predicted)}
    if explanation.targets is not None and len(set(explanation.targets.tolist())) < len(probes):
        alike = explanation.scaled_to(None)
        pictures[tags.CLASS_MEAN] = class_mean_picture(probes, explanation, alike, style)
    if past:
        pictures[tags.HISTORY] = history_picture(probes, past, style, brightest, explanation.upsampling)
    if channels and explanation.channels is not None:
        pictures[tags.CHANNELS] = channels_picture(probes, explanation)
    return pictures


def heatmaps_picture(
    probes: ProbeSet,
    explanation: Explanation,
    heatmaps: Tensor,
    style: Style,
    of_predicted: dict[int, Tensor] | None = None,
) -> Picture:
    """One cell a probe: the image, its overlay, and under them the true label and the most probable classes.

    An image that has a mask is shown with its outline.

    Args:
        probes: N probes.
        explanation: Of the N probes.
        heatmaps: (N, H, W) in [0, 1], as they are to be shown.
        style: How overlays are drawn.
        of_predicted: For some probes, by their number, the heatmap (H, W) of the class that was predicted instead.
    """
    images = to_pictures(probes.images, probes.normalization)
    predicted = explanation.predicted
    cells = []
    for index, image in enumerate(images):
        target = None if probes.labels is None else int(probes.labels[index])
        answer = None if predicted is None or explanation.skipped[index] else int(predicted[index])
        mistake = answer is not None and target is not None and answer != target
        shown = [_with_mask(image, probes, index), overlay(image, heatmaps[index], style)]
        explained = None if explanation.targets is None else int(explanation.targets[index])
        headings = ["image", "heatmap" if explained is None else probes.class_name(explained)]
        if of_predicted is not None and index in of_predicted and answer is not None:
            shown.append(overlay(image, of_predicted[index], style))
            headings.append(probes.class_name(answer))
        lines = _labels(probes, target, mistake) + _note(explanation, index)
        if explained is None:
            lines += [Line(f"{float(explanation.target_scores[index]):.3g} {explanation.score_kind}", MUTED)]
        elif answer is not None and explanation.probabilities is not None:
            lines += _top_classes(probes, explanation.probabilities[index])
        cells.append(Cell(shown, lines, headings, alert=mistake))
    rows = max(len(cell.lines) for cell in cells)
    filled = [Cell(c.pictures, [*c.lines, *[Line("")] * (rows - len(c.lines))], c.headings, c.alert) for c in cells]
    dimensions = probes.images.ndim - 2
    return grid(filled, columns=_CELLS_IN_A_ROW[dimensions], size=_SIDE[dimensions])


def _with_mask(image: Picture, probes: ProbeSet, index: int) -> Picture:
    """The image, with the outline of its mask where it has one."""
    if probes.masks is None or probes.images.ndim != 4:
        return image
    return outlined(image, probes.masks[index])


def _labels(probes: ProbeSet, target: int | None, mistake: bool) -> list[Line]:
    if target is None:
        return []
    label = f"true: {probes.class_name(target)}"
    return [Line(f"MISTAKE, {label}", ALERT) if mistake else Line(label)]


def _note(explanation: Explanation, index: int) -> list[Line]:
    if explanation.skipped[index]:
        return [Line("skipped: not finite", ALERT)]
    return [Line("blank map", ALERT)] if explanation.blank[index] else []


def _top_classes(probes: ProbeSet, probabilities: Tensor) -> list[Line]:
    top = probabilities.topk(min(_TOP, len(probabilities)))
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return [Line(f"{probability:.2f} {probes.class_name(place)}", MUTED) for probability, place in pairs]


def history_picture(
    probes: ProbeSet,
    looks: Sequence[PastMaps],
    style: Style,
    brightest: float | None,
    upsampling: Upsampling = "bilinear",
) -> Picture:
    """One row a probe: the image, then its overlay at each look, oldest first, under its epoch."""
    size = probes.images.shape[2:]
    heatmaps = [scaled(look.layer_maps, size, upsampling, brightest) for look in looks]
    epochs = [look.epoch for look in looks]
    # Several validations in one epoch are told apart by their steps.
    counted = ("epoch", epochs) if len(set(epochs)) == len(epochs) else ("step", [look.step for look in looks])
    headings = [counted[0], *map(str, counted[1])]
    cells = []
    for index, image in enumerate(to_pictures(probes.images, probes.normalization)):
        overlays = [overlay(image, maps[index], style) for maps in heatmaps]
        label = [] if probes.labels is None else [Line(f"true: {probes.class_name(int(probes.labels[index]))}", MUTED)]
        cells.append(Cell([image, *overlays], label, headings))
    return grid(cells, size=_SIDE_IN_HISTORY[len(size)])


def class_mean_picture(probes: ProbeSet, explanation: Explanation, heatmaps: Tensor, style: Style) -> Picture:
    """One cell a class: the mean image, and the mean heatmap over it, of the probes whose explained class it is.

    Skipped and blank maps are left out and counted.

    Args:
        probes: N probes.
        explanation: Of classes of the N probes.
        heatmaps: (N, *spatial), each scaled to its own minimum and maximum, so that all count alike.
        style: How overlays are drawn.
    """
    assert explanation.targets is not None
    cells = []
    counted = ~(explanation.skipped | explanation.blank)
    for target in sorted(set(explanation.targets.tolist())):
        of_class = explanation.targets == target
        mean_image = to_pictures(probes.images[of_class].mean(dim=0, keepdim=True), probes.normalization)[0]
        used = of_class & counted
        heat = heatmaps[used].mean(dim=0) if used.any() else torch.zeros(heatmaps.shape[1:])
        left_out = int(of_class.sum() - used.sum())
        lines = [
            Line(f"class: {probes.class_name(target)}"),
            Line(f"mean of {int(used.sum())}" + (f", {left_out} left out" if left_out else ""), MUTED),
        ]
        cells.append(Cell([mean_image, overlay(mean_image, heat, style)], lines, ["mean", "heatmap"]))
    dimensions = probes.images.ndim - 2
    return grid(cells, columns=_CELLS_IN_A_ROW[dimensions], size=_SIDE[dimensions])


def channels_picture(probes: ProbeSet, explanation: Explanation) -> Picture:
    """For one probe of each class, four at most, the four channels that weigh most: feature map and masked image."""
    cells = []
    for index in _one_of_each(explanation):
        cells += channel_cells(probes.images[index], explanation, index, probes.normalization, _CHANNELS)
    dimensions = probes.images.ndim - 2
    return grid(cells, columns=_CELLS_IN_A_ROW[dimensions], size=_SIDE[dimensions])


def audit_pictures(audited: AuditSnapshot) -> dict[str, Picture]:
    """The pictures of an audit, by record; those that there are."""
    made = {tags.SWAPS: swaps_picture(audited), tags.HEAT_OVER_CHANCE: heat_over_chance_picture(audited)}
    return {record: picture for record, picture in made.items() if picture is not None}


def swaps_picture(audited: AuditSnapshot) -> Picture | None:
    """The images that lose most by another class's background: as they are, and before both kinds of backgrounds.

    None where nothing could be exchanged.
    """
    images, result = audited.images, audited.result
    shown = most_affected(result, _SWAPS)
    if len(shown) == 0:
        return None
    donors = [donor.clamp_min(0) for donor in (result.donors.same, result.donors.other)]
    if result.mask_source == "none" or images.masks is None:
        what, inside = "ring", (~ring(images.images.shape[2:])).expand(len(images), *images.images.shape[2:])
        arms = [with_ring_of(images.images, inside, donor)[shown] for donor in donors]
    else:
        what = "background"
        arms = [with_background_of(images.images, images.masks, donor)[shown] for donor in donors]
    total = int((~result.swaps.isnan()).all(dim=1).sum())
    title = [
        Line(f"The {len(shown)} of {total} images that lose most"),
        Line(f"above each: whose {what} it has,", MUTED),
        Line("and the probability of the true class", MUTED),
    ]
    cells: list[Cell] = []
    trios = zip(*(to_pictures(part, images.normalization) for part in (images.images[shown], *arms)), strict=True)
    for index, (plain, same, other) in zip(shown.tolist(), trios, strict=True):
        target = images.class_name(int(result.labels[index]))
        names = ("itself", "own class", "other class")
        headings = [f"{name} {float(p):.2f}" for name, p in zip(names, result.swaps[index], strict=True)]
        first = _with_mask(plain, images, index)
        cells.append(Cell([first, same, other], [Line(f"true: {target}")], headings))
    return grid(cells, size=_SWAP_SIDE, title=title)


def heat_over_chance_picture(audited: AuditSnapshot) -> Picture | None:
    """For each class, how much more heat lies on the object than by chance; None where that is not known."""
    result = audited.result
    heat = result.measures.get(f"heat_on_object{result.suffix}")
    if heat is None:
        return None
    over = {}
    for index, estimate in heat.per_class.items():
        over_chance = heat.values_of(index) - (estimate.chance or 0)
        over[index] = over_chance[~over_chance.isnan()].tolist()
    limit = max(1, math.ceil(10 * max((abs(value) for values in over.values() for value in values), default=1))) / 10
    cells = []
    for index, excess in over.items():
        state = audited.verdict.heat.get(index, "not known")
        bars = histogram(excess, limit, width=_HISTOGRAM_WIDTH)
        heading = f"{result.class_name(index)}, {len(excess)} images"
        cells.append(Cell([bars], [Line(f"heat {state}", MUTED)], [heading]))
    title = [Line("Heat on the object minus chance (red line)")]
    return grid(cells, columns=2, size=_HISTOGRAM_WIDTH, title=title)


def _one_of_each(explanation: Explanation) -> list[int]:
    """The first image of each explained class, or the first images."""
    count = len(explanation)
    classes = range(count) if explanation.targets is None else explanation.targets.tolist()
    first = {target: index for index, target in reversed(list(enumerate(classes)))}
    return sorted(first.values())[:_PROBES_WITH_CHANNELS]


def most_affected(result: AuditResult, count: int) -> Tensor:
    """The images whose true class loses most by another class's background: the worst of each class, then the next.

    Returns:
        (n,) int64, at most `count`.
    """
    lost = result.swaps[:, 1] - result.swaps[:, 2]
    known = (~lost.isnan()).nonzero().flatten().tolist()
    worst_first = sorted(known, key=lambda index: -float(lost[index]))
    seen: Counter[int] = Counter()
    ranks = {}
    for index in worst_first:
        target = int(result.labels[index])
        ranks[index] = seen[target]
        seen[target] += 1
    return torch.tensor(sorted(worst_first, key=lambda index: ranks[index])[:count], dtype=torch.long)
