"""Explanation: the heatmaps of a batch of images, and what they were computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

_ROUNDING = 1e-6
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Heatmaps for N images, one target class each.

    Attributes:
        heatmaps: (N, *spatial) float32 in [0, 1] at the resolution of the images, each map scaled to its own minimum
            and maximum. A *blank* map is 0 everywhere, a *skipped* one NaN everywhere.
        raw: (N, *spatial of the layer) float32, >= 0, the map before upsampling and scaling, in units of the
            activations: its magnitude can be compared between looks. NaN where skipped.
        targets: (N,) int64, the class that was explained.
        scores: (N, classes) float32, the logits of the unmasked images.
        probabilities: (N, classes) float32, their softmax (a one-logit head: its sigmoid).
        target_layer: dotted name of the layer whose activations were used.
        passes: (N,) int64, forward samples spent on each image: its unmasked pass and one for each mask. A pass that
            all images share is counted with each of them.
        error: (N,) float32, estimated relative error of the heatmap against its exact form; 0 where every mask was
            forwarded.
        skipped: (N,) bool, True where activations or scores were not finite, so that no map exists.
    """

    heatmaps: Tensor
    raw: Tensor
    targets: Tensor
    scores: Tensor
    probabilities: Tensor
    target_layer: str
    passes: Tensor
    error: Tensor
    skipped: Tensor

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.targets)

    @property
    def predicted(self) -> Tensor:
        """(N,) int64, the most probable class of each image."""
        return self.probabilities.argmax(dim=1)

    @property
    def blank(self) -> Tensor:
        """(N,) bool, True where the map has no contrast: it is one constant. Skipped maps are not blank."""
        flat = self.heatmaps.flatten(1)
        return (flat == 0).all(dim=1)

    def to(self, device: torch.device | str) -> Explanation:
        """The same explanation with its tensors on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "target_layer"}
        return replace(self, **moved)


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps to `size` by linear interpolation (`align_corners=False`): the one rule for masks and for heatmaps.

    Args:
        maps: (N, *spatial), one to three spatial dimensions.
        size: the spatial size to reach.

    Returns:
        (N, *size) in the dtype of `maps`.
    """
    mode = _INTERPOLATION[len(size)]
    return F.interpolate(maps.unsqueeze(1), size=tuple(size), mode=mode, align_corners=False).squeeze(1)


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
