"""The calls of one forward: which modules put out positions, where these lie, and whether the answer is read there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain.axes import AxisTracker, tracked
from cam_callbacks.explain.gradient_graph import Edge, dependence, edge_of
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import Forward, readable
from cam_callbacks.explain.layouts import Layout
from cam_callbacks.explain.sharding import share

MIN_SIDE = 6  # positions along an axis, of a map that says where


@dataclass(eq=False)
class Call:
    """One call of a module whose output has positions, or may have.

    Attributes:
        place: Its place among all such calls.
        name: The dotted name of the module.
        module: The module.
        output: Its output, kept so that its identity stays unique.
        layout: How the output is read; None if that is not known.
        edge: Where the output is in the graph of gradients; None without gradients.
        call: Which of the module's calls it is.
        inner: The calls of parts of the module that returned the very same tensor.
        is_read: Whether the answer depends on the positions of the output; True if that is not known.
        gradient: NaN wherever the answer depends on a value of the output, else 0; None if that is not known.
        channels: The dimension of the channels, if it is known.
        is_input: Whether it is the image in another form: as many channels and positions, and no weights before it.
    """

    place: int
    name: str
    module: nn.Module
    output: Tensor
    layout: Layout | None
    edge: Edge | None
    call: int
    inner: list[Call]
    is_read: bool = True
    gradient: Tensor | None = None
    channels: int | None = None
    is_input: bool = False

    @property
    def positions(self) -> int:
        """The number of positions; 0 if the layout is not known."""
        return 0 if self.layout is None else math.prod(self.layout.spatial)

    @property
    def says_where(self) -> bool:
        """Whether there are enough positions for a map."""
        return self.layout is not None and self.positions >= MIN_SIDE**self.layout.axes

    @property
    def has_weights(self) -> bool:
        """Whether the module itself has parameters."""
        return next(self.module.parameters(recurse=False), None) is not None

    @property
    def is_tokens(self) -> bool:
        """Whether the output is tokens, has the channels last, or may have."""
        return self.channels != 1 if self.layout is None else not self.layout.is_channels_first

    @property
    def has_features(self) -> bool:
        """Whether the output is features, not merely rearranged ones or a step within an attention."""
        if self.inner:
            return any(call.has_features for call in self.inner)
        return not (self.is_input or _computes_no_features(self.module)) and (
            not self.is_tokens or _is_block_or_norm(self.module)
        )


@dataclass(eq=False)
class Trace:
    """The calls of one forward.

    Attributes:
        output: What the model returned.
        calls: All calls whose output has positions, or may have, in their order.
        head: How many of them come before the last call of a module with weights whose output has no positions.
        image: The image that it began with.
        source: Where that is in the graph of gradients; None without gradients.
        scores: The scores in the output, with their graph of gradients; None without.
        count: How often each module was called, by its identity.
    """

    output: Any
    calls: list[Call]
    head: int
    image: Tensor
    source: Edge | None
    count: dict[int, int]
    scores: Tensor | None = None


def traced(model: nn.Module, image: Tensor, forward: Forward) -> Trace:
    """Run `forward` on one image (1, C, *spatial), and return its calls."""
    trace = Trace(None, [], head=0, image=image, source=edge_of(image), count={})
    calls, count = trace.calls, trace.count
    names = {id(module): name for name, module in model.named_modules()}

    weights_ran = False

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal weights_ran
        weights_ran = weights_ran or next(module.parameters(), None) is not None
        call = count.get(id(module), 0)
        count[id(module)] = call + 1
        output = readable(output)
        layout = tracker.layout(output) if isinstance(output, Tensor) else None
        if layout is not None or _may_have_positions(output, tracker):
            name = names[id(module)]
            inner = [each for each in calls if each.output is output and each.name.startswith(f"{name}.")]
            is_input = not weights_ran and layout is not None and layout.to_maps(output).shape == image.shape
            calls.append(
                Call(
                    len(calls),
                    name,
                    module,
                    output,
                    layout,
                    edge_of(output),
                    call,
                    inner,
                    channels=tracker.channels(output),
                    is_input=is_input,
                )
            )
        elif next(module.parameters(recurse=False), None) is not None:
            trace.head = len(calls)

    def forget() -> None:
        calls.clear()
        count.clear()

    tracker = AxisTracker(image)
    with hooked([module for name, module in model.named_modules() if name], note):
        trace.output = tracked(lambda: forward(image), tracker, forget)
    return trace


def _may_have_positions(output: Any, tracker: AxisTracker) -> bool:
    """Whether positions may lie along an output of which that is not known."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or sum(size > 1 for size in output.shape) < 2:
        return False
    return output.ndim > 2 and not tracker.has_no_positions(output)


def traced_with_gradients(
    model: nn.Module, image: Tensor, forward: Forward, read: Callable[[Any], Tensor]
) -> Trace | None:
    """Return what `traced` does, and of each call whether the output depends on it; None without gradients."""
    try:
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            trace = traced(model, image.detach().clone().requires_grad_().clone(), forward)
            trace.scores = read(trace.output)
            reached = [call for call in trace.calls if call.output.requires_grad]
            found = dependence(trace.scores, [call.output for call in reached])
            gradients = {id(call): gradient for call, gradient in zip(reached, found, strict=True)}
            for call in trace.calls:
                call.gradient = gradients.get(id(call))
                call.is_read = depends(call.gradient, call.layout)
            return trace
    except (RuntimeError, TypeError, ValueError) as error:
        share(error)
        # There are no gradients, or tensors without values, or an output that is not understood. An error of the model
        # itself comes again, and is raised, when it runs without gradients.
        return None


def depends(gradient: Tensor | None, layout: Layout | None) -> bool:
    """Whether the answer depends on positions, by the gradient that `dependence` found."""
    return gradient is not None and bool(((gradient if layout is None else layout.to_maps(gradient)) != 0).any())


_POOLING = [f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for d in (1, 2, 3)]
_DROPOUT = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
_WITHOUT_FEATURES = tuple(getattr(nn, name) for name in [*_POOLING, *_DROPOUT, "Identity", "Softmax"])


def _computes_no_features(module: nn.Module) -> bool:
    # torchvision's Permute is recognized by its name, without importing torchvision.
    return isinstance(module, _WITHOUT_FEATURES) or type(module).__name__ == "Permute"


def _is_block_or_norm(module: nn.Module) -> bool:
    """Whether a module is a block or a normalization, not a part of an attention or of a block's inner network."""
    return next(module.children(), None) is not None or "norm" in type(module).__name__.lower()
