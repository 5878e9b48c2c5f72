"""What the data gives away: simple properties of images that tell what is true of them, whatever the model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.concordance import PERMUTATIONS, Concordance, concordance
from cam_callbacks.audit.image_properties import ASPECT, BLOCKS, measured

_LEVEL = 0.01  # of anything, all properties together
_TELLING = 0.75
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DataProperty:
    """A property of the images, and how well it tells a class, a label or a number. It says nothing of the model.

    Attributes:
        name: What it is: `"brightness"`, the mean over all channels; `"contrast"`, the standard deviation of their
            mean; `"saturation"`, the mean difference of the largest and the smallest of three channels;
            `"sharpness"`, the variance of the Laplacian over that of the image (Pech-Pacheco et al. 2000, doi
            10.1109/ICPR.2000.903548); `"edge density"`, the share of positions with an edge (as in Rosenholtz et al.
            2007, doi 10.1167/7.2.17), which is here a gradient of more than half of the contrast from one position to
            the next; `"blocks of 8 pixels"`, how much larger steps are between them, as JPEG makes them, than within
            (Wang et al. 2000, doi 10.1109/ICIP.2000.899622); `"size"`, `"horizontal position"`, `"vertical position"`
            and `"aspect ratio"` of the object, the last being the height over the width of the box around it.
        where: Where it is measured: in the `"background"`, or without masks in the `"outer ring"`, where the object has
            no say; in the whole `"image"`; of a detection also within the `"box"`; of the `"object"`, if masks are
            given.
        label: What it tells: of classes the one that it tells most surely from all others; else which label, or which
            of the numbers.
        auc: The area under the ROC curve of the images of that class, or with that label, against the others, at least
            0.5, whichever way round. Of a number the same in general (`concordance`): of two images, how often the one
            with the larger number has the larger value; pairs count by how many ranks their numbers are apart. That is
            (1 + |r|) / 2, r Spearman's rank correlation, where no two numbers are equal.
        chance: The mean of that number over permuted images.
        p_value: The share of permutations of the images in which anything is told as surely, by any property (Westfall
            & Young 1993): corrected for the number of properties, and of classes, labels or numbers.
        count: Images in which it is defined.
    """

    name: str
    where: str
    label: int
    auc: float
    chance: float
    p_value: float
    count: int

    @property
    def gives_away(self) -> bool:
        """Whether it surely tells something well: an AUC of 0.75 or more, and a p-value of 0.01 or less."""
        return self.auc >= _TELLING and self.p_value <= _LEVEL

    @property
    def shows_object(self) -> bool:
        """Whether the look or the shape of the object is a part of it, so that it may tell the truth rightly."""
        return self.name == ASPECT or (self.where in ("image", "box") and self.name != BLOCKS)


def data_properties(
    images: Tensor, labels: Tensor, masks: Tensor | None = None, are_given: bool = True, are_boxes: bool = False
) -> list[DataProperty]:
    """Return how well each property tells a class from the others, or each label, or each number.

    Of classes there is one row for each property, of labels and numbers one for each of these, too. First come those
    that the object has no part in (`DataProperty.shows_object`), the most telling first.

    Args:
        images: (N, C, *spatial), normalized or not, on the CPU like all others.
        labels: What is true of the images: (N,) whole numbers, a class each; (N, labels) bool, which of several labels
            they have; (N, numbers) floating point, NaN where one is not known.
        masks: (N, *spatial) bool, True on the object; None without. Images whose mask is empty, or covers all, have no
            properties of object and background.
        are_given: Whether the masks are true, and not estimated, which would say nothing of objects.
        are_boxes: Whether they are boxes, of which the inside is a place to be measured, too.
    """
    found, by_chance = [], torch.zeros(PERMUTATIONS, dtype=torch.float64)
    for place, values in measured(images, masks, are_given, are_boxes).items():
        for rows, told in _told(place, values, labels):
            found += rows
            by_chance = torch.maximum(by_chance, told.by_chance)
    corrected = [replace(row, p_value=_p_value(sureness, by_chance)) for row, sureness in found]
    return sorted(corrected, key=lambda each: (each.shows_object, -each.auc))


def _p_value(sureness: float, by_chance: Tensor) -> float:
    """Return the share of permutations in which the surest of all is as sure."""
    return (1 + int((by_chance >= sureness - _ROUNDING).sum())) / (1 + PERMUTATIONS)


_Rows = list[tuple[DataProperty, float]]
"""Properties that lack their p-value, and how surely they tell."""


def _told(place: tuple[str, str], values: Tensor, labels: Tensor) -> Iterator[tuple[_Rows, Concordance]]:
    """Yield what values (N,) tell, of images that have them."""
    has_value = torch.isfinite(values)
    for indices, known, truths in _truths(labels, has_value):
        told = concordance(values[known], truths)
        columns = list(range(len(indices)))
        if labels.ndim == 1:  # of two classes, which are told as surely, always the first
            columns = [int((told.sureness >= told.sureness.max() - _ROUNDING).nonzero()[0])]
        yield [_row(place, indices[column], told, column, int(known.sum())) for column in columns], told


def _truths(labels: Tensor, has_value: Tensor) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield T truths that are known of the same n images: which they are, of which images (N,), and (n, T) themselves.

    Those that are the same for all of the images are left out.
    """
    if labels.ndim == 1:
        classes, place = labels[has_value].unique(return_inverse=True)  # type: ignore[no-untyped-call]
        if len(classes) > 1:
            yield classes.tolist(), has_value, F.one_hot(place)
        return
    are_known = torch.isfinite(labels) & has_value.unsqueeze(1)
    for known in are_known.unique(dim=1).unbind(dim=1):  # type: ignore[no-untyped-call]
        truths = labels[known]
        are_told = (are_known == known.unsqueeze(1)).all(dim=0) & (truths != truths[:1]).any(dim=0)
        if are_told.any():
            yield are_told.nonzero().flatten().tolist(), known, truths[:, are_told]


def _row(place: tuple[str, str], label: int, told: Concordance, column: int, count: int) -> tuple[DataProperty, float]:
    """Return a property without its p-value, and how surely it tells."""
    area, chance = 0.5 + float((told.areas[column] - 0.5).abs()), 0.5 + float(told.chance[column])
    return DataProperty(*place, label, area, chance, torch.nan, count), float(told.sureness[column])
