"""Which images an audit has: drawn on all ranks, chosen by all of them alike, described by the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from cam_callbacks.audit.drawing import as_asked, num_drawn_classes
from cam_callbacks.audit.foreground import can_estimate, with_estimated_masks
from cam_callbacks.audit.mask_fn import MaskFn, masks_by
from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.questions import question_about
from cam_callbacks.audit.registry import InterventionError, checked, intervention
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.audit_images import AuditImages, AuditSet
from cam_callbacks.callback.audit_offers import NOTHING_KNOWN, Choice, Draw, are_many, num_stay
from cam_callbacks.callback.notices import IMAGES_LEFT_OUT
from cam_callbacks.callback.stage import MonitorParts, Stage
from cam_callbacks.callback.task import audited_task
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.probes import ProbeSet

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_IMAGES_CHECKED = 2
_OF_CLASSES = ("single-label", "segmentation", "detection", "embedding")
_OF_PLACES = ("segmentation", "detection")
_SHARE_FOLLOWED = 0.85  # of the images that are drawn anew
_NO_LABELS = "no labels of two or more classes came with the images"
_OF_MASKS = ("masks", "masks_estimated", "mask_agreement")

Halves = tuple[ProbeSet | None, ProbeSet | None]


class AuditChoice(Stage):
    """Settles the images of one audit.

    Args:
        parts: The long-lived parts of the monitor.
        trainer: The trainer of either Lightning.
        pl_module: The module that it trains.
        watched: The images.
    """

    def __init__(self, parts: MonitorParts, trainer: Trainer, pl_module: LightningModule, watched: AuditImages) -> None:
        super().__init__(parts, trainer, pl_module)
        self._watched = watched
        self._drawn_as: AuditTask | None = None  # as far as it was known before the first batch

    def begin(self, is_audited: bool) -> None:
        """Begin to draw images from the batches, if this evaluation is audited."""
        trainer = self.trainer
        self._drawn_as = self.task
        self._watched.rest()
        if is_audited and self._may_be_audited:
            look = "of a test" if trainer.testing else f"at step {of_trainer.log_step(trainer)}"
            self._watched.begin(look, trainer.global_rank, self._classes, trainer.testing, self._draw)

    def offer(self, samples: Samples, loader: int) -> None:
        """Consider the samples of a batch of one of the loaders."""
        task = self.memory.task
        self._watched.offer(samples, loader, self.task, task is None or task.has_background)

    def check(self, probes: ProbeSet) -> None:
        """Call what the user gave on a few images of the sanity check: what is wrong with it ends the run there.

        Raises:
            StepFailedError: Where it fails on any rank.
        """
        self.agreed(self._check_masks, probes)
        self.agreed(self._check_interventions, probes)

    def settle(self, errors: Sequence[Exception]) -> AuditSet | None:
        """Return the images of this evaluation, the same on all ranks; None where there is nothing to audit.

        The ranks compare what they have drawn without the images, of which only those are sent that are chosen.

        Args:
            errors: Of the batches that this rank could not read.

        Raises:
            StepFailedError: Where it fails on any rank.
        """
        watched = self._watched
        if not self._may_be_audited:
            return None  # what is said of the task says so
        if not watched.is_synced:
            what_stays = (watched.images, watched.are_all, watched.classes)
            watched.sync(*self.agreed(of_trainer.broadcast, self.trainer, what_stays))
        offers = self.agreed(of_trainer.gather_from_all, self.trainer, self.agreed(watched.offered))
        outputs = self._classes if self._drawn_as == self.task else None
        choice = self.agreed(watched.choose, offers, outputs)
        images = self.agreed(self._send, choice, self.agreed(watched.drawn, choice, self.trainer.global_rank))
        watched.rest()
        drawn = self.agreed(_in_one_set, choice, images, self.task)
        described = self.agreed(of_trainer.broadcast, self.trainer, self.agreed(self._describe, choice, drawn, errors))
        fixed, fresh = self.agreed(_halves, choice, drawn, described)
        stay = fixed if watched.is_first else watched.images
        has_more = self.task in _OF_CLASSES and not (watched.are_all or choice.are_all)  # to follow classes with
        classes = choice.classes if has_more else None
        found = self.agreed(AuditSet.of, stay, fresh, watched.count, classes, watched.draw)
        if found is None:
            return None
        if self.memory.are_heatmaps_off and found.images.masks is None and found.images.images.ndim > 4:
            # The ring would be cut out of dimensions that may be no positions, such as the frames of a video.
            self.notices.inform_once("CAMMonitor skips the audit: it is not known where the positions are; give masks")
            return None
        if fixed is not None and not self.trainer.testing and not watched.keep(fixed, choice.are_all):
            self.memory.previous_verdict = None
            self.notices.warn_once(
                "The images of the audit that stay are not those of the earlier run: suspicions reset"
            )
        return found

    @property
    def task(self) -> AuditTask | None:
        """What the model is trained to answer, as far as it is known, and can be audited."""
        return audited_task(self.settings.audit, self.memory.task)

    @property
    def _may_be_audited(self) -> bool:
        return self.memory.task is None or self.task is not None

    @property
    def _classes(self) -> int | None:
        if self.memory.task is None or self.task is None:
            return None
        return num_drawn_classes(self.task, self.memory.task.outputs)

    @property
    def is_screened(self) -> bool:
        """Whether there are too many classes for each to have a few images at a look, so that some are followed."""
        watched = self._watched
        return self.task in _OF_CLASSES and not watched.are_all and are_many(watched.classes, watched.count)

    @property
    def _draw(self) -> Draw:
        """What the last look of this training says of the images of the next."""
        before = self.memory.previous_verdict
        if not self.is_screened or not of_trainer.is_fitting(self.trainer) or before is None or before.evidence is None:
            return NOTHING_KNOWN
        fresh = self._watched.count - num_stay(self._watched.count, self._watched.classes)
        quota = int(_SHARE_FOLLOWED * fresh) // max(len(before.followed), 1)
        rivals = before.evidence.rivals
        return Draw(
            before.evidence.seen(),
            dict.fromkeys(before.followed, quota),
            {label: rivals[label] for label in before.followed if label in rivals},
        )

    @property
    def _mask_fn(self) -> MaskFn | None:
        return None if self.settings.audit is None else self.settings.audit.masks

    def _check_masks(self, probes: ProbeSet) -> None:
        needs_none = probes.masks is not None or self.task in _OF_PLACES
        if self._mask_fn is None or needs_none or not self._may_be_audited or not self.trainer.is_global_zero:
            return
        try:
            masks_by(self._mask_fn, probes.images[:_IMAGES_CHECKED])
        except ValueError as error:
            raise self.stated(error) from error

    def _check_interventions(self, probes: ProbeSet) -> None:
        audit, two = self.settings.audit, probes.images[:_IMAGES_CHECKED].to(self.pl_module.device, torch.float32)
        if audit is None or not self._may_be_audited or not self.trainer.is_global_zero:
            return
        masks = torch.zeros(len(two), *two.shape[2:], dtype=torch.bool, device=two.device)
        middle = tuple(slice(side // 4, side - side // 4) for side in two.shape[2:])
        for mask in masks:
            mask[middle] = True
        for given in map(intervention, audit.interventions):
            for exchange in (given.exchange, given.placebo):
                if exchange is None:
                    continue
                try:
                    checked(given, exchange)(two.clone(), masks.clone(), two.flip(0), masks.flip(0))
                except InterventionError as error:
                    raise self.stated(error) from error

    def _send(self, choice: Choice, own: dict[bytes, Samples]) -> dict[bytes, Samples]:
        """Return the images chosen, of all ranks that hold some."""
        images: dict[bytes, Samples] = {}
        for rank in sorted({each.rank for each in choice}):
            images |= of_trainer.broadcast(self.trainer, own, rank)
        return images

    def _describe(self, choice: Choice, drawn: ProbeSet | None, errors: Sequence[Exception]) -> dict[str, Any] | None:
        """Return what else is known of the images drawn, on the first rank; None where there is nothing to audit."""
        if not self.trainer.is_global_zero:
            return None
        self._say_what_is_missing(choice)
        if not self._watched.is_first:
            return None if drawn is None else self._like_those_that_stay(drawn)
        data, task = self.parts.data, self.memory.task
        found = None if drawn is None else data.described(drawn, self.trainer)
        if found is not None and task is not None:
            found = data.with_fitting_names(found, task.outputs)
        if found is not None and self.task not in _OF_PLACES:  # whose truth masks are: no estimate can be right
            found = with_estimated_masks(found, self._mask_fn)
        reason = _why_nothing_is_asked(found, self.task)
        if reason == _NO_LABELS and data.signs.missing_labels is not None:
            reason = f"{_NO_LABELS}. {data.signs.missing_labels}"
        if found is None or reason is not None:
            reason = str(errors[0]) if errors else reason
            self.notices.warn_once(f"CAMMonitor skips the audit: {reason}; pass audit=None to silence this warning")
            return None
        if found.masks is None and found.images.ndim == 4 and not can_estimate():
            self.notices.warn_once(
                "CAMMonitor: no masks came with the images, and without OpenCV none are estimated: the audit swaps "
                "only the outer ring, a weak test that never gives an alarm. Give masks, or Audit(masks=...), "
                "or pip install opencv-python-headless"
            )
        return _known_of(found)

    def _like_those_that_stay(self, drawn: ProbeSet) -> dict[str, Any]:
        """Describe images as those that stay are described."""
        stay = self._watched.images
        assert stay is not None
        masked = with_estimated_masks(drawn, self._mask_fn) if stay.masks_estimated else drawn
        return _known_of(stay) | {name: getattr(masked, name) for name in _OF_MASKS}

    def _say_what_is_missing(self, choice: Choice) -> None:
        if choice.unknown_labels and self.memory.task is not None:
            self.parts.data.warn_of_unknown_classes(choice.unknown_labels, self.memory.task.outputs)
        if choice.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in choice.left_out.items())
            self.notices.warn_once(
                f"CAMMonitor left out images that would have been audited: {reasons}", IMAGES_LEFT_OUT
            )


def _in_one_set(choice: Choice, images: dict[bytes, Samples], task: AuditTask | None) -> ProbeSet | None:
    """Put the images chosen into one set; None where there are none."""
    found = [ProbeSet.of(images[each.digest]) for each in choice]
    if not found:
        return None
    return ProbeSet.joined(found) if task is None else as_asked(ProbeSet.joined(found), task)


def _why_nothing_is_asked(drawn: ProbeSet | None, task: AuditTask | None) -> str | None:
    """Return why there is no question about images; None if there is one."""
    if drawn is None:
        return _NO_LABELS
    try:
        question_about(drawn, task or "auto")
    except ValueError as error:
        return _NO_LABELS if task in (None, "single-label") else str(error)
    return None


def _known_of(images: ProbeSet) -> dict[str, Any]:
    """Return what the first rank alone finds out about images."""
    names = ("class_names", "normalization", "bands", *_OF_MASKS)
    return {name: getattr(images, name) for name in names}


def _halves(choice: Choice, drawn: ProbeSet | None, described: dict[str, Any] | None) -> Halves:
    """Return the half that stays, if it has just been chosen, and the one of this look alone."""
    if drawn is None or described is None:
        return None, None
    found = replace(drawn, **described)
    stay = {each.digest for each in choice.fixed}
    rows = torch.tensor([each.digest in stay for each in choice])
    return found.subset(rows) if rows.any() else None, None if rows.all() else found.subset(~rows)
