"""The pictures that `CAMMonitor` logs: of a snapshot, and of its audit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from cam_callbacks import tags
from cam_callbacks.audit.interventions import before, ring, with_ring_of, without_object
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.words import words_of
from cam_callbacks.data.normalization import as_floats
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import Explanation, Upsampling, coarse_note, scaled
from cam_callbacks.explain.targets import PREDICTED, score_name
from cam_callbacks.figures.colors import ALERT, MUTED
from cam_callbacks.figures.drawing import Picture, outlined, overlay, to_pictures
from cam_callbacks.figures.grid import Cell, Line, grid, histogram
from cam_callbacks.figures.notebook import channel_cells, coarse_lines
from cam_callbacks.figures.scale import OWN_RANGE, RANGE_OF_BOTH, with_scale
from cam_callbacks.figures.settings import Figures, OverlayStyle
from cam_callbacks.figures.text import shown_name
from cam_callbacks.history import PastMaps
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

_MAX_TOP = 3  # of the most probable classes
_MAX_HISTOGRAMS = 16
_MAX_PROBES_WITH_CHANNELS = 4
_MAX_CHANNELS = 4
_MAX_SWAPS = 6
_SWAP_SIDE = 160
_HISTOGRAM_WIDTH = 300
# By the number of spatial dimensions of the images:
_CELLS_PER_ROW = {1: 1, 2: 2, 3: 1}
_SIDE = {1: 224, 2: 96, 3: 192}
_SIDE_IN_HISTORY = {1: 160, 2: 64, 3: 128}


def snapshot_pictures(
    snapshot: Snapshot,
    past: Sequence[PastMaps],
    figures: Figures,
    brightest: float | None,
) -> dict[str, Picture]:
    """Draw the pictures of a snapshot.

    Args:
        snapshot: What one evaluation found.
        past: The maps for the history picture, those of this snapshot last; empty for no history picture.
        figures: How to draw them.
        brightest: The value that becomes full heat, as in `Explanation.scaled_to`.

    Returns:
        Pictures by record, see `cam_callbacks.tags`.
    """
    probes, explanation, style = snapshot.probes, snapshot.explanation, figures.overlay_style
    shown = explanation.scaled_to(brightest)
    heatmaps = heatmaps_picture(probes, explanation, shown, style, brightest, snapshot.of_rivals)
    pictures = {tags.HEATMAPS: heatmaps}
    if explanation.targets is not None and len(set(explanation.targets.tolist())) < len(probes):
        alike = explanation.scaled_to(None)
        pictures[tags.CLASS_MEAN] = class_mean_picture(probes, explanation, alike, style)
    if past:
        pictures[tags.HISTORY] = history_picture(probes, past, style, brightest, explanation.upsampling)
    if figures.channels and explanation.channels is not None:
        pictures[tags.CHANNELS] = channels_picture(probes, explanation)
    return pictures


def heatmaps_picture(
    probes: ProbeSet,
    explanation: Explanation,
    heatmaps: Tensor,
    style: OverlayStyle,
    brightest: float | None = None,
    of_rivals: Explanation | None = None,
) -> Picture:
    """Draw one cell per probe: the image, its overlay, and below them the true label and the most probable classes.

    An image that has a mask is shown with its outline. Above them it says so if the maps are coarse; under them stands
    the scale of the heat.

    Args:
        probes: N probes.
        explanation: What was explained of the N probes.
        heatmaps: (N, *spatial) in [0, 1], to be laid over the images.
        style: How overlays are drawn.
        brightest: The value that became 1 in the heatmaps, as in `Explanation.scaled_to`.
        of_rivals: The same probes, another class of each explained, whose heatmap stands beside the first.
    """
    images = enumerate(to_pictures(probes.images, probes.normalization, probes.bands))
    if of_rivals is not None:
        heatmaps, maps_of_rivals = _on_one_scale(explanation, heatmaps, of_rivals, brightest)
    cells = []
    for index, image in images:
        cell = _probe_cell(image, probes, explanation, index, overlay(image, heatmaps[index], style))
        if of_rivals is not None and not of_rivals.skipped[index]:
            cell = _with_rival(cell, probes, of_rivals, index, overlay(image, maps_of_rivals[index], style))
        cells.append(cell)
    lines = max(len(cell.lines) for cell in cells)
    filled = [Cell(c.pictures, [*c.lines, *[Line("")] * (lines - len(c.lines))], c.headings, c.alert) for c in cells]
    own_range = OWN_RANGE if of_rivals is None else RANGE_OF_BOTH
    return with_scale(_grid_of(probes, filled, explanation), style, probes.images.ndim - 2, brightest, own_range)


def _probe_cell(image: Picture, probes: ProbeSet, explanation: Explanation, index: int, heated: Picture) -> Cell:
    label = None if probes.labels is None else int(probes.labels[index])
    explained = None if explanation.targets is None else int(explanation.targets[index])
    answers = explanation.predicted
    predicted = None if answers is None or explanation.skipped[index] else int(answers[index])
    mistake = label is not None and predicted is not None and predicted != label
    pictures = [_with_mask(image, probes, index), heated]
    headings = ["image", "heatmap" if explained is None else shown_name(probes.class_names, explained)]
    lines = _label_lines(probes, index, label, mistake) + _map_lines(explanation, index)
    if explained is None:
        score, name = float(explanation.target_scores[index]), score_name(explanation.score_kind)
        lines.append(Line(f"predicted: {score:.3g}" if name == PREDICTED else f"{score:.3g} {name}", MUTED))
    elif predicted is not None and explanation.probabilities is not None:
        lines += _top_classes(probes, explanation.probabilities[index])
    return Cell(pictures, lines, headings, alert=mistake)


def _on_one_scale(
    explanation: Explanation, heatmaps: Tensor, of_rivals: Explanation, brightest: float | None
) -> tuple[Tensor, Tensor]:
    """Return the heatmaps (N, *spatial) of both explanations, those of an image on one scale.

    Args:
        explanation: Of N images.
        heatmaps: (N, *spatial), its maps, scaled to `brightest`.
        of_rivals: Of the same images.
        brightest: As in `Explanation.scaled_to`.
    """
    others = of_rivals.scaled_to(brightest)
    if brightest is not None:
        return heatmaps, others
    own, of_other = (each.layer_maps.nan_to_num().flatten(1).amax(dim=1) for each in (explanation, of_rivals))
    most = torch.maximum(own, of_other)

    def dimmed(maps: Tensor, largest: Tensor) -> Tensor:
        return maps * torch.where(most > 0, largest / most, 1).view(-1, *[1] * (maps.ndim - 1))

    return dimmed(heatmaps, own), dimmed(others, of_other)


def _with_rival(cell: Cell, probes: ProbeSet, of_rivals: Explanation, index: int, heated: Picture) -> Cell:
    """Add the heatmap of the rival to a cell."""
    assert of_rivals.targets is not None
    name = shown_name(probes.class_names, int(of_rivals.targets[index]))
    lines = [*cell.lines, *([Line(f"blank map of {name}", MUTED)] if of_rivals.blank[index] else [])]
    return Cell([*cell.pictures, heated], lines, [*cell.headings, name], cell.alert)


def _with_mask(image: Picture, probes: ProbeSet, index: int) -> Picture:
    """Draw the outline of the mask onto the image, if it has one."""
    if probes.masks is None or probes.images.ndim != 4:
        return image
    return outlined(image, probes.masks[index])


def _label_lines(probes: ProbeSet, index: int, label: int | None, mistake: bool) -> list[Line]:
    names = probes.class_names

    def name(index: int) -> str:
        return shown_name(names, index) if names else str(index)

    said = probes.annotation_in_words(index, name) if label is None else shown_name(names, label)
    if said is None:
        return []
    text = f"true: {said}"
    return [Line(f"MISTAKE, {text}", ALERT) if mistake else Line(text)]


def _map_lines(explanation: Explanation, index: int) -> list[Line]:
    if explanation.skipped[index]:
        return [Line("skipped: not finite", ALERT)]
    return [Line("blank map", ALERT)] if explanation.blank[index] else []


def _top_classes(probes: ProbeSet, probabilities: Tensor) -> list[Line]:
    top = probabilities.topk(min(_MAX_TOP, len(probabilities)))
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return [Line(f"{probability:.2f} {shown_name(probes.class_names, index)}", MUTED) for probability, index in pairs]


def history_picture(
    probes: ProbeSet,
    looks: Sequence[PastMaps],
    style: OverlayStyle,
    brightest: float | None,
    upsampling: Upsampling = "bilinear",
) -> Picture:
    """Draw one row per probe: the image, then its overlay at each look, oldest first, below its epoch."""
    size = probes.images.shape[2:]
    heatmaps = [scaled(look.layer_maps, size, upsampling, brightest) for look in looks]
    epochs = [look.epoch for look in looks]
    # Several validations in one epoch are told apart by their steps.
    unit, counts = ("epoch", epochs) if len(set(epochs)) == len(epochs) else ("step", [look.step for look in looks])
    headings = ["image", *map(str, counts)]
    cells = []
    for index, image in enumerate(to_pictures(probes.images, probes.normalization, probes.bands)):
        overlays = [overlay(image, maps[index], style) for maps in heatmaps]
        names = [] if probes.labels is None else [shown_name(probes.class_names, int(probes.labels[index]))]
        cells.append(Cell([image, *overlays], [Line(f"true: {name}", MUTED) for name in names], headings))
    about = filter(None, [coarse_note(looks[-1].layer_maps.shape[1:]), f"Maps by {unit}"])
    rows = grid(cells, size=_SIDE_IN_HISTORY[len(size)], title=[Line(text, MUTED) for text in about])
    return with_scale(rows, style, len(size), brightest)


def class_mean_picture(probes: ProbeSet, explanation: Explanation, heatmaps: Tensor, style: OverlayStyle) -> Picture:
    """Draw one cell per explained class: the mean image of its probes, and their mean heatmap over it.

    Skipped and blank maps are left out and counted.

    Args:
        probes: N probes.
        explanation: What was explained of the N probes: classes.
        heatmaps: (N, *spatial), each scaled to its own minimum and maximum, so that all count alike.
        style: How overlays are drawn.
    """
    assert explanation.targets is not None
    cells = []
    counted = ~(explanation.skipped | explanation.blank)
    for target in sorted(set(explanation.targets.tolist())):
        of_class = explanation.targets == target
        mean = as_floats(probes.images[of_class]).mean(dim=0, keepdim=True)
        mean_image = to_pictures(mean, probes.normalization, probes.bands)[0]
        used = of_class & counted
        heat = heatmaps[used].mean(dim=0) if used.any() else torch.zeros(heatmaps.shape[1:])
        left_out = int(of_class.sum() - used.sum())
        lines = [
            Line(shown_name(probes.class_names, target)),
            Line(f"mean of {int(used.sum())}" + (f", {left_out} left out" if left_out else ""), MUTED),
        ]
        cells.append(Cell([mean_image, overlay(mean_image, heat, style)], lines, ["mean", "heatmap"]))
    means = _grid_of(probes, cells, explanation)
    return with_scale(means, style, probes.images.ndim - 2, own_range=f"mean; {OWN_RANGE}")


def channels_picture(probes: ProbeSet, explanation: Explanation) -> Picture:
    """Draw the channels of largest weight of one probe per class, as feature maps and as masked images."""
    cells = []
    for index in _one_per_class(explanation):
        cells += channel_cells(
            probes.images[index], explanation, index, probes.normalization, _MAX_CHANNELS, probes.bands
        )
    return with_scale(_grid_of(probes, cells, explanation), "heatmap", probes.images.ndim - 2)


def _one_per_class(explanation: Explanation) -> list[int]:
    """Choose the first image of each explained class; without classes, the first images."""
    count = len(explanation)
    classes = range(count) if explanation.targets is None else explanation.targets.tolist()
    first = {target: index for index, target in reversed(list(enumerate(classes)))}
    return sorted(first.values())[:_MAX_PROBES_WITH_CHANNELS]


def _grid_of(probes: ProbeSet, cells: Sequence[Cell], explanation: Explanation) -> Picture:
    dimensions = probes.images.ndim - 2
    return grid(cells, _CELLS_PER_ROW[dimensions], _SIDE[dimensions], coarse_lines(explanation))


def audit_pictures(audited: AuditSnapshot) -> dict[str, Picture]:
    """Draw the pictures of an audit, by record; those that it has numbers for."""
    drawn = {tags.SWAPS: swaps_picture(audited), tags.HEAT_OVER_CHANCE: heat_over_chance_picture(audited)}
    return {record: picture for record, picture in drawn.items() if picture is not None}


def swaps_picture(audited: AuditSnapshot) -> Picture | None:
    """Draw the images that lose most on another class's background: unchanged, and on both kinds of backgrounds.

    Returns:
        The picture; None if nothing could be swapped.
    """
    images, result = audited.images, audited.result
    shown = most_affected(result, _MAX_SWAPS, audited.verdict.classes)
    if len(shown) == 0:
        return None
    masks = None if result.mask_source == "none" else images.masks
    total = int((~result.swap_answers.isnan()).all(dim=1).sum())
    title = [
        Line(f"{len(shown)} of the {total} images; of each {words_of(result.task).one} those that change most"),
        Line(f"above each: whose {'ring' if masks is None else 'background'} it has,", MUTED),
        Line(f"and {words_of(result.task).shown}", MUTED),
    ]
    if masks is not None and images.images.ndim == 4:
        outline = "box" if result.task == "detection" else "mask"
        title.append(Line(f"green: the {'estimated ' * (result.mask_source == 'estimated')}{outline}", MUTED))
    floats = as_floats(images.images)
    versions = (floats[shown], *_exchanged(floats, masks, result, shown))
    trios = zip(*(to_pictures(version, images.normalization, images.bands) for version in versions), strict=True)
    cells = []
    for index, (plain, same, other) in zip(shown.tolist(), trios, strict=True):
        names = ("itself", *words_of(result.task).donors)
        headings = [f"{name} {float(p):.2f}" for name, p in zip(names, result.swap_answers[index], strict=True)]
        label = Line(f"true: {_truth(result, index)}")
        cells.append(Cell([_with_mask(plain, images, index), same, other], [label], headings))
    return grid(cells, size=_SWAP_SIDE, title=title)


def _truth(result: AuditResult, index: int) -> str:
    """Return what is true of an image, in letters that can be drawn."""
    label, truth = int(result.labels[index]), result.truths[index]
    if result.task == "regression":
        return truth
    return truth.replace(result.class_names.name(label), shown_name(result.class_names, label))


def _exchanged(images: Tensor, masks: Tensor | None, result: AuditResult, shown: Tensor) -> list[Tensor]:
    """Give the images at `shown` a background (without masks, a ring) of their own class, and one of another class."""
    donors = [donor[shown, 0].clamp_min(0) for donor in (result.donors.same, result.donors.other)]
    if masks is not None:
        backgrounds = [without_object(images[donor], masks[donor]) for donor in donors]
        return [before(background, images[shown], masks[shown]) for background in backgrounds]
    inside = (~ring(images.shape[2:])).expand(len(shown), *images.shape[2:])
    return [with_ring_of(images[shown], inside, images[donor]) for donor in donors]


def heat_over_chance_picture(audited: AuditSnapshot) -> Picture | None:
    """Draw how much more heat lies on the object than by chance; None if it is not known.

    There is one histogram per class, of many classes only those with the most images.
    """
    result = audited.result
    heat = result.measures.get("heat_on_object")
    if heat is None:
        return None
    excess = {}
    most_first = sorted(heat.per_class, key=lambda index: -heat.per_class[index].count)
    for index in sorted(most_first[:_MAX_HISTOGRAMS]):
        over_chance = heat.values_of(index) - (heat.per_class[index].chance or 0)
        excess[index] = over_chance[~over_chance.isnan()].tolist()
    largest = max((abs(value) for values in excess.values() for value in values), default=1)
    limit = _rounded_up(max(largest, 0.01))
    over_area = result["heat_over_area"].per_class
    cells = []
    for index, values in excess.items():
        bars = histogram(values, limit, width=_HISTOGRAM_WIDTH)
        mean = sum(values) / len(values) if values else math.nan
        lines = [
            Line(f"mean {mean:+.3f}; minus area {over_area[index].value:+.3f}", MUTED),
            Line(f"heat {audited.verdict.heat.get(index, 'not known')}", MUTED),
        ]
        cells.append(Cell([bars], lines, [f"{shown_name(result.class_names, index)}, {len(values)} images"]))
    title = [Line("Heat on the object minus chance (red line)")]
    if len(most_first) > len(excess):
        title.append(Line(f"{len(excess)} of {len(most_first)} {words_of(result.task).many}", MUTED))
    return grid(cells, columns=2, size=_HISTOGRAM_WIDTH, title=title)


def _rounded_up(value: float) -> float:
    """Return the next larger number of one digit."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit) * unit


def most_affected(result: AuditResult, count: int, found: Sequence[int] = ()) -> Tensor:
    """Choose the images whose true class loses most on another class's background.

    Args:
        result: The numbers.
        count: How many.
        found: The classes of which the verdict found a dependence: they come before the others.

    Returns:
        (n,) int64, n at most `count`: first the worst image of each class, then the second worst of each, and so on.
    """
    lost = result.swap_answers[:, 1] - result.swap_answers[:, 2]
    if result.task == "regression":
        lost = lost.where(lost.isnan(), result.gap.values)
    known = (~lost.isnan()).nonzero().flatten().tolist()
    worst_first = sorted(known, key=lambda index: -float(lost[index]))
    seen: Counter[int] = Counter()
    ranks = {}
    for index in worst_first:
        label = int(result.labels[index])
        ranks[index] = seen[label]
        seen[label] += 1
    first = [index for index in worst_first if int(result.labels[index]) in found]
    rest = [index for index in worst_first if int(result.labels[index]) not in found]
    ordered = [index for part in (first, rest) for index in sorted(part, key=lambda index: ranks[index])]
    return torch.tensor(ordered[:count], dtype=torch.long)
