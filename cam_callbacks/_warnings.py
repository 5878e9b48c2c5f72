"""Warnings that show the user's line of code, not ours."""

from __future__ import annotations

import inspect
import logging
import traceback
import warnings
from types import FrameType

_NOT_THE_USERS = frozenset(
    [
        "cam_callbacks",
        "contextlib",
        "functools",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "pytorch_lightning",
        "torch",
    ]
)


def warn_user(message: str) -> None:
    """Raise a UserWarning at the line of the user that led here: a call of this package, or `trainer.fit(...)`.

    Where there is none, as in a process that Lightning has started, it shows the outermost line there is.
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_back is not None and _package(frame) in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def warn_in_training(message: str, error: Exception | None = None) -> None:
    """Do what `warn_user` does; where warnings are errors (`-W error`), log it, so that it does not end the run.

    Args:
        message: What to say.
        error: Has led to it: its traceback is shown below, and what the frames of it hold, such as tensors, is let go.
    """
    if error is not None:
        message = f"{message}\n{''.join(traceback.format_exception(error))}"
        traceback.clear_frames(error.__traceback__)
    try:
        warn_user(message)
    except UserWarning:
        logging.getLogger("cam_callbacks").warning(message)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
