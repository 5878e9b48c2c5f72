"""Targets: what may be explained, beside classes: the output of a regression, a class of a segmentation, a callable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_callbacks._checks import check_bool, check_index, check_list, is_list
from cam_callbacks.explain.model_outputs import class_scores, logits_of

TargetFn: TypeAlias = Callable[[Any], Tensor]
"""Called with what the model returned for B images; returns one number for each, (B,)."""

Targets: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | TargetFn | Sequence[TargetFn] | None
"""What a user may ask for: a class, or a callable; one for all images, or one for each; several classes for each
(N, T); classes marked in (N, classes) bool, of which the one with the highest score is explained; None for the
predicted class."""


class Target(ABC):
    """Base class for callables that are written as classes, so that a LightningCLI YAML can name them.

    Attributes:
        wants_logits: Called with logits (B, classes, *spatial), also where the model returns probabilities; otherwise
            with what the model returned.
    """

    wants_logits: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """Return one number for each of the B images whose output is given, (B,)."""


def wants_logits(target: object) -> bool:
    """Return whether a callable is to be called with logits, not with what the model returned."""
    return bool(getattr(target, "wants_logits", False))


@runtime_checkable
class ResolvesPerImage(Protocol):
    """A target that must see what the model returned for the unmasked images before it can read masked ones."""

    def resolve(self, output: Any) -> Sequence[TargetFn]:
        """Return one target for each of the images whose output is given."""
        ...


@dataclass(frozen=True)
class RegressionTarget(Target):
    """One of the outputs of a regression, e.g. an angle.

    Attributes:
        index: Which of the outputs (N, outputs); 0 for outputs (N,).
    """

    index: int = 0

    def __post_init__(self) -> None:
        check_index("index", self.index)

    def __call__(self, output: Any) -> Tensor:
        """Return (B,), that output for each image."""
        tensor = logits_of(output)
        columns = tensor.unsqueeze(1) if tensor.ndim == 1 else tensor
        if columns.ndim != 2 or not 0 <= self.index < columns.shape[1]:
            raise ValueError(
                f"{self} reads outputs of shape (N, outputs) with more than {self.index} of them; the model returned "
                f"{tuple(tensor.shape)}"
            )
        return columns[:, self.index]


@dataclass(frozen=True)
class ContrastTarget(Target):
    """A class against others that are like it: what speaks for a wren and not for a sparrow.

    The score is that of Finer-CAM (Zhang et al. 2025, arXiv 2501.11309) at full strength: the logit of the class minus
    the mean of those of the others. What all of them share cancels. Every method but CAM takes it.

    The model returns logits (N, classes); one column is the logit of class 1, its negative that of class 0. Where a
    method finds probabilities, their logits are explained.

    Attributes:
        class_index: The class.
        against: The other class, or several.

    Raises:
        ValueError: A class is not a whole number of at least 0, `against` is empty, or it names the class itself.
    """

    class_index: int
    against: int | Sequence[int]

    def __post_init__(self) -> None:
        check_index("class_index", self.class_index)
        others = tuple(self.against) if is_list(self.against) else (self.against,)
        for each in others:
            check_index("against", each)
        if not others or self.class_index in others or len(set(others)) < len(others):
            raise ValueError(
                f"against={self.against!r} must name classes other than class_index={self.class_index}, each once"
            )
        object.__setattr__(self, "against", others)

    def __call__(self, output: Any) -> Tensor:
        """Return (B,), the difference for each image."""
        logits, others = class_scores(output).logits, self.against
        assert isinstance(others, tuple)
        if max(self.class_index, *others) >= logits.shape[1]:
            raise ValueError(
                f"{self} names classes that are not among the model's {logits.shape[1]}: 0 to {logits.shape[1] - 1}"
            )
        return logits[:, self.class_index] - logits[:, list(others)].mean(dim=1)


@dataclass(frozen=True, eq=False)
class SegmentationTarget(Target):
    """A class of a segmentation: its logits, summed over a region of the output.

    The model returns logits (N, classes, *spatial), or something that holds them as `out` or `logits`. A single channel
    is the logit of class 1; its negative is that of class 0. Where a method finds probabilities p instead, their logits
    are explained: log(p) where the classes of each position sum to 1, otherwise log(p / (1 - p)).

    Attributes:
        class_index: The class.
        region: None for the positions that are predicted as the class in the unmasked image (if there are none, the
            score is 0 and the map blank); one position, e.g. (row, column); or a bool mask of the output's size.
    """

    wants_logits: ClassVar[bool] = True
    class_index: int
    region: Sequence[int] | Tensor | NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        check_index("class_index", self.class_index)
        region = self.region
        if isinstance(region, np.ndarray):
            object.__setattr__(self, "region", torch.from_numpy(region))
        elif region is not None and not isinstance(region, Tensor):
            check_list("region", region, Integral, "a position, e.g. (row, column), a bool mask")

    def resolve(self, output: Any) -> list[SegmentationTarget]:
        """Return, for each image, this class over the region in which it is predicted now."""
        logits = self._checked(_pixel_logits(self, output))
        if self.region is not None:
            return [self] * len(logits)
        return [SegmentationTarget(self.class_index, mask) for mask in logits.argmax(dim=1) == self.class_index]

    def __call__(self, output: Any) -> Tensor:
        """Return (B,), the sum over the region for each image."""
        logits = self._checked(_pixel_logits(self, output))
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

    def _checked(self, logits: Tensor) -> Tensor:
        if not 0 <= self.class_index < logits.shape[1]:
            raise ValueError(
                f"class_index={self.class_index} is not among the {logits.shape[1]} classes: 0 to {logits.shape[1] - 1}"
            )
        return logits

    def __repr__(self) -> str:
        region = "mask" if isinstance(self.region, Tensor) else self.region
        return f"SegmentationTarget({self.class_index}, region={region})"


@dataclass(frozen=True)
class LargestSegment(Target):
    """The class of a segmentation that the most positions of each image are predicted as, over these positions.

    The model returns what `SegmentationTarget` understands.

    Attributes:
        has_background: Whether class 0 is the background, which is explained only where nothing else is predicted.
    """

    wants_logits: ClassVar[bool] = True
    has_background: bool = True

    def __post_init__(self) -> None:
        check_bool("has_background", self.has_background)

    def resolve(self, output: Any) -> list[SegmentationTarget]:
        """Return, for each image, its class and the positions."""
        predicted = _pixel_logits(self, output).argmax(dim=1)
        found = []
        for positions in predicted:
            others = positions[positions > 0] if self.has_background else positions
            largest = int(others.mode().values) if len(others) else 0
            found.append(SegmentationTarget(largest, positions == largest))
        return found

    def __call__(self, output: Any) -> Tensor:
        """Return (B,), the sum over these positions for each image."""
        return torch.cat([target(output)[row : row + 1] for row, target in enumerate(self.resolve(output))])


PREDICTED = "predicted"
"""What the score of a regression is called: it is the answer."""


def score_name(kind: str) -> str:
    """Return what scores are called, from the kind that an `Explanation` says: a few words, or the callable's name."""
    if kind.startswith(RegressionTarget.__name__):
        return PREDICTED
    of_pixels = (SegmentationTarget.__name__, LargestSegment.__name__)
    return "sum of logits" if kind.startswith(of_pixels) else kind


def _pixel_logits(target: Target, output: Any) -> Tensor:
    """Return (B, classes, *spatial); a single channel is the logit of class 1."""
    logits = logits_of(output)
    if logits.ndim < 3:
        raise ValueError(
            f"{type(target).__name__} needs logits (N, classes, *spatial); the model returned {tuple(logits.shape)}"
        )
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits
