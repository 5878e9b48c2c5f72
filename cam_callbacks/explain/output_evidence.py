"""Output evidence: whether a model returns logits or probabilities, from what it returned and from its own loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain.hooks import hooked, pre_hooked
from cam_callbacks.explain.losses import kept_losses
from cam_callbacks.explain.model_outputs import OutputKind, class_columns
from cam_callbacks.explain.sharding import share

if TYPE_CHECKING:
    from cam_callbacks.explain.runner import Runner

MADE_EXTREME = 4
"""So many images are made extreme, the first ones."""

_TOLERANCE = 1e-2  # of a sum of probabilities: what softmax in half precision and a mean of several lose
_ROUNDING = 1e-5  # of a bound
_LARGEST_CLAMP = 1e-2  # the largest eps of a clamp(eps, 1 - eps)
_NARROW = 0.05  # probabilities that answer to extreme inputs vary by more
_LOUD = 1e4

_LOSSES = {  # those that tell, and the functions that compute them
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
}


class Evidence:
    """What a model returned for all images so far, as tensors on its device: nothing waits for the device in `add`."""

    def __init__(self) -> None:
        self.columns = 0
        self._outside: Tensor | None = None
        self._low = self._high = self._sum_error = torch.zeros(0)

    def add(self, output: Any) -> None:
        """Take in what the model returned for n images; (n, classes, *spatial), (n, classes) or (n,)."""
        returned = class_columns(output).detach()
        is_half = returned.dtype in (torch.float16, torch.bfloat16)
        columns = returned.float()
        rows = columns.movedim(1, -1).reshape(-1, columns.shape[1])
        if not rows.numel() or (self._outside is not None and rows.shape[1] != self.columns):
            return
        finite = torch.isfinite(rows).all(dim=1, keepdim=True)
        slack = _TOLERANCE if is_half else _ROUNDING
        outside = ((rows < -slack) | (rows > 1 + slack)).any()
        low = torch.where(finite, rows, torch.inf).amin(dim=0)
        high = torch.where(finite, rows, -torch.inf).amax(dim=0)
        sum_error = torch.where(finite.squeeze(1), _sum_error(rows), -torch.inf).amax()
        if self._outside is None:
            self.columns = rows.shape[1]
            self._outside, self._low, self._high, self._sum_error = outside, low, high, sum_error
        else:
            self._outside = self._outside | outside
            self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
            self._sum_error = torch.maximum(self._sum_error, sum_error)

    @property
    def leaves_unit_interval(self) -> bool:
        """Whether a number was outside of [0, 1]; a probability never is."""
        return self._outside is not None and bool(self._outside)

    @property
    def is_empty(self) -> bool:
        """Whether no image had a finite output."""
        return self._outside is None or not bool(torch.isfinite(self._low).all())

    @property
    def is_constant(self) -> bool:
        """Whether the output was nearly the same for all images."""
        return bool((self._high - self._low <= _NARROW).all())

    @property
    def is_zero(self) -> bool:
        """Whether all outputs were about 0, as those of a head that begins with zeros."""
        return bool((self._high <= _NARROW).all())

    @property
    def sums_to_one(self) -> bool:
        """Whether the classes of each image summed to 1."""
        return self.columns > 1 and bool(self._sum_error <= _TOLERANCE)


def _sum_error(rows: Tensor) -> Tensor:
    """Return (n,), how far the sums of rows are from 1; what a clamp has added to the smallest entries is allowed."""
    smallest = rows.amin(dim=1, keepdim=True)
    clamped = torch.where(smallest <= _LARGEST_CLAMP, (rows == smallest).sum(dim=1, keepdim=True) * smallest, 0)
    return (rows.sum(dim=1) - 1).abs() - clamped.squeeze(1)


def decide(
    runner: Runner, multi_label: bool, seen: Tensor | None = None, of_all: Iterable[Runner] | None = None
) -> OutputKind:
    """Decide what the model of a runner returns.

    A number outside of [0, 1] settles it: logits. Otherwise all images are forwarded, and a few extreme ones, for which
    logits leave [0, 1] and probabilities cannot; so that the answer does not depend on how images are dealt out.

    Args:
        runner: The model and the images.
        multi_label: As in `Method`.
        seen: What the model returned for some of the images, if it has run already.
        of_all: Runners of all images, a part each, if those of `runner` are only the first.
    """
    found = Evidence()
    with torch.no_grad():
        if seen is None:
            _forward(runner, found, runner.images[:2], runner.rows[:2])
        else:
            found.add(_from_ranks(runner, seen))
        if not found.leaves_unit_interval:
            for part in [runner] if of_all is None else of_all:
                _forward(part, found, part.images, part.rows)
            for _ in _extremes(runner, found):
                if found.leaves_unit_interval:
                    break
    return judge(found, runner.model, multi_label)


def judge(found: Evidence, model: nn.Module, multi_label: bool) -> OutputKind:
    """Judge evidence, together with the loss that the model holds, if it holds one."""
    if found.leaves_unit_interval or found.is_empty:
        return OutputKind("logits", multi_label)
    kept = kept_losses(model).names
    losses = [loss for loss, function in _LOSSES.items() if loss in kept or function in kept]
    names = " and ".join(losses)
    override = 'outputs="logits" or outputs="probabilities" decides otherwise'
    if found.sums_to_one:
        note = f"the model returns probabilities, which sum to 1: they are used as they are; {override}"
        return OutputKind("probabilities", multi_label, note)
    only_exclusive = bool(losses) and set(losses) <= {"CrossEntropyLoss", "NLLLoss"}
    if found.columns > 1 and only_exclusive and not multi_label:
        note = (
            f"the model's outputs lie in [0, 1], but do not sum to 1 as the probabilities of its {names} would: they "
            f"are taken for logits; {override}"
        )
        return OutputKind("logits", multi_label, note)
    independent = multi_label or found.columns > 1
    if found.is_constant:
        if losses == ["BCELoss"]:
            note = f"the model's outputs are constant; its {names} takes probabilities, so they are; {override}"
            return OutputKind("probabilities", independent, note)
        if losses == ["BCEWithLogitsLoss"] or found.is_zero:
            return OutputKind("logits", multi_label)
        note = (
            "the model's outputs are nearly the same for all images and lie in [0, 1]: they may be logits or "
            f"probabilities, and are taken for logits; {override}"
        )
        return OutputKind("logits", multi_label, note, is_certain=False)
    what = "one probability for each class" if found.columns > 1 else "probabilities"
    note = f"the model returns {what}, never outside of [0, 1]: they are used as they are"
    if found.columns > 1 and not multi_label:
        note += ", for classes that do not exclude each other; multi_label=True says the same"
    if "BCEWithLogitsLoss" in losses or len(losses) > 1:
        note += f". But it holds a {names}; what it returns has decided"
    return OutputKind("probabilities", independent, f"{note}; {override}", is_certain=losses != ["BCEWithLogitsLoss"])


def _forward(runner: Runner, found: Evidence, images: Tensor, rows: Tensor) -> None:
    def add(chunk: slice) -> None:
        found.add(_from_ranks(runner, runner.first_run(images[chunk], rows[chunk])))

    runner.in_chunks(len(images), add)


def _from_ranks(runner: Runner, output: object) -> Tensor:
    return runner.ranks.agreed(runner.outputs.columns(output).detach())


def _extremes(runner: Runner, found: Evidence) -> Iterator[None]:
    """Add what the model returns for extreme images, and for extreme inputs of its last layer with weights.

    The latter is needed where a normalization takes the size out of the images. A model that refuses such images gives
    no evidence.
    """
    few = runner.images[:MADE_EXTREME]
    last = _last_with_weights(runner, few[:1])
    for factor in (_LOUD, -_LOUD) if last else ():
        with pre_hooked(last, lambda _module, inputs, by=factor: _scaled(inputs, by)):
            _try(runner, found, [few])
        yield
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0)).to(few) * few.abs().amax()
    _try(runner, found, [10 * few, 100 * few, -few, -100 * few, noise])
    yield


def _try(runner: Runner, found: Evidence, batches: list[Tensor]) -> None:
    """Forward changed forms of the first images, and add the evidence if the model answers them."""
    rows = torch.cat([runner.rows[: len(batch)] for batch in batches])
    try:
        _forward(runner, found, torch.cat(batches), rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model says to images that nobody feeds it
        share(error)


def _last_with_weights(runner: Runner, images: Tensor) -> list[nn.Module]:
    """Return the innermost module with weights that runs last, in a list that is empty if there is none."""
    calls: list[nn.Module] = []
    with hooked(_innermost(runner.model), lambda module, _inputs, _output: calls.append(module)):
        runner.try_run(images)
    return calls[-1:]


def _innermost(model: nn.Module) -> Iterable[nn.Module]:
    return [
        module
        for module in model.modules()
        if next(module.children(), None) is None and next(module.parameters(), None) is not None
    ]


def _scaled(inputs: tuple[Any, ...], factor: float) -> tuple[Any, ...]:
    """Scale those inputs of a module that are floating point tensors."""
    return tuple(each * factor if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)
