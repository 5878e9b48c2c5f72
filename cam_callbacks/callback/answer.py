"""Which tensor is the answer, if a model returns several: told by the number of classes, or by what made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cam_callbacks.callback.task import BatchSigns, NothingToExplainError, Task, class_counts, recognize
from cam_callbacks.data.probes import ProbeSet

_ROUNDING = 1e-3


class SeveralAnswersError(NothingToExplainError):
    """Several tensors that the model returns may be its answer."""


def recognize_entry(
    probes: ProbeSet,
    entries: Mapping[int, Tensor],
    made_from_the_others: int | None,
    module: nn.Module,
    signs: BatchSigns,
) -> Task:
    """Tell which entry of a tuple is the answer, and of which task: by the number of classes, else by what made it.

    Args:
        probes: As in `recognize`.
        entries: The entries that may be it, by their places, each as `columns` in `recognize`.
        made_from_the_others: The place of the one that was made from all others, as logits are from features.
        module: As in `recognize`.
        signs: As in `recognize`.

    Raises:
        NothingToExplainError: None of them is.
        SeveralAnswersError: It cannot be told which.
    """
    tasks: dict[int, Task] = {}
    refusals: dict[int, NothingToExplainError] = {}
    for place, columns in entries.items():
        if any(_are_probabilities_of(columns, entries[other]) for other in entries if other != place):
            continue
        try:
            tasks[place] = replace(recognize(probes, columns, module, signs), place=place)
        except NothingToExplainError as error:
            refusals[place] = error
    if not tasks:
        raise next(iter(refusals.values()))
    widths = {place: entries[place].shape[1] for place in tasks}
    left: list[int] = []
    for width in (width for count in class_counts(probes) for width in (count, *[1] * (count == 2))):
        left = left or [place for place in tasks if widths[place] == width]
    if len(left) != 1 and made_from_the_others in refusals:  # such as the images of an autoencoder
        raise refusals[made_from_the_others]
    left = left or list(tasks)
    if made_from_the_others in left and _is_the_answer(made_from_the_others, left, entries):
        left = [made_from_the_others]
    if len(left) > 1:
        shapes = " and ".join(f"output[{place}] (N, {', '.join(map(str, entries[place].shape[1:]))})" for place in left)
        raise SeveralAnswersError(f"several tensors that may be the answer: {shapes}", are_numbers=False)
    return tasks[left[0]]


def _is_the_answer(made: int, places: list[int], entries: Mapping[int, Tensor]) -> bool:
    """Whether what was made from other entries is the answer, as logits from features; or was made from the answer.

    A number may be an uncertainty, and what has the size of the one other entry may be a sample of it: that is open.
    """
    others = [entries[place] for place in places if place != made]
    return entries[made].shape[1] > 1 and not (len(others) == 1 and others[0].shape == entries[made].shape)


def _are_probabilities_of(columns: Tensor, logits: Tensor) -> bool:
    """Whether an entry is the softmax, or the sigmoid, of another one."""
    return columns.shape == logits.shape and any(
        torch.allclose(columns, made, atol=_ROUNDING) for made in (logits.softmax(dim=1), logits.sigmoid())
    )
