"""Find images, labels, masks, boxes and groups in whatever holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.data.plain import as_numbers, describe, plain

IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x", "input", "inputs", "data", "video", "videos",
               "jpg", "jpeg", "png", "webp")  # fmt: skip
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes", "cls")
_MASK_KEYS = ("mask", "masks", "segmentation")
_BOX_KEYS = ("box", "boxes", "bbox", "bboxes")
_GROUP_KEYS = ("group", "groups")
KNOWN_KEYS = (*IMAGE_KEYS, *LABEL_KEYS, *_MASK_KEYS, *_BOX_KEYS, *_GROUP_KEYS)
_MAX_DEPTH = 3  # of containers in containers
_MIN_NUMBERS_IN_ORDER = 3  # that show that they count the images


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a batch, as they were found; None for those that are missing.

    Attributes:
        images: (N, C, *spatial), a plain tensor.
        labels: Labels of any form.
        masks: Masks of any form.
        boxes: Boxes of any form.
        groups: Groups of any form.
        is_named: Whether labels, masks and so on stood under their names.
        note: A message for the user, if there was a choice.
        has_views: Whether there were several views of the images.
    """

    images: Tensor | None = None
    labels: Any = None
    masks: Any = None
    boxes: Any = None
    groups: Any = None
    is_named: bool = False
    note: str | None = None
    has_views: bool = False


def find_parts(batch: Any, depth: int = _MAX_DEPTH) -> Parts:
    """Find the parts of a batch; without images if it is not understood."""
    if isinstance(batch, Tensor):
        return Parts(plain(batch) if batch.ndim >= 3 else None)
    if depth == 0:
        return Parts()
    named = as_mapping(batch)
    if named is not None:
        found = _in_mapping(named, depth)
        is_positional = isinstance(batch, tuple) and (found.images is None or found.labels is None)
        return _in_sequence(list(batch), depth) if is_positional else found
    if isinstance(batch, (list, tuple)) and batch:
        return _in_sequence(list(batch), depth)
    return Parts()


def as_mapping(batch: Any) -> Mapping[str, Any] | None:
    """Return what has names as a mapping: mappings, dataclasses and named tuples; None for anything else."""
    if isinstance(batch, Mapping):
        return batch
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name, None) for field in fields(batch)}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if isinstance(batch, (list, tuple)) or not (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        return None
    return {key: batch[key] for key in batch.keys()}  # noqa: SIM118 - such as a TensorDict, which iterates otherwise


def _in_mapping(batch: Mapping[Any, Any], depth: int) -> Parts:
    values = {key: value for key, value in batch.items() if value is not None}
    labels, masks, boxes, groups = (_value(values, keys) for keys in (LABEL_KEYS, _MASK_KEYS, _BOX_KEYS, _GROUP_KEYS))
    found = _images_in(values, labels, depth)
    if found.images is None or (found.labels is not None and labels is None):
        return found
    about = labels if isinstance(labels, Mapping) else {}  # {"image": ..., "target": {"label": ..., "boxes": ...}}
    return Parts(
        found.images,
        _either(_label_in(labels), found.labels),
        _either(_either(masks, _value(about, _MASK_KEYS)), found.masks),
        _either(_either(boxes, _value(about, _BOX_KEYS)), found.boxes),
        _either(groups, found.groups),
        is_named=True,
        note=found.note,
        has_views=found.has_views,
    )


def _images_in(values: Mapping[Any, Any], labels: Any, depth: int) -> Parts:
    """Find images under their usual names, else in what the mapping holds."""
    for key in IMAGE_KEYS:
        value = values.get(key)
        if isinstance(value, (list, tuple)) and as_mapping(value) is None:
            found = _views([value, labels])[1]
        else:
            found = find_parts(value, depth - 1)
        if found.images is not None:
            return found
    nested = [find_parts(value, depth - 1) for value in values.values() if not isinstance(value, Tensor)]
    batches = [parts for parts in nested if _is_batch(parts)]  # one of each loader
    if batches:
        return _first_of_several(batches)
    with_images = [parts for parts in nested if parts.images is not None and parts.is_named]
    return with_images[0] if len(with_images) == 1 else Parts()


def _either(value: Any, other: Any) -> Any:
    return other if value is None else value


def _value(mapping: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key) is not None), None)


