"""Trust: measures of each heatmap that are logged, and comparisons of maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cam_callbacks.explain import progress
from cam_callbacks.explain.explanation import Explanation, upsample
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.network import Network
from cam_callbacks.explain.runner import Options


def hottest_half(heatmaps: Tensor) -> Tensor:
    """Return (N, *spatial) bool, the half of the positions that each map ranks highest."""
    flat = heatmaps.flatten(1).nan_to_num()
    half = flat.shape[1] // 2
    if half == 0:
        return torch.zeros_like(heatmaps, dtype=torch.bool)
    least = flat.kthvalue(flat.shape[1] - half + 1, dim=1, keepdim=True).values
    above, equal = flat > least, flat == least
    # Of those that are as hot as the least of them, the first.
    kept = above | (equal & (equal.cumsum(dim=1) <= half - above.sum(dim=1, keepdim=True)))
    return kept.view_as(heatmaps)


def measure_trust(
    model: nn.Module,
    images: Tensor,
    explanation: Explanation,
    forward_fn: ForwardFn | None = None,
    multi_label: bool = False,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Measure how far heatmaps of classes deserve trust, with two forward passes per image.

    Args:
        model: The model; it is left as it was.
        images: (N, C, *spatial), the images that were explained.
        explanation: Their explanation, one class for each.
        forward_fn: As in `Method.__call__`.
        multi_label: As in `Method`.
        batch_size: As in `Method`.

    Returns:
        (N,) `average_drop` and `increase_in_confidence` of the probability when only the hottest half of each image is
        kept and the rest is set to 0, and `mean_activation_correlation`, the correlation of the map with the plain mean
        of the layer's channels: near 1 the map says nothing about the class. NaN for blank and skipped maps.
    """
    assert explanation.targets is not None
    targets = explanation.targets.cpu()
    heatmaps = upsample(explanation.layer_maps.cpu(), images.shape[2:])
    unknown = (explanation.blank | explanation.skipped).cpu()
    options = Options(batch_size, multi_label, outputs=explanation.outputs or "auto")
    kept_images = images.cpu() * hottest_half(heatmaps).unsqueeze(1)
    progress.expect(2 * len(images))
    with isolated(model):
        whole, kept = (
            Network(model, part, forward_fn, options)
            .scores()
            .probabilities.cpu()
            .gather(1, targets.unsqueeze(1))
            .squeeze(1)
            for part in (images, kept_images)
        )
    progress.advance(2 * len(images))
    values = {"average_drop": average_drop(whole, kept), "increase_in_confidence": increase_in_confidence(whole, kept)}
    if explanation.mean_activation is not None:
        values["mean_activation_correlation"] = correlation(
            explanation.layer_maps.cpu(), explanation.mean_activation.cpu()
        )
    return {name: torch.where(unknown, torch.nan, each) for name, each in values.items()}


def average_drop(whole: Tensor, kept: Tensor) -> Tensor:
    """Return (N,) max(0, p - p') / p, the share of the probability that is lost when only the hottest half is kept.

    Lower is better (Chattopadhay et al. 2018, arXiv 1710.11063).

    Args:
        whole: (N,), p, the probability for the whole image.
        kept: (N,), p', the probability for its hottest half.
    """
    return (whole - kept).clamp_min(0) / whole


def average_gain(whole: Tensor, kept: Tensor) -> Tensor:
    """Return (N,) max(0, p' - p) / (1 - p), the share of the missing probability that is won (Zhang et al. 2023).

    Higher is better (arXiv 2301.07002); 0 where p is 1. Arguments are those of `average_drop`.
    """
    return torch.where(whole == 1, 0, (kept - whole).clamp_min(0) / (1 - whole))


def increase_in_confidence(whole: Tensor, kept: Tensor) -> Tensor:
    """Return (N,) 1 if the probability rises when only the hottest half is kept (Chattopadhay et al. 2018), else 0."""
    return torch.where(whole.isfinite() & kept.isfinite(), (kept > whole).float(), torch.nan)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the (N,) Pearson correlation of maps (N, *spatial); NaN if one of the two has no contrast."""
    a, b = (maps.flatten(1).double() for maps in (a, b))
    a, b = (maps - maps.mean(dim=1, keepdim=True) for maps in (a, b))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 0, (a * b).sum(dim=1) / norm, torch.nan).float()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the (N,) Spearman correlation of maps (N, *spatial); NaN if one of the two has no contrast."""
    return correlation(_ranks(a), _ranks(b))


def _ranks(maps: Tensor) -> Tensor:
    """Return (N, positions), ranks; equal values, such as the zeros that a ReLU leaves, share their mean rank."""
    flat = maps.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return (below + up_to).double() / 2
