"""Model outputs: read the class scores out of what a model returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cam_callbacks.explain.output_form import OutputForm

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


def class_columns(output: Any, place: int | None = None) -> Tensor:
    """Return the tensor in what a model returned, with the classes in dimension 1: (N,) becomes (N, 1).

    Args:
        output: What the model returned.
        place: As in `logits_of`.

    Raises:
        TypeError: There is no tensor in it, see `logits_of`.
    """
    tensor = logits_of(output, place)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def only_wide(scores: Tensor) -> int | None:
    """Return the dimension of scores (N, ...) that alone has more than one entry for each image; None if none has."""
    wide = [place for place in range(1, scores.ndim) if scores.shape[place] != 1]
    return wide[0] if len(wide) == 1 else None


def class_scores(output: Any, probabilities: bool = False, multi_label: bool = False) -> ClassScores:
    """Return the class scores in what a model returned.

    Understood are a tensor, a tuple or list that begins with one (before which a loss may stand), and an object or
    mapping with `logits`. A tensor of shape (N,) or (N, 1) is the logit z of a binary classifier: class 1 has the logit
    z and the probability sigmoid(z), class 0 the logit -z and the probability sigmoid(-z).

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


def log_odds_of(logits: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of classes that exclude each other, from logits (N, classes); exact also for p near 1.

    That is the logit of a class minus the logarithm of the summed exponentials of all others.
    """
    strongest = logits.argmax(dim=1, keepdim=True)
    # What is left of the sum without a class: for the strongest, summed anew; any other takes half of it at most.
    others = logits.logsumexp(dim=1, keepdim=True) + torch.log1p(-logits.softmax(dim=1))
    without_strongest = logits.scatter(1, strongest, -torch.inf).logsumexp(dim=1, keepdim=True)
    return logits - others.scatter(1, strongest, without_strongest)


def place_of(output: Any) -> int:
    """Return which entry of a tuple or list holds the scores: the first that is not one number for several images."""
    if not isinstance(output, (tuple, list)):
        return 0
    for place, entry in enumerate(output):
        later = [each for each in output[place + 1 :] if isinstance(each, Tensor) and each.ndim and len(each) > 1]
        if not (later and is_at_most_a_number(entry)):
            return place
    return 0


def is_at_most_a_number(entry: Any) -> bool:
    """Whether an entry of a tuple is None or one number, as a loss is; and as a score is if there is one image."""
    if isinstance(entry, Tensor):
        return entry.ndim < 2 and entry.numel() == 1
    return entry is None or isinstance(entry, (int, float))


def logits_of(output: Any, place: int | None = None) -> Tensor:
    """Return the tensor of scores in what a model returned, by the rules of `class_scores` and with its errors.

    In a mapping or an object it is called `logits`, or `out` as in torchvision's segmentation models. A single number,
    as a model that squeezes its output returns it for one image, becomes a tensor of shape (1,).

    Args:
        output: What the model returned.
        place: Which entry of a tuple or list it is, if that is known.
    """
    if isinstance(output, Tensor):
        return output.reshape(1) if output.ndim == 0 else output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (tuple, list)) and output:
        entry = output[place_of(output) if place is None or place >= len(output) else place]
        if isinstance(entry, Tensor):
            return logits_of(entry)
    keys = f" with the keys {list(output)}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{keys}; a tensor, a tuple that begins with one, or something "
        "with `logits` or `out` is understood. Give forward_fn, a callable (model, images) -> logits (N, classes); or, "
        "if it is not a classifier, say what to explain: a callable from its output to one number for each image"
    )


class OutputReader:
    """Reads the class scores out of what one model returns.

    Attributes:
        kind: How; None before it is decided, at the first output.

    Args:
        outputs: As in `Method`.
        multi_label: As in `Method`.
        decide: Decides, given what the model returned first.
        find_form: Finds where the scores are, if an output leaves that open.
    """

    def __init__(
        self,
        outputs: Outputs,
        multi_label: bool,
        decide: Callable[[Tensor], OutputKind],
        find_form: Callable[[], OutputForm],
    ) -> None:
        self.kind = None if outputs == "auto" else OutputKind(outputs, multi_label)
        self._decide = decide
        self._find_form = functools.cache(find_form)

    def class_scores(self, output: Any) -> ClassScores:
        """Return the class scores in an output, by the rules of the function `class_scores`."""
        columns = self.columns(output)
        kind = self._kind_of(_checked_columns(columns))
        return class_scores(columns, kind.outputs == "probabilities", kind.multi_label)

    def log_odds(self, output: Any) -> Tensor:
        """Return (N, classes) float32, log(p / (1 - p)) of each class in an output."""
        columns = self.columns(output)
        logits = self.class_scores(columns).logits
        is_binary = columns.shape[1] == 1
        return logits if is_binary or self._kind_of(columns).multi_label else log_odds_of(logits)

    def columns(self, output: Any) -> Tensor:
        """Return the scores in an output as the model returned them, (N, classes) if they are known to be of classes.

        That is (N, 1, classes), (N, classes, 1) and the like where the one dimension with more than one entry is no
        positions of the image. Anything else stays (N, classes, *spatial), or whatever it is.
        """
        scores = self._scores(output)
        if scores.ndim < 3 or scores.shape[1:].numel() == 0:
            return scores
        if scores.shape[1:].numel() == 1:
            return scores.flatten(1)
        wide = only_wide(scores)
        return scores.flatten(1) if wide is not None and wide == self._find_form().classes else scores

    def logits(self, output: Any) -> Tensor:
        """Return logits (N, classes, *spatial), or (N,) or (N, 1, *spatial) as the model returned them."""
        columns = self._scores(output)
        kind = self._kind_of(columns)
        return as_logits(columns, kind.multi_label) if kind.outputs == "probabilities" else columns

    def _scores(self, output: Any) -> Tensor:
        is_open = isinstance(output, (tuple, list)) and len(output) > 1 and is_at_most_a_number(output[0])
        return class_columns(output, self._find_form().place if is_open else None)

    def _kind_of(self, columns: Tensor) -> OutputKind:
        if self.kind is None:
            self.kind = self._decide(columns)
        return self.kind
