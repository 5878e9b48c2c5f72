"""The data of a training as the user describes it; what the user does not say is asked of the trainer's data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cam_callbacks.callback import trainer as of_trainer
from cam_callbacks.callback.settings import MonitorSettings, ProbeSource
from cam_callbacks.callback.task import BatchSigns
from cam_callbacks.data import datasets
from cam_callbacks.data.batches import Samples, read_batch
from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.data.normalization import Normalization, is_displayable
from cam_callbacks.data.photos import class_folders
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.isolation import random_state_kept

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

T = TypeVar("T")


class DataSource:
    """Reads batches, photos and data sets.

    Args:
        settings: What the user says.
        warn_once: Gives a warning, unless it was given before.

    Attributes:
        signs: What the batches so far say about the task.
    """

    def __init__(self, settings: MonitorSettings, warn_once: Callable[[str], None]) -> None:
        self._settings = settings
        self._warn_once = warn_once
        self._found: ClassNames | None = None
        self._has_asked = False
        self.signs = BatchSigns()

    def begin(self) -> None:
        """Forget what was found in the data of the last evaluation, which may have been another."""
        self._found, self._has_asked = None, False

    def samples(self, batch: Any, trainer: Trainer) -> Samples:
        """Read a batch; of labels that are probabilities, the most probable class is taken as the true one.

        Raises:
            TypeError: The batch is not understood.
            ValueError: `batch_fn` fails.
        """
        audit, explain = self._settings.audit, self._settings.explain
        with random_state_kept():
            samples = read_batch(
                batch,
                self._settings.batch_fn,
                None if audit is None else audit.foreground_values,
                self._class_names(trainer) or (),
                audit is not None and audit.task == "detection",
            )
        if samples.label_kind == "soft" and samples.annotations is not None:
            samples = replace(samples, labels=samples.annotations.argmax(dim=1))
        if samples.labels is not None and callable(explain):  # they may be numbers that only look like classes
            samples = replace(samples, labels=None)
        self.signs = BatchSigns(
            self.signs.have_views or samples.has_views,
            self.signs.have_other_labels or samples.label_note is not None,
            samples.missing_labels,
        )
        for note in (samples.note, samples.label_note):
            if note is not None:
                note = note.replace("foreground_values", "Audit(foreground_values=[...])")
                self._warn_once(f"CAMMonitor: {note}")
        return samples

    def read_probes(self, source: ProbeSource, trainer: Trainer, batch: Any) -> ProbeSet:
        """Read the probes from a folder of photos or a data set; photos at the size of the batch's images."""
        if isinstance(source, (str, Path)):
            return self._read_photos(source, trainer, self.samples(batch, trainer).images)
        names = self._settings.class_names or None
        with random_state_kept():
            return ProbeSet.from_dataset(
                source, self._settings.num_probes, class_names=names, read=lambda items: self.samples(items, trainer)
            )

    def _read_photos(self, folder: str | Path, trainer: Trainer, images: Tensor) -> ProbeSet:
        """Read the photos of a folder for a model that is fed such images."""
        shape = tuple(images.shape)
        if len(shape) != 4:
            raise ValueError(f"probes={str(folder)!r}: the model's images {shape} are not photos; give a ProbeSet")
        names, normalization = self._class_names(trainer), self._normalization(trainer, images)
        if not images.is_floating_point():
            normalization = None
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
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise ValueError(f"probes={str(folder)!r}: the model's images are {images.dtype}; give a ProbeSet")
        probes = ProbeSet.from_folder(
            folder,
            shape[2:],
            normalization=normalization,
            class_names=names,
            num_probes=self._settings.num_probes,
            channels=shape[1],
        )
        if images.is_floating_point():
            return probes
        return replace(probes, images=in_type(probes.images * 255, images.dtype))

    def described(self, probes: ProbeSet, trainer: Trainer) -> ProbeSet:
        """Add class names, normalization and bands: the user's, else those of the images, else those that are found.

        Raises:
            ValueError: The images do not have the bands that are to be shown.
        """
        bands, channels = self._settings.figures.bands or probes.bands, probes.images.shape[1]
        if probes.images.ndim > 3 and bands is not None and max(bands) >= channels:
            raise ValueError(f"Figures(bands={bands!r}): the images have the channels 0 to {channels - 1}")
        return replace(
            probes,
            class_names=ClassNames(self._class_names(trainer, probes)),
            normalization=self._if_it_fits(self._normalization(trainer, probes.images, probes.normalization), probes),
            bands=bands if probes.images.ndim > 3 else None,
        )

    def with_known_classes(self, images: ProbeSet, classes: int) -> ProbeSet:
        """Return the images without those whose label is none of the model's classes; all have labels."""
        assert images.labels is not None
        known = images.labels < classes
        if known.all():
            return images
        self.warn_of_unknown_classes(images.labels[~known].tolist(), classes)
        return images.subset(known.nonzero().flatten())

    def warn_of_unknown_classes(self, labels: Iterable[int], classes: int) -> None:
        """Warn that images with these labels are left out, which are none of the model's classes."""
        self._warn_once(
            f"CAMMonitor leaves out images whose labels are none of the model's {classes} classes: "
            f"{sorted(set(labels))}. If these are classes, give forward_fn, a callable (pl_module, images) -> logits "
            "of all classes"
        )

    def with_fitting_names(self, probes: ProbeSet, classes: int) -> ProbeSet:
        """Return the probes, without class names if there is another number of them than of the model's classes."""
        if len(probes.class_names) in (0, classes):
            return probes
        self._warn_once(
            f"there are {len(probes.class_names)} class names, found or given, but the model has {classes} classes: "
            "they are shown by number. Give CAMMonitor(class_names=...)"
        )
        return replace(probes, class_names=ClassNames())

    def _class_names(self, trainer: Trainer, probes: ProbeSet | None = None) -> ClassNames | None:
        own = None if probes is None else probes.class_names
        return self._settings.class_names or own or self._found_names(trainer)

    def _found_names(self, trainer: Trainer) -> ClassNames | None:
        """Ask the data sets and the model, once an evaluation."""
        if not self._has_asked:
            found = _first(datasets.class_names, of_trainer.datasets(trainer))
            self._found = found or datasets.class_names_of_model(trainer.lightning_module)
            self._has_asked = True
        return self._found

    def _normalization(
        self, trainer: Trainer, images: Tensor, own: Normalization | None = None
    ) -> Normalization | None:
        """Return the user's normalization, else `own`, else the one that is found and explains the images."""
        known = self._settings.normalization or own
        if known is not None:
            return known
        if images.ndim > 3 and is_displayable(images, None):
            return None  # what normalizes them does so later, as within the forward
        sources = list(of_trainer.datasets(trainer))
        found = _first(datasets.normalization, sources)
        if found is not None or images.ndim == 3:
            return found
        owners = (trainer.lightning_module, *sources)
        within = {each for owner in owners for each in datasets.normalizations_within(owner)}
        fitting = [each for each in within if is_displayable(images, each)]
        return fitting[0] if len(fitting) == 1 else None

    def _if_it_fits(self, normalization: Normalization | None, probes: ProbeSet) -> Normalization | None:
        """Return the normalization if undoing it brings the images into [0, 1], else None."""
        if is_displayable(probes.images, normalization):
            return normalization
        needs_none, channels = is_displayable(probes.images, None), probes.images.shape[1]
        given = None if self._settings.normalization is None else len(self._settings.normalization[0])
        if given not in (None, 1, channels):
            why = f"The normalization {normalization} is for {given} channels, and the images have {channels}"
        elif needs_none:
            return None
        elif normalization:
            why = f"The normalization {normalization} does not bring the images into [0, 1] again"
        else:
            why = "It is not known how the images were normalized"
        self._warn_once(
            f"{why}. They are shown "
            f"{'as they are' if needs_none else 'scaled to their own minimum and maximum'}; "
            'give CAMMonitor(normalization=(mean, std)) or normalization="imagenet"'
        )
        return None


def _first(ask: Callable[[Any], T | None], sources: Iterable[Any]) -> T | None:
    """Return the first answer that is not None."""
    return next((answer for answer in map(ask, sources) if answer is not None), None)
