"""GradientMethod: what methods share that weigh a layer by the gradient of the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from cam_callbacks._checks import check_choice
from cam_callbacks.explain.forward_pass import ForwardPass, Gradients
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.targets import Targets


@dataclass(frozen=True)
class GradientMethod(Method):
    """One forward pass and, for each target, one backward pass from the score to the layer.

    Gradients are taken with respect to the activations only: parameters may be frozen, their gradients are not touched,
    and nothing before the layer is kept.

    Attributes:
        score: Whose gradient is taken: that of the class's `"logit"`, or of its `"probability"`. With the latter,
            evidence against other classes counts too, and gradients are tiny if the model is sure.

    Raises:
        ValueError: An unknown score or upsampling.
    """

    score: Literal["logit", "probability"] = "logit"
    of_positions: ClassVar[bool] = False
    """Whether each position of a channel has its own weight, its gradient; else the mean over all of them is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("score", self.score, get_args(Literal["logit", "probability"]))

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        gradients: Gradients = "positions" if self.of_positions else "mean"
        return network.forward_pass(target_layer, targets, self.score, gradients)
