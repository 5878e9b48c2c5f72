"""Diagnosis: which argument would have to change for a model to be explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from cam_callbacks.explain import forward_pass
from cam_callbacks.explain.forwarding import ForwardFn
from cam_callbacks.explain.isolation import isolated
from cam_callbacks.explain.method import Method
from cam_callbacks.explain.network import Network, TargetLayer
from cam_callbacks.explain.runner import Options
from cam_callbacks.explain.score_readers import TargetRequest
from cam_callbacks.explain.sharding import share
from cam_callbacks.explain.targets import Targets

Argument = Literal["forward_fn", "explain", "target_layer", "method"]


def failing_argument(
    method: Method,
    model: nn.Module,
    images: Tensor,
    target_layer: TargetLayer,
    targets: Targets,
    forward_fn: ForwardFn | None,
) -> Argument | None:
    """Find out what an explanation fails at, by taking its steps one by one.

    Args:
        method: The method.
        model: The model; it is left as it was.
        images: (N, C, *spatial).
        target_layer: As in `Method.__call__`.
        targets: As in `Method.__call__`.
        forward_fn: As in `Method.__call__`.

    Returns:
        The first step that fails, by the argument that decides it: `"forward_fn"`, the model cannot be run on the
        images, or no class scores are read from what it returns; `"explain"`, the targets do not fit that;
        `"target_layer"`, no layer with positions is found, or not in the one that is named; `"method"`, it does not
        apply to this model. None if nothing fails.
    """
    options = Options(method.batch_size, method.multi_label, method.reshape_transform, outputs=method.outputs)
    with isolated(model):
        network = Network(model, images, forward_fn, options)
        request = TargetRequest(targets, len(images))
        steps: dict[Argument, Callable[[], Any]] = {
            "forward_fn": network.scores if request.explains_classes else lambda: network.first_run(network.images),
            "explain": lambda: forward_pass.record(network, [], request, "logit", None),
            "target_layer": lambda: network.forward_pass(target_layer, targets),
            "method": lambda: method.forward_pass(network, target_layer, targets),
        }
        for argument, step in steps.items():
            try:
                step()
            except Exception as error:
                share(error)
                return argument
    return None