def _label_in(labels: Any) -> Any:
    """Return the labels in a mapping of targets; the mapping itself if it has none under the usual keys."""
    inner = _value(labels, LABEL_KEYS) if isinstance(labels, Mapping) else labels
    return labels if inner is None else inner


def _is_batch(parts: Parts) -> bool:
    """Check whether what was found is a batch of its own: images, with labels for each of them."""
    if parts.images is None or parts.labels is None:
        return False
    labels = as_numbers(parts.labels)
    has_entries = labels is not None and labels.ndim > 0 and len(labels) == len(parts.images)
    return has_entries or (isinstance(parts.labels, (list, tuple)) and len(parts.labels) == len(parts.images))


def _first_of_several(batches: Sequence[Parts]) -> Parts:
    if len(batches) == 1:
        return batches[0]
    note = f"the batch holds {len(batches)} batches; the first is read. Give batch_fn to choose another"
    return replace(batches[0], note=note)


def _in_sequence(items: list[Any], depth: int) -> Parts:
    if len(items) == 1:
        return find_parts(items[0], depth - 1)
    inner = [Parts() if isinstance(item, Tensor) else find_parts(item, depth - 1) for item in items]
    if all(map(_is_batch, inner)):
        return _first_of_several(inner)
    place, found = _images_among(items, inner)
    if found.images is None:
        return found
    before, after = items[:place], items[place + 1 :]
    labels, others = _labels_among(before, after, found.images)
    note = found.note
    if others:
        parts = ", ".join(describe(each) for each in others)
        note = (
            f"what follows the images may be their labels, {describe(labels)}, or {parts}; the first is read. Give "
            "batch_fn to choose another"
        )
    if found.labels is not None:  # of a batch in the batch, ((images, labels), ...)
        if labels is None or counts_up(labels):
            return found
        if _is_one_number_each(found.labels):
            return Parts()
    about = labels if isinstance(labels, Mapping) else {}
    rest = after[_place(after, labels) + 1 :]
    third = next((item for item in rest if _looks_like_masks(item, found.images)), rest[0] if rest else None)
    named_masks = _value(about, _MASK_KEYS)
    return Parts(
        found.images,
        _label_in(labels),
        _either(named_masks, third),
        _value(about, _BOX_KEYS),
        _value(about, _GROUP_KEYS),
        is_named=named_masks is not None,
        note=note,
        has_views=found.has_views,
    )


def _images_among(items: list[Any], inner: list[Parts]) -> tuple[int, Parts]:
    """Find the images among items: as a tensor, as views, or in the one item that holds some; and the place of that."""
    place = _place_of_images(items)
    if place is not None:
        images = plain(items[place])
        others = [plain(item) for item in items[place + 1 :] if isinstance(item, Tensor)]
        has_views = any(each.shape == images.shape and each.dtype == images.dtype for each in others)
        return place, Parts(images, has_views=has_views and images.is_floating_point())
    place, found = _views(items)
    if found.images is not None:
        return place, found
    places = [place for place, parts in enumerate(inner) if parts.images is not None]
    is_known = len(places) == 1 and (inner[places[0]].is_named or inner[places[0]].labels is not None)
    return (places[0], inner[places[0]]) if is_known else (0, Parts())


def _place(items: list[Any], wanted: Any) -> int:
    return next((place for place, item in enumerate(items) if item is wanted), -1)


def _place_of_images(items: list[Any]) -> int | None:
    """Return which item is the images: the tensor of most dimensions, at least (N, C, T); of several the first.

    None if there is no such tensor, or if it is not clear. The first may be a mask, if it is of whole numbers and
    another is not. Tensors of three dimensions and nothing else may be one image each.
    """
    dimensions = [plain(item).ndim if isinstance(item, Tensor) else 0 for item in items]
    most = max(dimensions)
    if most < 3:
        return None
    places = [place for place, count in enumerate(dimensions) if count == most]
    are_floats = [plain(items[place]).is_floating_point() for place in places]
    may_be_a_mask = not are_floats[0] and any(are_floats)
    may_be_one_each = most == 3 and len(places) == len(items)
    return None if may_be_a_mask or may_be_one_each else places[0]


