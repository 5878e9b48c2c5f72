"""Heat against masks: how much of what the model looks at lies on the object."""

from __future__ import annotations

import torch
from torch import Tensor


def heat_on_object(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of each heatmap's heat that lies on the object: sum(H * M) / sum(H).

    The energy-based pointing game of Score-CAM (arXiv 1910.01279, section 4.3). A flat map has the area share of the
    object (`area_share`), which is its chance level where objects lie at random places; where they lie in the centre,
    chance is higher.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.

    Returns:
        (N,) float32 in [0, 1]; NaN where the map is blank or was skipped. Count those, and leave them out of a mean
        (`torch.nanmean`).

    Raises:
        ValueError: Shapes that differ.
    """
    if heatmaps.shape != masks.shape:
        raise ValueError(
            f"heatmaps has shape {tuple(heatmaps.shape)}, masks {tuple(masks.shape)}; they must be the same"
        )
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    total = heat.sum(dim=1)
    return torch.where(total > 0, (heat * mask).sum(dim=1) / total, torch.nan)


def area_share(masks: Tensor) -> Tensor:
    """The share of each image's area that the object covers: (N,) float32 from masks (N, *spatial) bool."""
    return masks.flatten(1).float().mean(dim=1)
