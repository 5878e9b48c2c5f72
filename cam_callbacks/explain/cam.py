"""CAM: each channel weighted by the final linear layer (Zhou et al. 2016, arXiv 1512.04150)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.score_readers import ClassScoreReader
from cam_callbacks.explain.sharding import full_tensor
from cam_callbacks.explain.targets import RegressionTarget, Targets

_INSTEAD = "ScoreCAM and GradCAM explain this model"
_HALF_PRECISION = 0.02  # relative: two values of a model in half precision may differ by its rounding


@dataclass(frozen=True)
class CAM(Method):
    r"""CAM, for networks that end in a spatial mean and one linear layer; it takes one pass per image.

    The score of class c is linear in the means of the activations A_k, with weights w_k^c (the paper's M_c):

        heat = ReLU(sum_k w_k^c A_k)

    then upsampled and scaled to [0, 1] for each image. Networks whose last convolution *is* the class map (SqueezeNet)
    are read directly: heat = ReLU(A_c). Where the network applies a ReLU between layer and mean (DenseNet), it is
    applied to A_k too. The paper keeps negative values; here they are cut off, as in all later methods.

    Whether the network is of this kind is checked on the first image. Classes and `RegressionTarget` can be explained.

    Attributes:
        upsampling: See `Method`.
        multi_label: See `Method`.
        outputs: See `Method`.
        reshape_transform: See `Method`.
        batch_size: See `Method`.

    Raises:
        ValueError: An unknown upsampling. When called: a model that does not end in a spatial mean and one linear
            layer, such as AlexNet or VGG; the message says why, and which methods explain it instead.

    Example::

        from torchvision.models import resnet18
        from cam_callbacks import CAM

        images = torch.rand(2, 3, 224, 224)
        explanation = CAM()(resnet18(), images, target_layer="layer4", targets=[3, 7])
        explanation.heatmaps.shape  # (2, 224, 224)
    """

    name: ClassVar[str] = "CAM"

    def forward_pass(self, network: Network, target_layer: TargetLayer, targets: Targets) -> ForwardPass:  # noqa: D102
        layer = network.choose_layer(class_map=True) if target_layer is None else target_layer
        forward_pass = network.forward_pass(layer, targets, "logit")
        reader = forward_pass.reader
        is_of_numbers = all(isinstance(each, RegressionTarget) for each in _as_list(targets))
        if not (isinstance(reader, ClassScoreReader) or is_of_numbers):
            raise ValueError(
                "CAM explains classes and RegressionTarget, the outputs of the last layer; not targets="
                f"{reader.score}. {_INSTEAD}"
            )
        with _linear_calls(network.model) as calls:
            returned = network.run(network.images[:1].clone())
        output = network.outputs.columns(returned).float()
        activations, weights = [], []
        for name, maps in zip(forward_pass.layers, forward_pass.activations, strict=True):
            summed, matrix = _head(type(network.model).__name__, name, maps, output, calls)
            activations.append(summed)
            weights.append(_rows(matrix, forward_pass, targets))
        return replace(forward_pass, activations=activations, weights=weights)


@contextmanager
def _linear_calls(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor]]]:
    """Collect the linear layers whose input is vectors (n, features), each with its input."""
    calls: list[tuple[nn.Linear, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], _output: Tensor) -> None:
        features = inputs[0] if inputs else named["input"]
        if isinstance(module, nn.Linear) and features.ndim == 2:
            calls.append((module, features.float()))

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with hooked(linears, keep, with_kwargs=True):
        yield calls


def _head(
    model: str, layer: str, maps: Tensor, output: Tensor, calls: list[tuple[nn.Linear, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the maps on which the output depends linearly, and the (outputs, K) matrix of that dependence.

    Args:
        model: Name of the model, for messages.
        layer: Name of the layer, for messages.
        maps: (N, K, *spatial), the activations of the layer.
        output: (1, outputs), the model's output for the first image.
        calls: The linear layers that ran on that image, with their inputs.
    """
    means_lead_on = False
    for linear, features in reversed(calls):
        for summed in (maps, maps.relu()):
            means = summed[:1].flatten(2).mean(dim=2)
            if means.shape == features.shape and _is_close(means, features):
                weight = full_tensor(linear.weight).float()
                bias = None if linear.bias is None else full_tensor(linear.bias).float()
                answer = nn.functional.linear(features, weight, bias)
                if answer.shape == output.shape and _follows(answer, output):
                    return summed, weight
                means_lead_on = True
    if means_lead_on and len(calls) == 1:
        raise ValueError(f"CAM: the output of {model} is not that of its last linear layer; {_INSTEAD}")
    means = maps[:1].flatten(2).mean(dim=2)
    if means.shape == output.shape and _follows(means, output):
        return maps, torch.eye(output.shape[1], device=maps.device)
    if not calls:
        raise ValueError(
            f"CAM: the output of {model} is neither that of a linear layer nor the spatial mean of target_layer="
            f"{layer!r}. Leave target_layer out, and a layer that fits is looked for; or: {_INSTEAD}"
        )
    if len(calls) > 1:
        raise ValueError(
            f"CAM needs a spatial mean and one linear layer at the end; {model} has {len(calls)} fully connected "
            f"layers, so that no channel has a weight of its own for a class. {_INSTEAD}"
        )
    raise ValueError(
        f"CAM needs a spatial mean and one linear layer at the end; in {model} the input of the linear layer is not "
        f"the spatial mean of target_layer={layer!r} (a normalization, a class token or other layers lie between). "
        f"{_INSTEAD}"
    )


def _rows(matrix: Tensor, forward_pass: ForwardPass, targets: Targets) -> Tensor:
    """Return (N, T, K), the row of the matrix (outputs, K) for each target."""
    classes = forward_pass.reader.classes
    if classes is None:
        numbers = [each.index for each in _as_list(targets)]  # one for all images, or one for each
        return matrix[numbers].unsqueeze(1).expand(len(forward_pass.target_scores), 1, -1)
    if len(matrix) == 1:  # one logit: that of class 1, and its negative for class 0
        matrix = torch.cat([-matrix, matrix])
    return matrix[classes]


def _as_list(targets: Targets) -> list[Any]:
    return list(targets) if isinstance(targets, (list, tuple)) else [targets]


def _follows(logits: Tensor, output: Tensor) -> bool:
    """Whether an output is these logits, their softmax, its logarithm, or their sigmoid."""
    forms = (logits, logits.softmax(dim=1), logits.log_softmax(dim=1), logits.sigmoid())
    return any(_is_close(values, output) for values in forms)


def _is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _HALF_PRECISION * b.norm())
