"""What the data gives away: simple properties of images that tell what is true of them, whatever the model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.concordance import PERMUTATIONS, Concordance, Permutations, concordance
from cam_callbacks.audit.image_properties import ASPECT, JPEG, measured

_LEVEL = 0.01  # of anything, all properties together
_TELLING = 0.75
_ALIKE = 0.05  # AUC
_ROUNDING = 1e-4  # of standard deviations
_MOST_IMAGES = 2048
_WITH_OBJECT = ("image", "box", "outer ring")


@dataclass(frozen=True)
class DataProperty:
    """A property of the images, and how well it tells a class, a label or a number. It says nothing of the model.

    Attributes:
        name: What it is: `"brightness"`, the mean over all channels; `"contrast"`, the standard deviation of their
            mean; `"saturation"`, the mean difference of the largest and the smallest of three channels;
            `"sharpness"`, the variance of the Laplacian over that of the image (Pech-Pacheco et al. 2000, doi
            10.1109/ICPR.2000.903548); `"edge density"`, the share of positions with an edge (as in Rosenholtz et al.
            2007, doi 10.1167/7.2.17), which is here a gradient of more than half of the contrast from one position to
            the next; `"JPEG quality"`, from 1 to 100, as it shows in the pixels (Fan and de Queiroz 2003, doi
            10.1109/TIP.2002.807361), 100 if nothing shows; `"size"`, `"horizontal position"`, `"vertical position"`
            and `"aspect ratio"` of the object, the last being the height over the width of the box around it.
        where: Where it is measured: in the `"background"`, or without masks in the `"outer ring"`, which the object may
            reach into; in the whole `"image"`; of a detection also within the `"box"`; of the `"object"`, if masks are
            given.
        label: Which of the classes, labels or numbers it tells most surely: a class from all others.
        auc: The area under the ROC curve of the images of that class, or with that label, against the others, at least
            0.5, whichever way round. Of a number the same in general (`concordance`): of two images, how often the one
            with the larger number has the larger value; pairs count by how many ranks their numbers are apart. That is
            (1 + |r|) / 2, r Spearman's rank correlation, where no two numbers are equal.
        chance: The mean of that number over permuted images.
        p_value: The share of permutations of the images in which anything is told as surely, by any property (Westfall
            & Young 1993): corrected for the number of properties, and of classes, labels or numbers.
        count: Images in which it is defined; of more than 2,048 images so many are looked at, evenly spaced.
        is_larger: Whether it is larger for that class, with that label, or for larger numbers; else it is smaller.
        follows_object: Whether it is one of the background that may only follow the place or the shape of the object,
            as where all backgrounds have a dark rim: such a property tells the same surely, and not much worse (the
            AUC is at least this one less 0.05).
    """

    name: str
    where: str
    label: int
    auc: float
    chance: float
    p_value: float
    count: int
    is_larger: bool = True
    follows_object: bool = False

    @property
    def gives_away(self) -> bool:
        """Whether it surely tells something well: an AUC of 0.75 or more, and a p-value of 0.01 or less."""
        return self.auc >= _TELLING and self.p_value <= _LEVEL

    @property
    def shows_object(self) -> bool:
        """Whether the look, the place or the shape of the object may be a part of it, which may tell the truth rightly.

        The sizes and positions of objects themselves are not such: they are named for what they are.
        """
        return self.name == ASPECT or (self.where in _WITH_OBJECT and self.name != JPEG) or self.follows_object


def data_properties(
    images: Tensor, labels: Tensor, masks: Tensor | None = None, are_given: bool = True, are_boxes: bool = False
) -> list[DataProperty]:
    """Return how well each property tells a class from the others, a label, or a number: what it tells most surely.

    First come those that the object has no part in (`DataProperty.shows_object`), the most telling first. At most 2,048
    images are looked at, evenly spaced.

    Args:
        images: (N, C, *spatial), normalized or not, on the CPU like all others.
        labels: What is true of the images: (N,) whole numbers, a class each; (N, labels) bool, which of several labels
            they have; (N, numbers) floating point, NaN where one is not known.
        masks: (N, *spatial) bool, True on the object; None without. Images whose mask is empty, or covers all, have no
            properties of object and background.
        are_given: Whether the masks are true, and not estimated, which would say nothing of objects.
        are_boxes: Whether they are boxes, of which the inside is a place to be measured, too.
    """
    if len(images) > _MOST_IMAGES:
        some = torch.linspace(0, len(images) - 1, _MOST_IMAGES, dtype=torch.float64).round().long()
        images, labels, masks = images[some], labels[some], None if masks is None else masks[some]
    orders = Permutations(len(images))
    found = {
        place: list(_told(values, labels, orders))
        for place, values in measured(images, masks, are_given, are_boxes).items()
    }
    by_chance = torch.zeros(PERMUTATIONS, dtype=torch.float64)
    for each in chain.from_iterable(found.values()):
        by_chance = torch.maximum(by_chance, each.found.by_chance)
    of_objects = list(chain.from_iterable(each for (_, where), each in found.items() if where == "object"))
    rows = [_row(place, told, by_chance, of_objects) for place, told in found.items() if told]
    return sorted(rows, key=lambda each: (each.shows_object, -each.auc))


@dataclass(frozen=True, eq=False)
class _Told:
    """What a property tells of some labels that are known of the same images: which, of how many images."""

    labels: list[int]
    count: int
    found: Concordance

    def surest(self) -> int:
        """Return the place of the label that is told most surely; of two classes, told as surely, the first."""
        sureness = self.found.sureness
        return int((sureness >= sureness.max() - _ROUNDING).nonzero()[0])

    def of(self, label: int, by_chance: Tensor) -> tuple[float, float]:
        """Return the area, of at least 0.5, and the p-value of a label; nothing of one that is not known."""
        if label not in self.labels:
            return 0.5, 1.0
        place = self.labels.index(label)
        return 0.5 + abs(float(self.found.areas[place]) - 0.5), _p_value(float(self.found.sureness[place]), by_chance)


def _row(place: tuple[str, str], told: list[_Told], by_chance: Tensor, of_objects: list[_Told]) -> DataProperty:
    """Return what a property tells most surely."""
    best = max(told, key=lambda each: float(each.found.sureness.max()))
    column = best.surest()
    label = best.labels[column]
    auc, p_value = best.of(label, by_chance)
    objects = [each.of(label, by_chance) for each in of_objects] if place[1] == "background" else []
    return DataProperty(
        *place,
        label,
        auc,
        chance=0.5 + float(best.found.chance[column]),
        p_value=p_value,
        count=best.count,
        is_larger=float(best.found.areas[column]) >= 0.5,
        follows_object=any(p <= _LEVEL and area >= auc - _ALIKE for area, p in objects),
    )


def _p_value(sureness: float, by_chance: Tensor) -> float:
    """Return the share of permutations in which the surest of all is as sure."""
    return (1 + int((by_chance >= sureness - _ROUNDING).sum())) / (1 + PERMUTATIONS)


def _told(values: Tensor, labels: Tensor, orders: Permutations) -> Iterator[_Told]:
    """Yield what values (N,) tell, of images that have them."""
    has_value = torch.isfinite(values)
    for indices, known, truths in _truths(labels, has_value):
        yield _Told(indices, int(known.sum()), concordance(values[known], truths, orders.of(known)))


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
