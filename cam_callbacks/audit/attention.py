"""Compare heat with masks: how much of it lies on the object, and how much would by chance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.interventions import ring
from cam_callbacks.explain.portions import in_portions

_NUM_SHUFFLES = 200
_SHIFTED_SIDE = 64  # positions: heat is not finer


def heat_on_object(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of each heatmap's heat that lies on the object: sum(H * M) / sum(H).

    This is the energy-based pointing game of Score-CAM (arXiv 1910.01279, section 4.3). A flat map has as much on the
    object as the object has of the area (`area_share`). That is the chance level if objects lie at random places; if
    they lie in the center, chance is higher: `heat_by_chance`.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.

    Returns:
        (N,) float32 in [0, 1]; NaN if the map is blank or was skipped. Count those, and leave them out of a mean
        (`torch.nanmean`).

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(heatmaps, masks)
    heat = heatmaps.flatten(1)
    total = heat.sum(dim=1)
    pairs = zip(in_portions(heatmaps, heatmaps), in_portions(masks, masks), strict=True)
    on_mask = torch.cat([(some * mask).flatten(1).sum(dim=1) for some, mask in pairs])
    return torch.where(total > 0, on_mask / total, torch.nan)


def heat_by_chance(heatmaps: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """Return what `heat_on_object` would be if the heat had nothing to do with the image.

    It is the mean of `heat_on_object` with the masks of all other images of the class, without masks that are empty or
    cover all: those do not say where objects lie. Objects tend to lie in the middle, and so does heat that follows
    nothing: on photos the share of the area is too low a bar.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.
        labels: (N,) the classes.

    Returns:
        (N,) float32; NaN if the map is blank or was skipped, or if the class has no other image with such a mask.
    """
    shares = _shares_with_all_masks(heatmaps, masks)
    others = (labels.unsqueeze(1) == labels) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    given = others.to(shares.device) & is_informative(masks).to(shares.device)  # (N, N): which masks each map is given
    return torch.where(given, shares, 0).sum(dim=1) / given.sum(dim=1)


def mean_heat_by_chance(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return (200,) means of `heat_on_object` that arise by chance: with shuffled masks, none of which stays in place.

    Args:
        heatmaps: (n, *spatial), of one class; maps without heat are left out.
        masks: (n, *spatial) bool, True on the object.
    """
    shares = _shares_with_all_masks(heatmaps, masks)
    count = len(shares)
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(_NUM_SHUFFLES)])
    shuffled = torch.empty_like(orders).scatter_(1, orders, orders.roll(1, dims=1))  # cycles: no map keeps its mask
    return shares[torch.arange(count), shuffled.to(shares.device)].nanmean(dim=1)


def mean_heat_on_shifted(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return (200,) means of `heat_on_object` with masks that are shifted at random, and come in again at the far side.

    Each keeps its size and form. At most 64 positions a side are told apart.

    Args:
        heatmaps: (n, *spatial), of one class; maps without heat are left out.
        masks: (n, *spatial) bool, True on the object.
    """
    _check_shapes(heatmaps, masks)
    size = [min(side, _SHIFTED_SIDE) for side in masks.shape[1:]]

    def reduced(maps: Tensor) -> Tensor:
        portions = (part.unsqueeze(1).float() for part in in_portions(maps, maps))
        return torch.cat([F.interpolate(part, size, mode="area").squeeze(1) for part in portions])

    heat, mask = reduced(heatmaps), reduced(masks)
    space = tuple(range(1, heat.ndim))
    spectrum = torch.fft.rfftn(heat, dim=space) * torch.fft.rfftn(mask, dim=space).conj()
    at_shift = torch.fft.irfftn(spectrum, size, dim=space).flatten(1)  # the heat on the mask, for each shift
    total = heat.flatten(1).sum(dim=1, keepdim=True)
    shares = torch.where(total > 0, at_shift / total, torch.nan)
    generator = torch.Generator().manual_seed(0)
    shifts = torch.randint(shares.shape[1], (_NUM_SHUFFLES, len(shares)), generator=generator)
    return shares[torch.arange(len(shares)), shifts.to(shares.device)].nanmean(dim=1)


def _shares_with_all_masks(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return (N, N), the share of the heat of map i that lies on mask j."""
    _check_shapes(heatmaps, masks)
    heat = heatmaps.flatten(1).float()
    total = heat.sum(dim=1, keepdim=True)
    with torch.autocast(heat.device.type, enabled=False):  # else the product has three digits
        on_masks = torch.cat([heat @ part.flatten(1).float().T for part in in_portions(masks, masks)], dim=1)
    return torch.where(total > 0, on_masks / total, torch.nan)


def is_informative(masks: Tensor) -> Tensor:
    """Return (N,) whether a mask (N, *spatial) bool says where the object is: not empty, and not covering all."""
    flat = masks.flatten(1).bool()
    return flat.any(dim=1) & ~flat.all(dim=1)


def area_share(masks: Tensor) -> Tensor:
    """Return the share of each image's area that the object covers: (N,) float32 from masks (N, *spatial) bool."""
    return masks.flatten(1).mean(dim=1, dtype=torch.float32)


def rank_accuracy(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the hottest positions, as many as the object has, that lies on the object.

    The relevance rank accuracy of Arras et al. 2022 (CLEVR-XAI, arXiv 2003.07258). It does not depend on the scale of a
    map. The chance level is the share of the area.

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.

    Returns:
        (N,) float32 in [0, 1]; NaN if the map is blank or was skipped, or if the mask is empty.
    """
    _check_shapes(heatmaps, masks)
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    size = mask.sum(dim=1)
    hits = torch.zeros(len(heat), device=heat.device)
    for index, (values, own) in enumerate(zip(heat, mask, strict=True)):  # an order takes much more than a map
        order = values.nan_to_num().argsort(descending=True, stable=True)
        hits[index] = own[order[: size[index]]].sum()
    return torch.where((size > 0) & (heat.amax(dim=1) > 0), hits / size.clamp_min(1), torch.nan)


def pointing(heatmaps: Tensor, masks: Tensor) -> Tensor:
    """Return whether the hottest position lies on the object (Zhang et al. 2018, without their tolerance of 15 pixels).

    Args:
        heatmaps: (N, *spatial), >= 0.
        masks: (N, *spatial) bool, True on the object.

    Returns:
        (N,) float32, 0 or 1 (a fraction if several positions are equally hot); NaN as in `rank_accuracy`.
    """
    _check_shapes(heatmaps, masks)
    heat, mask = heatmaps.flatten(1), masks.flatten(1)
    highest = heat.amax(dim=1, keepdim=True)
    hottest = heat == highest
    known = (highest.squeeze(1) > 0) & mask.any(dim=1)
    return torch.where(known, (hottest & mask).sum(dim=1) / hottest.sum(dim=1).clamp_min(1), torch.nan)


def border_share(heatmaps: Tensor) -> Tensor:
    """Return (N,) the share of the heat in the outer ring (`interventions.ring`); chance is the ring's area."""
    border = ring(heatmaps.shape[1:]).to(heatmaps.device)
    return heat_on_object(heatmaps, border.expand_as(heatmaps))


def _check_shapes(heatmaps: Tensor, masks: Tensor) -> None:
    if heatmaps.shape != masks.shape:
        raise ValueError(
            f"heatmaps has shape {tuple(heatmaps.shape)}, masks {tuple(masks.shape)}; they must be the same"
        )
