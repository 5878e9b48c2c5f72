"""Loggers: pictures and texts to whichever there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cam_callbacks._threads import threads
from cam_callbacks._warnings import warn_in_training
from cam_callbacks.callback.places import write_file
from cam_callbacks.callback.retries import Retries
from cam_callbacks.figures.drawing import Picture, as_png

Media = Mapping[str, Picture | str]
"""Pictures (H, W, 3) uint8 and texts in Markdown, by name or tag."""

PictureSender = Callable[[Any, str, Picture, int], object]
"""Called as `send(logger, tag, picture, step)`; the picture is (H, W, 3) uint8."""

TextSender = Callable[[Any, str, str, int], object]
"""Called as `send(logger, tag, text, step)`; the text is Markdown."""


@dataclass(frozen=True)
class Sender:
    """How a kind of logger takes pictures and texts; None for what it does not take.

    Attributes:
        picture: Sends a picture.
        text: Sends a text.
        in_threads: Whether several pictures may be sent at the same time.
    """

    picture: PictureSender | None = None
    text: TextSender | None = None
    in_threads: bool = False


def register_logger(logger: type | str, picture: PictureSender | None = None, text: TextSender | None = None) -> None:
    """Say how a logger of your own takes pictures and texts; this holds for its subclasses too.

    It takes precedence over what is built in: registering `"TensorBoardLogger"` replaces it. What is left out is
    written to files.

    Args:
        logger: The class, or its name, which spares importing it and covers the classes of that name in both
            `lightning` and `pytorch_lightning`.
        picture: Called as `picture(logger, tag, picture, step)`, with a picture (H, W, 3) uint8 and a tag such as
            `cam/heatmaps`.
        text: Called as `text(logger, tag, text, step)`, with a text in Markdown.

    Raises:
        TypeError: The logger is neither a class nor a name, or a function cannot be called.

    Example::

        from cam_callbacks.callback.loggers import register_logger

        class NotebookLogger: ...

        register_logger(NotebookLogger, picture=lambda logger, tag, picture, step: print(tag, picture.shape, step))
    """
    if not isinstance(logger, (type, str)):
        raise TypeError(f"logger={logger!r} is not understood; give the class of the logger, or the name of the class")
    for name, send in (("picture", picture), ("text", text)):
        if send is not None and not callable(send):
            raise TypeError(
                f"{name}={send!r} cannot be called; give a function of (logger, tag, {name}, step), or None"
            )
    _SENDERS[logger] = Sender(picture, text)


@dataclass(frozen=True)
class SendError:
    """An error of a logger, or of writing files.

    Attributes:
        what: What has failed, in words.
        error: What it raised.
    """

    what: str
    error: Exception


class MediaLogger:
    """Sends pictures and texts to every logger, and to files where a logger cannot take them or there is none.

    Args:
        retries: Counts the failures of each logger.
    """

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._named: set[str] = set()  # loggers of which it was said that their media go to files

    def log(self, loggers: Sequence[Any], folder: str | Path, media: Media, step: int) -> list[SendError]:
        """Log pictures and texts.

        A logger that fails is not asked again in this call, so that one that has to be waited for is waited for once;
        all others get everything. What several of them do not take is written to one file for all: in the `log_dir` of
        the first that has one, else in the folder.

        Args:
            loggers: Those of the trainer, from either Lightning.
            folder: Place of the files if no logger has one; like theirs, a path or a URL such as `s3://bucket/logs`.
            media: By tag, such as `cam/heatmaps`: pictures (H, W, 3) uint8, texts in Markdown.
            step: The step that Lightning's own scalars use.

        Returns:
            What failed; nothing is raised.
        """
        failed: list[SendError] = []
        refused_by: dict[str, list[Any]] = {}  # by tag: the loggers that do not take it

        def serve(logger: Any) -> None:
            sender = _sender(logger)
            for tag, is_taken in zip(media, _sent(sender, logger, media, step), strict=True):
                if not is_taken:
                    refused_by.setdefault(tag, []).append(logger)

        def write() -> None:
            for tag, refusing in refused_by.items():
                written_to = _write(_place(refusing, folder), tag, media[tag], step)
                self._say_once(refusing, "texts" if isinstance(media[tag], str) else "images", written_to)

        for number, logger in enumerate(loggers or [None]):
            name = type(logger).__name__
            failed += self.attempt(name if len(loggers) < 2 else f"{name} (logger {number})", partial(serve, logger))
        failed += self.attempt("writing files", write)
        return failed

    def attempt(self, what: str, act: Callable[[], None]) -> list[SendError]:
        """Act, unless that has failed three times in a row; return the error, if there is one."""
        if self._retries.is_disabled(what):
            return []
        try:
            with self._retries.attempt(what):
                act()
        except Exception as error:
            return [SendError(what, error)]
        return []

    def _say_once(self, loggers: Sequence[Any], kind: str, folder: str) -> None:
        for logger in loggers:
            name = type(logger).__name__
            if name in self._named:
                continue
            self._named.add(name)
            who = "the trainer has no logger" if logger is None else f"{name} takes no {kind}"
            warn_in_training(f"{who}: heatmaps are written as PNG files, and verdicts as Markdown, to {folder}")


def _sender(logger: Any) -> Sender:
    """Return what is registered for the class of the logger or its nearest base class, else a guess."""
    if logger is None:
        return Sender()
    for kind in type(logger).__mro__:
        for key in (kind, kind.__name__):
            if key in _SENDERS:
                return _SENDERS[key]
    return _guess(logger)


def _guess(logger: Any) -> Sender:
    """Guess by the methods of an unknown logger: like Weights & Biases, or like TensorBoard, if it has them."""
    experiment = getattr(logger, "experiment", None)
    picture = _picture_to_tensorboard if callable(getattr(experiment, "add_image", None)) else None
    text = _text_to_tensorboard if callable(getattr(experiment, "add_text", None)) else None
    return Sender(
        _picture_to_wandb if callable(getattr(logger, "log_image", None)) else picture,
        _text_to_wandb if callable(getattr(logger, "log_text", None)) else text,
    )


def _sent(sender: Sender, logger: Any, media: Media, step: int) -> Iterator[bool]:
    """Hand pictures and texts to a logger; yield of each whether it takes such."""
    alone = list(media.items())[: 1 if sender.in_threads else None]  # a file may be opened for the first
    yield from (_send(sender, logger, tag, medium, step) for tag, medium in alone)
    others = list(media.items())[len(alone) :]
    with threads() as pool:
        yield from pool.map(lambda each: _send(sender, logger, each[0], each[1], step), others)


def _send(sender: Sender, logger: Any, tag: str, medium: Picture | str, step: int) -> bool:
    """Hand a picture or a text to a logger; return whether it takes such."""
    if isinstance(medium, str):
        if sender.text is not None:
            sender.text(logger, tag, medium, step)
        return sender.text is not None
    if sender.picture is not None:
        sender.picture(logger, tag, medium, step)
    return sender.picture is not None


def _place(loggers: list[Any], folder: str | Path) -> str | Path:
    folders = [getattr(logger, "log_dir", None) for logger in loggers]
    return next((own for own in folders if isinstance(own, str)), folder)


def _write(place: str | Path, tag: str, medium: Picture | str, step: int) -> str:
    """Write a picture or a text to a file, and return the folder that it is in."""
    name = f"{tag}_step={step:06d}"
    if isinstance(medium, str):
        return write_file(place, f"{name}.md", medium.encode())
    return write_file(place, f"{name}.png", as_png(Image.fromarray(medium)))


def _picture_to_tensorboard(logger: Any, tag: str, picture: Picture, step: int) -> None:
    logger.experiment.add_image(tag, picture, step, dataformats="HWC")


def _text_to_tensorboard(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.add_text(tag, text, step)


def _picture_to_wandb(logger: Any, tag: str, picture: Picture, step: int) -> None:
    logger.log_image(key=tag, images=[picture], step=step)


def _text_to_wandb(logger: Any, tag: str, text: str, step: int) -> None:
    logger.log_text(key=tag, columns=["text"], data=[[text]], step=step)


def _picture_to_mlflow(logger: Any, tag: str, picture: Picture, step: int) -> None:
    logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)


def _text_to_mlflow(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.log_text(logger.run_id, text, f"{tag}_step={step:06d}.md")


def _picture_to_comet(logger: Any, tag: str, picture: Picture, step: int) -> None:
    # Comet stretches the values of an array to 0...255; those of an image it leaves alone.
    logger.experiment.log_image(Image.fromarray(picture), name=tag, step=step)


def _text_to_comet(logger: Any, tag: str, text: str, step: int) -> None:
    logger.experiment.log_text(text, step=step, metadata={"tag": tag})


def _picture_to_litlogger(logger: Any, tag: str, picture: Picture, step: int) -> None:
    from litlogger import Image as LitImage

    logger.experiment[tag].append(LitImage(Image.fromarray(picture)), step=step)


def _text_to_litlogger(logger: Any, tag: str, text: str, step: int) -> None:
    from litlogger import Text

    logger.experiment[tag].append(Text(text), step=step)


_TENSORBOARD = Sender(_picture_to_tensorboard, _text_to_tensorboard, in_threads=True)  # it encodes PNGs

# By the names of their classes, which both Lightning namespaces have.
_SENDERS: dict[type | str, Sender] = {
    "TensorBoardLogger": _TENSORBOARD,
    "DummyLogger": _TENSORBOARD,  # stands in for all loggers in fast_dev_run, and takes everything
    "WandbLogger": Sender(_picture_to_wandb, _text_to_wandb),
    "MLFlowLogger": Sender(_picture_to_mlflow, _text_to_mlflow),
    "CometLogger": Sender(_picture_to_comet, _text_to_comet),
    "LitLogger": Sender(_picture_to_litlogger, _text_to_litlogger),
}
