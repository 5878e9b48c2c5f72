"""Losses: which losses and metrics a module keeps, or calls by name: evidence of what its outputs mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_IS_LOSS_OR_METRIC = re.compile("_?Loss|Metric|.*Loss|.*CrossEntropy.*|InfoNCE.*", re.IGNORECASE)

# By the names of losses, metrics and functions of PyTorch, torchmetrics, timm and MONAI, and of those for features.
_OF_NUMBERS = re.compile(
    "(MSE|L1|SmoothL1|Huber|GaussianNLL|PoissonNLL)Loss|(mse|l1|smooth_l1|huber|gaussian_nll|poisson_nll)_loss|"
    "Mean(Squared|Absolute).*Error|R2Score|.*CorrCoef|ExplainedVariance"
)
_OF_ONE_CLASS = re.compile(
    "(?!Binary|BCE).*CrossEntropy(Loss)?|NLLLoss|Multiclass.+|MultiMarginLoss|cross_entropy|nll_loss"
)
_OF_SEVERAL_CLASSES = re.compile("BCE.*Loss|Multi[lL]abel.+|binary_cross_entropy.*|sigmoid_focal_loss")
_OF_TWO_CLASSES = re.compile("Binary.+")
_OF_VIEWS = re.compile(
    ".*(contrast|supcon|nt_?xent|info_?nce|triplet|barlow|vicreg|byol|simsiam|dino|swav).*loss|info_?nce", re.IGNORECASE
)


@dataclass(frozen=True)
class Losses:
    """What losses and metrics say about the outputs that they judge.

    Attributes:
        names: Their names.
    """

    names: frozenset[str]

    def _any(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.fullmatch(name) for name in self.names)

    @property
    def are_of_numbers(self) -> bool:
        """Whether one is for numbers, as in a regression, and none for classes."""
        return self._any(_OF_NUMBERS) and not self.are_of_classes

    @property
    def are_of_classes(self) -> bool:
        """Whether one is for classes."""
        return any(map(self._any, (_OF_ONE_CLASS, _OF_SEVERAL_CLASSES, _OF_TWO_CLASSES)))

    @property
    def are_of_one_class(self) -> bool:
        """Whether one is for classes that exclude each other."""
        return self._any(_OF_ONE_CLASS)

    @property
    def are_of_several_classes(self) -> bool:
        """Whether one is for classes that do not exclude each other, and none for those that do."""
        return self._any(_OF_SEVERAL_CLASSES) and not self.are_of_one_class

    @property
    def are_of_views(self) -> bool:
        """Whether one is for features, which compare images with each other, and none for classes."""
        return self._any(_OF_VIEWS) and not self.are_of_classes


def kept_losses(module: nn.Module) -> Losses:
    """Return the losses and metrics among the parts of a module, and the functions among its attributes."""
    names: set[str] = set()
    for part in module.modules():
        of_part = [kind.__name__ for kind in type(part).__mro__]
        if any(map(_IS_LOSS_OR_METRIC.fullmatch, of_part)):
            names.update(of_part)
    for value in vars(module).values():
        names.add(getattr(getattr(value, "func", value), "__name__", ""))  # also of a partial function
    return Losses(frozenset(names))


def losses_of(module: nn.Module) -> Losses:
    """Return the losses and metrics that a module keeps; if none is for classes, also those that its steps call."""
    kept = kept_losses(module)
    if kept.are_of_classes or kept.are_of_views:
        return kept
    methods: dict[str, Any] = {}  # as they are overridden
    for kind in reversed(type(module).__mro__):
        if kind.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning", "builtins"):
            methods |= vars(kind)
    called: set[str] = set()
    waiting = {"training_step", "validation_step"}
    while waiting:
        found = {name for step in waiting for name in _names_in(methods.get(step))} - called
        called |= found
        waiting = found & methods.keys()
    return Losses(kept.names | called)


def _names_in(value: Any) -> Iterator[str]:
    """Give the names that the code of a method uses."""
    function = inspect.unwrap(getattr(value, "__func__", value))
    if isinstance(function, FunctionType):
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            yield from code.co_names
            codes += [each for each in code.co_consts if isinstance(each, CodeType)]
