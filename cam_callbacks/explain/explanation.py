"""Explanation: the heatmaps of a batch of images, and what they are computed from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_ROUNDING = 1e-6
_MIN_SIDE = 4  # positions along an axis, of a map that is not called coarse
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

_T = TypeVar("_T", bound="Channels | Explanation")

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Upsampling = Literal["bilinear", "bicubic", "nearest", "none"]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of largest weight, C of them for each explained target, heaviest first.

    Attributes:
        index: (N, C) or (N, T, C) int64, their indices in the layer.
        weight: (N, C) or (N, T, C) float32, their weights in the heatmap.
        activations: (N, C, *spatial of the layer) or (N, T, C, *spatial of the layer) float32.
    """

    index: Tensor
    weight: Tensor
    activations: Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Heatmaps for N images: one each or, if T targets were given for each image, (N, T, ...) of them.

    In the shapes below, *leading* stands for (N,) or (N, T).

    Attributes:
        layer_maps: (*leading, *spatial of the layer) float32, >= 0, the maps before upsampling and scaling, in units of
            the activations, so that their magnitudes can be compared between explanations. NaN where skipped. For
            several layers, the mean of their maps, each scaled to [0, 1], at the resolution of the finest layer.
        size: The spatial size of the images.
        upsampling: How `heatmaps` are brought to that size, as in `Method`.
        targets: (*leading) int64, the class that was explained, also that of a segmentation; None if another callable
            was.
        score_kind: Which score was explained: `"logit"`, `"probability"`, `"log-odds"`, or the name of the callable.
        target_scores: (*leading) float32, that score for the unmasked images.
        logits: (N, classes) float32, for the unmasked images; None if a callable was explained.
        probabilities: (N, classes) float32, what the model returned if `outputs` is `"probabilities"`, otherwise the
            softmax of the logits (the sigmoid for a single logit, and with `multi_label`); None if a callable was
            explained.
        target_layer: Dotted name of the layer whose activations were used; of several, all names.
        passes: (N,) int64, forward samples spent on each image: its unmasked pass and one for each mask. A pass that
            all images share is counted with each of them. Up to seven passes of one image, which a call may spend
            to get to know the model, are not counted; nor are those of a model whose outputs all lie in [0, 1], which
            is asked once more, and for a few extreme images.
        estimated_error: (*leading) float32, estimated relative error of the heatmap against its exact form, by masks
            that were not forwarded or, in `ReciproCAM("evidence")`, by rounding. Of several layers the largest.
        skipped: (*leading) bool, True if activations or scores were not finite, so that there is no map.
        channels: The channels of largest weight; None for several layers.
        mean_activation: (N, *spatial of the layer) float32, the plain mean of the channels: a map that equals it says
            nothing about the target. None for several layers.
        outputs: What the numbers that the model returned were taken for; None if it made no difference, because a
            callable was explained that reads them itself.
    """

    layer_maps: Tensor
    size: tuple[int, ...]
    upsampling: Upsampling
    targets: Tensor | None
    score_kind: str
    target_scores: Tensor
    logits: Tensor | None
    probabilities: Tensor | None
    target_layer: str | tuple[str, ...]
    passes: Tensor
    estimated_error: Tensor
    skipped: Tensor
    channels: Channels | None
    mean_activation: Tensor | None = None
    outputs: Literal["logits", "probabilities"] | None = None

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.layer_maps)

    def __iter__(self) -> Iterator[Explanation]:
        """Iterate over the images, as explanations of one image each."""
        return (self[index] for index in range(len(self)))

    @cached_property
    def heatmaps(self) -> Tensor:
        """(*leading, *spatial) float32 in [0, 1], each map scaled to its own minimum and maximum.

        They have the resolution of the images, or that of the layer with `upsampling="none"`. A *blank* map is 0
        everywhere, a *skipped* one NaN everywhere.
        """
        return scaled(self.layer_maps, self.positions if self.upsampling == "none" else self.size, self.upsampling)

    def scaled_to(self, brightest: float | None) -> Tensor:
        """Return the maps at the resolution of the images, on a common scale.

        Args:
            brightest: The value of `layer_maps` that becomes 1; None scales each map to its own minimum and maximum.

        Returns:
            (*leading, *size) float32; with `upsampling="none"` each position of the layer is a block.
        """
        return scaled(self.layer_maps, self.size, self.upsampling, brightest)

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of positions along each axis of the images: the spatial shape of `layer_maps`."""
        return tuple(self.layer_maps.shape[-len(self.size) :])

    @property
    def is_coarse(self) -> bool:
        """Whether the maps have too few positions to say where: for images, fewer than 16, which is 4 x 4.

        For signals it is fewer than 4, and for volumes fewer than 64.
        """
        return are_coarse(self.positions)

    @property
    def predicted(self) -> Tensor | None:
        """(N,) int64, the most probable class of each image; None if a callable was explained."""
        return None if self.probabilities is None else self.probabilities.argmax(dim=1)

    @property
    def rivals(self) -> Tensor | None:
        """(N,) int64, the most probable class of each image beside those that are explained; None if there is none."""
        if self.logits is None or self.targets is None:
            return None
        explained = self.targets.view(len(self), -1)
        return most_probable_other(self.logits, explained) if self.logits.shape[1] > explained.shape[1] else None

    @cached_property
    def blank(self) -> Tensor:
        """(*leading) bool, True if the map is constant, and so has no contrast. Skipped maps are not blank."""
        return (self.heatmaps == 0).flatten(self.estimated_error.ndim).all(dim=-1)

    def to(self, device: torch.device | str) -> Explanation:
        """Return the same explanation with its tensors on `device`."""
        return _combined([self], lambda parts: parts[0].to(device))

    def __getitem__(self, rows: int | slice | Tensor | Sequence[int] | NDArray[Any]) -> Explanation:
        """Return the explanation of some of the images; `explanation[3]` is the same as `explanation[3:4]`.

        Args:
            rows: The index of an image, a slice, or indices (n,), or a bool for each image (N,), in a list, an array or
                a tensor.

        Raises:
            IndexError: There is no image with that index.
            TypeError: `rows` is none of these.
        """
        if isinstance(rows, slice) and (rows.step is None or rows.step > 0):
            return _combined([self], lambda parts: parts[0][rows])
        index = _as_index(rows, len(self))
        return _combined([self], lambda parts: parts[0][index.to(parts[0].device)])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out `heatmaps`, which are computed again when asked for."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _as_index(rows: Any, count: int) -> Tensor:
    """Return the indices (n,) int64 of the images that a user asks for, of `count` that there are."""
    asked = range(count)[rows] if isinstance(rows, slice) else rows
    try:
        if isinstance(rows, tuple):  # explanation[0, 1]: of an image, or of a target?
            raise TypeError
        index = torch.as_tensor(asked).detach()
    except (TypeError, ValueError, RuntimeError):
        index = torch.empty(0, 0)
    if index.dtype == torch.bool and index.shape == (count,):
        return index.nonzero().flatten()
    if index.shape == (0,):
        index = index.long()
    if index.ndim > 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(
            f"explanation[{rows!r}]: give an index, a slice, indices (n,), or a bool for each of the {count} images"
        )
    index = index.long().reshape(-1)
    missing = index[(index < -count) | (index >= count)].tolist()
    if missing:
        raise IndexError(f"explanation[{missing[0]}]: there are {count} images")
    return index


