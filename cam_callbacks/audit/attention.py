"""Heat against masks: how much of what the model looks at lies on the object, and how much would by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from cam_callbacks.audit.interventions import ring

_SHUFFLES = 200


def heat_on_object(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """The share of each heatmap's heat that lies on the object: sum(H * M) / sum(H).

    The energy-based pointing game of Score-CAM (arXiv 1910.01279, section 4.3). A flat map has the area share of the
    object (`area_share`), which is its chance level where objects lie at random places; where they lie in the center,
    chance is higher: `heat_by_chance`.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.

    Returns:
        (N,) float32 in [0, 1]; NaN where the map is blank or was skipped. Count those, and leave them out of a mean
        (`torch.nanmean`).

    Raises:
        ValueError: Shapes that differ.
    """
    _check_shapes(heatmaps, masks)
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    total = heat.sum(dim=1)
    return torch.where(total > 0, (heat * mask).sum(dim=1) / total, torch.nan)


def heat_by_chance(heatmaps: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """What `heat_on_object` would be if the heat had nothing to do with this image: with the masks of others.

    The mean over all other images of the class whose mask is neither empty nor covers all: such a mask says nothing of
    where objects lie. Objects tend to lie in the middle, and so does heat that follows nothing: the area share is too
    low a bar on photos.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool.
        labels: (N,) classes.

    Returns:
        (N,) float32; NaN where the map is blank or was skipped, or no other such image of the class is there.
    """
    shares = _shares_with_all_masks(heatmaps, masks)
    others = (labels.unsqueeze(1) == labels) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    given = others.to(shares.device) & is_informative(masks).to(shares.device)  # (N, N): whose mask each map is given
    return torch.where(given, shares, 0).sum(dim=1) / given.sum(dim=1)


def mean_heat_by_chance(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """(200,) means of `heat_on_object` with the masks dealt out anew among images of one class, none with its own.

    Args:
        heatmaps: (n, *spatial), of one class; maps without heat are left out.
        masks: (n, *spatial) bool.
    """
    shares = _shares_with_all_masks(heatmaps, masks)
    count = len(shares)
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(_SHUFFLES):
        order = torch.randperm(count, generator=generator)
        dealt = torch.empty_like(order)
        dealt[order] = order.roll(1)  # one cycle through all: nobody keeps its own
        means.append(shares[torch.arange(count), dealt.to(shares.device)].nanmean())
    return torch.stack(means)


def _shares_with_all_masks(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """(N, N) the share of the heat of map i that lies on mask j."""
    _check_shapes(heatmaps, masks)
    heat = heatmaps.flatten(1).float()
    total = heat.sum(dim=1, keepdim=True)
    return torch.where(total > 0, heat @ masks.flatten(1).float().T / total, torch.nan)


def is_informative(masks: Tensor) -> Tensor:
    """Whether each of the masks (N, *spatial) bool says where the object is: it is neither empty nor covers all."""
    flat = masks.flatten(1).bool()
    return flat.any(dim=1) & ~flat.all(dim=1)


def area_share(masks: Tensor) -> Tensor:
    """The share of each image's area that the object covers: (N,) float32 from masks (N, *spatial) bool."""
    return masks.flatten(1).float().mean(dim=1)


def rank_accuracy(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Of as many of the hottest positions as the object has, the share that lies on it (Arras et al. 2022, CLEVR-XAI).

    It does not depend on the scale of a map. Chance is the area share.

    Returns:
        (N,) float32 in [0, 1]; NaN where the map is blank or was skipped, or the mask is empty.
    """
    _check_shapes(heatmaps, masks)
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    size = mask.sum(dim=1)
    hottest = heat.nan_to_num().argsort(dim=1, descending=True, stable=True)
    on_object = mask.gather(1, hottest).float().cumsum(dim=1)
    hits = on_object.gather(1, (size - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
    return torch.where((size > 0) & (heat.amax(dim=1) > 0), hits / size.clamp_min(1), torch.nan)


def pointing(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Whether the hottest position lies on the object (Zhang et al. 2018, without their tolerance of 15 pixels).

    Returns:
        (N,) float32, 0 or 1 (a fraction where several positions are equally hot); NaN as in `rank_accuracy`.
    """
    _check_shapes(heatmaps, masks)
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    highest = heat.amax(dim=1, keepdim=True)
    hottest = (heat == highest).float()
    known = (highest.squeeze(1) > 0) & mask.any(dim=1)
    return torch.where(known, (hottest * mask).sum(dim=1) / hottest.sum(dim=1).clamp_min(1), torch.nan)


def border_share(heatmaps: Tensor) -> Tensor:
    """The share of the heat in the outer ring (`interventions.ring`), (N,); chance is the ring's share of the area."""
    border = ring(heatmaps.shape[1:]).to(heatmaps.device)
    return heat_on_object(heatmaps, border.expand_as(heatmaps))


def _check_shapes(heatmaps: Tensor, masks: Tensor) -> None:
    if heatmaps.shape != masks.shape:
        raise ValueError(
            f"heatmaps has shape {tuple(heatmaps.shape)}, masks {tuple(masks.shape)}; they must be the same"
        )
