"""Score readers: from what the user asked for to the scores that are read out of the model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cam_callbacks.explain.model_outputs import ClassScores, OutputReader
from cam_callbacks.explain.targets import (
    ContrastTarget,
    RegressionTarget,
    ResolvesPerImage,
    SegmentationTarget,
    Target,
    TargetFn,
    Targets,
    wants_logits,
)

Score = Literal["logit", "probability", "log-odds"]

Resolved: TypeAlias = Tensor | list[TargetFn]
"""What is explained for n images: their classes (n, T), or n callables."""


class ScoreReader(ABC):
    """Reads the explained scores of N images with T targets each out of what the model returns for masked images.

    Attributes:
        score: Which score is read: `"logit"`, `"probability"`, `"log-odds"`, or the name of the callable.
        count: T.
        classes: (N, T) int64; None if callables are explained that are not about a class.
    """

    score: str
    count: int = 1
    classes: Tensor | None = None

    @abstractmethod
    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:
        """Return (B, T) float32, the scores in the output for B masked images.

        Args:
            output: What the model returned.
            image: (B,) which of the N images each is.
            shared: Whether the output is for one image that stands for all B.
        """


class ClassScoreReader(ScoreReader):
    """Reads scores of classes.

    Args:
        classes: (N, T) int64.
        score: Which score of a class.
        outputs: Reads all class scores out of an output.
    """

    def __init__(self, classes: Tensor, score: Score, outputs: OutputReader) -> None:
        self.classes: Tensor = classes
        self.count = classes.shape[1]
        self.score = score
        self._outputs = outputs

    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:  # noqa: D102
        if self.score == "log-odds":
            values = self._outputs.log_odds(output)
        else:
            scores = self._outputs.class_scores(output)
            values = scores.logits if self.score == "logit" else scores.probabilities
        if shared:
            values = values.expand(len(image), -1)
        if len(values) != len(image):
            raise ValueError(f"the model returned scores for {len(values)} images, and was given {len(image)}")
        return values.gather(1, self.classes[image])


class CallableScoreReader(ScoreReader):
    """Calls one callable for each of N images; T is 1.

    Args:
        targets: The callables, N of them.
        score: What to call the score.
        outputs: Reads the logits out of an output, for callables that want them.
    """

    def __init__(self, targets: Sequence[TargetFn], score: str, outputs: OutputReader) -> None:
        self._targets = targets
        self._outputs = outputs
        self.score = score
        classes = [target.class_index for target in targets if isinstance(target, SegmentationTarget)]
        self.classes = torch.tensor(classes).unsqueeze(1) if len(classes) == len(targets) else None

    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:  # noqa: D102
        asked = [self._targets[index] for index in image.tolist()]
        # There are few different targets: each is called once, with all images, and its own rows are kept.
        count = 1 if shared else len(image)
        answers = {
            id(target): _checked(target, _given(target, output, self._outputs), count).expand(len(image))
            for target in asked
        }
        return torch.stack([answers[id(target)][row] for row, target in enumerate(asked)]).unsqueeze(1)


def _given(target: object, output: Any, outputs: OutputReader) -> Any:
    """Return what a callable is called with: what the model returned, or the logits or numbers in it."""
    if isinstance(target, RegressionTarget):
        return outputs.columns(output)
    if isinstance(target, ContrastTarget):
        return outputs.class_scores(output).logits
    return outputs.logits(output) if wants_logits(target) else output


def _checked(target: TargetFn, output: Any, count: int) -> Tensor:
    """Return the numbers (count,) float32 that a callable returns; raise if it returns anything else."""
    values = target(output)
    if isinstance(values, Tensor) and count == 1 and values.ndim == 0:
        values = values.reshape(1)  # the model squeezes its output
    if not isinstance(values, Tensor) or values.shape != (count,) or values.is_complex():
        got = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"targets={_callable_name(target)} returned {got}; it must return one number for each of the {count} "
            f"images, ({count},)"
        )
    return values.float()


def _callable_name(target: TargetFn) -> str:
    """Return the name of a callable, or its `repr`."""
    return getattr(target, "__name__", None) or repr(target)


def _joint_name(targets: Sequence[TargetFn]) -> str:
    """Return the name of callables that are the same, or of one kind; else how many they are."""
    names = set(map(_callable_name, targets))
    if len(names) == 1:
        return names.pop()
    kinds = {type(target) for target in targets}
    return (
        kinds.pop().__name__ if len(kinds) == 1 and issubclass(next(iter(kinds)), Target) else f"{len(names)} callables"
    )


class TargetRequest:
    """The targets that the user asked for, checked as far as possible before the model runs.

    Attributes:
        several: Whether there are T targets for each image, so that results have one more dimension.

    Args:
        targets: As the user gave them.
        count: The number of images, N.

    Raises:
        TypeError: They are neither class indices nor callables.
        ValueError: There is neither one of them, nor one for each image, nor (N, T).
    """

    def __init__(self, targets: Targets, count: int) -> None:
        self.several = False
        self._classes: Tensor | None = None
        self._marked: Tensor | None = None
        self._callables: list[TargetFn] | None = None
        if targets is None:
            return
        if callable(targets):
            self._callables = [targets] * count
        elif isinstance(targets, Sequence) and targets and all(map(callable, targets)):
            if len(targets) != count:
                raise ValueError(f"targets holds {len(targets)} callables; {count} images need one each: {count}")
            self._callables = list(targets)  # type: ignore[arg-type]
        elif isinstance(targets, Tensor) and targets.dtype == torch.bool and targets.ndim == 2:
            if len(targets) != count:
                raise ValueError(f"targets marks classes of {len(targets)} images; there are {count}")
            self._marked = targets
        else:
            self._classes = _as_class_indices(targets, count)
            self.several = self._classes.ndim == 2

    @property
    def explains_classes(self) -> bool:
        """Whether classes are explained, not what callables return."""
        return self._callables is None

    def resolve(self, chunk: slice, output: Any, scores: ClassScores | None, outputs: OutputReader) -> Resolved:
        """Return what is explained for a chunk of the unmasked images, now that the model's output for them is known.

        Args:
            chunk: Which of the N images.
            output: What the model returned for them.
            scores: The class scores in it; None if callables are explained.
            outputs: Reads the logits out of it, for callables that want them.

        Raises:
            ValueError: A class index out of range.
        """
        if self._callables is not None:
            return _per_image(self._callables[chunk], output, outputs)
        assert scores is not None
        if self._marked is not None:
            return _strongest(scores, self._marked[chunk])
        if self._classes is None:
            return scores.probabilities.argmax(dim=1, keepdim=True)
        classes = self._classes[chunk].to(scores.logits.device)
        count = scores.logits.shape[1]
        outside = classes[(classes < 0) | (classes >= count)]
        if len(outside):
            raise ValueError(
                f"targets contains {sorted(set(outside.tolist()))}, but the model has {count} classes: 0 to "
                f"{count - 1}. If the model's output is not classes, give a callable: RegressionTarget(), "
                "SegmentationTarget(class_index), or one of your own"
            )
        return classes.view(len(classes), -1)

    def reader(self, resolved: Sequence[Resolved], score: Score, outputs: OutputReader) -> ScoreReader:
        """Return what reads the explained scores.

        Args:
            resolved: What is explained, for one chunk of images after the other.
            score: Which score of a class.
            outputs: Reads class scores and logits out of an output.
        """
        if self._callables is None:
            return ClassScoreReader(torch.cat([p for p in resolved if isinstance(p, Tensor)]), score, outputs)
        name = _joint_name(self._callables)
        return CallableScoreReader([target for part in resolved for target in part], name, outputs)


def _per_image(targets: Sequence[TargetFn], output: Any, outputs: OutputReader) -> list[TargetFn]:
    """Resolve those of n targets that must see the output for the n images first, each of them once."""
    resolved: dict[int, Sequence[TargetFn]] = {}
    for target in targets:
        if isinstance(target, ResolvesPerImage) and id(target) not in resolved:
            resolved[id(target)] = target.resolve(_given(target, output, outputs))
    return [resolved[id(target)][row] if id(target) in resolved else target for row, target in enumerate(targets)]


def _strongest(scores: ClassScores, marked: Tensor) -> Tensor:
    """Return (n, 1), of the classes marked (n, classes) the one with the highest score; of all where none is marked."""
    if marked.shape != scores.logits.shape:
        raise ValueError(
            f"targets marks classes in a tensor of shape {tuple(marked.shape)}, but the model's scores have "
            f"{tuple(scores.logits.shape)}"
        )
    marked = marked.to(scores.logits.device)
    allowed = marked | ~marked.any(dim=1, keepdim=True)
    return scores.logits.masked_fill(~allowed, -torch.inf).argmax(dim=1, keepdim=True)


def _as_class_indices(targets: Any, count: int) -> Tensor:
    """Return what the user gave as (N,) or (N, T) int64."""
    wanted = "targets must be whole numbers, the class indices, or callables"
    try:
        given = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{wanted}; got {targets!r}") from None
    if given.numel() and (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool):
        raise TypeError(f"{wanted}; got {given.dtype}")
    indices = given.to(torch.int64, copy=True)
    if indices.ndim == 0:
        indices = indices.repeat(count)
    if indices.ndim not in (1, 2) or len(indices) != count or 0 in indices.shape:
        raise ValueError(
            f"targets has shape {tuple(indices.shape)}; {count} images need one class each, ({count},), or T of them, "
            f"({count}, T)"
        )
    return indices