def are_coarse(positions: Sequence[int]) -> bool:
    """Whether maps with so many positions along each axis say too little of where: see `Explanation.is_coarse`."""
    least: int = _MIN_SIDE ** len(positions)
    return math.prod(positions) < least


def shown_positions(positions: Sequence[int]) -> str:
    """Return how many positions there are along each axis, for people: `"2 x 2 positions"`."""
    return f"{' x '.join(map(str, positions))} positions"


def coarse_note(positions: Sequence[int]) -> str:
    """Return what a picture of coarse maps says of them; nothing for those that are not coarse."""
    return f"coarse: {shown_positions(positions)}" if are_coarse(positions) else ""


def concatenated(parts: Sequence[Explanation]) -> Explanation:
    """Join explanations that one method made for one layer."""
    return _combined(parts, torch.cat)


def _combined(parts: Sequence[_T], combine: Callable[[list[Tensor]], Tensor]) -> _T:
    """Combine the tensors of several dataclasses, field by field; other fields are those of the first."""
    made: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Tensor):
            made[field.name] = combine(values)
        elif isinstance(values[0], Channels):
            made[field.name] = _combined(values, combine)
    return replace(parts[0], **made)


def scaled(
    layer_maps: Tensor, size: Sequence[int], upsampling: Upsampling = "bilinear", brightest: float | None = None
) -> Tensor:
    """Turn maps at layer resolution into heatmaps: the one place where maps are scaled and skipped ones marked.

    Args:
        layer_maps: (*leading, *spatial of the layer), >= 0. A map with a NaN was skipped.
        size: The spatial size to reach.
        upsampling: As in `upsample`; `"none"` shows each position of the layer as a block.
        brightest: The value that becomes 1; None scales each map to its own minimum and maximum.

    Returns:
        (*leading, *size); a skipped map is NaN everywhere, a constant one 0 everywhere if scaled to its own range.
    """
    leading, spatial = layer_maps.shape[: -len(size)], layer_maps.shape[-len(size) :]
    flat = layer_maps.reshape(-1, *spatial)
    maps = upsample(flat, size, "nearest" if upsampling == "none" else upsampling)
    if brightest is None:
        maps = min_max(maps)
    elif brightest > 0:
        maps = maps.clamp_min(0) / brightest  # bicubic interpolation may undershoot
    skipped = flat.isnan().flatten(1).any(dim=1).view(-1, *[1] * len(size))
    return torch.where(skipped, torch.nan, maps).view(*leading, *size)


