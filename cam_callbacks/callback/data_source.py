"""The data of a training as the user describes it; what the user does not say is asked of the trainer's data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.settings import MonitorSettings, ProbeSource
from cam_callbacks.data import datasets
from cam_callbacks.data.batches import LabelUse, Samples, read_batch
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, is_displayable
from cam_callbacks.data.photos import class_folders
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.isolation import random_state_kept

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

T = TypeVar("T")


class DataSource:
    """Reads batches, photos and data sets.

    Args:
        settings: What the user says.
        warn_once: Gives a warning, unless it was given before.
    """

    def __init__(self, settings: MonitorSettings, warn_once: Callable[[str], None]) -> None:
        self._settings = settings
        self._warn_once = warn_once

    @property
    def _label_use(self) -> LabelUse:
        if callable(self._settings.explain):
            return "ignored"
        return "required" if self._settings.explain in ("label", "both") else "optional"

    def samples(self, batch: Any) -> Samples:
        """Read a batch."""
        audit = self._settings.audit
        with random_state_kept():
            samples = read_batch(
                batch, self._settings.batch_fn, self._label_use, None if audit is None else audit.foreground_values
            )
        if samples.note is not None:
            note = samples.note.replace("foreground_values", "Audit(foreground_values=[...])")
            self._warn_once(f"CAMMonitor: {note}")
        return samples

    def read_probes(self, source: ProbeSource, trainer: Trainer, batch: Any) -> ProbeSet:
        """Read the probes from a folder of photos or a data set; photos at the size of the batch's images."""
        if isinstance(source, (str, Path)):
            return self._read_photos(source, trainer, self.samples(batch).images)
        names = self._settings.class_names or None
        with random_state_kept():
            return ProbeSet.from_dataset(source, self._settings.num_probes, class_names=names, read=self.samples)

    def _read_photos(self, folder: str | Path, trainer: Trainer, images: Tensor) -> ProbeSet:
        """Read the photos of a folder for a model that is fed such images."""
        shape = tuple(images.shape)
        if len(shape) != 4:
            raise ValueError(f"probes={str(folder)!r}: the model's images {shape} are not photos; give a ProbeSet")
        names, normalization = self._class_names(trainer), self._normalization(trainer)
        if normalization is None and not is_displayable(images, None):
            raise ValueError(
                f"probes={str(folder)!r}: it is not known how to normalize these photos for the model; give "
                'normalization=(mean, std) or normalization="imagenet"'
            )
        if names is None and Path(folder).is_dir() and class_folders(Path(folder)):
            raise ValueError(
                f"probes={str(folder)!r}: it is not known which classes its subfolders are; give class_names, the "
                "names of the model's classes in the order of their indices"
            )
        return ProbeSet.from_folder(
            folder,
            shape[2:],
            normalization=normalization,
            class_names=names,
            num_probes=self._settings.num_probes,
            channels=shape[1],
        )

    def described(self, probes: ProbeSet, trainer: Trainer) -> ProbeSet:
        """Add class names and normalization: the user's, else those of the images, else those of the data sets."""
        return replace(
            probes,
            class_names=ClassNames(self._class_names(trainer, probes)),
            normalization=self._if_it_fits(self._normalization(trainer, probes), probes),
        )

    def _class_names(self, trainer: Trainer, probes: ProbeSet | None = None) -> ClassNames | None:
        own = None if probes is None else probes.class_names
        return self._settings.class_names or own or _first(datasets.class_names, of_trainer.datasets(trainer))

    def _normalization(self, trainer: Trainer, probes: ProbeSet | None = None) -> Normalization | None:
        own = None if probes is None else probes.normalization
        return self._settings.normalization or own or _first(datasets.normalization, of_trainer.datasets(trainer))

    def _if_it_fits(self, normalization: Normalization | None, probes: ProbeSet) -> Normalization | None:
        """Return the normalization if undoing it brings the images into [0, 1], else None."""
        if is_displayable(probes.images, normalization):
            return normalization
        needs_none, channels = is_displayable(probes.images, None), probes.images.shape[1]
        given = None if self._settings.normalization is None else len(self._settings.normalization[0])
        if given not in (None, 1, channels):
            why = f"{normalization} is for {given} channels, and they have {channels}"
        elif needs_none:
            return None
        else:
            why = f"{normalization} does not bring them into [0, 1]" if normalization else "it is not known"
        self._warn_once(
            f"How the images were normalized: {why}. They are shown "
            f"{'as they are' if needs_none else 'scaled to their own minimum and maximum'}; "
            'give CAMMonitor(normalization=(mean, std)) or normalization="imagenet"'
        )
        return None


def _first(ask: Callable[[Any], T | None], sources: Iterable[Any]) -> T | None:
    """Return the first answer that is not None."""
    return next((answer for answer in map(ask, sources) if answer is not None), None)
