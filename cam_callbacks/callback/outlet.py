"""Outlet: hands the pictures, texts and records of a look to the trainer's loggers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cam_callbacks import tags
from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.loggers import Media, MediaLogger, SendError
from cam_callbacks.callback.retries import Retries
from cam_callbacks.callback.settings import MonitorSettings
from cam_callbacks.review.json_values import readable
from cam_callbacks.review.writer import TabWriter
from cam_callbacks.snapshot import AuditSnapshot, Snapshot

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Outlet:
    """Writes what a monitor shows; a logger that fails costs the others nothing.

    Args:
        settings: Those of the monitor.
        retries: Counts the failures of each logger.
    """

    def __init__(self, settings: MonitorSettings, retries: Retries) -> None:
        self._name, self._method = settings.name, settings.method.name
        self._media = MediaLogger(retries)
        self._tab = TabWriter(settings.name, readable(vars(settings) | {"class_names": settings.class_names or None}))

    def send(
        self,
        trainer: Trainer,
        folder: str | Path,
        media: Media,
        snapshot: Snapshot | None,
        audit: AuditSnapshot | None,
        no_heatmaps: str = "",
    ) -> list[SendError]:
        """Send a look, on the first rank.

        Args:
            trainer: Whose loggers get it.
            folder: Place of the files for what no logger takes.
            media: Pictures and texts by name.
            snapshot: The heatmaps of the look, if there are any.
            audit: Its audit, if there is one.
            no_heatmaps: Why there are no heatmaps, in words, if that is known.

        Returns:
            What failed; nothing is raised.
        """
        tagged = {tags.tag(self._name, name, trainer.testing): each for name, each in media.items()}
        failed = self._media.log(trainer.loggers, folder, tagged, of_trainer.log_step(trainer))

        def write_records() -> None:
            self._write_records(trainer, media, snapshot, audit, no_heatmaps)

        return failed + self._media.attempt("writing for the CAM tab", write_records)

    def _write_records(
        self,
        trainer: Trainer,
        media: Media,
        snapshot: Snapshot | None,
        audit: AuditSnapshot | None,
        no_heatmaps: str,
    ) -> None:
        loggers, step, testing = trainer.loggers, of_trainer.log_step(trainer), trainer.testing
        epoch = trainer.current_epoch
        if snapshot is not None:
            self._tab.write_look(loggers, step, snapshot, epoch=epoch, method=self._method, testing=testing)
        if audit is not None:
            swaps = media.get(tags.SWAPS)
            self._tab.write_audit(
                loggers,
                step,
                audit,
                None if isinstance(swaps, str) else swaps,
                epoch=epoch,
                no_heatmaps="" if snapshot is not None else no_heatmaps,
                testing=testing,
            )

    def flush(self, loggers: Iterable[Any]) -> list[str]:
        """Write out everything, and return the folders of the event files, as paths or as URLs."""
        return self._tab.flush(loggers)
