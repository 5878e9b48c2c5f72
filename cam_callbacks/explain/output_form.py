"""Output form: which part of what a model returns holds the scores, and which of its dimensions the classes.

What a model returns for one image may leave both open: a single number may be a loss or a score, and a dimension may be
classes or positions. So the model is run on two images where that is needed, and the axes of the images are followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain.axes import AxisTracker, tracked
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
