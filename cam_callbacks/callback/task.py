"""Task: what a model is trained to answer, recognized by labels, by what the model returns, and by its losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cam_callbacks.audit.question import AuditTask
from cam_callbacks.audit.segmentation import class_zero_is_background
from cam_callbacks.audit.settings import Audit
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.losses import Losses, losses_of
from cam_callbacks.explain.targets import LargestSegment, RegressionTarget, SegmentationTarget, Targets

TaskKind = Literal["single-label", "multi-label", "segmentation", "regression", "no labels"]
Wanted = Literal["label", "prediction", "both"]

_MIN_FEATURES = 16  # fewer outputs are taken for features only where a loss, or views of the images, say so
_SHIFTED = "if the step subtracts 1, let batch_fn do so, too"
_ROUNDING = 1e-3
_IGNORED_BYTE = 255  # the mark of images that are not to be counted, beside 0 and 1


class NothingToExplainError(ValueError):
    """What the model returns is neither classes nor numbers that could be explained.

    Args:
        returned: What it seems to be, in words that follow "it returns".
        are_numbers: Whether it is numbers for each image, which could be scores of classes after all.
    """

    def __init__(self, returned: str, are_numbers: bool = True) -> None:
        remedy = (
            "forward_fn, a callable (pl_module, images) -> logits, or explain=, a callable from what it returns to one "
            "number for each image"
        )
        if are_numbers:
            remedy = f'explain="prediction" if these are scores of classes, else {remedy}'
        super().__init__(f"{returned}. Give {remedy}")


@dataclass(frozen=True)
class Task:
    """What a model is trained to answer.

    Attributes:
        kind: `"single-label"`: one of several classes; `"multi-label"`: several classes at once; `"segmentation"`: a
            class for each pixel; `"regression"`: numbers; `"no labels"`: class scores, but no labels that fit them.
        outputs: The number of classes, or of numbers.
        multi_label: Whether classes do not exclude each other.
        size: The spatial size of what a segmentation returns; empty otherwise.
        has_background: Whether class 0 of a segmentation is the background, which stands back behind other classes:
            as its name says, or if the classes have no names.
        place: Which entry of the tuple that the model returns holds the scores, from 0; None if only one may.
    """

    kind: TaskKind
    outputs: int
    multi_label: bool = False
    size: tuple[int, ...] = ()
    has_background: bool = True
    place: int | None = None

    def describe(self, wanted: Wanted | int) -> str:
        """Say what the task is, and what is explained."""
        unit = "classes" if self.kind != "regression" else "number" if self.outputs == 1 else "numbers"
        kind = "no labels that are understood (batch_fn gives them)" if self.kind == "no labels" else self.kind
        where = "" if self.place is None else f" in output[{self.place}]"
        return f"{kind}, {self.outputs} {unit}{where}; explains {self._explained(wanted)}"

    def _explained(self, wanted: Wanted | int) -> str:
        if isinstance(wanted, int):
            return f"class {wanted}"
        if self.kind == "regression":
            return "the number" if self.outputs == 1 else "the first (RegressionTarget(index) another)"
        if self.kind == "segmentation":
            pixels = "predicted pixels" if wanted == "prediction" else "labeled pixels"
            said = f"the class with the most {pixels} of each image"
            return f"{said} (0 only if there is no other)" if self.has_background else said
        if self.kind == "no labels" or wanted == "prediction":
            return "the predicted class of each image"
        if self.kind == "multi-label":
            return "the true label with the highest score of each image"
        return "the label of each image" + ", and the most probable other class" * (wanted == "both")

    def targets(self, probes: ProbeSet, wanted: Wanted) -> Targets:
        """Return what is explained of N probes, as `Method.__call__` takes it."""
        if self.kind == "regression":
            return RegressionTarget()
        if self.kind == "segmentation":
            if wanted == "prediction" or probes.annotations is None:
                return LargestSegment(self.has_background)
            return [self._largest(pixels) for pixels in probes.annotations]
        if wanted == "prediction" or self.kind == "no labels":
            return None
        return probes.labels if self.kind == "single-label" else probes.annotations

    def _largest(self, pixels: Tensor) -> SegmentationTarget | LargestSegment:
        """Return the class with the most of an image's pixels (*spatial), where they are, as a target."""
        resized = F.interpolate(pixels[None, None].float(), size=self.size, mode="nearest-exact")[0, 0].long()
        counts = torch.bincount(resized[(resized >= 0) & (resized < self.outputs)], minlength=self.outputs)
        if not counts.any():
            return LargestSegment(self.has_background)
        if self.has_background and counts[1:].any():
            counts[0] = 0
        largest = int(counts.argmax())
        return SegmentationTarget(largest, resized == largest)


