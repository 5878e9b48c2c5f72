"""Explanation: the heatmaps of a batch of images, and what they were computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1e-6
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

_T = TypeVar("_T", bound="Channels | Explanation")

Upsampling = Literal["bilinear", "bicubic", "nearest", "none"]


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of largest weight, C of them for each explained target, heaviest first.

    Attributes:
        index: (N, C) or (N, T, C) int64, their numbers in the layer.
        weight: (N, C) or (N, T, C) float32, what they weigh in the heatmap.
        activations: (N, C, *spatial of the layer) or (N, T, C, *spatial of the layer) float32.
    """

    index: Tensor
    weight: Tensor
    activations: Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Heatmaps for N images: one for each, or, where T targets were asked for each image, (N, T, ...) of them.

    The leading dimensions of `heatmaps`, (N,) or (N, T), are those of all fields where *leading* is written.

    Attributes:
        heatmaps: (*leading, *spatial) float32 in [0, 1] at the resolution of the images (of the layer with
            `upsampling="none"`), each map scaled to its own minimum and maximum. A *blank* map is 0 everywhere, a
            *skipped* one NaN everywhere.
        layer_maps: (*leading, *spatial of the layer) float32, >= 0, the map before upsampling and scaling, in units of
            the activations: its magnitude can be compared between looks. NaN where skipped. Of several layers it is the
            mean of their maps, each scaled to [0, 1], at the resolution of the finest.
        targets: (*leading) int64, the class that was explained; None where a callable said what to explain.
        score_kind: Which score was explained: `"logit"`, `"probability"`, or the name of the callable.
        target_scores: (*leading) float32, that score for the unmasked images.
        logits: (N, classes) float32, of the unmasked images; None where a callable said what to explain.
        probabilities: (N, classes) float32, their softmax (a one-logit head, several labels: their sigmoid), or None.
        target_layer: Dotted name of the layer whose activations were used; of several, all names.
        passes: (N,) int64, forward samples spent on each image: its unmasked pass and one for each mask. A pass that
            all images share is counted with each of them. Not counted are up to four passes of the first image, that a
            call may spend to get to know the model.
        estimated_error: (*leading) float32, estimated relative error of the heatmap against its exact form; 0 where
            every mask was forwarded. Of several layers the largest.
        skipped: (*leading) bool, True where activations or scores were not finite, so that no map exists.
        channels: The channels of largest weight; None where several layers were fused.
        mean_activation: (N, *spatial of the layer) float32, the plain mean of the channels: a map that equals it says
            nothing of the target. None where several layers were fused.
    """

    heatmaps: Tensor
    layer_maps: Tensor
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

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.heatmaps)

    @property
    def predicted(self) -> Tensor | None:
        """(N,) int64, the most probable class of each image; None where a callable said what to explain."""
        return None if self.probabilities is None else self.probabilities.argmax(dim=1)

    @property
    def blank(self) -> Tensor:
        """(*leading) bool, True where the map has no contrast: it is one constant. Skipped maps are not blank."""
        return (self.heatmaps == 0).flatten(self.estimated_error.ndim).all(dim=-1)

    def to(self, device: torch.device | str) -> Explanation:
        """The same explanation with its tensors on `device`."""
        return _combined([self], lambda parts: parts[0].to(device))

    def __getitem__(self, rows: Tensor | slice) -> Explanation:
        """The explanation of some of the images.

        Args:
            rows: (n,) int64, their indices, or a slice.

        Raises:
            TypeError: A single index; `explanation[3:4]` is the explanation of one image.
        """
        if not isinstance(rows, (Tensor, slice)):
            raise TypeError(f"explanation[{rows!r}]: give a slice, such as [3:4] for one image, or a tensor of indices")
        return _combined([self], lambda parts: parts[0][rows])


def concatenated(parts: Sequence[Explanation]) -> Explanation:
    """One explanation of the images of several, which were made by the same method for the same layer."""
    return _combined(parts, torch.cat)


def _combined(parts: Sequence[_T], combine: Callable[[list[Tensor]], Tensor]) -> _T:
    """One dataclass of several, each of its tensors made of theirs; the rest is that of the first."""
    made: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Tensor):
            made[field.name] = combine(values)
        elif isinstance(values[0], Channels):
            made[field.name] = _combined(values, combine)
    return replace(parts[0], **made)


def upsample(maps: Tensor, size: Sequence[int], mode: Upsampling = "bilinear") -> Tensor:
    """Resize maps to `size` (`align_corners=False`): the one rule for masks and for heatmaps.

    Args:
        maps: (N, *spatial), one to three spatial dimensions.
        size: The spatial size to reach.
        mode: `"bilinear"`: linear interpolation in all dimensions, however many there are. `"bicubic"`: for images
            only. `"nearest"`: each position as a block. `"none"`: as they are.

    Returns:
        (N, *size) in the dtype of `maps`.

    Raises:
        ValueError: `"bicubic"` with other than two spatial dimensions.
    """
    if mode == "none":
        return maps
    if mode == "bicubic" and len(size) != 2:
        raise ValueError(
            f'upsampling="bicubic" needs two spatial dimensions, these images have {len(size)}; "bilinear" is linear '
            "in any number"
        )
    if mode == "nearest":
        return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="nearest-exact").squeeze(1)
    how = "bicubic" if mode == "bicubic" else _LINEAR[len(size)]
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode=how, align_corners=False).squeeze(1)


def has_contrast(maps: Tensor) -> Tensor:
    """Whether the last spatial dimensions of maps (N, K, *spatial) vary by more than rounding: (N, K) bool."""
    return _vary(*torch.aminmax(maps.flatten(2), dim=2))


def min_max(maps: Tensor) -> Tensor:
    """Scale each of (N, *spatial) maps to [0, 1]; one that is constant up to rounding becomes 0."""
    flat = maps.flatten(1)
    low, high = torch.aminmax(flat, dim=1, keepdim=True)
    varies = _vary(low, high)
    scaled = (flat - low) / torch.where(varies, high - low, 1)
    return torch.where(varies, scaled, 0).view_as(maps)


def _vary(low: Tensor, high: Tensor) -> Tensor:
    """Whether values between `low` and `high` differ by more than rounding."""
    return high - low > _ROUNDING * torch.maximum(low.abs(), high.abs())
