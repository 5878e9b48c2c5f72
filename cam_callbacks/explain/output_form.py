"""Output form: which part of what a model returns holds the scores, and which of its dimensions the classes.

What a model returns for one image may leave both open: a single number may be a loss or a score, and a dimension may be
classes or positions. So the model is run on two images where that is needed, and the axes of the images are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain.axes import AxisTracker, tracked
from cam_callbacks.explain.gradient_graph import dependence
from cam_callbacks.explain.model_outputs import class_columns, only_wide, place_of
from cam_callbacks.explain.sharding import share


@dataclass(frozen=True)
class OutputForm:
    """Where the scores are in what a model returns.

    Attributes:
        place: Which entry of a tuple or list holds them.
        classes: The dimension of the classes in a tensor (N, ...) of more than two dimensions of which one besides that
            of the images has more than one entry; None if that may be positions.
    """

    place: int = 0
    classes: int | None = None


def find_form(run: Callable[[Tensor], Any], images: Tensor) -> OutputForm:
    """Find the form of what a model returns, by two copies of an image.

    Args:
        run: Runs the model.
        images: (N, C, *spatial), of which the first is used.
    """
    two = images[:1].repeat(2, *[1] * (images.ndim - 1))
    tracker = AxisTracker(two)
    with torch.no_grad():
        try:
            output = tracked(lambda: run(two), tracker, lambda: None)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # it takes one image at a time
            share(error)
            return OutputForm()
        place = place_of(output)
        scores = class_columns(output, place)
    wide, channels = only_wide(scores), tracker.channels(scores)
    is_pooled_map = wide == 1 and scores.ndim == images.ndim > 3
    is_of_classes = wide is not None and (channels == wide or (channels is None and is_pooled_map))
    return OutputForm(place, wide if is_of_classes else None)


def score_entries(output: Any, count: int) -> list[int]:
    """Return which entries of a tuple or list may hold the scores of `count` images; none if it has `logits`."""
    if not isinstance(output, (tuple, list)) or hasattr(output, "logits"):
        return []
    return [
        place
        for place, entry in enumerate(output)
        if isinstance(entry, Tensor) and entry.is_floating_point() and entry.shape[:1] == (count,)
    ]


def made_from_the_others(tensors: Sequence[Tensor]) -> int | None:
    """Return which of several tensors was made from all others, as logits from features; None if none was.

    One that alone has gradients was made last: the others were made, or cut off, where there were none.
    """
    with_gradients = [place for place, tensor in enumerate(tensors) if tensor.requires_grad]
    if len(tensors) > 1 and len(with_gradients) == 1:
        return with_gradients[0]
    if len(with_gradients) < max(2, len(tensors)):
        return None
    for place, tensor in enumerate(tensors):
        others = [*tensors[:place], *tensors[place + 1 :]]
        if all(gradient is not None for gradient in dependence(tensor, others)):
            return place
    return None
