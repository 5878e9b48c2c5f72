"""Recipro-CAM: each position weighed by the score of what is at it alone (Byun & Lee 2022, arXiv 2209.14074)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cam_callbacks._checks import check_choice, check_positive
from cam_callbacks.explain.blocks import Blocks
from cam_callbacks.explain.evidence import evidence
from cam_callbacks.explain.feature_masks import FeatureMasks
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.method import LayerMap, Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.score_readers import Score
from cam_callbacks.explain.targets import Targets

Weighting = Literal["probability", "evidence"]
Neighborhood = Literal["position", "gaussian"]

_GAUSSIAN = torch.tensor([1.0, 2.0, 1.0]) / 4  # along each axis: the 3 x 3 kernel of the authors
_LARGEST = 80.0  # log-odds, of which the hyperbolic cosine is finite
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
      `estimated_error` is what the rounding of what the layer and the model put out may do; not that of a model that
      rounds more on its way.

    The map is enlarged and scaled to [0, 1] for each image. For callables the score takes the place of p_c and L. Only
    what comes after the layer runs for each mask, so the cost depends on how deep the layer is: at the end of a network
    a map costs little more than one pass. If the rest of the model cannot run alone, each mask takes a whole pass.

    What belongs to no position, such as a class token, is kept (Byun & Lee 2023, arXiv 2310.02588). A transformer needs
    a layer before its last block, after which its class token has no way to see the other tokens.

    Attributes:
        weighting: How the heat of a position follows from scores.
        neighborhood: What a mask lets through: its `"position"` alone, as the authors do in convolutional networks; or
            its 3 x 3 neighborhood by a `"gaussian"` kernel, as they do in transformers.
        max_positions: Where a layer has more of them, equal blocks take their place, as small as this allows. There are
            fewer, but 36, where the layer puts out more than twice the numbers of the image, in proportion; and 64 at
            most where each mask takes a whole pass. None for no limit.

    The other settings are those of `Method`.

    Raises:
        ValueError: An unknown weighting, neighborhood or upsampling; `max_positions` below 1.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ReciproCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ReciproCAM("evidence")(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    weighting: Weighting = "probability"
    neighborhood: Neighborhood = "position"
    max_positions: int | None = 256
    name: ClassVar[str] = "Recipro-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("weighting", self.weighting, get_args(Weighting))
        check_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        check_positive("max_positions", self.max_positions, or_none=True)

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        score: Score = "log-odds" if self.weighting == "evidence" else "probability"
        return network.forward_pass(target_layer, targets, score)

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        own = forward_pass.target_scores
        features = FeatureMasks(network, forward_pass, layer)
        blocks = self._blocks(forward_pass.activations[layer][0], network.images[0], features.takes_copies)
        shown = self._masks(blocks.grid).to(network.images.device)
        if self.weighting == "evidence":
            count = len(shown)
            scores, whole = features.scores(torch.cat([shown, 1 - shown, torch.zeros_like(shown[:1])]), blocks)
            alone, without, nothing = scores.tensor_split([count, 2 * count], dim=1)
            everything, unit = whole[:, count : 2 * count], _unit(network, forward_pass)
            heat, error = evidence(alone, nothing, without, everything, features.rounding, unit)
        else:
            scores, _ = features.scores(shown, blocks)
            heat, error = scores - scores.amin(dim=1, keepdim=True), torch.zeros_like(own)
        maps = blocks.interpolated(heat.movedim(1, 2).reshape(*own.shape, *blocks.grid))
        passes = torch.full((len(own),), scores.shape[1], dtype=torch.int64, device=maps.device)
        return LayerMap(maps, passes, error)

    def _blocks(self, features: Tensor, image: Tensor, takes_copies: bool) -> Blocks:
        """Return the blocks of positions that are masked.

        Args:
            features: (K, *spatial), what the layer puts out for one image.
            image: (C, *spatial), that image.
            takes_copies: Whether only what comes after the layer runs for each mask.
        """
        spatial = features.shape[1:]
        if self.max_positions is None:
            return Blocks(spatial, 1)
        # What comes after the layer has as much to do as the layer puts out.
        cheap = max(_FEWEST, int(self.max_positions * _CHEAP * image.numel() / features.numel()))
        return Blocks.at_most(min(self.max_positions, cheap if takes_copies else _MOST_WHOLE_PASSES), spatial)

    def _masks(self, grid: torch.Size) -> Tensor:
        """Return (blocks, *grid), the mask of each block."""
        masks = torch.eye(grid.numel()).view(-1, *grid)
        if self.neighborhood == "gaussian":
            for axis in range(1, masks.ndim):
                masks = _smoothed(masks.movedim(axis, -1)).movedim(-1, axis)
        return masks


def _unit(network: Network, forward_pass: ForwardPass) -> Tensor:
    """Return (N, 1, 1), the size of the numbers that log-odds are made from, whose rounding they have."""
    scores, own = forward_pass.scores, forward_pass.target_scores.abs().amax(dim=1)
    if scores is not None:
        own = torch.maximum(own, scores.logits.abs().amax(dim=1).nan_to_num(0, 0, 0))
        kind = network.outputs.kind
        is_of_one = scores.logits.shape[1] == 2 or (kind is not None and kind.multi_label)
        if kind is not None and kind.outputs == "probabilities" and is_of_one:
            own = 2 + 2 * own.clamp_max(_LARGEST).cosh()  # the slope of log(p / (1 - p)), 1 / (p (1 - p))
    return own.nan_to_num(0, 0, 0).view(-1, 1, 1)


def _smoothed(masks: Tensor) -> Tensor:
    """Return masks (..., size), convolved with the kernel along the last axis; what leaves the image is lost."""
    wide = torch.nn.functional.pad(masks, [1, 1])
    return wide.unfold(-1, 3, 1) @ _GAUSSIAN
