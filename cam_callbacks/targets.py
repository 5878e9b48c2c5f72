"""What is explained: from a model's output to class scores, and from the user's wish to one class an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ForwardFn = Callable[[nn.Module, Tensor], Any]
"""Called as `forward_fn(model, images)`; returns what `class_scores` understands, e.g. logits (N, classes)."""


class ClassScores(NamedTuple):
    """Scores of N images over the classes, both float32 of shape (N, classes)."""

    logits: Tensor
    probabilities: Tensor


def forward(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None = None) -> Any:
    """Call the model as the user says; without a word from the user, as `model(images)`.

    Raises:
        TypeError: The model has no `forward`, or one that needs more than the images; the message names the remedy.
    """
    if forward_fn is not None:
        return forward_fn(model, images)
    try:
        return model(images)
    except TypeError as error:
        if "required positional argument" in str(error) or "required keyword-only argument" in str(error):
            raise TypeError(
                f"{type(model).__name__}.forward needs more than the images ({error}); give forward_fn, a callable "
                "(model, images) -> logits that calls the model with all that it needs"
            ) from error
        raise
    except NotImplementedError as error:
        if 'missing the required "forward" function' in str(error):
            raise TypeError(
                f"{type(model).__name__} has no forward method; define it, or give forward_fn, a callable (model, "
                "images) -> logits"
            ) from error
        raise


def class_scores(output: Any, probabilities: bool = False) -> ClassScores:
    """Read the class scores out of what a model returned.

    Understood are a tensor, a tuple or list whose first entry is one, and an object or mapping with `logits`. A
    tensor of shape (N,) or (N, 1) is the logit z of a binary classifier: class 1 has the logit z and the probability
    sigmoid(z), class 0 the logit -z and the probability sigmoid(-z).

    Args:
        output: What the model returned for N images.
        probabilities: The model ends in a softmax (`returns_probabilities`): its output is the probabilities, the
            logarithm of it the logits.

    Raises:
        TypeError: The output is none of these.
        ValueError: The tensor does not have the shape (N,) or (N, classes).
    """
    tensor = logits_of(output)
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ValueError(
            f"the model returned a tensor of shape {tuple(tensor.shape)}; class scores of shape (N, classes) or (N, "
            "1) are needed. Give forward_fn, a callable (model, images) -> logits (N, classes)"
        )
    logits = tensor.float()
    if logits.shape[1] == 1 and probabilities:
        logits = torch.cat([1 - logits, logits], dim=1)
    if logits.shape[1] == 1:
        both = torch.cat([-logits, logits], dim=1)
        return ClassScores(both, both.sigmoid())
    if probabilities:
        return ClassScores(logits.clamp_min(torch.finfo(torch.float32).tiny).log(), logits)
    return ClassScores(logits, logits.softmax(dim=1))


def logits_of(output: Any) -> Tensor:
    """The tensor of scores in what a model returned; the rules, and the error, of `class_scores`."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    keys = f" with the keys {list(output)}" if isinstance(output, Mapping) else ""
    raise TypeError(
        f"the model returned {type(output).__name__}{keys}; a tensor, a tuple whose first entry is one, or something "
        "with `logits` is understood. Give forward_fn, a callable (model, images) -> logits (N, classes)"
    )


def may_be_probabilities_of_one_class(output: Any) -> bool:
    """Whether the output has one column, in [0, 1] wherever it is finite: a probability, or a small logit."""
    tensor = logits_of(output)
    finite = tensor[torch.isfinite(tensor)]
    return (tensor.ndim == 1 or tensor.shape[1:] == (1,)) and bool(((finite >= 0) & (finite <= 1)).all())


def returns_probabilities(output: Any) -> bool:
    """Whether each finite row of a model's output is a distribution over the classes already: none negative, sum 1."""
    tensor = logits_of(output)
    if tensor.ndim != 2 or tensor.shape[1] < 2:
        return False
    rows = tensor[torch.isfinite(tensor).all(dim=1)].float()
    tolerance = 1e-2 if tensor.dtype in (torch.float16, torch.bfloat16) else 1e-5
    return len(rows) > 0 and bool((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < tolerance).all())


def ends_in_sigmoid(run: Callable[[], Any]) -> bool:
    """Whether what `run` returns comes right out of a sigmoid, so that it is a probability and not a logit."""
    with _SigmoidWatch() as watch:
        output = logits_of(run())
    return output.untyped_storage().data_ptr() in watch.results


class _SigmoidWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where in memory the results of all sigmoids lie."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_):
            self.results[result.untyped_storage().data_ptr()] = result
        return result


def resolve(targets: int | Sequence[int] | Tensor | None, scores: ClassScores) -> Tensor:
    """One class for each image.

    Args:
        targets: A class for all images, one class for each image, or None for the predicted class of each.
        scores: The scores of the N images.

    Returns:
        (N,) int64 on the device of the scores.

    Raises:
        TypeError: Targets that are not whole numbers.
        ValueError: As many targets as images are needed, each in [0, classes).
    """
    count, classes = scores.logits.shape
    device = scores.logits.device
    if targets is None:
        return scores.probabilities.argmax(dim=1)
    try:
        given = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"targets must be whole numbers, the class indices; got {targets!r}") from None
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TypeError(f"targets must be whole numbers, the class indices; got {given.dtype}")
    resolved = given.to(device, torch.int64, copy=True)
    if resolved.ndim == 0:
        resolved = resolved.repeat(count)
    if resolved.shape != (count,):
        raise ValueError(f"targets has shape {tuple(resolved.shape)}; {count} images need one class each: ({count},)")
    outside = resolved[(resolved < 0) | (resolved >= classes)]
    if len(outside):
        raise ValueError(
            f"targets contains {sorted(set(outside.tolist()))}, but the model has {classes} classes: 0 to "
            f"{classes - 1}; other labels, such as the values of a regression, cannot be explained"
        )
    return resolved
