"""Pictures and texts to whichever loggers are there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cam_callbacks.callback.retries import Retries
from cam_callbacks.figures.drawing import Picture

PictureSender = Callable[[Any, str, Picture, int], object]
"""Called as `send(logger, tag, picture, step)`; the picture is (H, W, 3) uint8."""

TextSender = Callable[[Any, str, str, int], object]
"""Called as `send(logger, tag, text, step)`; the text is Markdown."""


@dataclass(frozen=True)
class Sender:
    """How a kind of logger takes pictures and texts; None where it takes none."""

    picture: PictureSender | None = None
    text: TextSender | None = None


def register(logger: type | str, picture: PictureSender | None = None, text: TextSender | None = None) -> None:
    """Say how a logger of your own takes pictures and texts; it holds for its subclasses too.

    It goes before what is built in: registering `"TensorBoardLogger"` replaces it. What is left out goes to files.

    Args:
        logger: The class, or its name, where that class need not be imported or where several have it, as those of
            `lightning` and `pytorch_lightning` do.
        picture: Called as `picture(logger, tag, picture, step)`, with a picture (H, W, 3) uint8 and a tag such as
            `cam/heatmaps`.
        text: Called as `text(logger, tag, text, step)`, with a text in Markdown.

    Raises:
        TypeError: The logger is neither a class nor a name, or a function cannot be called.

    Example::

        from cam_callbacks.callback import loggers

        class NotebookLogger: ...

        loggers.register(NotebookLogger, picture=lambda logger, tag, picture, step: print(tag, picture.shape, step))
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
    """A logger that has failed, or the writing of files.

    Attributes:
        what: Its name.
        error: What it raised.
        times: How often in a row; at the third time it is given up.
    """

    what: str
    error: Exception
    times: int


class MediaLogger:
    """Sends pictures and texts to every logger, and to files where one cannot take them, or there is none.

    Args:
        failures: Counts them, by logger.
    """

    def __init__(self, failures: Retries) -> None:
        self._said: set[str] = set()
        self._failures = failures

    def log(
        self, loggers: list[Any], folder: str | Path, records: Mapping[str, Picture | str], step: int
    ) -> list[SendError]:
        """Log pictures and texts.

        A logger that fails is asked no more in this call, so that one that has to be waited for is waited for once;
        all others get everything. What several of them do not take is written to one file for all: in the `log_dir` of
        the first that has one, else in the folder.

        Args:
            loggers: Those of the trainer, of either Lightning namespace.
            folder: Where files go, where no logger has a place for them.
            records: By tag, such as `cam/heatmaps`: pictures (H, W, 3) uint8, texts in Markdown.
            step: The step that Lightning's own scalars use.

        Returns:
            What failed; nothing is raised.
        """
        failed: list[SendError] = []
        without: dict[str, list[Any]] = {}  # tag -> the loggers that do not take it

        def serve(logger: Any) -> None:
            sender = _sender(logger)
            for tag, record in records.items():
                if not _send(sender, logger, tag, record, step):
                    without.setdefault(tag, []).append(logger)

        def write() -> None:
            for tag, those in without.items():
                path = _write(_place(those, folder), tag, records[tag], step)
                self._warn_once(those, path)

        for number, logger in enumerate(loggers or [None]):
            name = type(logger).__name__
            failed += self.attempt(name if len(loggers) < 2 else f"{name} (logger {number})", partial(serve, logger))
        failed += self.attempt("writing files", write)
        return failed

    def attempt(self, what: str, act: Callable[[], None]) -> list[SendError]:
        """Act, unless that has failed three times in a row.

        Args:
            what: A name for it.
            act: What may fail.

        Returns:
            The failure, if it has failed.
        """
        if self._failures.is_disabled(what):
            return []
        try:
            act()
        except Exception as error:
            return [SendError(what, error, self._failures.add(what))]
        self._failures.forget(what)
        return []

    def _warn_once(self, loggers: list[Any], path: Path) -> None:
        what = "images" if path.suffix == ".png" else "texts"
        for logger in loggers:
            name = type(logger).__name__
            if name in self._said:
                continue
            self._said.add(name)
            who = "the trainer has no logger" if logger is None else f"{name} takes no {what}"
            warnings.warn(
                f"{who}: heatmaps are written as PNG files, and verdicts as Markdown, to {path.parent}", stacklevel=2
            )


def _sender(logger: Any) -> Sender:
    """What is registered for the class of the logger or the nearest of those that it inherits from, else a guess."""
    if logger is None:
        return Sender()
    for kind in type(logger).__mro__:
        for key in (kind, kind.__name__):
            if key in _SENDERS:
                return _SENDERS[key]
    return _guess(logger)


def _guess(logger: Any) -> Sender:
    """By the methods of a logger that is not known: as Weights & Biases' or as TensorBoard's, if they are there."""
    experiment = getattr(logger, "experiment", None)
    picture = _picture_to_tensorboard if callable(getattr(experiment, "add_image", None)) else None
    text = _text_to_tensorboard if callable(getattr(experiment, "add_text", None)) else None
    return Sender(
        _picture_to_wandb if callable(getattr(logger, "log_image", None)) else picture,
        _text_to_wandb if callable(getattr(logger, "log_text", None)) else text,
    )


def _send(sender: Sender, logger: Any, tag: str, record: Picture | str, step: int) -> bool:
    """Hand a picture or a text to a logger; False if it takes none."""
    if isinstance(record, str):
        if sender.text is not None:
            sender.text(logger, tag, record, step)
        return sender.text is not None
    if sender.picture is not None:
        sender.picture(logger, tag, record, step)
    return sender.picture is not None


def _place(loggers: list[Any], folder: str | Path) -> Path:
    folders = [getattr(logger, "log_dir", None) for logger in loggers]
    return Path(next((own for own in folders if isinstance(own, str)), folder))


def _write(folder: Path, tag: str, record: Picture | str, step: int) -> Path:
    path = folder / f"{tag}_step={step:06d}.{'md' if isinstance(record, str) else 'png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(record, str):
        path.write_text(record, encoding="utf-8")
    else:
        Image.fromarray(record).save(path)
    return path


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


_TENSORBOARD = Sender(_picture_to_tensorboard, _text_to_tensorboard)

# By the names of their classes, which both Lightning namespaces have.
_SENDERS: dict[type | str, Sender] = {
    "TensorBoardLogger": _TENSORBOARD,
    "DummyLogger": _TENSORBOARD,  # stands in for all loggers in fast_dev_run, and takes everything
    "WandbLogger": Sender(_picture_to_wandb, _text_to_wandb),
    "MLFlowLogger": Sender(_picture_to_mlflow, _text_to_mlflow),
    "CometLogger": Sender(_picture_to_comet, _text_to_comet),
    "LitLogger": Sender(_picture_to_litlogger, _text_to_litlogger),
}
