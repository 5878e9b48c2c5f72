"""Grad-CAM: each channel weighted by the mean gradient of the score (Selvaraju et al. 2017, arXiv 1610.02391)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cam_callbacks.explain.gradient_method import GradientMethod


@dataclass(frozen=True)
class GradCAM(GradientMethod):
    r"""Grad-CAM: one forward pass and, for each target, one backward pass from the score to the layer.

    For the score y of a class and activations A_k (equations 1 and 2 of the paper):

        w_k  = mean over all positions of dy / dA_k
        heat = ReLU(sum_k w_k A_k)

    then upsampled and scaled to [0, 1] for each image. Gradients are taken with respect to the activations only:
    parameters may be frozen, their gradients are not touched, and nothing before the layer is kept.

    Attributes:
        score: Whose gradient is taken: that of the class's `"logit"`, as in the paper, or of its `"probability"`. With
            the latter, evidence against other classes counts too, and gradients are tiny if the model is sure.
        upsampling: See `Method`.
        multi_label: See `Method`.
        outputs: See `Method`.
        reshape_transform: See `Method`.
        batch_size: See `Method`.

    Raises:
        ValueError: An unknown score or upsampling.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import GradCAM

        images = torch.rand(2, 3, 224, 224)
        explanation = GradCAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    name: ClassVar[str] = "Grad-CAM"
