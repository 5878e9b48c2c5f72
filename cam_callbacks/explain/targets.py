"""What is explained: a class, a number of a regression, a region of a segmentation, or whatever a callable reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from cam_callbacks._checks import check_index
from cam_callbacks.explain.model_outputs import ClassScores, logits_of

TargetFn: TypeAlias = Callable[[Any], Tensor]
"""Called with what the model returned for B images; returns one number for each, (B,)."""

Targets: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | TargetFn | Sequence[TargetFn] | None
"""What a user may ask for: a class, or a callable; one for all images, or one for each; several classes for each
(N, T); None for the predicted class."""

Resolved: TypeAlias = "Tensor | list[TargetFn]"
"""What is explained for n images: their classes (n, T), or n callables."""

Score = Literal["logit", "probability"]


class Target(ABC):
    """What a callable that is written as a class may derive from: then it can be named in a LightningCLI YAML."""

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """One number for each of the B images that the output is of, (B,)."""


@runtime_checkable
class ResolvesPerImage(Protocol):
    """A target that must see what the model returned for the unmasked images before it can read masked ones."""

    def resolve(self, output: Any) -> Sequence[TargetFn]:
        """One target for each of the images whose output this is."""
        ...


@dataclass(frozen=True)
class RegressionTarget(Target):
    """One of the numbers that a regression puts out, e.g. an angle.

    Attributes:
        index: Which of the outputs (N, outputs); 0 for outputs (N,).
    """

    index: int = 0

    def __post_init__(self) -> None:
        check_index("index", self.index)

    def __call__(self, output: Any) -> Tensor:
        """(B,) that number for each image."""
        tensor = logits_of(output)
        columns = tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
        if columns.ndim != 2 or not 0 <= self.index < columns.shape[1]:
            raise ValueError(
                f"{self} reads outputs of shape (N, outputs) with more than {self.index} of them; the model returned "
                f"{tuple(tensor.shape)}"
            )
        return columns[:, self.index]


@dataclass(frozen=True, eq=False)
class SegmentationTarget(Target):
    """A class of a segmentation, its logits summed over a region of the output.

    The model returns logits (N, classes, *spatial), or something that holds them as `out` or `logits`. With one
    channel, it is class 1, and its negative class 0.

    Attributes:
        class_index: The class.
        region: None for the positions that are predicted as the class in the unmasked image (if there are none, the
            score is 0 and the map blank); one position, e.g. (row, column); or a bool mask of the output's size.
    """

    class_index: int
    region: Sequence[int] | Tensor | None = None

    def __post_init__(self) -> None:
        check_index("class_index", self.class_index)

    def resolve(self, output: Any) -> list[SegmentationTarget]:
        """For each image, the same class over the region in which it is predicted now."""
        logits = self._logits(output)
        if self.region is not None:
            return [self] * len(logits)
        return [SegmentationTarget(self.class_index, mask) for mask in logits.argmax(dim=1) == self.class_index]

    def __call__(self, output: Any) -> Tensor:
        """(B,) sum over the region, for each image."""
        logits = self._logits(output)
        of_class = logits[:, self.class_index]
        if self.region is None:
            region = logits.argmax(dim=1) == self.class_index
        elif isinstance(self.region, Tensor):
            region = self.region.to(logits.device, torch.bool)
            if region.shape != of_class.shape[1:]:
                raise ValueError(
                    f"region has shape {tuple(region.shape)}; the model's output has {tuple(of_class.shape[1:])}"
                )
        else:
            position = tuple(self.region)
            if len(position) != of_class.ndim - 1 or any(
                not 0 <= at < side for at, side in zip(position, of_class.shape[1:], strict=True)
            ):
                raise ValueError(f"region={position} is not in the model's output of size {tuple(of_class.shape[1:])}")
            for at in position:
                of_class = of_class[:, at]
            return of_class
        return torch.where(region, of_class, 0).flatten(1).sum(dim=1)

    def _logits(self, output: Any) -> Tensor:
        """(B, classes, *spatial)."""
        logits = logits_of(output)
        if logits.ndim < 3:
            raise ValueError(
                f"SegmentationTarget needs logits (N, classes, *spatial); the model returned {tuple(logits.shape)}"
            )
        if logits.shape[1] == 1:
            logits = torch.cat([-logits, logits], dim=1)
        if not 0 <= self.class_index < logits.shape[1]:
            raise ValueError(
                f"class_index={self.class_index} is not among the {logits.shape[1]} classes: 0 to {logits.shape[1] - 1}"
            )
        return logits

    def __repr__(self) -> str:
        region = "mask" if isinstance(self.region, Tensor) else self.region
        return f"SegmentationTarget({self.class_index}, region={region})"


class ScoreReader(ABC):
    """Reads, for N images with T targets each, the explained scores out of what the model returns for masked images.

    Attributes:
        score: Which score it is.
        count: T.
        classes: (N, T) int64, or None where callables are asked.
    """

    score: str
    count: int = 1
    classes: Tensor | None = None

    @abstractmethod
    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:
        """(B, T) float32, the scores in an output for B masked images.

        Args:
            output: What the model returned.
            image: (B,) which of the N images each is.
            shared: Whether the output is that of one image, which stands for all B.
        """


class ClassScoreReader(ScoreReader):
    """Scores of classes.

    Args:
        classes: (N, T) int64.
        score: Logit or probability.
        scores_of: Reads all class scores out of an output.
    """

    def __init__(self, classes: Tensor, score: Score, scores_of: Callable[[Any], ClassScores]) -> None:
        self.classes: Tensor = classes
        self.count = classes.shape[1]
        self.score = score
        self._scores_of = scores_of

    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:  # noqa: D102
        scores = self._scores_of(output)
        values = scores.logits if self.score == "logit" else scores.probabilities
        return values.expand(len(image), -1).gather(1, self.classes[image])


class CallableScoreReader(ScoreReader):
    """What callables return, one callable for each of N images; T is 1."""

    def __init__(self, targets: Sequence[TargetFn], score: str) -> None:
        self._targets = targets
        self.score = score

    def read(self, output: Any, image: Tensor, shared: bool = False) -> Tensor:  # noqa: D102
        asked = [self._targets[index] for index in image.tolist()]
        # Targets are few: each is asked once, of all images, and the rows that are its own are kept.
        count = 1 if shared else len(image)
        answers = {id(target): _checked(target, output, count).expand(len(image)) for target in asked}
        return torch.stack([answers[id(target)][row] for row, target in enumerate(asked)]).unsqueeze(1)


def _checked(target: TargetFn, output: Any, count: int) -> Tensor:
    values = target(output)
    if isinstance(values, Tensor) and count == 1 and values.ndim == 0:
        values = values.reshape(1)  # of a model that squeezes its output
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


class TargetRequest:
    """What the user asked for, checked as far as can be before the model is run.

    Attributes:
        several: Whether there are T targets for each image, so that results have a dimension more.

    Args:
        targets: As the user gave them.
        count: The number of images, N.

    Raises:
        TypeError: Neither class indices nor callables.
        ValueError: Not one, nor one for each image, nor (N, T) of them.
    """

    def __init__(self, targets: Targets, count: int) -> None:
        self.several = False
        self._classes: Tensor | None = None
        self._callables: list[TargetFn] | None = None
        if targets is None:
            return
        if callable(targets):
            self._callables = [targets] * count
        elif isinstance(targets, Sequence) and targets and all(map(callable, targets)):
            if len(targets) != count:
                raise ValueError(f"targets holds {len(targets)} callables; {count} images need one each: {count}")
            self._callables = list(targets)  # type: ignore[arg-type]
        else:
            self._classes = _as_class_indices(targets, count)
            self.several = self._classes.ndim == 2

    @property
    def explains_classes(self) -> bool:
        """Whether classes are explained, not what callables return."""
        return self._callables is None

    def resolve(self, chunk: slice, output: Any, scores: ClassScores | None) -> Resolved:
        """Return what is explained for a chunk of the unmasked images, now that the model's output for them is known.

        Args:
            chunk: Which of the N images.
            output: What the model returned for them.
            scores: The class scores in it; None if callables are explained.

        Raises:
            ValueError: A class index out of range.
        """
        if self._callables is not None:
            return _per_image(self._callables[chunk], output)
        assert scores is not None
        if self._classes is None:
            return scores.probabilities.argmax(dim=1, keepdim=True)
        classes = self._classes[chunk].to(scores.logits.device)
        count = scores.logits.shape[1]
        outside = classes[(classes < 0) | (classes >= count)]
        if len(outside):
            raise ValueError(
                f"targets contains {sorted(set(outside.tolist()))}, but the model has {count} classes: 0 to "
                f"{count - 1}. Where the model's output is not classes, give a callable: RegressionTarget(), "
                "SegmentationTarget(class_index), or one of your own"
            )
        return classes.view(len(classes), -1)

    def reader(
        self, resolved: Sequence[Resolved], score: Score, class_scores: Callable[[Any], ClassScores]
    ) -> ScoreReader:
        """Return what reads the explained scores.

        Args:
            resolved: What is explained, for one chunk of images after the other.
            score: Which score of a class.
            class_scores: Reads all class scores out of an output.
        """
        if self._callables is None:
            return ClassScoreReader(torch.cat([p for p in resolved if isinstance(p, Tensor)]), score, class_scores)
        names = dict.fromkeys(map(_callable_name, self._callables))
        name = next(iter(names)) if len(names) == 1 else f"{len(names)} callables"
        return CallableScoreReader([target for part in resolved for target in part], name)


def _per_image(targets: Sequence[TargetFn], output: Any) -> list[TargetFn]:
    """Resolve those of n targets that must see the output for the n images first, each of them once."""
    resolved: dict[int, Sequence[TargetFn]] = {}
    for target in targets:
        if isinstance(target, ResolvesPerImage) and id(target) not in resolved:
            resolved[id(target)] = target.resolve(output)
    return [resolved[id(target)][row] if id(target) in resolved else target for row, target in enumerate(targets)]


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
