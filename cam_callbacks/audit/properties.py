"""What the data gives away: simple properties of images that tell the classes apart, whatever the model does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cam_callbacks.audit.inpainting import grown
from cam_callbacks.audit.interventions import mean_color, ring
from cam_callbacks.explain.portions import in_portions

_PERMUTATIONS = 1999
_SEED = 0
_FEW_IMAGES, _VALUES = 256, 2**20  # whose permutations are kept; of permutations, at once
_LEAST = 0.01  # of the positions of an image, to be measured there
_TINY = 1e-12
_BLOCK = 8  # of JPEG
_MIN_BLOCKS = 3  # along a side
_LEVEL = 0.01  # of any property, all of them together
_TELLING = 0.75


@dataclass(frozen=True)
class DataProperty:
    """A property of the images, and how well it tells one class from the others. It says nothing of the model.

    Attributes:
        name: What it is: `"brightness"`, the mean over all channels; `"contrast"`, the standard deviation of their
            mean; `"saturation"`, the mean difference of the largest and the smallest of three channels;
            `"sharpness"`, the variance of the Laplacian over that of the image (Pech-Pacheco et al. 2000, doi
            10.1109/ICPR.2000.903548); `"blocks of 8 pixels"`, how much larger steps are between them, as JPEG makes
            them, than within (Wang et al. 2000, doi 10.1109/ICIP.2000.899622); `"size"`, `"horizontal position"` and
            `"vertical position"` of the object.
        where: Where it is measured: in the `"background"`, or without masks in the `"outer ring"`, where the object has
            no say; of the `"object"`, if masks are given; blocks of 8 pixels in the whole `"image"`.
        label: The class that it tells most surely from all others.
        auc: The area under the ROC curve of that class against the others, at least 0.5, whichever way round.
        chance: The mean of that number over permuted labels.
        p_value: The share of permutations of the labels in which any class is told apart as surely; of all properties
            together, by Holm's procedure (1979).
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
        """Whether it surely tells the class apart well: an AUC of 0.75 or more, and a p-value of 0.01 or less."""
        return self.auc >= _TELLING and self.p_value <= _LEVEL


def data_properties(
    images: Tensor, labels: Tensor, masks: Tensor | None = None, are_given: bool = True
) -> list[DataProperty]:
    """Return how well each property tells a class from the others, the best first.

    The area under the ROC curve of a class is that of the rank of the property (Mann & Whitney 1947), which fits
    nothing but its direction. Of all classes that counts which is the furthest from chance for its size, here and in
    the permutations.

    Args:
        images: (N, C, *spatial), normalized or not, on the CPU like all others.
        labels: (N,) int64, of two classes or more.
        masks: (N, *spatial) bool, True on the object; None without. Images whose mask is empty, or covers all, have no
            properties of object and background.
        are_given: Whether the masks are true, and not estimated, which would say nothing of objects.
    """
    found = []
    for (name, where), values in _measured(images, masks, are_given).items():
        known = torch.isfinite(values)
        if len(set(labels[known].tolist())) > 1:
            found.append(_told_apart(name, where, values[known], labels[known]))
    found.sort(key=lambda each: each.p_value)
    adjusted, largest = [], 0.0
    for place, each in enumerate(found):  # Holm's procedure
        largest = max(largest, min(1.0, (len(found) - place) * each.p_value))
        adjusted.append(DataProperty(**{**vars(each), "p_value": largest}))
    return sorted(adjusted, key=lambda each: -each.auc)


def _told_apart(name: str, where: str, values: Tensor, labels: Tensor) -> DataProperty:
    """Return how well values (n,) tell a class from the others; the p-value is that of this property alone."""
    classes, place = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    members = torch.nn.functional.one_hot(place).double()  # (n, classes)
    ranks, sizes = _ranks(values), members.sum(dim=0)
    others = len(values) - sizes
    by_chance = ((len(values) + 1) / (12 * sizes * others)).sqrt()  # the standard deviation of the area
    true = _areas(ranks.unsqueeze(0), members)[0]
    surest = ((true - 0.5).abs() / by_chance).max(dim=0)
    found = torch.cat([_areas(ranks[orders], members) for orders in _orders(len(values))]) - 0.5
    beyond = (found.abs() / by_chance).amax(dim=1)
    return DataProperty(
        name,
        where,
        int(classes[surest.indices]),
        0.5 + float((true[surest.indices] - 0.5).abs()),
        0.5 + float(found[:, surest.indices].abs().mean()),
        (1 + int((beyond >= surest.values - _TINY).sum())) / (1 + _PERMUTATIONS),
        len(values),
    )


def _areas(ranks: Tensor, members: Tensor) -> Tensor:
    """Return the area under the ROC curve of each class against the others, (m, classes), by ranks (m, n)."""
    sizes = members.sum(dim=0)
    areas: Tensor = (ranks @ members - sizes * (sizes + 1) / 2) / (sizes * (ranks.shape[1] - sizes))
    return areas