def upsample(maps: Tensor, size: Sequence[int], mode: Interpolation = "bilinear") -> Tensor:
    """Resize maps to `size` (`align_corners=False`): the one rule for masks and for heatmaps.

    Args:
        maps: (N, *spatial), one to three spatial dimensions.
        size: The spatial size to reach.
        mode: `"bilinear"`: linear interpolation in all dimensions, however many there are. `"bicubic"`: for two
            dimensions only. `"nearest"`: each position as a block.

    Returns:
        (N, *size) in the dtype of `maps`.
    """
    if mode == "nearest":
        return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="nearest-exact").squeeze(1)
    how = "bicubic" if mode == "bicubic" else _LINEAR[len(size)]
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode=how, align_corners=False).squeeze(1)


def most_probable_other(logits: Tensor, explained: Tensor) -> Tensor:
    """Return (N,) int64, the most probable class beside the explained ones.

    Args:
        logits: (N, classes), which still differ where all other probabilities are rounded to 0.
        explained: (N, T) int64.
    """
    return logits.scatter(1, explained, -torch.inf).argmax(dim=1)


def has_contrast(maps: Tensor) -> Tensor:
    """Return (N, K) bool, whether each of maps (N, K, *spatial) varies by more than rounding."""
    return _differs(*torch.aminmax(maps.flatten(2), dim=2))


def min_max(maps: Tensor) -> Tensor:
    """Scale each of maps (N, *spatial) to [0, 1]; one that is constant up to rounding becomes 0."""
    flat = maps.flatten(1)
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    varies = _differs(low, high)
    scaled = (flat - low) / torch.where(varies, high - low, 1)
    return torch.where(varies, scaled, 0).view_as(maps)


def _differs(low: Tensor, high: Tensor) -> Tensor:
    """Whether the least and the largest value of a map differ by more than rounding."""
    return high - low > _ROUNDING * torch.maximum(low.abs(), high.abs())
