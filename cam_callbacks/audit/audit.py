"""The audit: what a model's answers, and its heat, owe to the background; numbers with intervals, for one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        heat_by: The name of the method that made the heat, or None where none applies.
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
    heat_by: str | None = None
    heat_null: Mapping[int, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    passes: int = 0

    def class_name(self, index: int) -> str:
        """The name of a class; its number if it has none."""
        return self.class_names[index] if self.class_names and index < len(self.class_names) else str(index)

    @property
    def gap(self) -> str:
        """The name of the gap that the verdict stands on."""
        return "ring_gap" if self.masks == "none" else f"bg_gap{self.suffix}"

    @property
    def suffix(self) -> str:
        """What the names of measures that need masks end in where these were estimated; else nothing."""
        return _suffix(self.masks)

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns of a table with one row for each measure and class, e.g. for `pandas.DataFrame`."""
        rows = []
        for name, each in self.measures.items():
            classes = [(self.class_name(index), estimate) for index, estimate in each.per_class.items()]
            for label, estimate in [("all", each.overall), *classes]:
                rows.append({"measure": name, "class": label, **vars(estimate)})
        return {column: [row[column] for row in rows] for column in rows[0]} if rows else {}


def _suffix(masks: MaskSource) -> str:
    return "_estimated" if masks == "estimated" else ""


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
    plan = Plan(probes, groups)
    observed = plan.observe(model, torch.arange(len(probes)), target_layer, forward_fn, multi_label)
    return plan.conclude([observed])


@dataclass(frozen=True, eq=False)
class Observed:
    """What a model did with n of the images of an audit: all of it that takes passes.

    Attributes:
        rows: (n,) int64, the numbers of the images.
        correct: By change, (n,) whether the answer was right, NaN where there was none.
        probability: By change, (n,) probability of the true class, NaN where it is.
        raw: (n, *spatial of the layer) heat of the true class, NaN where skipped; None where no method applies.
        heat_by: The name of the method.
        notes: What was left out, and why.
        passes: Forward samples spent, without the heatmaps.
    """

    rows: Tensor
    correct: Mapping[str, Tensor]
    probability: Mapping[str, Tensor]
    raw: Tensor | None
    heat_by: str | None
    notes: tuple[str, ...]
    passes: int


