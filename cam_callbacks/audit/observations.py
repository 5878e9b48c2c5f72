"""The part of an audit that takes passes: change the images, and ask the model what it answers to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from cam_callbacks.audit import attention, interventions
from cam_callbacks.audit.asking import Asker
from cam_callbacks.audit.changes import Exchange, changes_without_donors, like, where_they_fit
from cam_callbacks.audit.donors import Donors, with_rivals
from cam_callbacks.audit.foreground import with_estimated_masks
from cam_callbacks.audit.inpainting import grown, shrunk
from cam_callbacks.audit.measures import MARGIN_GAP
from cam_callbacks.audit.question import AuditTask, Question
from cam_callbacks.audit.questions import question_about
from cam_callbacks.audit.registry import Intervention, InterventionError, checked, chosen
from cam_callbacks.data.probes import MaskSource, ProbeSet
from cam_callbacks.explain import progress
from cam_callbacks.explain.cam import CAM
from cam_callbacks.explain.explanation import Explanation, shown_positions, upsample
from cam_callbacks.explain.forwarding import ForwardFn, of_rows
from cam_callbacks.explain.grad_cam import GradCAM
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.model_outputs import Outputs
from cam_callbacks.explain.network import Network, TargetLayer, output_kind
from cam_callbacks.explain.portions import in_portions
from cam_callbacks.explain.runner import Options, check_images, device_and_dtype
from cam_callbacks.explain.sharding import share
from cam_callbacks.explain.trust import hottest_half

_NONE: Mapping[int, Sequence[int]] = MappingProxyType({})
_NO_RING = "These images have no ring to swap: that takes a side of at least 8 positions"
_FEW = 4  # images, from which it is found out how the model takes a batch
_OTHER_MARGIN = 0.03  # of the side
_MIN_SHARE_FOUND = 0.25  # of the images, and of those of two classes, to go by estimated foregrounds


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers to n of the images of an audit, and to what they are changed into.

    Attributes:
        rows: (n,) int64, the indices of the images.
        readings: By change, (R, n) what is read out of the answers, how right they are first; NaN without an answer.
        layer_maps: (n, *spatial of the layer) heat of the true class, NaN for skipped images; None if no method of
            heatmaps applies, or if the maps are coarse.
        heat_method: The name of the method, or None.
        notes: What was left out, and why.
        passes: Forward samples spent, without the heatmaps.
    """

    rows: Tensor
    readings: Mapping[str, Tensor]
    layer_maps: Tensor | None
    heat_method: str | None
    notes: tuple[str, ...]
    passes: int

    @property
    def right(self) -> dict[str, Tensor]:
        """By change, (n,) how right answers are."""
        return {name: each[0] for name, each in self.readings.items()}


