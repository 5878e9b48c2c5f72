"""What an audit does to the images, and what the model answers: all that takes passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.audit import attention, interventions
from cam_callbacks.audit.foreground import can_estimate, with_estimated_masks
from cam_callbacks.data.probes import MaskSource, ProbeSet
from cam_callbacks.explain import faithfulness
from cam_callbacks.explain.cam import CAM
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.explain.grad_cam import GradCAM
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.model_outputs import ForwardFn
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.runner import Options


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model did with n of the images of an audit: all of it that takes passes.

    Attributes:
        rows: (n,) int64, the numbers of the images.
        correct: By change, (n,) whether the answer was right, NaN where there was none.
        probability: By change, (n,) probability of the true class, NaN where it is.
        layer_maps: (n, *spatial of the layer) heat of the true class, NaN where skipped; None where no method applies.
        heat_method: The name of the method.
        notes: What was left out, and why.
        passes: Forward samples spent, without the heatmaps.
    """

    rows: Tensor
    correct: Mapping[str, Tensor]
    probability: Mapping[str, Tensor]
    layer_maps: Tensor | None
    heat_method: str | None
    notes: tuple[str, ...]
    passes: int


@dataclass(frozen=True, eq=False)
class Exchange:
    """An exchange of what lies outside of `kept`, (N, *spatial) bool, with a donor of the same and of another class."""

    name: str
    kept: Tensor
    usable: Tensor
    donors: interventions.Donors
    exchange: Callable[[Tensor, Tensor, Tensor], Tensor]

    def changes(self, images: Tensor) -> dict[str, Callable[[], Tensor]]:
        """Both arms."""

        def arm(donor: Tensor) -> Callable[[], Tensor]:
            return lambda: self.exchange(images, self.kept, donor.clamp_min(0))

        return {f"{self.name}/same": arm(self.donors.same), f"{self.name}/other": arm(self.donors.other)}

    def where_known(self, values: Tensor) -> Tensor:
        """(N,) values, NaN where an image has no donors."""
        return torch.where(self.donors.known & self.usable, values, torch.nan)


