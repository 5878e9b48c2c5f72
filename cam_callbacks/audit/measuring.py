"""The audit of a model: from its answers to the images to the measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from cam_callbacks._checks import check_positive
from cam_callbacks.audit import attention
from cam_callbacks.audit.changes import Exchange
from cam_callbacks.audit.interventions import color_auc, mean_color, ring
from cam_callbacks.audit.measure_spec import FORMS
from cam_callbacks.audit.measures import MARGIN_GAP, OTHER_MASKS
from cam_callbacks.audit.observations import Answers, Observations
from cam_callbacks.audit.properties import DataProperty, data_properties
from cam_callbacks.audit.question import AuditTask, most_frequent_share
from cam_callbacks.audit.registry import Intervention
from cam_callbacks.audit.result import AuditResult, Confusion, Further
from cam_callbacks.audit.statistics import Measure, measure
from cam_callbacks.audit.words import words_of
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.network import TargetLayer
from cam_callbacks.explain.portions import in_portions

_KINDS = ("same", "other")
_SHOWN, _LEAKED, _ANSWERED, _RIVAL = 1, 2, 2, 3  # of the readings
_MOST_RIVALS = 2  # of a class


def audit_model(
    model: nn.Module,
    probes: ProbeSet,
    target_layer: TargetLayer = None,
    *,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
    batch_size: int | None = None,
    outputs: Outputs = "auto",
    num_donors: int = 3,
    interventions: Sequence[str | Intervention] = (),
    task: AuditTask | Literal["auto"] = "auto",
) -> AuditResult:
    """Audit a model on labeled images, with their masks, or with estimated ones if they have none.

    It takes at most 7 + 8 `num_donors` forward passes per image, two to four for each of the interventions, and one
    forward and backward pass for the heatmaps.

    Args:
        model: The model; it is left as it was.
        probes: Images with labels; the numbers start to mean something at 30 or more of each class.
        target_layer: The layer of the heatmaps, as in `Method.__call__`.
        forward_fn: Called in place of the model, as in `Method.__call__`.
        multi_label: Whether an image may have several classes, as in `Method`.
        batch_size: The largest batch that the model is given, as in `Method`.
        outputs: What the model returns, as in `Method`.
        num_donors: How many other images of each kind give their background to an image.
        interventions: What is exchanged besides the background, as in `Audit`.
        task: What the model is trained to answer. `"auto"`: what the images' `annotations` say, several labels, numbers
            or a class for each pixel, and without them one class for each image. `"detection"` and `"embedding"` have
            to be said: they need `labels`, and a detection `masks` that are True within the object's box.

    Returns:
        The measures, and what they were made from.

    Raises:
        TypeError: `probes` is not a ProbeSet.
        ValueError: The images lack what the task needs, or are all of one class, `num_donors` is not at least 1, or
            an intervention is unknown, or fails; otherwise as `Method.__call__`.

    Example::

        from cam_callbacks import ProbeSet, audit_model, judge

        result = audit_model(model, ProbeSet(images, labels, masks))
        print(result["bg_gap"].overall.value, judge(result).text)
    """
    check_positive("num_donors", num_donors)
    observations = Observations(probes, num_donors, further=interventions, task=task)
    rows = torch.arange(len(probes))
    answers = observations.observe(model, rows, target_layer, forward_fn, multi_label, batch_size, outputs)
    return measures_of(observations, [answers])


def measures_of(observations: Observations, parts: Sequence[Answers], drawn_for: Tensor | None = None) -> AuditResult:
    """Make the measures from the model's answers.

    Args:
        observations: The images of the audit, and what is done to them.
        parts: The answers of each process; together they have each image once.
        drawn_for: (N,) bool, which images were drawn because their class is followed: these do not count for all
            classes together. None if all classes are judged.
    """
    answers = _joined(parts)
    heatmaps = None if answers.layer_maps is None else upsample(answers.layer_maps, observations.images.shape[2:])
    values = _values(observations, answers, heatmaps)
    judged, question = observations.exchanges[0], observations.question
    shown = [answers.readings["nothing"], *(judged.with_donors(kind, answers.readings)[..., 0] for kind in _KINDS)]

    def summarized(name: str, each: Tensor, chance: Tensor | float | None) -> Measure:
        limit = max((form.limit for ending, form in FORMS.items() if name.endswith(ending)), default=1.0)
        counts = None if drawn_for is None else ~drawn_for
        return measure(each, observations.labels, chance, judged.donors, counts=counts, limit=limit)

    return AuditResult(
        measures={name: summarized(name, each, chance) for name, each, chance in values},
        task=question.task,
        endings=question.endings,
        mask_source=observations.mask_source,
        labels=observations.labels,
        truths=tuple(question.truths[observations.asked]),
        class_names=question.names,
        swap_answers=torch.stack([each[_SHOWN] for each in shown], dim=1),
        donors=judged.donors,
        image_ids=observations.probes.image_ids,
        heat_method=None if heatmaps is None else answers.heat_method,
        heat_chance_distribution=_of_classes(observations, heatmaps, attention.mean_heat_by_chance),
        heat_shifted_distribution=_of_classes(observations, heatmaps, attention.mean_heat_on_shifted),
        notes=(*observations.notes, *answers.notes, *_blank_maps(answers, heatmaps)),
        remarks=tuple(question.remarks(answers.readings["nothing"], answers.rows)),
        passes=answers.passes,
        further=tuple(_further(observations, answers, drawn_for)),
        data=tuple(_data(observations)),
        confusions=_confusions(observations, answers),
        rivals=_rivals(observations, answers),
        drawn_for=drawn_for,
    )


def _data(observations: Observations) -> list[DataProperty]:
    """Return what simple properties give away of what is true of the images."""
    question, masks = observations.question, observations.own_masks
    rows = question.is_asked[observations.asked].nonzero().flatten()
    masks = None if masks is None else masks[rows]
    are_given, are_boxes = observations.mask_source == "given", question.task == "detection"
    return data_properties(observations.images[rows], question.told[rows], masks, are_given, are_boxes)


def _confusions(observations: Observations, answers: Answers) -> dict[int, Confusion]:
    """Return what each class is most often answered as if the background is one of another class."""
    if observations.question.task != "single-label":
        return {}
    judged = observations.exchanges[0]
    same, other = (judged.with_donors(kind, answers.readings)[..., 0] for kind in _KINDS)
    givers = observations.question.about[judged.donors.other[:, 0].clamp_min(0)]
    pairs: dict[int, Counter[tuple[int, int]]] = {}
    for row in ((same[0] == 1) & (other[0] == 0)).nonzero().flatten().tolist():
        counts = pairs.setdefault(int(observations.labels[row]), Counter())
        counts[int(other[_ANSWERED, row]), int(givers[row])] += 1
    return {
        label: Confusion(*counts.most_common(1)[0][0], counts.most_common(1)[0][1], counts.total())
        for label, counts in pairs.items()
    }


def _rivals(observations: Observations, answers: Answers) -> dict[int, tuple[int, ...]]:
    """Return the classes that are most often the most probable ones beside the true one, by class."""
    if observations.question.task != "single-label":
        return {}
    of_images = answers.readings["nothing"][_RIVAL]
    counts: dict[int, Counter[int]] = {}
    for row in (~of_images.isnan()).nonzero().flatten().tolist():
        counts.setdefault(int(observations.labels[row]), Counter())[int(of_images[row])] += 1
    return {label: tuple(rival for rival, _ in each.most_common(_MOST_RIVALS)) for label, each in counts.items()}


def _blank_maps(answers: Answers, heatmaps: Tensor | None) -> Iterator[str]:
    """Yield a note if most of the heatmaps are blank."""
    blank = 0 if heatmaps is None else int((heatmaps.flatten(1).amax(dim=1) <= 0).sum())
    count = len(answers.rows)
    if blank > count / 2:
        yield f"Heat is known of few images: the map by {answers.heat_method} is blank for {blank} of {count}"


def _further(observations: Observations, answers: Answers, drawn_for: Tensor | None) -> Iterator[Further]:
    """Yield what else was exchanged, unless that has failed."""
    exchanges = {exchange.name: exchange for exchange in observations.exchanges}
    for each in observations.further:
        if not all(
            exchanges[name].is_in(answers.readings) for name in (each.gap, each.placebo_gap) if name is not None
        ):
            continue
        lost = _lost(exchanges[each.gap], answers)
        cost = float((lost if drawn_for is None else lost[~drawn_for]).nanmean())
        lacks_masks = each.masks != "unused" and observations.mask_source != "given"
        title = each.title
        if observations.masks is None and each.title_without_masks:
            title = each.title_without_masks
        yield Further(title, each.gap, each.placebo_gap, cost, each.masks, lacks_masks, each.warns_only)


def _lost(exchange: Exchange, answers: Answers) -> Tensor:
    """Return (N, K) how much less right answers are with donors of the same class."""
    return answers.right["nothing"].unsqueeze(1) - exchange.with_donors("same", answers.readings)[0]


def _joined(parts: Sequence[Answers]) -> Answers:
    """Put the answers of all ranks together, in the order of the images."""
    order = torch.cat([part.rows for part in parts]).argsort()
    changes = [name for name in parts[0].readings if all(name in part.readings for part in parts)]
    layer_maps = [part.layer_maps for part in parts if part.layer_maps is not None]
    notes = [note for part in parts for note in part.notes]
    if len({part.heat_method for part in parts}) > 1:
        notes.append("Heat is not measured: not all ranks could use the same method")
        layer_maps = []
    return Answers(
        rows=torch.arange(len(order)),
        readings={name: torch.cat([part.readings[name] for part in parts], dim=1)[:, order] for name in changes},
        layer_maps=torch.cat(layer_maps)[order] if len(layer_maps) == len(parts) else None,
        heat_method=parts[0].heat_method,
        notes=tuple(dict.fromkeys(notes)),
        passes=sum(part.passes for part in parts),
    )


_Value = tuple[str, Tensor, Tensor | float | None]
"""The name of a measure in `MEASURES`, its values, (N,) or with each of K donors (N, K), and its chance level.