def _orders(count: int) -> Iterator[Tensor]:
    """Yield random orders, always the same, (a part of the permutations, `count`)."""
    if count <= _FEW_IMAGES:
        yield _orders_of_few(count)
        return
    draw, step = torch.Generator().manual_seed(_SEED), max(1, _VALUES // count)
    for start in range(0, _PERMUTATIONS, step):
        yield torch.rand(min(step, _PERMUTATIONS - start), count, generator=draw).argsort(dim=1)


@lru_cache(maxsize=1)
def _orders_of_few(count: int) -> Tensor:
    return torch.rand(_PERMUTATIONS, count, generator=torch.Generator().manual_seed(_SEED)).argsort(dim=1)


def _ranks(values: Tensor) -> Tensor:
    """Return the ranks (n,) from 1, of equal values their mean; values that differ by rounding are equal."""
    rounded = (values.double() / values.abs().max().clamp_min(_TINY) * 1e6).round()
    _, place, counts = rounded.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    last = counts.cumsum(0)
    found: Tensor = (last - (counts - 1) / 2)[place].double()
    return found


def _measured(images: Tensor, masks: Tensor | None, are_given: bool) -> dict[tuple[str, str], Tensor]:
    """Return each property by name and place, (N,); NaN where it is not defined."""
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for rows in in_portions(torch.arange(len(images)), images):
        shown = images[rows].float()
        if masks is None:
            where, region = "outer ring", ring(shown.shape[2:]).expand(len(shown), *shown.shape[2:])
        else:
            where, region = "background", ~grown(masks[rows])
        if masks is not None and are_given:
            for name, values in _of_objects(masks[rows]):
                parts.setdefault((name, "object"), []).append(values)
        for name, values in _of_region(shown, region):
            parts.setdefault((name, where), []).append(values)
        blocks = _blocks(shown)
        if blocks is not None:
            parts.setdefault(("blocks of 8 pixels", "image"), []).append(blocks)
    measured = {place: torch.cat(values) for place, values in parts.items()}
    if masks is not None:
        share = masks.flatten(1).float().mean(dim=1)
        is_whole = (share == 0) | (share == 1)
        for (name, where), values in measured.items():
            if where != "image":
                measured[name, where] = values.masked_fill(is_whole, torch.nan)
    return measured


def _of_region(images: Tensor, region: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the properties of images (n, C, *spatial) within regions (n, *spatial)."""
    gray = images.mean(dim=1, keepdim=True)
    mean, variance = _moments(gray, region)
    yield "brightness", mean
    yield "contrast", variance.sqrt()
    if images.shape[1] == 3:
        yield "saturation", _moments(images.amax(dim=1, keepdim=True) - images.amin(dim=1, keepdim=True), region)[0]
    steps, inside = _laplacian(gray, region)
    if steps.numel():
        rough = _moments(steps, inside)[1]
        yield "sharpness", torch.where(variance > _TINY, rough / variance.clamp_min(_TINY), torch.nan)


def _moments(values: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (n,) of values (n, 1, *spatial) in regions (n, *spatial); NaN where these are tiny."""
    is_tiny = region.flatten(1).float().mean(dim=1) < _LEAST
    mean = mean_color(values, region)
    variance = mean_color((values - mean.view(-1, *[1] * (values.ndim - 1))).square(), region)
    return mean.squeeze(1).masked_fill(is_tiny, torch.nan), variance.squeeze(1).masked_fill(is_tiny, torch.nan)


def _laplacian(gray: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of second differences along the axes of three positions or more, and where all are in a region."""
    axes = [axis for axis, side in enumerate(gray.shape[2:]) if side > 2]
    center = (slice(None), *[slice(1, -1) if axis in axes else slice(None) for axis in range(region.ndim - 1)])
    inside = region[center].clone()
    total = torch.zeros_like(gray[:, 0][center])
    for axis in axes:
        for shift in (slice(None, -2), slice(2, None)):
            near = list(center)
            near[1 + axis] = shift
            total += gray[:, 0][tuple(near)] - gray[:, 0][center]
            inside &= region[tuple(near)]
    return total.unsqueeze(1), inside


def _of_objects(masks: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the properties of objects, by masks (n, *spatial)."""
    yield "size", masks.flatten(1).float().mean(dim=1)
    if masks.ndim != 3:
        return
    rows, columns = (masks.float().sum(dim=dim) for dim in (2, 1))
    for name, weights in (("vertical position", rows), ("horizontal position", columns)):
        places = torch.arange(weights.shape[1], dtype=torch.float32)
        yield name, (weights * places).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def _blocks(images: Tensor) -> Tensor | None:
    """Return (n,) the mean step between blocks of 8 pixels over that within them; None for small or other images."""
    if images.ndim != 4 or min(images.shape[2:]) < _MIN_BLOCKS * _BLOCK:
        return None
    gray = images.mean(dim=1)
    between, within = [], []
    for dim in (1, 2):
        steps = gray.diff(dim=dim).abs().mean(dim=3 - dim)  # (n, side - 1)
        is_edge = torch.arange(steps.shape[1]) % _BLOCK == _BLOCK - 1
        between.append(steps[:, is_edge].mean(dim=1))
        within.append(steps[:, ~is_edge].mean(dim=1))
    total = sum(within)
    assert isinstance(total, Tensor)
    return torch.where(total > _TINY, sum(between) / total.clamp_min(_TINY), torch.nan)
