"""One image, one text, to whichever logger is there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from cam_callbacks.render import Picture


class LogOut:
    """Sends pictures and texts to every logger of a trainer; to files where one takes none, or none is there."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def log(self, loggers: list[Any], folder: str | Path, tag: str, picture: Picture, step: int) -> None:
        """Log one picture.

        Args:
            loggers: Those of the trainer, of either Lightning namespace.
            folder: Where PNG files go, in case they are needed.
            tag: Such as `cam/heatmaps`.
            picture: (H, W, 3) uint8.
            step: The step that Lightning's own scalars use.
        """
        for logger in loggers or [None]:
            if not _send(logger, tag, picture, step):
                path = Path(folder) / f"{tag}_step={step:06d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
                self._say_once(logger, path.parent)

    def log_text(self, loggers: list[Any], folder: str | Path, tag: str, text: str, step: int) -> None:
        """Log a text in Markdown; the arguments as for a picture."""
        for logger in loggers or [None]:
            if not _send_text(logger, tag, text, step):
                path = Path(folder) / f"{tag}_step={step:06d}.md"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def _say_once(self, logger: Any, folder: Path) -> None:
        who = "the trainer has no logger" if logger is None else f"{type(logger).__name__} takes no images"
        if who not in self._said:
            self._said.add(who)
            warnings.warn(f"{who}: heatmaps are written as PNG files to {folder}", stacklevel=2)


def _send(logger: Any, tag: str, picture: Picture, step: int) -> bool:
    """Hand a picture to a logger in the way it offers; False if it offers none."""
    if logger is None:
        return False
    if callable(getattr(logger, "log_image", None)):  # Weights & Biases
        logger.log_image(key=tag, images=[picture], step=step)
        return True
    experiment = logger.experiment
    if callable(
        getattr(experiment, "add_image", None)
    ):  # TensorBoard; Lightning's stand-in on other ranks and in fast_dev_run
        experiment.add_image(tag, picture, step, dataformats="HWC")
        return True
    return False


def _send_text(logger: Any, tag: str, text: str, step: int) -> bool:
    """Hand a text to a logger in the way it offers; False if it offers none."""
    if callable(getattr(logger, "log_text", None)):  # Weights & Biases
        logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)
        return True
    experiment: Any = getattr(logger, "experiment", None)
    if callable(getattr(experiment, "add_text", None)):  # TensorBoard
        experiment.add_text(tag, text, step)
        return True
    return False
