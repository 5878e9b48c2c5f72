"""How the data of a training is understood: its batches, the source of the probes, class names and normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cam_callbacks.callback import trainer as lightning
from cam_callbacks.callback.prober import Source
from cam_callbacks.data import datasets
from cam_callbacks.data.batches import BatchFn, LabelUse, Samples, read_batch
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, is_displayable
from cam_callbacks.data.photos import class_folders
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.isolation import random_state_kept

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """Reads data as the user says; what the user does not say it finds in the trainer's data sets.

    Attributes:
        batch_fn: As in `CAMMonitor`.
        label_use: What becomes of targets that are no classes, as in `read_batch`.
        foreground_values: As in `CAMMonitor`.
        class_names: Given by the user; empty if they are not.
        normalization: Given by the user, or None.
        warn: Says something once.
    """

    batch_fn: BatchFn | None
    label_use: LabelUse
    foreground_values: list[int] | None
    class_names: ClassNames
    normalization: Normalization | None
    warn: Callable[[str], None]

    def samples(self, batch: Any) -> Samples:
        """What is in a batch."""
        with random_state_kept():
            samples = read_batch(batch, self.batch_fn, self.label_use, self.foreground_values)
        if samples.note is not None:
            self.warn(f"CAMMonitor: {samples.note}")
        return samples

    def probes(self, source: Source, num_probes: int, trainer: Trainer, batch: Any) -> ProbeSet:
        """The probes from a folder or a data set; photos at the size of the batch's images."""
        if not isinstance(source, (str, Path)):
            with random_state_kept():
                return ProbeSet.from_dataset(source, num_probes, class_names=self.class_names, read=self.samples)
        images = self.samples(batch).images
        if images.ndim != 4:
            raise ValueError(
                f"probes={str(source)!r}: the model's images {tuple(images.shape)} are no photos; give ProbeSet"
            )
        names = self.class_names or _first(datasets.class_names, lightning.datasets(trainer))
        normalization = self.normalization or _first(datasets.normalization, lightning.datasets(trainer))
        if normalization is None and not is_displayable(images, None):
            raise ValueError(
                f"probes={str(source)!r}: how to normalize these photos for the model is not known; give "
                'normalization=(mean, std) or normalization="imagenet"'
            )
        if names is None and class_folders(Path(source)):
            raise ValueError(
                f"probes={str(source)!r}: which classes its subfolders are is not known; give class_names, the names "
                "of the model's classes in the order of their indices"
            )
        return ProbeSet.from_folder(
            source,
            images.shape[2:],
            normalization=normalization,
            class_names=names,
            num_probes=num_probes,
            channels=images.shape[1],
        )

    def described(self, probes: ProbeSet, trainer: Trainer) -> ProbeSet:
        """The probes with class names and normalization: given, else of the probes, else of the data."""
        names = self.class_names or probes.class_names or _first(datasets.class_names, lightning.datasets(trainer))
        normalization = (
            self.normalization or probes.normalization or _first(datasets.normalization, lightning.datasets(trainer))
        )
        if not is_displayable(probes.images, normalization):
            wrong = f"{normalization} does not bring them into [0, 1]" if normalization else "it is not known"
            normalization = None
            if not is_displayable(probes.images, None):
                self.warn(
                    f"How the images were normalized: {wrong}. They are shown scaled to their own minimum and maximum; "
                    'give CAMMonitor(normalization=(mean, std)) or normalization="imagenet"'
                )
        return replace(probes, class_names=ClassNames(names), normalization=normalization)


def _first(ask: Callable[[Any], T | None], sources: Iterable[Any]) -> T | None:
    """The first answer that is not None."""
    return next((answer for answer in map(ask, sources) if answer is not None), None)