@dataclass(frozen=True, eq=False)
class _Exchange:
    """An exchange of what lies outside of `kept`, (N, *spatial) bool, with a donor of the same and of another class."""

    name: str
    kept: Tensor
    usable: Tensor
    donors: counterfactual.Donors
    exchange: Callable[[Tensor, Tensor, Tensor], Tensor]

    def changes(self, images: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Both arms."""

        def arm(donor: Tensor) -> Callable[[], Tensor]:
            return lambda: self.exchange(images, self.kept, donor.clamp_min(0))

        return {f"{self.name}/same": arm(self.donors.same), f"{self.name}/other": arm(self.donors.other)}

    def where_known(self, values: Tensor) -> Tensor:
        """(N,) values, NaN where an image has no donors."""
        return torch.where(self.donors.known & self.usable, values, torch.nan)


class Plan:
    """An audit of labelled images in two steps, so that several processes can share the first, which takes all passes.

    Args:
        probes: As in `audit`.
        groups: As in `audit`.

    Raises:
        ValueError: As `audit`.
    """

    def __init__(self, probes: ProbeSet, groups: Tensor | None = None) -> None:
        if probes.targets is None:
            raise ValueError("probes have no targets; the audit compares classes: give ProbeSet(images, targets)")
        if len(set(probes.targets.tolist())) < 2:
            raise ValueError(f"all {len(probes)} probes are of one class; the audit compares classes, two are needed")
        groups = probes.groups if groups is None else groups
        if groups is not None and groups.shape != probes.targets.shape:
            raise ValueError(f"groups has shape {tuple(groups.shape)}; {len(probes)} images need ({len(probes)},)")
        self.probes, self.groups = probes, groups
        self.images, self.targets = probes.images.float(), probes.targets
        self.notes: list[str] = []
        self.masks, self.source = self._masks()
        self.suffix = _suffix(self.source)
        self.usable = torch.ones_like(self.targets, dtype=torch.bool)
        if self.masks is None:
            size = self.images.shape[2:]
            inside = ~counterfactual.ring(size).expand(len(self.images), *size)
            self.exchanges = [self._exchange("ring_gap", inside, counterfactual.with_ring_of)]
            return
        self.usable = attention.tells_where(self.masks)
        self.exchanges = [
            self._exchange("bg_gap", self.masks, counterfactual.with_background_of),
            self._exchange("recolour_gap", self.masks, counterfactual.with_colours_of),
        ]

    def _masks(self) -> tuple[Tensor | None, MaskSource]:
        """The masks, and where they come from; none where they can be neither known nor estimated."""
        source: MaskSource = self.probes.mask_source
        masks = None if self.probes.masks is None else self.probes.masks.bool()
        remedy = "give masks"
        if masks is None and self.images.ndim == 4:
            if can_estimate():
                masks, source = estimate_masks(self.images), "estimated"
            else:
                remedy += ", or pip install opencv-python-headless, which estimates them"
        if masks is None or (source == "estimated" and not bool(attention.tells_where(masks).any())):
            self.notes.append(
                "No masks were given, and none could be estimated: only the outer ring is exchanged, a weak test; "
                + remedy
            )
            return None, "none"
        empty, full = ~masks.flatten(1).any(dim=1), masks.flatten(1).all(dim=1)
        if bool((empty | full).any()):
            self.notes.append(f"{int(empty.sum())} masks are empty and {int(full.sum())} cover all: left out")
        return masks, source

    def _exchange(self, name: str, kept: Tensor, exchange: Callable[[Tensor, Tensor, Tensor], Tensor]) -> _Exchange:
        donors = counterfactual.choose_donors(self.targets, self.usable, self.probes.fingerprint)
        return _Exchange(name, kept, self.usable, donors, exchange)

    def _changes(self) -> dict[str, Callable[[], Tensor]]:
        """What is done to the images, by name; each returns all of them changed, (N, C, *spatial)."""
        images, masks = self.images, self.masks
        changes: dict[str, Callable[[], Tensor]] = {"nothing": lambda: images}
        for exchange in self.exchanges:
            changes |= exchange.changes(images)
        if masks is not None:
            changes["background_only"] = lambda: counterfactual.fill(images, masks)
            changes["object_only"] = lambda: counterfactual.on_grey(images, masks)
        if images.shape[1] == 3:
            changes["brighter"] = lambda: counterfactual.brighter(images)
            changes["roll"] = lambda: counterfactual.roll_colours(images)
            changes["grey"] = lambda: counterfactual.grey(images)
        return changes

    def observe(
        self,
        model: nn.Module,
        rows: Tensor,
        target_layer: TargetLayer = None,
        forward_fn: ForwardFn | None = None,
        multi_label: bool = False,
    ) -> Observed:
        """Run the model on some of the images, and on what becomes of them; it is left as it was.

        Args:
            model: As in `audit`.
            rows: (n,) int64, which images, at least one.
            target_layer: As in `audit`.
            forward_fn: As in `audit`.
            multi_label: As in `audit`.
        """
        with undisturbed(model):
            ask = _Asked(model, self.targets[rows], forward_fn, multi_label)
            for name, change in self._changes().items():
                ask(name, change()[rows])
            images = self.images[rows]
            raw, heat_by, notes = _heat(model, images, self.targets[rows], target_layer, forward_fn, multi_label)
            if raw is not None:
                hot = faithfulness.hottest_half(upsample(raw, images.shape[2:]))
                ask("delete_hot", counterfactual.fill(images, hot))
        return Observed(rows, ask.correct, ask.probability, raw, heat_by, notes, ask.passes)

    def conclude(self, parts: Sequence[Observed]) -> AuditResult:
        """The numbers, from what was seen of all images together.

        Args:
            parts: Each image is in one of them.
        """
        order = torch.cat([part.rows for part in parts]).argsort()
        changes = [name for name in parts[0].correct if all(name in part.correct for part in parts)]
        raw = [part.raw for part in parts if part.raw is not None]
        notes = [note for part in parts for note in part.notes]
        if len({part.heat_by for part in parts}) > 1:
            notes.append("Heat is not measured: not all processes could use the same method")
            raw = []
        observed = Observed(
            rows=torch.arange(len(order)),
            correct={name: torch.cat([part.correct[name] for part in parts])[order] for name in changes},
            probability={name: torch.cat([part.probability[name] for part in parts])[order] for name in changes},
            raw=torch.cat(raw)[order] if len(raw) == len(parts) else None,
            heat_by=parts[0].heat_by,
            notes=tuple(dict.fromkeys(notes)),
            passes=sum(part.passes for part in parts),
        )
        return _Conclusion(self, observed).result()


class _Asked:
    """Keeps what the model answers to images of these classes, by the name of what was done to them."""

    def __init__(self, model: nn.Module, targets: Tensor, forward_fn: ForwardFn | None, multi_label: bool) -> None:
        self._model, self._targets = model, targets
        self._forward_fn, self._multi_label = forward_fn, multi_label
        self.correct: dict[str, Tensor] = {}
        self.probability: dict[str, Tensor] = {}
        self.passes = 0

    def __call__(self, name: str, images: Tensor) -> None:
        scores = Network(self._model, images, self._forward_fn, multi_label=self._multi_label).scores()
        self.passes += len(images)
        targets = self._targets.to(scores.logits.device)
        outside = targets[(targets < 0) | (targets >= scores.logits.shape[1])]
        if len(outside):
            raise ValueError(
                f"targets contains {sorted(set(outside.tolist()))}, but the model has {scores.logits.shape[1]} classes"
            )
        known = torch.isfinite(scores.probabilities).all(dim=1)
        correct = (scores.probabilities.argmax(dim=1) == targets).float()
        probability = scores.probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        self.correct[name] = torch.where(known, correct, torch.nan).cpu()
        self.probability[name] = torch.where(known, probability, torch.nan).cpu()


def _heat(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    target_layer: TargetLayer,
    forward_fn: ForwardFn | None,
    multi_label: bool,
) -> tuple[Tensor | None, str | None, tuple[str, ...]]:
    """Heat of the true classes (n, *spatial of the layer); by Grad-CAM, or by CAM where there are no gradients.

    Returns:
        The heat, or None; the name of the method, or None; why those before it did not apply, where none did.
    """
    reasons = []
    for method in (GradCAM(upsampling="none", multi_label=multi_label), CAM(upsampling="none")):
        try:
            return method(model, images, target_layer, targets, forward_fn=forward_fn).raw.cpu(), method.name, ()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            reasons.append(f"{method.name}: {error}")
    return None, None, ("Heat is not measured: " + "; ".join(reasons),)


class _Conclusion:
    """Turns what was observed into measures."""

    def __init__(self, plan: Plan, observed: Observed) -> None:
        self.plan, self.observed = plan, observed
        self.targets, self.suffix = plan.targets, plan.suffix
        self.measures: dict[str, Measure] = {}
        self.heat_null: dict[int, Tensor] = {}

    def result(self) -> AuditResult:
        plan, observed = self.plan, self.observed
        whole = observed.correct["nothing"]
        self._note("accuracy", whole)
        self._note_groups(whole)
        for exchange in plan.exchanges:
            self._note_exchange(exchange)
        self._note_parts()
        self._note_colours(whole)
        if plan.masks is not None:
            self._note_data_colour(plan.masks)
        if observed.raw is not None:
            self._note_heat(upsample(observed.raw, plan.images.shape[2:]))
        main = plan.exchanges[0]
        swaps = [main.where_known(observed.probability[f"{main.name}/{arm}"]) for arm in ("same", "other")]
        return AuditResult(
            measures=self.measures,
            masks=plan.source,
            targets=plan.targets,
            class_names=plan.probes.class_names,
            swaps=torch.stack([observed.probability["nothing"], *swaps], dim=1),
            donors=main.donors,
            heat_by=observed.heat_by if observed.raw is not None else None,
            heat_null=self.heat_null,
            notes=(*plan.notes, *observed.notes),
            passes=observed.passes,
        )

    def _note(self, name: str, values: Tensor, chance: Tensor | float | None = None) -> None:
        self.measures[name] = measure(values, self.targets, chance)

    def _note_groups(self, correct: Tensor) -> None:
        if self.plan.groups is None:
            return
        groups = self.plan.groups.cpu()
        means = {g: float(correct[groups == g].nan_to_num().mean()) for g in sorted(set(groups.tolist()))}
        worst = min(means, key=lambda g: means[g])
        within = torch.where(groups == worst, correct.nan_to_num(), torch.nan)  # no answer is a wrong one
        self._note("worst_group_accuracy", within)

    def _note_exchange(self, exchange: _Exchange) -> None:
        """The gap between both arms, in accuracy and in probability."""
        for name, values in (("", self.observed.correct), ("_probability", self.observed.probability)):
            gap = values[f"{exchange.name}/same"] - values[f"{exchange.name}/other"]
            self._note(f"{exchange.name}{name}{self.suffix}", exchange.where_known(gap), chance=0.0)

    def _note_parts(self) -> None:
        """Accuracy on the background alone, and on the object alone."""
        if self.plan.masks is None:
            return
        most = float(torch.bincount(self.targets).max() / len(self.targets))
        for name in ("background_only", "object_only"):
            correct = torch.where(self.plan.usable, self.observed.correct[name], torch.nan)
            self._note(f"{name}{self.suffix}", correct, chance=most)

    def _note_colours(self, whole: Tensor) -> None:
        """How many right answers changes of colour undo, beside a placebo; more than a clean network's is no proof."""
        if "brighter" not in self.observed.correct:
            return

        def lost(change: str) -> Tensor:
            return torch.where(whole == 1, 1 - self.observed.correct[change], torch.nan)

        for change in ("roll", "grey"):
            self._note(f"colour_sensitivity_{change}", lost(change) - lost("brighter"), chance=0.0)

    def _note_heat(self, heatmaps: Tensor) -> None:
        """Where the heat of the true class lies."""
        masks, usable = self.plan.masks, self.plan.usable
        known = heatmaps.flatten(1).amax(dim=1) > 0
        ring_share = float(counterfactual.ring(heatmaps.shape[1:]).float().mean())
        self._note("border_share", attention.border_share(heatmaps), chance=ring_share)
        self._note("delete_hot", torch.where(known, self.observed.correct["delete_hot"], torch.nan), chance=None)
        if masks is None:
            self._note_data_colour(faithfulness.hottest_half(heatmaps))
            return
        heat = torch.where(usable, attention.heat_on_object(heatmaps, masks), torch.nan)
        self._note(f"heat_on_object{self.suffix}", heat, attention.heat_by_chance(heatmaps, masks, self.targets))
        area = attention.area_share(masks)
        self._note(f"heat_over_area{self.suffix}", heat - area, chance=0.0)
        for name, rule in (("rank_accuracy", attention.rank_accuracy), ("pointing", attention.pointing)):
            self._note(f"{name}{self.suffix}", torch.where(usable, rule(heatmaps, masks), torch.nan), area)
        for c in sorted(set(self.targets.tolist())):
            members = (self.targets == c) & usable & known
            if int(members.sum()) > 1:
                self.heat_null[c] = attention.mean_heat_by_chance(heatmaps[members], masks[members])

    def _note_data_colour(self, object_or_heat: Tensor) -> None:
        """How well the mean colour outside the object tells the classes apart: of the data, not of the model."""
        outside = ~object_or_heat
        known = outside.flatten(1).any(dim=1)
        colours = counterfactual.mean_colour(self.plan.images[known], outside[known])
        values = torch.full((len(known),), torch.nan)
        values[known] = counterfactual.colour_auc(colours, self.targets[known])
        self._note(f"data_colour_auc{self.suffix}", values, chance=0.5)
