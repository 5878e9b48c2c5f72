"""What a model returns: call it, and read the class scores out of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """Call `forward_fn(model, images)` if it is given, else `model(images)`.

    Raises:
        TypeError: The model has no `forward`, or one that needs more than the images; the message names the remedy.
    """
    if forward_fn is not None:
        return forward_fn(model, images)
    try:
        return model(images)
    except TypeError as error:
        if f"{type(model).forward.__qualname__}() missing" in str(error):
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


def class_scores(output: Any, probabilities: bool = False, multi_label: bool = False) -> ClassScores:
    """Read the class scores out of what a model returned.

    Understood are a tensor, a tuple or list whose first entry is one, and an object or mapping with `logits`. A
    tensor of shape (N,) or (N, 1) is the logit z of a binary classifier: class 1 has the logit z and the probability
    sigmoid(z), class 0 the logit -z and the probability sigmoid(-z).

    Args:
        output: What the model returned for N images.
        probabilities: The model ends in a softmax (`returns_probabilities`) or a sigmoid (`ends_in_sigmoid`): its
            output is the probabilities, and logits are computed from them.
        multi_label: Classes do not exclude each other: the probability of each is the sigmoid of its logit.

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
            "1) are needed. Give forward_fn, a callable (model, images) -> logits (N, classes); or, where it is no "
            "classifier, say what to explain: SegmentationTarget(class_index), or a callable from its output to one "
            "number for each image"
        )
    scores = tensor.float()
    if scores.shape[1] == 1:
        scores = torch.cat([1 - scores if probabilities else -scores, scores], dim=1)
        multi_label = multi_label or not probabilities  # of both classes: sigmoid(-z) and sigmoid(z)
    if probabilities:
        logs = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
        return ClassScores(scores.logit(1e-7) if multi_label else logs, scores)
    return ClassScores(scores, scores.sigmoid() if multi_label else scores.softmax(dim=1))


def logits_of(output: Any) -> Tensor:
    """The tensor of scores in what a model returned; the rules, and the error, of `class_scores`.

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
        "with `logits` is understood. Give forward_fn, a callable (model, images) -> logits (N, classes); or, where it "
        "is no classifier, say what to explain: a callable from its output to one number for each image"
    )


def looks_like_probabilities(output: Any) -> bool:
    """Whether all numbers of an output that are finite lie in [0, 1]."""
    tensor = logits_of(output)
    finite = tensor[torch.isfinite(tensor)]
    return bool(((finite >= 0) & (finite <= 1)).all())


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
        aten = torch.ops.aten
        made = func.overloadpacket in (aten.sigmoid, aten.sigmoid_)
        kept = func.overloadpacket in (aten.clamp, aten.clamp_min, aten.clamp_max, aten._to_copy, aten.clone)
        if made or (kept and args[0].untyped_storage().data_ptr() in self.results):
            self.results[result.untyped_storage().data_ptr()] = result
        return result