def _views(items: list[Any]) -> tuple[int, Parts]:
    """Find the first of several views of the images, `[x1, x2]`, and which item the views are.

    A list of tensors is a list of views only if labels show that it is not one tensor for each image, as in detection.
    """
    places = [place for place, item in enumerate(items) if _are_tensors_of_one_shape(item)]
    if len(places) != 1:
        return 0, Parts()
    views = [plain(view) for view in items[places[0]]]
    rest = [item for place, item in enumerate(items) if place != places[0]]
    is_one_for_each = any(has_entries(item, len(views)) for item in rest)
    if is_one_for_each or not any(has_entries(item, len(views[0])) for item in rest):
        return 0, Parts()
    note = f"the batch holds {len(views)} views of its images; the first is read. Give batch_fn to choose another"
    return places[0], Parts(views[0], note=note if len(views) > 1 else None, has_views=len(views) > 1)


def _are_tensors_of_one_shape(item: Any) -> bool:
    if not isinstance(item, (list, tuple)) or not item or not all(isinstance(part, Tensor) for part in item):
        return False
    shapes = {plain(part).shape for part in item}
    return len(shapes) == 1 and len(next(iter(shapes))) >= 3


def _labels_among(before: list[Any], after: list[Any], images: Tensor) -> tuple[Any, list[Any]]:
    """Return the labels among what stands before and after the images, and what else they may be.

    That is what comes next after them and has an entry for each, numbers rather than text. What counts the images, as
    an index does, is passed over where there is something else than masks. Labels before the images are taken if
    nothing follows.
    """
    count = len(images)
    following = [item for item in after if item is not None]
    with_entries = [item for item in following if has_entries(item, count)]
    others = [item for item in with_entries if not counts_up(item)]
    as_labels = with_entries if all(_looks_like_masks(item, images) for item in others) else others
    numbers = [item for item in as_labels if as_numbers(item) is not None]
    first = next(iter(following), None)
    if isinstance(first, Mapping):
        return first, []
    if numbers or as_labels:
        labels = (numbers or as_labels)[0]
        return labels, [item for item in numbers if item is not labels and _is_one_whole_number_each(item)]
    if first is not None:
        return first, []
    preceding = [item for item in before if has_entries(item, count) and not counts_up(item)]
    return (preceding[0] if len(preceding) == 1 else None), []


def has_entries(item: Any, count: int) -> bool:
    """Check whether something holds an entry for each of so many images."""
    if isinstance(item, Mapping):
        return any(has_entries(value, count) for key, value in item.items() if key in LABEL_KEYS)
    numbers = as_numbers(item)
    if numbers is None:
        return isinstance(item, (list, tuple)) and len(item) == count
    return numbers.ndim > 0 and len(numbers) == count


def counts_up(item: Any) -> bool:
    """Check whether numbers count up by one, as the indices of the images of a batch do."""
    numbers = as_numbers(item)
    if numbers is None or numbers.ndim != 1 or len(numbers) < _MIN_NUMBERS_IN_ORDER or numbers.is_floating_point():
        return False
    return bool((numbers.long().diff() == 1).all())


def _is_one_number_each(labels: Any) -> bool:
    numbers = as_numbers(labels)
    return numbers is not None and numbers.ndim == 1


def _is_one_whole_number_each(item: Any) -> bool:
    """Check whether there is one whole number for each image, as classes are."""
    numbers = as_numbers(item)
    if numbers is None or numbers.ndim == 0 or numbers[0].numel() != 1:
        return False
    return not numbers.is_floating_point() or bool((numbers == numbers.round()).all())


def _looks_like_masks(item: Any, images: Tensor) -> bool:
    if not isinstance(item, Tensor):
        return False
    shape = plain(item).shape
    is_flat = len(shape) == images.ndim - 1 or (len(shape) == images.ndim and shape[1] == 1)
    return is_flat and shape[:1] == images.shape[:1] and torch.Size(shape[-(images.ndim - 2) :]) == images.shape[2:]
