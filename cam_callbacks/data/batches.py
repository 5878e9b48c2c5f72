"""Read a batch: find its images, labels and masks, and bring them to one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cam_callbacks.data.containers import find_parts
from cam_callbacks.data.detections import SNIPPET, are_detections, largest_objects
from cam_callbacks.data.labels import LabelKind, read_labels
from cam_callbacks.data.masks import are_meant_as_masks, masks_of_boxes, object_masks
from cam_callbacks.data.missing_labels import note_on_missing_labels
from cam_callbacks.data.plain import as_numbers, describe, plain

BatchFn = Callable[[Any], Any]
"""Called as `batch_fn(batch)`; returns `(images, labels)`, `(images, labels, masks)`, or `images`."""

REMEDY = "Give batch_fn, a callable that takes the batch and returns (images, labels) or (images, labels, masks)"


@dataclass(frozen=True, eq=False)
class Samples:
    """Images with what is known about each, as plain tensors.

    Attributes:
        images: (N, C, *spatial), of the type that the model is fed: floating point, or whole numbers.
        labels: (N,) int64 class indices, negative for images that are to be passed over; None if the images do not
            have one class each.
        masks: (N, *spatial) bool, True on the object, or None.
        groups: (N,) int64, a group for each image, or None.
        note: A message for the user if images or masks are not as expected, or None.
        label_kind: What the labels say of an image: `"class"`, its one class; `"multi-label"`, its classes; `"soft"`,
            a probability of each class; `"dense"`, the class of each pixel; `"value"`, numbers. None if there are no
            labels, or if it is not known.
        annotations: The labels as they came, where a class for each image does not say it all. `"multi-label"`:
            (N, classes) float32 in {0, 1}, NaN where it is not known. `"soft"`: (N, classes) float32, each row sums to
            1. `"dense"`: (N, *spatial) int64, -100 where a pixel is not to be counted. `"value"`: (N, outputs) float32.
            `"class"`: one-hot rows (N, classes) float32 if they came so. None otherwise.
        label_note: A message for the user, if labels came that are not understood; or None.
        has_views: Whether the batch holds several views of each image, of which these are the first.
        missing_labels: A message for the user, if no labels were found, but parts under names that are not known.
    """

    images: Tensor
    labels: Tensor | None
    masks: Tensor | None
    groups: Tensor | None = None
    note: str | None = None
    label_kind: LabelKind | None = None
    annotations: Tensor | None = None
    label_note: str | None = None
    has_views: bool = False
    missing_labels: str | None = None

    def row(self, index: int) -> Samples:
        """Copy one sample to the CPU; of the notes, none."""
        parts = (self.images, self.labels, self.masks, self.groups, self.annotations)
        copies = [None if part is None else part[index : index + 1].detach().cpu().clone() for part in parts]
        images, labels, masks, groups, annotations = copies
        assert images is not None
        return Samples(images, labels, masks, groups, label_kind=self.label_kind, annotations=annotations)


def read_batch(
    batch: Any,
    batch_fn: BatchFn | None = None,
    foreground_values: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    is_detection: bool = False,
) -> Samples:
    """Find images, labels and masks in a batch.

    A batch may be images alone, a tuple such as `(images, labels)`, `(images, labels, masks)` or `(index, images,
    labels)`, or a mapping, dataclass or named tuple with the usual names, also one within another. What has names may
    also hold groups (N,), and in place of masks boxes (N, 4). The images are the tensor of most dimensions.

    Labels may be class indices (N,) or (N, 1), one-hot rows, 0/1 rows of several labels, rows of probabilities, a class
    for each pixel, names of classes, or numbers to be regressed. What could be read in two ways is not used: a note
    says so.

    Args:
        batch: The batch, as the loader returns it.
        batch_fn: Called with the batch; what it returns is read instead.
        foreground_values: The values of a mask that mean "object", e.g. of a trimap. None: masks have two values, and
            the larger one is the object; beside 0 and 1, 255 and negative values are not.
        class_names: The names of the classes, for labels that are names.
        is_detection: Whether batches in the form of torchvision's detectors are read, too: a list of images, and one of
            mappings with `boxes` (M, 4) and `labels` (M,). Of each image the object with the largest box is meant;
            images without a box have the label -100.

    Raises:
        TypeError: No images are found, or it is not clear which part they are.
        ValueError: `batch_fn` fails.
    """
    if batch_fn is not None:
        try:
            batch = batch_fn(batch)
        except Exception as error:
            raise ValueError(f"batch_fn fails on {describe(batch)}: {type(error).__name__}: {error}") from error
    if is_detection and are_detections(batch):
        try:
            batch = largest_objects(batch)
        except ValueError as error:
            raise _not_understood(batch, is_detection, str(error)) from error
    parts = find_parts(batch)
    images = parts.images
    if images is None or images.is_complex() or images.is_quantized:
        raise _not_understood(batch, is_detection)
    labels = read_labels(parts.labels, images.shape, class_names)
    if parts.masks is None and parts.boxes is not None:
        masks, note = masks_of_boxes(parts.boxes, images)
    else:
        masks, note = object_masks(parts.masks, images, foreground_values)
        if masks is None and note is None and are_meant_as_masks(parts.masks, images, parts.is_named):
            note = (
                "the masks of the batch are not used: give one for each image, of its size, (N, H, W), with two values "
                "(such as `masks > 0.5`), or give foreground_values, the values that mean object"
            )
    if parts.labels is None and isinstance(parts.masks, Tensor):
        # A segmentation has its labels in its masks.
        of_pixels = read_labels(parts.masks, images.shape, class_names)
        if of_pixels.kind == "dense":
            labels, note = of_pixels, None
    notes = [each for each in (parts.note, note) if each is not None]
    return Samples(
        images,
        labels.classes,
        masks,
        _groups(parts.groups, images),
        "; ".join(notes) or None,
        labels.kind,
        labels.annotations,
        labels.note,
        parts.has_views,
        note_on_missing_labels(batch, images) if labels.kind is None and labels.note is None else None,
    )


def _not_understood(batch: Any, is_detection: bool, why: str | None = None) -> TypeError:
    """Return the error of a batch that is not understood, with what would help."""
    said = f"the batch is not understood: {describe(batch)}{f'; {why}' if why else ''}. {REMEDY}"
    if is_detection:
        said += f"; of a detection with boxes, such as batch_fn={SNIPPET}"
    elif are_detections(batch):
        said += ". If the model is a detector, Audit(task='detection') reads batches of this form"
    return TypeError(said)


def _groups(given: Any, images: Tensor) -> Tensor | None:
    groups = as_numbers(given)
    if groups is not None and groups.shape == (len(images),) and not groups.is_floating_point():
        return plain(groups).long()
    return None
