"""Model outputs: read the class scores out of what a model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

_MIN_PROBABILITY = 1e-7  # before the logit is taken


Outputs = Literal["auto", "logits", "probabilities"]
"""What a model returns; `"auto"` decides by what it returned for all images, and by its loss."""


@dataclass(frozen=True)
class OutputKind:
    """How what a model returns is read.

    Attributes:
        outputs: What its numbers are.
        multi_label: Whether its classes do not exclude each other.
        note: What to say about the decision; empty for plain logits, and where the user has decided.
        is_certain: Whether the evidence agrees.
    """

    outputs: Literal["logits", "probabilities"]
    multi_label: bool
    note: str = ""
    is_certain: bool = True


class ClassScores(NamedTuple):
    """Scores of N images over the classes, both float32 of shape (N, classes)."""

    logits: Tensor
    probabilities: Tensor


def class_columns(output: Any) -> Tensor:
    """Return the tensor in what a model returned, with the classes in dimension 1: (N,) becomes (N, 1).

    Raises:
        TypeError: There is no tensor in it, see `logits_of`.
    """
    tensor = logits_of(output)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def class_scores(output: Any, probabilities: bool = False, multi_label: bool = False) -> ClassScores:
    """Return the class scores in what a model returned.

    Understood are a tensor, a tuple or list whose first entry is one, and an object or mapping with `logits`. A
    tensor of shape (N,) or (N, 1) is the logit z of a binary classifier: class 1 has the logit z and the probability
    sigmoid(z), class 0 the logit -z and the probability sigmoid(-z).

    Args:
        output: What the model returned for N images.
        probabilities: Its numbers are probabilities p, of (N,) or (N, 1) those of class 1. Logits follow from them:
            log(p) where classes exclude each other, and log(p / (1 - p)) for one column and with `multi_label`.
        multi_label: Classes do not exclude each other: the probability of each is the sigmoid of its logit.

    Raises:
        TypeError: The output is none of these.
        ValueError: The tensor does not have the shape (N,) or (N, classes).
    """
    scores = _checked_columns(output).float()
    is_binary = scores.shape[1] == 1
    logits = as_logits(scores, multi_label) if probabilities else scores
    if is_binary:
        logits = torch.cat([-logits, logits], dim=1)
    if probabilities:
        scores = scores.clamp(0, 1)
        return ClassScores(logits, torch.cat([1 - scores, scores], dim=1) if is_binary else scores)
    return ClassScores(logits, logits.sigmoid() if multi_label or is_binary else logits.softmax(dim=1))


def _checked_columns(output: Any) -> Tensor:
    """Return class scores (N, classes) as the model returned them.

    Raises:
        ValueError: They have another shape.
    """
    columns = class_columns(output)
    if columns.ndim != 2 or columns.shape[1] == 0:
        raise ValueError(
            f"the model returned a tensor of shape {tuple(columns.shape)}; class scores of shape (N, classes) or (N, "
            "1) are needed. Give forward_fn, a callable (model, images) -> logits (N, classes); or, if it is not a "
            "classifier, say what to explain: SegmentationTarget(class_index), or a callable from its output to one "
            "number for each image"
        )
    return columns


def as_logits(probabilities: Tensor, multi_label: bool) -> Tensor:
    """Return logits, float32, of probabilities (N, classes, *spatial): finite also for 0 and 1.

    Args:
        probabilities: With one class, those of class 1 of 2.
        multi_label: Whether several classes do not exclude each other.
    """
    values = probabilities.float()
    if multi_label or values.shape[1] == 1:
        return values.logit(_MIN_PROBABILITY)
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()


def logits_of(output: Any) -> Tensor:
    """Return the tensor of scores in what a model returned, by the rules of `class_scores` and with its errors.

    In a mapping or an object it is called `logits`, or `out` as in torchvision's segmentation models. A single number,
    as a model that squeezes its output returns it for one image, becomes a tensor of shape (1,).
    """
    if isinstance(output, Tensor):
        return output.reshape(1) if output.ndim == 0 else output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    keys = f" with the keys {list(output)}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{keys}; a tensor, a tuple whose first entry is one, or something "
        "with `logits` is understood. Give forward_fn, a callable (model, images) -> logits (N, classes); or, if it is "
        "not a classifier, say what to explain: a callable from its output to one number for each image"
    )


class OutputReader:
    """Reads the class scores out of what one model returns.

    Attributes:
        kind: How; None before it is decided, at the first output.

    Args:
        outputs: As in `Method`.
        multi_label: As in `Method`.
        decide: Decides, given what the model returned first.
    """

    def __init__(self, outputs: Outputs, multi_label: bool, decide: Callable[[Tensor], OutputKind]) -> None:
        self.kind = None if outputs == "auto" else OutputKind(outputs, multi_label)
        self._decide = decide

    def class_scores(self, output: Any) -> ClassScores:
        """Return the class scores in an output, by the rules of the function `class_scores`."""
        kind = self._kind_of(_checked_columns(output))
        return class_scores(output, kind.outputs == "probabilities", kind.multi_label)

    def logits(self, output: Any) -> Tensor:
        """Return logits (N, classes, *spatial), or (N,) or (N, 1, *spatial) as the model returned them."""
        columns = class_columns(output)
        kind = self._kind_of(columns)
        return as_logits(columns, kind.multi_label) if kind.outputs == "probabilities" else columns

    def _kind_of(self, columns: Tensor) -> OutputKind:
        if self.kind is None:
            self.kind = self._decide(columns)
        return self.kind