Values are NaN where it is not defined.
"""


def _values(observations: Observations, answers: Answers, heatmaps: Tensor | None) -> Iterator[_Value]:
    """Yield all measures, in the order in which they are shown."""
    right, masks, usable, question = answers.right, observations.masks, observations.usable, observations.question
    whole, chance = right["nothing"], question.chance
    chance = chance[observations.asked] if isinstance(chance, Tensor) else chance
    name = words_of(question.task).right
    yield name, whole, chance
    if observations.probes.groups is not None and name == "accuracy":
        yield _worst_group_accuracy(whole, observations.probes.groups[observations.asked], observations.labels)
    is_even = observations.is_even
    for exchange in observations.exchanges:
        if not exchange.is_in(right):
            continue
        same, other = (exchange.with_donors(kind, answers.readings) for kind in _KINDS)
        gaps = question.gaps(same, other, exchange.donors)
        if exchange.name == MARGIN_GAP:
            for name, is_tried in zip(OTHER_MASKS, (is_even, ~is_even), strict=True):
                yield name, torch.where(is_tried.unsqueeze(1), gaps[""], torch.nan), 0.0
            continue
        for ending, gap in gaps.items():
            yield f"{exchange.name}{ending}", gap, 0.0
    if masks is not None:
        yield "collage_cost", _lost(observations.exchanges[0], answers), 0.0
        yield "blur_loss", torch.where(usable, whole - right["blurred"], torch.nan), 0.0
        yield "background_only", torch.where(usable & is_even, right["alone"], torch.nan), chance
        yield "object_only", torch.where(usable & ~is_even, right["alone"], torch.nan), chance
    if question.task == "segmentation":
        yield "leak", _leak(observations.exchanges[0], answers), 0.0
    if "brighter" in right and question.is_counted:
        for change in ("roll", "gray"):
            # How many more right answers the change of color undoes than the placebo.
            undone = (1 - right[change]) - (1 - right["brighter"])
            yield f"color_sensitivity_{change}", torch.where(whole == 1, undone, torch.nan), 0.0
    # Without masks of the ring: what the label has no say in.
    inside = ~ring(observations.images.shape[2:]).expand(len(whole), *observations.images.shape[2:])
    yield _data_color_auc(observations, inside if masks is None else masks[observations.asked], usable)
    if heatmaps is not None:
        yield from _heat_values(observations, answers, heatmaps)
    if observations.probes.mask_agreement is not None:
        yield "mask_agreement", observations.probes.mask_agreement[observations.asked].float(), None


def _leak(exchange: Exchange, answers: Answers) -> Tensor:
    """Return (N, K) how much more of the rest of the image is seen as the class before another class's background."""
    return exchange.with_donors("other", answers.readings)[_LEAKED] - answers.readings["nothing"][_LEAKED].unsqueeze(1)


