"""Task: what a model is trained to answer, recognized by labels, by what the model returns, and by its losses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import class_columns
from cam_callbacks.explain.targets import LargestSegment, RegressionTarget, SegmentationTarget, Targets

TaskKind = Literal["single-label", "multi-label", "segmentation", "regression", "no labels"]
Wanted = Literal["label", "prediction", "both"]

# By the names of losses, metrics and functions of PyTorch, torchmetrics and MONAI.
_OF_NUMBERS = re.compile(
    "(MSE|L1|SmoothL1|Huber|GaussianNLL|PoissonNLL)Loss|(mse|l1|smooth_l1|huber|gaussian_nll|poisson_nll)_loss|"
    "Mean(Squared|Absolute).*Error|R2Score|.*CorrCoef|ExplainedVariance"
)
_OF_ONE_CLASS = re.compile(
    "(?!Binary).*CrossEntropy(Loss)?|NLLLoss|Multiclass.+|MultiMarginLoss|cross_entropy|nll_loss"
)
_OF_EACH_CLASS = re.compile("BCE.*|Binary.+|Multi[lL]abel.+|binary_cross_entropy.*")
_OF_VIEWS = re.compile(
    ".*(contrast|supcon|nt_?xent|info_?nce|triplet|barlow|vicreg|byol|simsiam|dino|swav).*loss|info_?nce", re.IGNORECASE
)

_MIN_FEATURES = 16  # fewer outputs are taken for features only where a loss, or views of the images, say so
_ROUNDING = 1e-3


class NothingToExplainError(ValueError):
    """What the model returns is neither classes nor numbers that could be explained."""


@dataclass(frozen=True)
class Task:
    """What a model is trained to answer.

    Attributes:
        kind: `"single-label"`: one of several classes; `"multi-label"`: several classes at once; `"segmentation"`: a
            class for each pixel; `"regression"`: numbers; `"no labels"`: class scores, but no labels that fit them.
        outputs: The number of classes, or of numbers.
        multi_label: Whether classes do not exclude each other.
        size: The spatial size of what a segmentation returns; empty otherwise.
    """

    kind: TaskKind
    outputs: int
    multi_label: bool = False
    size: tuple[int, ...] = ()

    def describe(self, wanted: Wanted | int) -> str:
        """Say what the task is, and what is explained."""
        unit = "classes" if self.kind != "regression" else "number" if self.outputs == 1 else "numbers"
        return f"{self.kind}, {self.outputs} {unit}; explains {self._explained(wanted)}"

    def _explained(self, wanted: Wanted | int) -> str:
        if isinstance(wanted, int):
            return f"class {wanted}"
        if self.kind == "regression":
            return "the number" if self.outputs == 1 else "the first (RegressionTarget(index) another)"
        if self.kind == "segmentation":
            pixels = "predicted pixels" if wanted == "prediction" else "pixels"
            return f"the class with the most {pixels} of each image (0 only where there is no other)"
        if self.kind == "no labels" or wanted == "prediction":
            return "the predicted class of each image"
        if self.kind == "multi-label":
            return "the label with the highest score of each image"
        return "the label of each image" + ", and the predicted class of mistakes" * (wanted == "both")

    def targets(self, probes: ProbeSet, wanted: Wanted) -> Targets:
        """Return what is explained of N probes, as `Method.__call__` takes it."""
        if self.kind == "regression":
            return RegressionTarget()
        if self.kind == "segmentation":
            if wanted == "prediction" or probes.annotations is None:
                return LargestSegment()
            return [_largest(pixels, self.outputs, self.size) for pixels in probes.annotations]
        if wanted == "prediction" or self.kind == "no labels":
            return None
        return probes.labels if self.kind == "single-label" else probes.annotations


def recognize(probes: ProbeSet, output: Any, module: nn.Module, has_views: bool = False) -> Task:
    """Tell what a model is trained to answer.

    Args:
        probes: N images, with what is true of them.
        output: What the model returned for some of them.
        module: The LightningModule, whose losses and metrics are evidence.
        has_views: Whether the batches hold several views of each image.

    Raises:
        NothingToExplainError: Images or features come out, or labels are about something else than the outputs.
        TypeError: The output is not understood.
    """
    columns = class_columns(output).detach().float()
    outputs, labels, annotations = columns.shape[1], probes.labels, probes.annotations
    of_pixels = annotations is not None and not annotations.is_floating_point() and annotations.dtype != torch.bool
    if columns.ndim > 2 and columns.shape[2:].numel() > 1:
        if of_pixels:
            return Task("segmentation", max(2, outputs), size=tuple(columns.shape[2:]))
        is_image = columns.shape[1:] == probes.images.shape[1:]
        raise NothingToExplainError("images, as an autoencoder does" if is_image else "maps, and no labels of pixels")
    columns = columns.flatten(1)
    names = sorted(set(_names_of_losses(module)))
    of_numbers, of_one, of_each, of_views = (
        any(pattern.fullmatch(name) for name in names)
        for pattern in (_OF_NUMBERS, _OF_ONE_CLASS, _OF_EACH_CLASS, _OF_VIEWS)
    )
    of_classes = of_one or of_each
    count_fits = outputs == len(probes.class_names) or (labels is not None and outputs == int(labels.max()) + 1)
    if not of_classes and not count_fits:
        if of_views or has_views or _have_one_norm(columns):
            raise NothingToExplainError(f"{outputs} features of each image, it seems, to compare images by")
        if labels is None and annotations is None and outputs >= _MIN_FEATURES:
            raise NothingToExplainError(f"{outputs} numbers for each image, and neither labels nor a loss say of what")
        if outputs >= max(_MIN_FEATURES, len(probes.class_names) + 1) and probes.class_names:
            classes = len(probes.class_names)
            raise NothingToExplainError(f"{outputs} numbers for each image, where the data has {classes} classes")
    multi_label = outputs > 1 and of_each and not of_one
    if annotations is not None and annotations.is_floating_point():
        if outputs in (1, annotations.shape[1]) or (of_numbers and not of_classes):
            return Task("regression", outputs)
        if not of_classes and not count_fits:
            raise NothingToExplainError(f"{outputs} numbers for each image, where a label has {annotations.shape[1]}")
    elif annotations is not None and annotations.dtype == torch.bool and annotations.shape[1] == outputs:
        return Task("multi-label", outputs, multi_label=not of_one)
    elif labels is not None:
        if outputs == 1 and ((of_numbers and not of_classes) or bool((labels > 1).any())):
            return Task("regression", 1)
        if bool((labels < max(2, outputs)).any()):
            return Task("single-label", max(2, outputs), multi_label)
        raise NothingToExplainError(f"{outputs} numbers for each image, where all labels are above {outputs - 1}")
    return Task("no labels", max(2, outputs), multi_label)


def _names_of_losses(module: nn.Module) -> Iterator[str]:
    """Give the names of the kinds of all parts of a module, and of the functions that it keeps."""
    for part in module.modules():
        yield from (kind.__name__ for kind in type(part).__mro__)
    for value in vars(module).values():
        yield getattr(getattr(value, "func", value), "__name__", "")  # also of a partial function


def _have_one_norm(columns: Tensor) -> bool:
    """Whether rows (N, outputs) lie on a sphere, as features do that are compared by their angles."""
    norms = columns.norm(dim=1)
    is_wide = columns.shape[1] >= _MIN_FEATURES and len(columns) > 1
    return is_wide and bool((columns < 0).any() and ((norms - norms.mean()).abs() < _ROUNDING * norms.mean()).all())


def _largest(pixels: Tensor, classes: int, size: tuple[int, ...]) -> SegmentationTarget | LargestSegment:
    """Return the class with the most of an image's pixels (*spatial), where they are, as a target.

    Args:
        pixels: The class of each pixel. Class 0, most often the background, counts only where there is no other.
        classes: The number of classes; others are passed over.
        size: The spatial size of the output.
    """
    resized = F.interpolate(pixels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    counts = torch.bincount(resized[(resized >= 0) & (resized < classes)], minlength=classes)
    if not counts.any():
        return LargestSegment()
    largest = int(counts[1:].argmax()) + 1 if counts[1:].any() else 0
    return SegmentationTarget(largest, resized == largest)
