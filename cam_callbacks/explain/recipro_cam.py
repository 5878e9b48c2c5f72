"""Recipro-CAM: each position weighed by the score of what is at it alone (Byun & Lee 2022, arXiv 2209.14074)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cam_callbacks._checks import check_choice, check_positive
from cam_callbacks.explain.explanation import upsample
from cam_callbacks.explain.feature_masks import FeatureMasks
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.method import LayerMap, Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.score_readers import Score
from cam_callbacks.explain.targets import Targets

Weighting = Literal["probability", "evidence"]
Neighborhood = Literal["position", "gaussian"]

_GAUSSIAN = torch.tensor([1.0, 2.0, 1.0]) / 4  # along each axis: the 3 x 3 kernel of the authors
_ROUNDINGS = 4  # that add up in a difference of scores
_NEGLIGIBLE = 1e-6  # relative to scores
_CHEAP = 2  # times the numbers of an image, which a layer may put out
_FEWEST = 36  # 6 x 6 positions say where
_MOST_WHOLE_PASSES = 64  # masks, where each of them takes a whole pass


@dataclass(frozen=True)
class ReciproCAM(Method):
    r"""Recipro-CAM: no gradients, and one short pass for each position instead of a whole one for each channel.

    With A the activations of the layer, f_c(B) the score of a class c that the rest of the network gives to B in place
    of A, and M_i a mask that lets position i through:

    - `"probability"`, the paper's: heat_i = p_c(A * M_i) - the smallest of these, with the probability p_c.
    - `"evidence"`, the default of `CAMMonitor`: heat_i = (ReLU(a_i) / |a| + ReLU(b_i) / |b|) (|a| + |b|) / 2, where
      a_i = L_c(A * M_i) - L_c(0) is what position i says on its own, b_i = L_c(A) - L_c(A * (1 - M_i)) what is lost
      without it, L = log(p_c / (1 - p_c)) the log-odds, and |.| the root mean square of what the ReLU leaves. A change
      of log-odds is the *weight of evidence* (Good 1950; of images, Zintgraf et al. 2017, arXiv 1702.04595). Ours: it
      tells classes apart, those of a two-class head above all, and where nothing speaks for a class its map is blank.
      Where nothing at all has no score, as in a model that divides by its features, only b counts. Meanwhile weights of
      16 bits are held in 32, and autocast around the model is off, because one position changes little;
      `estimated_error` is what the rounding that is left may do.

    The map is enlarged and scaled to [0, 1] for each image. For callables the score takes the place of p_c and L. Only
    what comes after the layer runs for each mask, so the cost depends on how deep the layer is: at the end of a network
    a map costs little more than one pass. If the rest of the model cannot run alone, each mask takes a whole pass.

    What belongs to no position, such as a class token, is kept (Byun & Lee 2023, arXiv 2310.02588). A transformer needs
    a layer before its last block, after which its class token has no way to see the other tokens.

    Attributes:
        weighting: How the heat of a position follows from scores.
        neighborhood: What a mask lets through: its `"position"` alone, as the authors do in convolutional networks; or
            its 3 x 3 neighborhood by a `"gaussian"` kernel, as they do in transformers.
        max_masks: Where a layer has more positions than that, equal blocks of them take their place, as small as this
            allows. There are fewer, but 36, where the layer puts out more than twice the numbers of the image, in
            proportion; and 64 at most where each mask takes a whole pass. None for no limit. By evidence there are two
            masks for each.

    The other settings are those of `Method`.

    Raises:
        ValueError: An unknown weighting, neighborhood or upsampling; `max_masks` below 1.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ReciproCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ReciproCAM("evidence")(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    weighting: Weighting = "probability"
    neighborhood: Neighborhood = "position"
    max_masks: int | None = 256
    name: ClassVar[str] = "Recipro-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        check_positive("max_masks", self.max_masks, or_none=True)

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        score: Score = "log-odds" if self.weighting == "evidence" else "probability"
        return network.forward_pass(target_layer, targets, score)

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        own, error = forward_pass.target_scores, torch.zeros_like(forward_pass.target_scores)
        spatial = forward_pass.activations[layer].shape[2:]
        features = FeatureMasks(network, forward_pass, layer)
        side = self._side_of_blocks(forward_pass.activations[layer][0], network.images[0], features.takes_copies)
        grid = torch.Size(-(-size // side) for size in spatial)
        shown = self._masks(grid).to(network.images.device)
        if self.weighting == "evidence":
            scores, whole = features.scores(torch.cat([shown, 1 - shown, torch.zeros_like(shown[:1])]), side)
            alone, without, empty = scores.tensor_split([len(shown), 2 * len(shown)], dim=1)
            # Nothing at all has no score in a model that divides by its features.
            said, lost = (alone - empty).nan_to_num(0, 0, 0), whole[:, len(shown) : -1] - without
            largest = scores.nan_to_num(0, 0, 0).abs().amax(dim=1, keepdim=True)
            heat, error = _total([said, lost], largest, _ROUNDINGS * features.rounding)
        else:
            scores, _ = features.scores(shown, side)
            heat = scores - scores.amin(dim=1, keepdim=True)
        maps = heat.movedim(1, 2).reshape(*own.shape, *grid)  # (N, T, *grid)
        if side > 1:
            maps = upsample(maps.flatten(0, 1), [size * side for size in grid])
            for axis, size in enumerate(spatial, 1):
                maps = maps.narrow(axis, 0, size)
            maps = maps.view(*own.shape, *spatial)
        passes = torch.full((len(own),), scores.shape[1], dtype=torch.int64, device=maps.device)
        return LayerMap(maps, passes, error)

    def _side_of_blocks(self, features: Tensor, image: Tensor, takes_copies: bool) -> int:
        """Return how many positions along each axis a block has, so that there are no more blocks than allowed.

        Args:
            features: (K, *spatial), what the layer puts out for one image.
            image: (C, *spatial), that image.
            takes_copies: Whether only what comes after the layer runs for each mask.
        """
        spatial = features.shape[1:]
        most = spatial.numel()
        if self.max_masks is not None:
            # What comes after the layer has as much to do as the layer puts out.
            cheap = max(_FEWEST, int(self.max_masks * _CHEAP * image.numel() / features.numel()))
            most = min(self.max_masks, cheap if takes_copies else _MOST_WHOLE_PASSES)
        side = 1
        while torch.Size(-(-size // side) for size in spatial).numel() > most:
            side += 1
        return side

    def _masks(self, grid: torch.Size) -> Tensor:
        """Return (blocks, *grid), the mask of each block."""
        masks = torch.eye(grid.numel()).view(-1, *grid)
        if self.neighborhood == "gaussian":
            for axis in range(1, masks.ndim):
                masks = _smoothed(masks.movedim(axis, -1)).movedim(-1, axis)
        return masks


def _total(sides: Sequence[Tensor], size: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Return what speaks for a class on several sides, scaled to the mean of their sizes, and the error by rounding.

    Args:
        sides: Of each, the evidence (N, M, T) of M positions; not finite where that is not known.
        size: (N, 1, T), the largest magnitude of a score.
        rounding: Of scores, relative. A side of which nothing exceeds it counts as 0.

    Returns:
        The total (N, M, T), and (N, T), how much its Pearson correlation with the exact one may be below 1.
    """
    heat, variance, scales = torch.zeros_like(sides[0]), torch.zeros_like(size), []
    for evidence in sides:
        positive = evidence.relu()
        largest = positive.amax(dim=1, keepdim=True)
        scale = positive.square().mean(dim=1, keepdim=True).sqrt()
        is_lost = largest <= rounding * size
        heat = heat + torch.where(is_lost, 0, positive / scale)
        scales.append(torch.where(is_lost, 0, scale))
        may_be_much = is_lost & (largest > _NEGLIGIBLE * size)
        variance = variance + torch.where(is_lost, may_be_much.to(scale), (rounding * size / scale).square())
    spread = heat.var(dim=1, correction=0, keepdim=True)
    error = torch.where(spread > 0, 1 - (1 + variance / spread).rsqrt(), (variance > 0).to(spread))
    return heat * torch.stack(scales).mean(dim=0), error.squeeze(1)


def _smoothed(masks: Tensor) -> Tensor:
    """Return masks (..., size), convolved with the kernel along the last axis; what leaves the image is lost."""
    wide = torch.nn.functional.pad(masks, [1, 1])
    return wide.unfold(-1, 3, 1) @ _GAUSSIAN