class Observations:
    """The images of an audit, what is done to them, and what a model answers.

    Several processes can share the work: each observes some of the images, and `measuring.measures_of` puts together
    what they have observed.

    Args:
        probes: Images with labels of two classes or more, or with annotations, and masks if there are any.
        num_donors: How many images of each kind give their background to an image. None for what a look of a training
            affords: one, or two in the exchange that is judged if masks are not estimated.
        goes_by_masks: Whether estimated masks are used, as at the look before; None decides by how many there are.
        further: What is exchanged besides the background.
        goes_on: Whether an intervention that fails is noted and left out, and not an error.
        task: What the model is trained to answer, as in `question_about`.
        num_asked: How many of the images, the first ones, the model is asked about; the others only give backgrounds.
            None for all.
        rivals: By class, those that are hard to tell from it: their images give half of the backgrounds of another
            class. Of the other classes all others give in turn.

    Raises:
        TypeError: `probes` is not a ProbeSet.
        ValueError: The images lack what the task needs, or are all of one class; or they are not finite, or have more
            than three dimensions.
    """

    def __init__(
        self,
        probes: ProbeSet,
        num_donors: int | None = None,
        goes_by_masks: bool | None = None,
        further: Sequence[str | Intervention] = (),
        goes_on: bool = False,
        task: AuditTask | Literal["auto"] = "auto",
        num_asked: int | None = None,
        rivals: Mapping[int, Sequence[int]] = _NONE,
    ) -> None:
        if not isinstance(probes, ProbeSet):
            raise TypeError(f"probes={type(probes).__name__}(...) must be a ProbeSet(images, labels)")
        self.question = question_about(probes, task)
        check_images(probes.images)
        self.probes = with_estimated_masks(self.question.probes)
        self.asked = slice(0, num_asked or len(probes))
        self.images, self.labels = probes.images.float(), self.question.about[self.asked]
        self.masks, self.mask_source, self.notes = _masks(self.probes, self.question, goes_by_masks)
        may_give = self.question.usable(self.masks, self.mask_source == "given")
        self.usable = may_give[self.asked]
        self.is_even = _places_in_class(self.labels) % 2 == 0
        self.value_range = interventions.value_range(self.images)
        self.exchanges = self._exchanges(num_donors, may_give, rivals)
        self._goes_on = goes_on
        self.further = self._possible(chosen(further))
        self.exchanges += [exchange for each in self.further for exchange in self._exchanges_of(each)]

    @property
    def own_masks(self) -> Tensor | None:
        """The masks of the images that the model is asked about; None if there are none."""
        return None if self.masks is None else self.masks[self.asked]

    def _exchanges(
        self, num_donors: int | None, may_give: Tensor, rivals: Mapping[int, Sequence[int]]
    ) -> list[Exchange]:
        """Return the exchanges that can be made; the verdict stands on the first."""
        count = num_donors or (1 if self.mask_source == "estimated" else 2)
        chosen = self.question.donors(may_give, count)
        donors = with_rivals(chosen, self.question.about, may_give, rivals, self.probes.fingerprint).of(self.asked)
        of_others = donors.first(num_donors or 1)
        known = donors.known & self.usable
        if self.masks is None:
            size = self.images.shape[2:]
            inside = ~interventions.ring(size).expand(len(self.images), *size)
            if inside.all():
                known, self.notes = torch.zeros_like(known), (*self.notes, _NO_RING)
            return [Exchange("ring_gap", inside, known, donors, _with_ring_of)]
        recolor = partial(interventions.with_colors_of, limits=self.value_range)
        return [
            Exchange("bg_gap", self.masks, known, donors, _before_background, interventions.without_object),
            Exchange("outline_gap", self.masks, known, of_others, _with_trace_of),
            Exchange("recolor_gap", self.masks, known, of_others, recolor),
            *([self._at_other_margins(known, of_others)] if self.mask_source == "estimated" else []),
        ]

    def _possible(self, wanted: Sequence[Intervention]) -> list[Intervention]:
        """Return those interventions that can be made, and note the others."""
        impossible = {
            "it needs masks": [each for each in wanted if each.masks == "needed" and self.masks is None],
            "the answer is the place of the object, which it moves": [
                each for each in wanted if each.moves_object and self.question.asks_for_place
            ],
        }
        for why, left_out in impossible.items():
            if left_out:
                names = ", ".join(each.name for each in left_out)
                self.notes = (*self.notes, f"Not measured, because {why}: {names}")
        return [each for each in wanted if not any(each in left_out for left_out in impossible.values())]

    def _exchanges_of(self, given: Intervention) -> Iterator[Exchange]:
        """Yield the exchange of an intervention, and that of its placebo."""
        judged = self.exchanges[0]
        kept = torch.zeros_like(judged.kept) if self.masks is None else self.masks
        known = judged.donors.known if given.masks == "unused" else judged.donors.known & self.usable
        for name, act in ((given.gap, given.exchange), (given.placebo_gap, given.placebo)):
            if name is not None and act is not None:
                yield Exchange(name, kept, known, judged.donors.first(1), checked(given, act))

    def _at_other_margins(self, known: Tensor, donors: Donors) -> Exchange:
        """Return the exchange with larger masks in every second image, and with smaller ones in the others."""
        assert self.masks is not None
        larger, smaller = (change(self.masks, _OTHER_MARGIN) for change in (grown, shrunk))
        is_even = _places_in_class(self.question.about) % 2 == 0
        kept = torch.where(like(is_even, self.masks), larger, smaller)
        return Exchange(MARGIN_GAP, kept, known, donors, _before_background, interventions.without_object)

    def observe(
        self,
        model: nn.Module,
        rows: Tensor,
        target_layer: TargetLayer = None,
        forward_fn: ForwardFn | None = None,
        multi_label: bool = False,
        batch_size: int | None = None,
        outputs: Outputs = "auto",
    ) -> Answers:
        """Run the model on some of the images, and on what they are changed into; the model is left as it was.

        Args:
            model: The model.
            rows: (n,) int64, the indices of at least one image.
            target_layer: The layer of the heatmaps, as in `Method.__call__`.
            forward_fn: Called in place of the model, as in `Method.__call__`.
            multi_label: Whether an image may have several classes, as in `Method`.
            batch_size: The largest batch that the model is given, as in `Method`.
            outputs: What the model returns, as in `Method`; `"auto"` decides once, by all images of the audit.
        """
        device = device_and_dtype(model, self.images)[0]
        images = where_they_fit(self.images, device)
        changes = changes_without_donors(images, self.masks, self.is_even, self.value_range, device)
        arms = sum(len(list(exchange.arms())) for exchange in self.exchanges)
        progress.expect(len(rows) * (len(changes) + arms + 1))  # one more without the hottest half
        dtype = self.probes.images.dtype
        with isolated(model):
            options = Options(batch_size, multi_label or self.question.multi_label, outputs=outputs)
            if self.question.reads_classes:
                kind = output_kind(model, self.probes.images, forward_fn, options)
                options = replace(options, multi_label=kind.multi_label, outputs=kind.outputs)
            network = Network(model, in_type(self.images[:_FEW], dtype), forward_fn, options)
            asker = Asker(network, images, self.question, rows, dtype)
            answers = {name: asker.about(change) for name, change in changes.items()}
            failed = []
            for exchange in self.exchanges:
                try:
                    answers |= asker.about_exchange(exchange)
                except InterventionError as error:
                    share(error)
                    if not self._goes_on:
                        raise
                    failed.append(f"Not measured: {error}")
            methods: list[GradCAM | CAM] = [
                method(
                    upsampling="none", multi_label=options.multi_label, outputs=options.outputs, batch_size=batch_size
                )
                for method in (GradCAM, CAM)
            ]
            own_fn = of_rows(forward_fn, rows)
            layer_maps, heat_method, notes = self._heat(methods, model, rows, target_layer, own_fn)
            if layer_maps is None:
                progress.advance(len(rows))
            else:

                def without_heat(part: slice) -> Tensor:
                    hottest = hottest_half(upsample(layer_maps[part], self.images.shape[2:]))
                    return interventions.fill(images[rows[part]].to(device), hottest.to(device))

                answers["delete_hot"] = asker.about_places(without_heat)
        return Answers(
            rows,
            readings=answers,
            layer_maps=layer_maps,
            heat_method=heat_method,
            notes=(*failed, *notes),
            passes=asker.passes,
        )

    def _heat(
        self,
        methods: list[GradCAM | CAM],
        model: nn.Module,
        rows: Tensor,
        target_layer: TargetLayer,
        forward_fn: ForwardFn | None,
    ) -> tuple[Tensor | None, str | None, tuple[str, ...]]:
        """Return the heat of what is true by the first method that applies, unless its maps are coarse.

        Returns:
            The heat (n, *spatial of the layer), the name of the method, and notes; without heat None, None, and notes
            that say why.
        """
        if self.question.targets(rows[:1]) is None:
            return None, None, ()
        reasons = []
        for method in methods:
            try:
                maps, first = self._maps_by(method, model, rows, target_layer, forward_fn)
            except torch.OutOfMemoryError:
                raise
            except (ValueError, RuntimeError) as error:
                share(error)
                reasons.append(f"{method.name}: {error}")
                continue
            if not first.is_coarse:
                return maps, method.name, ()
            reasons.append(
                f"{shown_positions(first.positions)} of {first.target_layer!r} are too few to say where it lies; an "
                "earlier target_layer has more"
            )
            break
        return None, None, ("Heat is not measured: " + "; ".join(reasons),)

    def _maps_by(
        self,
        method: GradCAM | CAM,
        model: nn.Module,
        rows: Tensor,
        target_layer: TargetLayer,
        forward_fn: ForwardFn | None,
    ) -> tuple[Tensor, Explanation]:
        """Explain the images at `rows` in portions, all at the layer of the first.

        Returns:
            The maps (n, *spatial of the layer), and the explanation of the first portion.
        """
        parts: list[Explanation] = []
        for places in in_portions(torch.arange(len(rows)), self.images):
            some = rows[places]
            images = in_type(self.images[some], self.probes.images.dtype)
            layer = parts[0].target_layer if parts and target_layer is None else target_layer
            targets = self.question.targets(some)
            parts.append(method(model, images, layer, targets, forward_fn=of_rows(forward_fn, places)))
        return torch.cat([part.layer_maps.cpu() for part in parts]), parts[0]