def _heat_values(observations: Observations, answers: Answers, heatmaps: Tensor) -> Iterator[_Value]:
    """Yield the measures of where the heat of the true class lies."""
    masks, usable = observations.own_masks, _shows_object(observations)
    known = heatmaps.flatten(1).amax(dim=1) > 0
    area_of_ring = float(ring(heatmaps.shape[1:]).float().mean())
    if area_of_ring > 0:
        yield "border_share", attention.border_share(heatmaps), area_of_ring
    yield "delete_hot", torch.where(known, answers.right["delete_hot"], torch.nan), None
    if masks is None:
        return
    heat, area = attention.heat_on_object(heatmaps, masks), attention.area_share(masks)
    heat = torch.where(usable, heat, torch.nan)
    yield "heat_on_object", heat, attention.heat_by_chance(heatmaps, masks, observations.labels)
    yield "heat_over_area", heat - area, 0.0
    yield "rank_accuracy", torch.where(usable, attention.rank_accuracy(heatmaps, masks), torch.nan), area
    yield "pointing", torch.where(usable, attention.pointing(heatmaps, masks), torch.nan), area


def _shows_object(observations: Observations) -> Tensor:
    """Return (N,) which images have what they are asked about, at a place that is known."""
    there = observations.usable & observations.question.is_there[observations.asked]
    masks = observations.own_masks
    return there if masks is None else there & attention.is_informative(masks)


