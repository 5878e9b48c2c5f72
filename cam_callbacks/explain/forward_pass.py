"""ForwardPass: what one pass over the unmasked images gives to a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from cam_callbacks.explain import layers, layouts, progress
from cam_callbacks.explain.axes import AxisTracker, tracked
from cam_callbacks.explain.layers import ReadLayer
from cam_callbacks.explain.layouts import Layout
from cam_callbacks.explain.model_outputs import ClassScores
from cam_callbacks.explain.probing import Probe
from cam_callbacks.explain.runner import Runner
from cam_callbacks.explain.score_readers import Resolved, Score, ScoreReader, TargetRequest

_HALF_PRECISION_SCALES = (2.0**14, 2.0**7, 1.0)

Gradients = Literal["mean", "positions"]
"""Of each channel the mean of the gradient over its positions, or the gradient at each of them."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """What one pass over the unmasked images gives.

    Attributes:
        layers: Dotted names of the L target layers.
        readers: How the output of each layer is read.
        activations: Of each layer, (N, K, *spatial of the layer) float32, all of its positions.
        weights: Of each layer, (N, T, K) float32, what its channels weigh for each target, if that needs no further
            passes: with gradients, the mean over all positions of the gradient of the target's score; or, with that of
            each position, (N, T, K, *spatial of the layer).
        reader: Reads the explained scores out of what the model returns.
        target_scores: (N, T) float32, the explained scores.
        scores: All class scores of the N images; None if callables say what to explain.
        several: Whether the user asked for T targets for each image.
        empty_scores: (N, T) float32, the explained scores of the image that is 0 everywhere; None if not asked for.
    """

    layers: tuple[str, ...]
    readers: tuple[ReadLayer, ...]
    activations: list[Tensor]
    weights: list[Tensor]
    reader: ScoreReader
    target_scores: Tensor
    scores: ClassScores | None
    several: bool
    empty_scores: Tensor | None = None

    def covering(self, maps: Tensor, layer: int, repeats_edges: bool = False) -> Tensor:
        """Return maps (..., *spatial of the layer) whose positions cover the image, as `layouts.covering` does."""
        return layouts.covering(maps, self.readers[layer].margins, repeats_edges)

    @property
    def finite(self) -> Tensor:
        """(N,) bool, whether all activations and scores of an image are finite."""
        parts = [*self.activations, self.target_scores]
        if self.scores is not None:
            parts.append(self.scores.probabilities)
        return torch.stack([torch.isfinite(part).flatten(1).all(dim=1) for part in parts]).all(dim=0)


class _Part(NamedTuple):
    """The forward pass of a chunk of n images."""

    activations: list[Tensor]
    weights: list[Tensor]
    targets: Resolved
    target_scores: Tensor
    scores: ClassScores | None


def record(
    runner: Runner, layer_names: Sequence[str], request: TargetRequest, score: Score, gradients: Gradients | None
) -> ForwardPass:
    """Pass over the images of `runner` once; see `Network.forward_pass`.

    Args:
        runner: The model and the images.
        layer_names: The target layers.
        request: What to explain.
        score: Which score of a class is explained.
        gradients: Which gradients of the explained scores to take; None for none.
    """
    progress.expect(len(runner.images))
    parts: list[_Part] = []
    read: list[ReadLayer] = []  # found with the first chunk
    runner.in_chunks(
        len(runner.images),
        lambda chunk: parts.append(_record(runner, chunk, layer_names, request, score, gradients, read)),
    )
    scores = [part.scores for part in parts if part.scores is not None]
    return ForwardPass(
        layers=tuple(layer_names),
        readers=tuple(read),
        activations=[torch.cat(maps) for maps in zip(*(part.activations for part in parts), strict=True)],
        weights=[torch.cat(weights) for weights in zip(*(part.weights for part in parts), strict=True)],
        reader=request.reader([part.targets for part in parts], score, runner.outputs),
        target_scores=torch.cat([part.target_scores for part in parts]),
        scores=ClassScores(*map(torch.cat, zip(*scores, strict=True))) if scores else None,
        several=request.several,
    )


def _record(
    runner: Runner,
    chunk: slice,
    layer_names: Sequence[str],
    request: TargetRequest,
    score: Score,
    gradients: Gradients | None,
    read: list[ReadLayer],
) -> _Part:
    images, agreed = runner.images[chunk], runner.ranks.agreed
    modules = [layers.find(runner.model, name) for name in layer_names]
    with torch.set_grad_enabled(gradients is not None):
        with layers.recorded(modules, gradients is not None) as calls:
            if read:
                output = runner.first_run(images, runner.rows[chunk])
            else:
                tracker = AxisTracker(images)
                output = tracked(lambda: runner.first_run(images, runner.rows[chunk]), tracker, partial(_empty, calls))
        if not read:
            read += _read_layers(runner, images, layer_names, modules, calls, tracker)
        outputs = [each[layer.call] for each, layer in zip(calls, read, strict=True)]
        scores = None
        if request.explains_classes:
            scores = ClassScores(*(agreed(each.detach()) for each in runner.outputs.class_scores(output)))
        targets = request.resolve(chunk, output, scores, runner.outputs)
        rows = torch.arange(len(images), device=images.device)
        target_scores = request.reader([targets], score, runner.outputs).read(output, rows)
        # A checkpoint runs its part of the model again, and compares.
        with layers.recorded(modules, gradients is not None):
            is_half = any(each.dtype == torch.float16 for each in outputs)
            by_layer = gradients_of(target_scores, outputs, is_half) if gradients else []

    def weights_of(gradient: Tensor) -> Tensor:
        return gradient if gradients == "positions" else gradient.flatten(2).mean(dim=2)

    progress.advance(len(images))
    return _Part(
        activations=[agreed(layer.to_maps(each.detach()).float()) for layer, each in zip(read, outputs, strict=True)],
        weights=[
            # T times (n, K, *spatial) -> (n, T, K), or (n, T, K, *spatial)
            agreed(torch.stack([weights_of(layer.to_maps(each).float()) for each in by_target], dim=1))
            for layer, by_target in zip(read if gradients else [], by_layer, strict=True)
        ],
        targets=targets,
        target_scores=agreed(target_scores.detach()),
        scores=scores,
    )


def _empty(calls: Sequence[list[Any]]) -> None:
    for each in calls:
        each.clear()


def _read_layers(
    runner: Runner,
    images: Tensor,
    names: Sequence[str],
    modules: Sequence[nn.Module],
    calls: Sequence[list[Any]],
    tracker: AxisTracker,
) -> list[ReadLayer]:
    """Return how each layer is read: as its modules say, else as it responds to changes of small patches."""
    probes: list[Probe] = []  # of all layers, made if it is needed

    def layout(module: nn.Module, output: Tensor, call: int) -> Layout | None:
        found = tracker.layout(output)
        if found is not None or output.ndim < 3 or tracker.has_no_positions(output):
            return found
        if not probes:
            with torch.no_grad():
                probes.append(Probe(runner.try_run, images[:1], modules, len(images), runner.ranks.agreed))
        return probes[0].layout(module, call, output.shape, tracker.channels(output))

    for own, name in zip(calls, names, strict=True):
        if not own:
            with torch.no_grad():
                raise ValueError(layers.not_called(runner.model, name, lambda: runner.try_run(images[:1])))
    return [
        layers.read_layer(own, name, images, partial(layout, module), runner.reshape_transform)
        for own, name, module in zip(calls, names, modules, strict=True)
    ]


def gradients_of(
    target_scores: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], is_half: bool = False
) -> list[list[Tensor]]:
    """Return, for each input, the T gradients, float32, of the scores (n, T) with respect to it.

    Args:
        target_scores: The scores, (n, T).
        inputs: Tensors that they depend on, such as the outputs of layers, or their places in the graph.
        is_half: Whether gradients pass through float16, where small ones vanish unless they are scaled on the way.

    Raises:
        ValueError: The scores have no gradient there; the message says why that may be, and what to use instead.
    """
    remedy = "this method needs a differentiable score; ScoreCAM does not"
    cuts = "torch.no_grad, .detach(), rounding, a quantized part, torch.utils.checkpoint without use_reentrant=False"
    if not target_scores.requires_grad:
        raise ValueError(
            f"the explained score has no gradient: the model, or the callable, cuts it ({cuts}), or the target layer "
            f"comes after it. {remedy}"
        )
    scales = _HALF_PRECISION_SCALES if is_half else (1.0,)  # as in training, the largest that does not overflow
    for scale in scales:
        try:
            by_target = _scaled_gradients(target_scores, inputs, scale, is_last=scale == scales[-1])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # e.g. of an operation without a derivative
            raise ValueError(
                f"the gradient of the explained score cannot be taken: {str(error).rstrip('.')}. {remedy}"
            ) from error
        if any(gradient is None for gradients in by_target for gradient in gradients):
            raise ValueError(
                "the explained score does not depend on the target layer through any gradient: it does not depend on "
                f"it at all, or something on the way cuts the gradient ({cuts}). {remedy}"
            )
        found = [[gradient.float() / scale for gradient in gradients] for gradients in zip(*by_target, strict=True)]
        if not is_half or all(gradient.isfinite().all() for gradients in found for gradient in gradients):
            break
    return found


def _scaled_gradients(
    target_scores: Tensor, inputs: Sequence[Tensor] | Sequence[GradientEdge], scale: float, is_last: bool
) -> list[tuple[Tensor, ...]]:
    """Return, for each of T scores (n, T), the gradients of `scale` times it; keep the graph unless they are last."""
    columns = target_scores.unbind(dim=1)
    return [
        torch.autograd.grad(
            column.sum() * scale, inputs, retain_graph=not is_last or place + 1 < len(columns), allow_unused=True
        )
        for place, column in enumerate(columns)
    ]