def _masks(
    probes: ProbeSet, question: Question, goes_by_masks: bool | None
) -> tuple[Tensor | None, MaskSource, tuple[str, ...]]:
    """Return the masks, where they come from, and what there is to note about them."""
    masks, source = probes.masks, probes.mask_source
    informative = torch.zeros(0) if masks is None else attention.is_informative(masks)
    if source == "given" and question.usable(masks, are_given=True)[question.is_asked].all():
        return masks, source, ()
    found, count = int(informative.sum()), len(informative)
    remedy = "give masks, or Audit(masks=...)"
    if goes_by_masks is None:
        goes_by_masks = _are_enough(informative, question.about)
    if masks is None or (source == "estimated" and not goes_by_masks):
        if masks is not None:
            why = f"{_sought(probes)} was found in {f'only {found}' if found else 'none'} of {count} images"
            why += ", and of one class at most in a quarter of its images" if found >= _MIN_SHARE_FOUND * count else ""
        elif probes.images.ndim != 4:
            why = "GrabCut takes two-dimensional images only"
        else:
            why = "GrabCut needs OpenCV"
            remedy += ", or pip install opencv-python-headless"
        note = f"No masks were given, and {'too few' if found else 'none'} could be estimated ({why})"
        return None, "none", (f"{note}: only the outer ring is swapped, a weak test; {remedy}",)
    if found == count:
        return masks, source, ()
    if source == "estimated":
        note = f"{_sought(probes)} was found in only {found} of {count} images, the others are left out; {remedy}"
        return masks, source, (note[0].upper() + note[1:],)
    empty = int((~masks.flatten(1).any(dim=1)).sum())
    return masks, source, (f"{empty} masks are empty and {count - found - empty} cover all: left out",)