def audited_task(audit: Audit | None, task: Task | None) -> AuditTask | None:
    """Return the task that is audited: as the user says, or as recognized; None if it is not known, or cannot be."""
    if audit is not None and audit.task is not None:
        return audit.task
    return None if task is None or task.kind == "no labels" else task.kind


@dataclass(frozen=True)
class BatchSigns:
    """What the batches say about the task, beside the labels.

    Attributes:
        have_views: They hold several views of each image.
        have_other_labels: They hold labels that are not understood.
        missing_labels: For the user: that no labels were found, and what may be some; None if that is not so.
    """

    have_views: bool = False
    have_other_labels: bool = False
    missing_labels: str | None = None


def recognize(probes: ProbeSet, columns: Tensor, module: nn.Module, signs: BatchSigns = BatchSigns()) -> Task:
    """Tell what a model is trained to answer.

    Args:
        probes: N images, with what is true of them.
        columns: (n, outputs, *spatial), what the model returned for some of them.
        module: The LightningModule, whose losses and metrics are evidence.
        signs: What else the batches say.

    Raises:
        NothingToExplainError: Images or features come out, or labels are about something else than the outputs.
    """
    annotations = probes.annotations
    if not columns.is_floating_point():
        raise NothingToExplainError(f"{columns.dtype}, such as the index of a class, and no scores", are_numbers=False)
    if columns.ndim > 2 and columns.shape[2:].numel() > 1:
        if columns.ndim != probes.images.ndim:
            raise NothingToExplainError(f"{tuple(columns.shape)}, not (N, classes, *spatial)", are_numbers=False)
        if annotations is not None and not annotations.is_floating_point() and annotations.dtype != torch.bool:
            _check_that_pixels_fit(annotations, max(2, columns.shape[1]))
            has_background = class_zero_is_background(probes.class_names)
            return Task("segmentation", max(2, columns.shape[1]), False, tuple(columns.shape[2:]), has_background)
        is_image = columns.shape[1:] == probes.images.shape[1:]
        what = "images, as an autoencoder does" if is_image else "maps, but no pixel labels came with the images"
        raise NothingToExplainError(what, are_numbers=False)
    return _of_rows(probes, columns.detach().float().flatten(1), losses_of(module), signs)


def class_counts(probes: ProbeSet) -> list[int]:
    """Return how many classes there are by their names, and by the labels; none that is not known."""
    counts = [len(probes.class_names)] if len(probes.class_names) else []
    labels = probes.labels
    if labels is None and probes.annotations is not None and probes.annotations.ndim > 2:
        labels = probes.annotations
    if labels is not None and not labels.is_floating_point():
        counted = labels[labels != _IGNORED_BYTE]
        counts += [int(counted.max()) + 1] if counted.numel() else []
    elif probes.annotations is not None and probes.annotations.ndim == 2:
        counts.append(probes.annotations.shape[1])
    return counts


