"""Recipro-CAM: each position weighted by the score of what is at it alone (Byun & Lee 2022, arXiv 2209.14074)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from cam_callbacks._checks import check_choice
from cam_callbacks.explain import progress
from cam_callbacks.explain.feature_masks import FeatureMasks
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.method import LayerMap, Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.targets import Targets

Neighborhood = Literal["position", "gaussian"]

_GAUSSIAN = torch.tensor([1.0, 2.0, 1.0]) / 4  # along each axis: the 3 x 3 kernel of the authors


@dataclass(frozen=True)
class ReciproCAM(Method):
    r"""Recipro-CAM: no gradients, and one short pass for each position instead of a whole one for each channel.

    For the activations A of the layer, a class c, and a mask M_i that lets position i through:

        heat_i = p_c(the rest of the network on A * M_i) - the smallest of these

    then enlarged and scaled to [0, 1] for each image. For callables the score takes the place of p_c. Only what comes
    after the layer runs for each position, so the cost depends on how deep the layer is: at the end of a network a map
    costs little more than one pass.

    What belongs to no position, such as a class token, is kept (Byun & Lee 2023, arXiv 2310.02588). A transformer needs
    a layer before its last block, after which its class token has no way to see the other tokens.

    Attributes:
        neighborhood: What a mask lets through: its `"position"` alone, as the authors do in convolutional networks; or
            its 3 x 3 neighborhood by a `"gaussian"` kernel, as they do in transformers.

    The other settings are those of `Method`.

    Raises:
        ValueError: An unknown neighborhood or upsampling.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import ReciproCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = ReciproCAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    neighborhood: Neighborhood = "position"
    name: ClassVar[str] = "Recipro-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("neighborhood", self.neighborhood, get_args(Neighborhood))

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        return network.forward_pass(target_layer, targets)

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        count, spatial = len(network.images), forward_pass.activations[layer].shape[2:]
        masks = self._masks(spatial).to(network.images.device)
        features = FeatureMasks(
            network,
            forward_pass.layers[layer],
            forward_pass.readers[layer],
            forward_pass.reader,
            forward_pass.target_scores,
        )
        progress.expect(count * len(masks))
        scores = torch.stack([features.scores(image, masks) for image in range(count)])  # (N, positions, T)
        maps = (scores - scores.amin(dim=1, keepdim=True)).movedim(1, 2)
        passes = torch.full((count,), len(masks), dtype=torch.int64, device=maps.device)
        return LayerMap(maps.reshape(*maps.shape[:2], *spatial), passes, torch.zeros_like(forward_pass.target_scores))

    def _masks(self, spatial: torch.Size) -> Tensor:
        """Return (positions, *spatial), the mask of each position."""
        masks = torch.eye(spatial.numel()).view(-1, *spatial)
        if self.neighborhood == "gaussian":
            for axis in range(1, masks.ndim):
                masks = _smoothed(masks.movedim(axis, -1)).movedim(-1, axis)
        return masks


def _smoothed(masks: Tensor) -> Tensor:
    """Return masks (..., size), convolved with the kernel along the last axis; what leaves the image is lost."""
    wide = torch.nn.functional.pad(masks, [1, 1])
    return wide.unfold(-1, 3, 1) @ _GAUSSIAN