def _are_enough(informative: Tensor, labels: Tensor) -> bool:
    """Return whether foregrounds were found in enough images, and not in those of one class only."""
    if not len(informative):
        return False
    shares = [float(informative[labels == label].float().mean()) for label in set(labels.tolist())]
    of_classes = sum(share >= _MIN_SHARE_FOUND for share in shares)
    return float(informative.float().mean()) >= _MIN_SHARE_FOUND and of_classes >= min(2, len(shares))


def _sought(probes: ProbeSet) -> str:
    return "a foreground" if probes.mask_agreement is None else "a foreground on which three estimates agree"


def _places_in_class(labels: Tensor) -> Tensor:
    """Return (N,) how many images of the same class come before each image."""
    places = torch.empty_like(labels)
    for label in set(labels.tolist()):
        members = labels == label
        places[members] = torch.arange(int(members.sum()))
    return places


def _before_background(images: Tensor, masks: Tensor, backgrounds: Tensor, _: Tensor) -> Tensor:
    return interventions.before(backgrounds, images, masks)


def _with_ring_of(images: Tensor, inside: Tensor, donors: Tensor, _: Tensor) -> Tensor:
    return interventions.with_ring_of(images, inside, donors)


def _with_trace_of(images: Tensor, masks: Tensor, _: Tensor, donor_masks: Tensor) -> Tensor:
    return interventions.with_trace_of(images, masks, donor_masks)