def _of_rows(probes: ProbeSet, rows: Tensor, losses: Losses, signs: BatchSigns) -> Task:
    """Tell the task of a model that returns rows (n, outputs)."""
    outputs, labels, annotations, classes = rows.shape[1], probes.labels, probes.annotations, len(probes.class_names)
    count_fits = outputs in class_counts(probes)
    what = f"{outputs} numbers for each image"
    if not count_fits:
        if signs.have_views or losses.are_of_views or _have_one_norm(rows):
            what = f"{outputs} features of each image, it seems, to compare images by"
            raise NothingToExplainError(f'{what} (Audit(task="embedding") audits them)')
        if outputs >= _MIN_FEATURES and 0 < classes < outputs and bool((rows.argmax(dim=1) >= classes).any()):
            raise NothingToExplainError(f"{what}, where the data has {classes} classes")
        has_no_sign = labels is None and annotations is None and not losses.are_of_classes
        if has_no_sign and not signs.have_other_labels and (outputs >= _MIN_FEATURES or losses.are_of_numbers):
            raise NothingToExplainError(f"{what}, and neither labels nor a loss say of what")
    multi_label = outputs > 1 and losses.are_of_several_classes
    if annotations is not None and annotations.is_floating_point():
        may_be_shares = losses.are_of_classes and bool(((annotations >= 0) & (annotations <= 1)).all())
        if (outputs in (1, annotations.shape[1]) and not may_be_shares) or losses.are_of_numbers:
            return Task("regression", outputs)
        if not losses.are_of_classes and not count_fits:
            raise NothingToExplainError(f"{what}, where a label has {annotations.shape[1]}")
    elif annotations is not None and annotations.dtype == torch.bool and annotations.shape[1] == outputs:
        return Task("multi-label", outputs, multi_label=not losses.are_of_one_class)
    elif labels is not None and _begin_at_one(labels, max(2, outputs)) and (outputs > 1 or losses.are_of_classes):
        raise NothingToExplainError(f"{what}, where the labels are 1 to {int(labels.max())}: {_SHIFTED}")
    elif labels is not None and _are_ranks(labels, outputs) and outputs != classes and not losses.are_of_classes:
        raise NothingToExplainError(f"{what}, where the labels are 0 to {outputs}, as ranks are told by thresholds")
    elif labels is not None and outputs == 1:
        are_of_two = bool((labels[labels != _IGNORED_BYTE] <= 1).all())
        if losses.are_of_numbers or not are_of_two:
            return Task("regression", 1)
        return Task("single-label", 2)
    elif labels is not None:
        if losses.are_of_numbers and not count_fits:
            raise NothingToExplainError(f"{what}, by a loss for numbers, where the labels are classes")
        if bool((labels < outputs).any()):
            return Task("single-label", outputs, multi_label)
        raise NothingToExplainError(f"{what}, where all labels are above {outputs - 1}")
    elif signs.have_other_labels and losses.are_of_numbers:
        return Task("regression", outputs)
    return Task("no labels", max(2, outputs), multi_label)


def _begin_at_one(labels: Tensor, classes: int) -> bool:
    """Whether labels count the classes from 1, so that a step subtracts 1."""
    counted = labels[labels != _IGNORED_BYTE]
    return len(counted) > 0 and int(counted.min()) == 1 and int(counted.max()) == classes


def _are_ranks(labels: Tensor, outputs: int) -> bool:
    """Whether labels count from 0 to the number of outputs, as ranks do of which each output is a threshold."""
    counted = labels[labels != _IGNORED_BYTE]
    return outputs > 1 and len(counted) > 0 and int(counted.min()) == 0 and int(counted.max()) == outputs


def _check_that_pixels_fit(pixels: Tensor, classes: int) -> None:
    """Raise an error if the labels of pixels (N, *spatial) are not those of the model's classes."""
    largest = int(pixels.max())
    if largest >= classes:
        known = pixels[pixels >= 0]
        why = _SHIFTED if int(known.min()) == 1 and largest == classes else "give batch_fn, which returns those it has"
        raise NothingToExplainError(
            f"{classes} classes for each pixel, where the labels go up to {largest}: {why}", are_numbers=False
        )


def _have_one_norm(columns: Tensor) -> bool:
    """Whether rows (N, outputs) lie on a sphere, as features do that are compared by their angles."""
    norms = columns.norm(dim=1)
    is_wide = columns.shape[1] >= _MIN_FEATURES and len(columns) > 1
    return is_wide and bool((columns < 0).any() and ((norms - norms.mean()).abs() < _ROUNDING * norms.mean()).all())