class Observations:
    """An audit of labeled images in two steps, so that several processes can share the first, which takes all passes.

    Args:
        probes: As in `audit`.

    Raises:
        ValueError: As `audit`.
    """

    def __init__(self, probes: ProbeSet) -> None:
        if not isinstance(probes, ProbeSet):
            raise TypeError(f"probes={type(probes).__name__}(...) must be a ProbeSet(images, labels)")
        if probes.labels is None:
            raise ValueError("probes have no labels; the audit compares classes: give ProbeSet(images, labels)")
        if len(set(probes.labels.tolist())) < 2:
            raise ValueError(f"all {len(probes)} probes are of one class; the audit compares classes, two are needed")
        self.probes = with_estimated_masks(probes)
        self.images, self.labels = probes.images.float(), probes.labels
        self.notes: list[str] = []
        self.masks, self.mask_source = self._masks()
        self.usable = torch.ones_like(self.labels, dtype=torch.bool)
        if self.masks is not None:
            self.usable = attention.is_informative(self.masks)
        donors = interventions.choose_donors(self.labels, self.usable, self.probes.fingerprint)
        if self.masks is None:
            size = self.images.shape[2:]
            inside = ~interventions.ring(size).expand(len(self.images), *size)
            self.exchanges = [Exchange("ring_gap", inside, self.usable, donors, interventions.with_ring_of)]
        else:
            self.exchanges = [
                Exchange("bg_gap", self.masks, self.usable, donors, interventions.with_background_of),
                Exchange("recolor_gap", self.masks, self.usable, donors, interventions.with_colors_of),
            ]

    def _masks(self) -> tuple[Tensor | None, MaskSource]:
        """The masks, and where they come from; none where they can be neither known nor estimated."""
        masks, source = self.probes.masks, self.probes.mask_source
        tells = torch.zeros(0) if masks is None else attention.is_informative(masks)
        if masks is None or (source == "estimated" and not bool(tells.any())):
            remedy = "give masks"
            if self.images.ndim == 4 and not can_estimate():
                remedy += ", or pip install opencv-python-headless, which estimates them"
            self.notes.append(
                "No masks were given, and none could be estimated: only the outer ring is exchanged, a weak test; "
                f"{remedy}"
            )
            return None, "none"
        if not bool(tells.all()):
            empty = ~masks.flatten(1).any(dim=1)
            self.notes.append(
                f"{int(empty.sum())} masks are empty and {int((~tells & ~empty).sum())} cover all: left out"
            )
        return masks, source

    def _changes(self) -> dict[str, Callable[[], Tensor]]:
        """What is done to the images, by name; each returns all of them changed, (N, C, *spatial)."""
        images, masks = self.images, self.masks
        changes: dict[str, Callable[[], Tensor]] = {"nothing": lambda: images}
        for exchange in self.exchanges:
            changes |= exchange.changes(images)
        if masks is not None:
            changes["background_only"] = lambda: interventions.fill(images, masks)
            changes["object_only"] = lambda: interventions.on_gray(images, masks)
        if images.shape[1] == 3:
            changes["brighter"] = lambda: interventions.brighter(images)
            changes["roll"] = lambda: interventions.roll_colors(images)
            changes["gray"] = lambda: interventions.gray(images)
        return changes

    def observe(
        self,
        model: nn.Module,
        rows: Tensor,
        target_layer: TargetLayer = None,
        forward_fn: ForwardFn | None = None,
        multi_label: bool = False,
        batch_size: int | None = None,
    ) -> Answers:
        """Run the model on some of the images, and on what becomes of them; it is left as it was.

        Args:
            model: As in `audit`.
            rows: (n,) int64, which images, at least one.
            target_layer: As in `audit`.
            forward_fn: As in `audit`.
            multi_label: As in `audit`.
            batch_size: As in `audit`.
        """
        with isolated(model):
            ask = _Answers(model, self.labels[rows], forward_fn, multi_label, batch_size)
            for name, change in self._changes().items():
                ask(name, change()[rows])
            images = self.images[rows]
            settings: dict[str, Any] = {"upsampling": "none", "multi_label": multi_label, "batch_size": batch_size}
            methods = [GradCAM(**settings), CAM(**settings)]
            raw, heat_method, notes = _heat(methods, model, images, self.labels[rows], target_layer, forward_fn)
            if raw is not None:
                hot = faithfulness.hottest_half(upsample(raw, images.shape[2:]))
                ask("delete_hot", interventions.fill(images, hot))
        return Answers(rows, ask.correct, ask.probability, raw, heat_method, notes, ask.passes)


class _Answers:
    """Keeps what the model answers to images of these classes, by the name of what was done to them."""

    def __init__(
        self,
        model: nn.Module,
        labels: Tensor,
        forward_fn: ForwardFn | None,
        multi_label: bool,
        batch_size: int | None,
    ) -> None:
        self._model, self._labels, self._forward_fn = model, labels, forward_fn
        self._multi_label, self._batch_size = multi_label, batch_size
        self.correct: dict[str, Tensor] = {}
        self.probability: dict[str, Tensor] = {}
        self.passes = 0

    def __call__(self, name: str, images: Tensor) -> None:
        network = Network(self._model, images, self._forward_fn, Options(self._batch_size, self._multi_label))
        scores = network.scores()
        self.passes += len(images)
        labels = self._labels.to(scores.logits.device)
        outside = labels[(labels < 0) | (labels >= scores.logits.shape[1])]
        if len(outside):
            raise ValueError(
                f"labels contains {sorted(set(outside.tolist()))}, but the model has {scores.logits.shape[1]} classes"
            )
        known = torch.isfinite(scores.probabilities).all(dim=1)
        correct = (scores.probabilities.argmax(dim=1) == labels).float()
        probability = scores.probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        self.correct[name] = torch.where(known, correct, torch.nan).cpu()
        self.probability[name] = torch.where(known, probability, torch.nan).cpu()


def _heat(
    methods: Sequence[Method],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    target_layer: TargetLayer,
    forward_fn: ForwardFn | None,
) -> tuple[Tensor | None, str | None, tuple[str, ...]]:
    """Heat of the true classes (n, *spatial of the layer), by the first of the methods that applies.

    Returns:
        The heat, or None; the name of the method, or None; why those before it did not apply, where none did.
    """
    reasons = []
    for method in methods:
        try:
            return method(model, images, target_layer, labels, forward_fn=forward_fn).layer_maps.cpu(), method.name, ()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            reasons.append(f"{method.name}: {error}")
    return None, None, ("Heat is not measured: " + "; ".join(reasons),)
