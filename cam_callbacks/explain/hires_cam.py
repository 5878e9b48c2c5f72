"""HiResCAM: each position of a channel weighted by its own gradient (Draelos & Carin 2020, arXiv 2011.08891)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cam_callbacks.explain.gradient_method import GradientMethod


@dataclass(frozen=True)
class HiResCAM(GradientMethod):
    r"""HiResCAM: Grad-CAM without the mean over positions, which may show what the model did not use.

    For the score y of a class and activations A_k (equation 4 of the paper):

        heat = ReLU(sum_k dy / dA_k * A_k),   position by position

    then upsampled and scaled to [0, 1] for each image. Where only a mean over positions and a linear layer follow, it
    equals Grad-CAM and CAM. If the rest of the network is linear, the sum of the map before the ReLU is the score, up
    to a constant.

    Settings and errors are those of `GradCAM`.

    Example::

        from torchvision.models import vgg11
        from cam_callbacks import HiResCAM

        images = torch.rand(2, 3, 64, 64)
        explanation = HiResCAM()(vgg11(), images, target_layer="features.19", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 64, 64)
    """

    of_positions: ClassVar[bool] = True
    name: ClassVar[str] = "HiResCAM"