def _worst_group_accuracy(correct: Tensor, groups: Tensor, labels: Tensor) -> _Value:
    correct = correct.nan_to_num()  # no answer is a wrong one
    indices = sorted(set(groups.tolist()))
    worst = min(indices, key=lambda group: float(correct[groups == group].mean()))
    are_of_one_class = all(len(set(labels[groups == group].tolist())) == 1 for group in indices)
    chance = 0.0 if are_of_one_class and most_frequent_share(labels) < 1 else None
    return "worst_group_accuracy", torch.where(groups == worst, correct, torch.nan), chance


def _data_color_auc(observations: Observations, inside: Tensor, usable: Tensor) -> _Value:
    """Measure how well the mean color outside of the object, or in the ring, tells the classes apart."""
    outside = ~inside
    known = usable & outside.flatten(1).any(dim=1)
    values = torch.full((len(known),), torch.nan, dtype=torch.float32)
    if int(known.sum()) > 1:
        portions = in_portions(known.nonzero().flatten(), observations.images)
        colors = torch.cat([mean_color(observations.images[some], outside[some]) for some in portions])
        values[known] = _told_by_color(colors, observations, known)
    return "data_color_auc", values, 0.5


def _told_by_color(colors: Tensor, observations: Observations, known: Tensor) -> Tensor:
    """Return (n,) how well colors (n, C) tell what each of the n images that are `known` (N,) is asked about."""
    about = observations.labels[known]
    values = torch.full((len(about),), torch.nan, dtype=torch.float32)
    seen: list[Tensor] = []
    for index in sorted(set(about.tolist())):
        sides = observations.question.sides(index)[observations.asked][known]
        if not (seen and torch.equal(sides, seen[-1])):  # those of classes are the same for all
            seen, of_all = [sides], color_auc(colors, sides)
        values[about == index] = of_all[about == index]
    return values


def _of_classes(
    observations: Observations, heatmaps: Tensor | None, distribution: Callable[[Tensor, Tensor], Tensor]
) -> dict[int, Tensor]:
    """Return a distribution of heat and masks for each class with two images or more whose heat is known."""
    masks, labels = observations.own_masks, observations.labels
    if heatmaps is None or masks is None:
        return {}
    known = _shows_object(observations) & (heatmaps.flatten(1).amax(dim=1) > 0)
    members = {index: known & (labels == index) for index in sorted(set(labels.tolist()))}
    return {
        index: distribution(heatmaps[of_class], masks[of_class])
        for index, of_class in members.items()
        if int(of_class.sum()) > 1
    }
