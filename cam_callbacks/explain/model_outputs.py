"""Model outputs: call a model, and read the class scores out of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cam_callbacks._warnings import warn_user

_TOLERANCE, _HALF_TOLERANCE = 1e-5, 1e-2  # of a sum of probabilities
_MIN_PROBABILITY = 1e-7  # before the logit is taken

ForwardFn = Callable[[nn.Module, Tensor], Any]
"""Called as `forward_fn(model, images)`; returns whatever `class_scores` understands, e.g. logits (N, classes)."""


class ClassScores(NamedTuple):
    """Scores of N images over the classes, both float32 of shape (N, classes)."""

    logits: Tensor
    probabilities: Tensor


def forward(model: nn.Module, images: Tensor, forward_fn: ForwardFn | None = None) -> Any:
    """Call `forward_fn(model, images)` if it is given, else `model(images)`.

    Raises:
        TypeError: The model has no `forward`, or its `forward` needs more than the images.
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
    """Return the class scores in what a model returned.

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
            "1) are needed. Give forward_fn, a callable (model, images) -> logits (N, classes); or, if it is not a "
            "classifier, say what to explain: SegmentationTarget(class_index), or a callable from its output to one "
            "number for each image"
        )
    scores = tensor.float()
    if scores.shape[1] == 1:
        scores = torch.cat([1 - scores if probabilities else -scores, scores], dim=1)
        multi_label = multi_label or not probabilities  # of both classes: sigmoid(-z) and sigmoid(z)
    if probabilities:
        logs = scores.clamp_min(torch.finfo(torch.float32).tiny).log()
        return ClassScores(scores.logit(_MIN_PROBABILITY) if multi_label else logs, scores)
    return ClassScores(scores, scores.sigmoid() if multi_label else scores.softmax(dim=1))


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
    """Reads the class scores out of what one model returns; its first output tells whether they are probabilities.

    Attributes:
        are_probabilities: Whether the model returns probabilities, not logits; None before an output with a finite
            number was read.

    Args:
        multi_label: As in `Method`.
        run_again: Runs the model on one image.
    """

    def __init__(self, multi_label: bool, run_again: Callable[[], Any]) -> None:
        self.are_probabilities: bool | None = None
        self._multi_label = multi_label
        self._run_again = run_again

    def class_scores(self, output: Any) -> ClassScores:
        """Return the class scores in an output, by the rules of the function `class_scores`."""
        if self.are_probabilities is None and bool(torch.isfinite(logits_of(output)).any()):
            self.are_probabilities = self._holds_probabilities(output)
        return class_scores(output, bool(self.are_probabilities), self._multi_label)

    def _holds_probabilities(self, output: Any) -> bool:
        if not self._multi_label and returns_probabilities(output):
            return True
        if not looks_like_probabilities(output) or not ends_in_sigmoid(self._run_again):
            return False
        logits = logits_of(output)
        if logits.ndim == 2 and logits.shape[1] > 1 and not self._multi_label:
            warn_user(
                "the model ends in a sigmoid for each of several classes, but its classes are taken to exclude each "
                "other; give the method multi_label=True"
            )
            return False
        return True


def looks_like_probabilities(output: Any) -> bool:
    """Whether all finite numbers of an output are in [0, 1]."""
    tensor = logits_of(output)
    finite = tensor[torch.isfinite(tensor)]
    return bool(((finite >= 0) & (finite <= 1)).all())


def returns_probabilities(output: Any) -> bool:
    """Whether each finite row of a model's output is a distribution over the classes: none negative, sum 1."""
    tensor = logits_of(output)
    if tensor.ndim != 2 or tensor.shape[1] < 2:
        return False
    rows = tensor[torch.isfinite(tensor).all(dim=1)].float()
    tolerance = _HALF_TOLERANCE if tensor.dtype in (torch.float16, torch.bfloat16) else _TOLERANCE
    return len(rows) > 0 and bool((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < tolerance).all())


def ends_in_sigmoid(run: Callable[[], Any]) -> bool:
    """Whether the output that `run` returns comes right out of a sigmoid: it is probabilities then, not logits."""
    watch = _SigmoidWatch()
    with watch:
        output = logits_of(run())
    return watch.saw(output)


class _SigmoidWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the results of all sigmoids, and of all operations after them that leave probabilities what they are.

    A view has the memory of the tensor that it shows. So a result is recognized by its memory, and kept alive so that
    no other tensor takes that memory.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results: dict[int, Tensor] = {}

    def saw(self, tensor: Tensor) -> bool:
        """Whether a tensor, or what it is a view of, is one of the results."""
        return tensor.untyped_storage().data_ptr() in self._results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _SIGMOIDS or (func.overloadpacket in _KEEP_PROBABILITIES and self.saw(args[0])):
            self._results[result.untyped_storage().data_ptr()] = result
        return result


_ATEN = torch.ops.aten
_SIGMOIDS = (_ATEN.sigmoid, _ATEN.sigmoid_)
_KEEP_PROBABILITIES = (_ATEN.clamp, _ATEN.clamp_min, _ATEN.clamp_max, _ATEN._to_copy, _ATEN.clone)
