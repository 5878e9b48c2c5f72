"""The audit: what a model's answers, and its heat, owe to the background; numbers with intervals, for one look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cam_callbacks.audit import attention, counterfactual, faithfulness
from cam_callbacks.audit.estimates import Measure, measure
from cam_callbacks.audit.foreground import can_estimate, estimate_masks
from cam_callbacks.explanation import upsample
from cam_callbacks.methods.cam import CAM
from cam_callbacks.methods.grad_cam import GradCAM
from cam_callbacks.methods.network import Network, TargetLayer
from cam_callbacks.outputs import ForwardFn
from cam_callbacks.probes import ProbeSet
from cam_callbacks.undisturbed import undisturbed

MaskSource = Literal["given", "estimated", "none"]


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The numbers of one look.

    Attributes:
        measures: By name; `docs/audit.md` defines each. Those that could not be computed are not there.
        masks: Where the foregrounds come from: `"given"` with the images, `"estimated"` by GrabCut, or `"none"`.
        targets: (N,) int64, the classes of the images.
        class_names: Of the classes, or None.
        swaps: (N, 3) probability of the true class: of the image, on a same-class and on an other-class background
            (without masks: ring); NaN where there is no donor.
        donors: Whose backgrounds these were.
        heat_null: By class, (200,) means of `heat_on_object` that arise by chance.
        notes: What was left out, and why.
        passes: Forward samples spent, without the heatmaps.
    """

    measures: Mapping[str, Measure]
    masks: MaskSource
    targets: Tensor
    class_names: tuple[str, ...] | None
    swaps: Tensor
    donors: counterfactual.Donors
    heat_null: Mapping[int, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    passes: int = 0

    def class_name(self, index: int) -> str:
        """The name of a class; its number if it has none."""
        return self.class_names[index] if self.class_names and index < len(self.class_names) else str(index)

    @property
    def gap(self) -> str:
        """The name of the gap that the verdict stands on."""
        return {"given": "bg_gap", "estimated": "bg_gap_estimated", "none": "ring_gap"}[self.masks]

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of a table with one row for each measure and class, e.g. for `pandas.DataFrame`."""
        rows = []
        for name, each in self.measures.items():
            classes = [(self.class_name(index), estimate) for index, estimate in each.per_class.items()]
            for label, estimate in [("all", each.overall), *classes]:
                rows.append({"measure": name, "class": label, **vars(estimate)})
        return {column: [row[column] for row in rows] for column in rows[0]} if rows else {}


def audit(
    model: nn.Module,
    probes: ProbeSet,
    target_layer: TargetLayer = None,
    *,
    groups: Tensor | None = None,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
) -> AuditResult:
    """Audit a classifier on labelled images; with masks if they have them, else with estimated ones.

    At most eleven forward passes an image, and one forward and backward pass for the heatmaps.

    Args:
        model: The classifier; it is left as it was.
        probes: Images with targets; 30 or more of each class tell something.
        target_layer: Of the heatmaps, as in `Method.__call__`.
        groups: (N,) int64, for the accuracy of the worst group; None for those of the probes, if they have any.
        forward_fn: As in `Method.__call__`.
        multi_label: As in `Method`.

    Returns:
        The numbers.

    Raises:
        ValueError: Images without targets, or all of one class; as `Method.__call__` otherwise.
    """
    if probes.targets is None:
        raise ValueError("probes have no targets; the audit compares classes: give ProbeSet(images, targets)")
    if len(set(probes.targets.tolist())) < 2:
        raise ValueError(f"all {len(probes)} probes are of one class; the audit compares classes, two are needed")
    groups = probes.groups if groups is None else groups
    if groups is not None and groups.shape != probes.targets.shape:
        raise ValueError(f"groups has shape {tuple(groups.shape)}; {len(probes)} images need ({len(probes)},)")
    with undisturbed(model):
        return _Audit(model, probes, target_layer, groups, forward_fn, multi_label).run()


class _Audit:
    """One audit, while it is being made."""

    def __init__(
        self,
        model: nn.Module,
        probes: ProbeSet,
        target_layer: TargetLayer,
        groups: Tensor | None,
        forward_fn: ForwardFn | None,
        multi_label: bool,
    ) -> None:
        assert probes.targets is not None
        self.model, self.probes, self.layer = model, probes, target_layer
        self.groups, self.forward_fn, self.multi_label = groups, forward_fn, multi_label
        self.images, self.targets = probes.images.float(), probes.targets
        self.measures: dict[str, Measure] = {}
        self.notes: list[str] = []
        self.passes = 0
        self.heat_null: dict[int, Tensor] = {}

    def run(self) -> AuditResult:
        masks, source = self._masks()
        whole = self._answers(self.images)
        self._note("accuracy", whole.correct)
        self._note_groups(whole.correct)
        suffix = "_estimated" if source == "estimated" else ""
        where = counterfactual.ring(self.images.shape[2:]).expand(len(self.images), *self.images.shape[2:])
        if masks is not None:
            usable = masks.flatten(1).any(dim=1) & ~masks.flatten(1).all(dim=1)
            swaps, donors = self._exchange(f"bg_gap{suffix}", masks, usable, counterfactual.with_background_of)
            self._exchange(f"recolour_gap{suffix}", masks, usable, counterfactual.with_colours_of)
            self._without(masks, usable, suffix)
        else:
            everything = torch.ones_like(self.targets, dtype=torch.bool)
            swaps, donors = self._exchange("ring_gap", ~where, everything, counterfactual.with_ring_of)
        self._colours(whole)
        self._heat(masks, suffix, whole)
        return AuditResult(
            measures=self.measures,
            masks=source,
            targets=self.targets,
            class_names=self.probes.class_names,
            swaps=torch.stack([whole.probability, *swaps], dim=1),
            donors=donors,
            heat_null=self.heat_null,
            notes=tuple(self.notes),
            passes=self.passes,
        )

    def _masks(self) -> tuple[Tensor | None, MaskSource]:
        """The masks, and where they come from; none where they can be neither known nor estimated."""
        source: MaskSource = self.probes.mask_source
        masks = None if self.probes.masks is None else self.probes.masks.bool()
        if masks is None and self.images.ndim == 4 and can_estimate():
            masks, source = estimate_masks(self.images), "estimated"
        if masks is None:
            self.notes.append(
                "No masks were given, and none could be estimated: only the outer ring is exchanged, a weak test. "
                + ("pip install opencv-python-headless estimates them" if self.images.ndim == 4 else "Give masks")
            )
            return None, "none"
        empty, full = ~masks.flatten(1).any(dim=1), masks.flatten(1).all(dim=1)
        if bool((empty | full).any()):
            self.notes.append(f"{int(empty.sum())} masks are empty and {int(full.sum())} cover all: left out")
        return masks, source

    def _answers(self, images: Tensor) -> _Answers:
        network = Network(self.model, images, self.forward_fn, multi_label=self.multi_label)
        scores = network.scores()
        self.passes += len(images)
        targets = self.targets.to(scores.logits.device)
        outside = targets[(targets < 0) | (targets >= scores.logits.shape[1])]
        if len(outside):
            raise ValueError(
                f"targets contains {sorted(set(outside.tolist()))}, but the model has {scores.logits.shape[1]} classes"
            )
        known = torch.isfinite(scores.probabilities).all(dim=1)
        correct = (scores.probabilities.argmax(dim=1) == targets).float()
        probability = scores.probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        return _Answers(torch.where(known, correct, torch.nan).cpu(), torch.where(known, probability, torch.nan).cpu())

    def _note(self, name: str, values: Tensor, chance: Tensor | float | None = None) -> None:
        self.measures[name] = measure(values, self.targets, chance)

    def _note_groups(self, correct: Tensor) -> None:
        if self.groups is None:
            return
        groups = self.groups.cpu()
        means = {g: float(correct[groups == g].nan_to_num().mean()) for g in sorted(set(groups.tolist()))}
        worst = min(means, key=lambda g: means[g])
        within = torch.where(groups == worst, correct.nan_to_num(), torch.nan)  # no answer is a wrong one
        self._note("worst_group_accuracy", within)

    def _exchange(
        self, name: str, masks: Tensor, usable: Tensor, exchange: Any
    ) -> tuple[tuple[Tensor, Tensor], counterfactual.Donors]:
        """The gap between both arms of an exchange, in accuracy and in probability; and the probabilities of both."""
        donors = counterfactual.choose_donors(self.targets, usable, self.probes.fingerprint)
        known = donors.known & usable
        same, other = (
            self._answers(exchange(self.images, masks, donor.clamp_min(0))) for donor in (donors.same, donors.other)
        )

        def where_known(values: Tensor) -> Tensor:
            return torch.where(known, values, torch.nan)

        self._note(name, where_known(same.correct - other.correct), chance=0.0)
        self._note(f"{name}_probability", where_known(same.probability - other.probability), chance=0.0)
        return (where_known(same.probability), where_known(other.probability)), donors

    def _without(self, masks: Tensor, usable: Tensor, suffix: str) -> None:
        """Accuracy on the background alone, and on the object alone."""
        most = float(torch.bincount(self.targets).max() / len(self.targets))
        for name, images in (
            ("background_only", counterfactual.fill(self.images, masks)),
            ("object_only", counterfactual.on_grey(self.images, masks)),
        ):
            correct = self._answers(images).correct
            self._note(f"{name}{suffix}", torch.where(usable, correct, torch.nan), chance=most)

    def _colours(self, whole: _Answers) -> None:
        """How many right answers changes of colour undo, beside a placebo; more than a clean network's is no proof."""
        if self.images.shape[1] != 3:
            return
        changes = {"roll": counterfactual.roll_colours, "grey": counterfactual.grey}
        placebo = self._lost(whole, counterfactual.brighter(self.images))
        for name, change in changes.items():
            self._note(f"colour_sensitivity_{name}", self._lost(whole, change(self.images)) - placebo, chance=0.0)

    def _lost(self, whole: _Answers, images: Tensor) -> Tensor:
        return torch.where(whole.correct == 1, 1 - self._answers(images).correct, torch.nan)

    def _heat(self, masks: Tensor | None, suffix: str, whole: _Answers) -> None:
        """Where the heat of the true class lies; by Grad-CAM, or by CAM where there are no gradients."""
        heatmaps = self._heatmaps()
        if heatmaps is None:
            return
        known = heatmaps.flatten(1).amax(dim=1) > 0
        self._note("border_share", attention.border_share(heatmaps), chance=self._ring_share())
        hot = faithfulness.hottest_half(heatmaps)
        deleted = self._answers(counterfactual.fill(self.images, hot)).correct
        self._note("delete_hot", torch.where(known, deleted, torch.nan), chance=None)
        self._note_data_colour(hot if masks is None else masks)
        if masks is None:
            return
        usable = masks.flatten(1).any(dim=1) & ~masks.flatten(1).all(dim=1)
        heat = torch.where(usable, attention.heat_on_object(heatmaps, masks), torch.nan)
        self._note(f"heat_on_object{suffix}", heat, attention.heat_by_chance(heatmaps, masks, self.targets))
        area = attention.area_share(masks)
        self._note(f"heat_over_area{suffix}", heat - area, chance=0.0)
        for name, rule in (("rank_accuracy", attention.rank_accuracy), ("pointing", attention.pointing)):
            self._note(f"{name}{suffix}", torch.where(usable, rule(heatmaps, masks), torch.nan), area)
        for c in sorted(set(self.targets.tolist())):
            members = (self.targets == c) & usable & known
            if int(members.sum()) > 1:
                self.heat_null[c] = attention.mean_heat_by_chance(heatmaps[members], masks[members])

    def _heatmaps(self) -> Tensor | None:
        """(N, *spatial) on the CPU, NaN where skipped; None where no method applies."""
        reasons = []
        for method in (GradCAM(upsampling="none", multi_label=self.multi_label), CAM(upsampling="none")):
            try:
                explained = method(self.model, self.images, self.layer, self.targets, forward_fn=self.forward_fn)
            except (ValueError, RuntimeError) as error:
                reasons.append(f"{method.name}: {error}")
                continue
            return upsample(explained.raw.cpu(), self.images.shape[2:])
        self.notes.append("Heat is not measured: " + "; ".join(reasons))
        return None

    def _ring_share(self) -> float:
        return float(counterfactual.ring(self.images.shape[2:]).float().mean())

    def _note_data_colour(self, object_or_heat: Tensor) -> None:
        """How well the mean colour outside the object tells the classes apart: of the data, not of the model."""
        outside = ~object_or_heat
        known = outside.flatten(1).any(dim=1)
        colours = counterfactual.mean_colour(self.images[known], outside[known])
        values = torch.full((len(known),), torch.nan)
        values[known] = counterfactual.colour_auc(colours, self.targets[known])
        self._note("data_colour_auc", values, chance=0.5)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What the model said to N images: whether it was right, and the probability of the true class; NaN if that is."""

    correct: Tensor
    probability: Tensor
