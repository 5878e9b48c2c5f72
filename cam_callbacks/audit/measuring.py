"""The audit of a model: from its answers to the images to the measures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cam_callbacks.audit import attention, interventions
from cam_callbacks.audit.observations import Answers, Exchange, Observations
from cam_callbacks.audit.result import AuditResult
from cam_callbacks.audit.statistics import Measure, measure
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import faithfulness
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.explain.model_outputs import ForwardFn
from cam_callbacks.explain.network import TargetLayer


def audit_model(
    model: nn.Module,
    probes: ProbeSet,
    target_layer: TargetLayer = None,
    *,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
    batch_size: int | None = None,
) -> AuditResult:
    """Audit a classifier on labeled images, with their masks, or with estimated ones if they have none.

    It takes at most eleven forward passes per image, and one forward and backward pass for the heatmaps.

    Args:
        model: The classifier; it is left as it was.
        probes: Images with labels; the numbers start to mean something at 30 or more of each class.
        target_layer: The layer of the heatmaps, as in `Method.__call__`.
        forward_fn: Called in place of the model, as in `Method.__call__`.
        multi_label: Whether an image may have several classes, as in `Method`.
        batch_size: The largest batch that the model is given, as in `Method`.

    Returns:
        The measures, and what they were made from.

    Raises:
        TypeError: `probes` is not a ProbeSet.
        ValueError: The images have no labels or are all of one class; otherwise as `Method.__call__`.

    Example::

        from cam_callbacks import ProbeSet, audit_model, judge

        result = audit_model(model, ProbeSet(images, labels, masks))
        print(result["bg_gap"].overall.value, judge(result).text)
    """
    plan = Observations(probes)
    rows = torch.arange(len(probes))
    return measures_of(plan, [plan.observe(model, rows, target_layer, forward_fn, multi_label, batch_size)])


def measures_of(plan: Observations, parts: Sequence[Answers]) -> AuditResult:
    """The numbers, from what was seen of all images together.

    Args:
        plan: Of the audit.
        parts: Each image is in one of them.
    """
    order = torch.cat([part.rows for part in parts]).argsort()
    changes = [name for name in parts[0].correct if all(name in part.correct for part in parts)]
    raw = [part.layer_maps for part in parts if part.layer_maps is not None]
    notes = [note for part in parts for note in part.notes]
    if len({part.heat_method for part in parts}) > 1:
        notes.append("Heat is not measured: not all processes could use the same method")
        raw = []
    observed = Answers(
        rows=torch.arange(len(order)),
        correct={name: torch.cat([part.correct[name] for part in parts])[order] for name in changes},
        probability={name: torch.cat([part.probability[name] for part in parts])[order] for name in changes},
        layer_maps=torch.cat(raw)[order] if len(raw) == len(parts) else None,
        heat_method=parts[0].heat_method,
        notes=tuple(dict.fromkeys(notes)),
        passes=sum(part.passes for part in parts),
    )
    return _Conclusion(plan, observed).result()


class _Conclusion:
    """Turns what was observed into measures."""

    def __init__(self, plan: Observations, observed: Answers) -> None:
        self.plan, self.observed = plan, observed
        self.labels = plan.labels
        self.measures: dict[str, Measure] = {}
        self.heat_chance_distribution: dict[int, Tensor] = {}
        self.largest_class = float(torch.bincount(self.labels).max() / len(self.labels))

    def result(self) -> AuditResult:
        plan, observed = self.plan, self.observed
        whole = observed.correct["nothing"]
        self._note("accuracy", whole, chance=self.largest_class)
        self._note_groups(whole)
        for exchange in plan.exchanges:
            self._note_exchange(exchange)
        self._note_parts()
        self._note_colors(whole)
        if plan.masks is not None:
            self._note_data_color(plan.masks, plan.usable)
        if observed.layer_maps is not None:
            self._note_heat(upsample(observed.layer_maps, plan.images.shape[2:]))
        main = plan.exchanges[0]
        swaps = [main.where_known(observed.probability[f"{main.name}/{arm}"]) for arm in ("same", "other")]
        return AuditResult(
            measures=self.measures,
            mask_source=plan.mask_source,
            labels=plan.labels,
            class_names=plan.probes.class_names,
            swap_probabilities=torch.stack([observed.probability["nothing"], *swaps], dim=1),
            donors=main.donors,
            heat_method=observed.heat_method if observed.layer_maps is not None else None,
            heat_chance_distribution=self.heat_chance_distribution,
            notes=(*plan.notes, *observed.notes),
            passes=observed.passes,
        )

    def _note(self, name: str, values: Tensor, chance: Tensor | float | None = None) -> None:
        self.measures[name] = measure(values, self.labels, chance)

    def _note_groups(self, correct: Tensor) -> None:
        if self.plan.probes.groups is None:
            return
        groups = self.plan.probes.groups
        means = {g: float(correct[groups == g].nan_to_num().mean()) for g in sorted(set(groups.tolist()))}
        worst = min(means, key=lambda g: means[g])
        within = torch.where(groups == worst, correct.nan_to_num(), torch.nan)  # no answer is a wrong one
        of_one_class = all(len(set(self.labels[groups == g].tolist())) == 1 for g in means)
        self._note("worst_group_accuracy", within, chance=0.0 if of_one_class and self.largest_class < 1 else None)

    def _note_exchange(self, exchange: Exchange) -> None:
        """The gap between both arms, in accuracy and in probability."""
        for name, values in (("", self.observed.correct), ("_probability", self.observed.probability)):
            gap = values[f"{exchange.name}/same"] - values[f"{exchange.name}/other"]
            self._note(f"{exchange.name}{name}", exchange.where_known(gap), chance=0.0)

    def _note_parts(self) -> None:
        """Accuracy on the background alone, and on the object alone."""
        if self.plan.masks is None:
            return
        for name in ("background_only", "object_only"):
            correct = torch.where(self.plan.usable, self.observed.correct[name], torch.nan)
            self._note(name, correct, chance=self.largest_class)

    def _note_colors(self, whole: Tensor) -> None:
        """How many right answers changes of color undo, beside a placebo; more than a clean network's is no proof."""
        if "brighter" not in self.observed.correct:
            return

        def lost(change: str) -> Tensor:
            return torch.where(whole == 1, 1 - self.observed.correct[change], torch.nan)

        for change in ("roll", "gray"):
            self._note(f"color_sensitivity_{change}", lost(change) - lost("brighter"), chance=0.0)

    def _note_heat(self, heatmaps: Tensor) -> None:
        """Where the heat of the true class lies."""
        masks, usable = self.plan.masks, self.plan.usable
        known = heatmaps.flatten(1).amax(dim=1) > 0
        ring_share = float(interventions.ring(heatmaps.shape[1:]).float().mean())
        self._note("border_share", attention.border_share(heatmaps), chance=ring_share)
        self._note("delete_hot", torch.where(known, self.observed.correct["delete_hot"], torch.nan), chance=None)
        if masks is None:
            self._note_data_color(faithfulness.hottest_half(heatmaps), known)
            return
        heat = torch.where(usable, attention.heat_on_object(heatmaps, masks), torch.nan)
        self._note("heat_on_object", heat, attention.heat_by_chance(heatmaps, masks, self.labels))
        area = attention.area_share(masks)
        self._note("heat_over_area", heat - area, chance=0.0)
        for name, rule in (("rank_accuracy", attention.rank_accuracy), ("pointing", attention.pointing)):
            self._note(name, torch.where(usable, rule(heatmaps, masks), torch.nan), area)
        for c in sorted(set(self.labels.tolist())):
            members = (self.labels == c) & usable & known
            if int(members.sum()) > 1:
                self.heat_chance_distribution[c] = attention.mean_heat_by_chance(heatmaps[members], masks[members])

    def _note_data_color(self, object_or_heat: Tensor, usable: Tensor) -> None:
        """How well the mean color outside the object tells the classes apart: of the data, not of the model."""
        outside = ~object_or_heat
        known = usable & outside.flatten(1).any(dim=1)
        values = torch.full((len(known),), torch.nan)
        if int(known.sum()) > 1:
            colors = interventions.mean_color(self.plan.images[known], outside[known])
            values[known] = interventions.color_auc(colors, self.labels[known])
        self._note("data_color_auc", values, chance=0.5)
