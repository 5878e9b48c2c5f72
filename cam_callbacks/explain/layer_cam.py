"""LayerCAM: each position weighted by its positive gradient (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cam_callbacks.explain.explanation import upsample
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.gradient_method import GradientMethod
from cam_callbacks.explain.method import LayerMap, finest
from cam_callbacks.explain.network import Network

_GAMMA = 2.0  # the authors' scale factor


@dataclass(frozen=True)
class LayerCAM(GradientMethod):
    r"""LayerCAM: fine maps also from early layers, where Grad-CAM's mean over positions says little.

    For the score y of a class and activations A_k:

        heat = ReLU(sum_k ReLU(dy / dA_k) * A_k),   position by position

    then upsampled and scaled to [0, 1] for each image. Maps M of several layers are fused after the authors, as
    torchcam does: each becomes tanh(2 M / max M), and the largest value of each position is taken.

    Settings and errors are those of `GradCAM`.

    Example::

        from torchvision.models import vgg11
        from cam_callbacks import LayerCAM

        images = torch.rand(2, 3, 64, 64)
        explanation = LayerCAM()(vgg11(), images, target_layer=["features.9", "features.19"], targets=[3, 7])
        explanation.heatmaps.shape  # (2, 64, 64)
    """

    of_positions: ClassVar[bool] = True
    name: ClassVar[str] = "LayerCAM"

    def layer_map(self, network: Network, forward_pass: ForwardPass, layer: int) -> LayerMap:  # noqa: D102
        return LayerMap.weighted(forward_pass.activations[layer], forward_pass.weights[layer].relu())

    def fused(self, maps: Sequence[Tensor]) -> Tensor:  # noqa: D102
        size = finest(maps)
        scaled = []
        for each in maps:
            largest = each.flatten(2).amax(dim=2).clamp_min(torch.finfo(each.dtype).tiny)
            bent = torch.tanh(_GAMMA * each / largest.view(*each.shape[:2], *[1] * len(size)))
            scaled.append(upsample(bent.flatten(0, 1), size).view(*each.shape[:2], *size))
        return torch.stack(scaled).amax(dim=0)
