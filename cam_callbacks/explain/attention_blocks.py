"""The blocks of a transformer and their attention, found in the graph that autograd keeps of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from cam_callbacks.explain.gradient_graph import Edge, edge_of, is_only_way
from cam_callbacks.explain.hooks import hooked, pre_hooked
from cam_callbacks.explain.layers import Forward, without_orig_mod

_LAST = 2**64 - 1  # how autograd keeps the dimension -1
_NEEDED = (
    "LeGrad needs blocks that attend among all tokens, one after the other, each with tokens along one dimension of "
    "its output and one attention inside, as in a ViT"
)
_OTHERS = "GradCAM, LayerCAM and ScoreCAM explain networks of any kind"


class NoBlocksError(ValueError):
    """A model has no blocks of attention that LeGrad understands; the message says what is missing.

    Args:
        model: The model.
        missing: What is not as it has to be.
    """

    def __init__(self, model: nn.Module, missing: str) -> None:
        super().__init__(f"{type(model).__name__}: {missing}. {_NEEDED}; {_OTHERS}")


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention in the graph: O = A V, with the attention matrix A and the values V.

    Attributes:
        edge: Where O is in the graph if the attention is fused, else A.
        values: V, (N, heads, keys, channels of a head), if it is fused, else None.
        keys: How many tokens are attended to.
    """

    edge: GradientEdge
    values: Tensor | None
    keys: int

    def of_matrix(self, gradient: Tensor) -> Tensor:
        """Return the gradient (..., queries, keys) float32 of a number with respect to A, from that at `edge`."""
        gradient = gradient.float()
        if self.values is None:
            return gradient
        with torch.autocast(gradient.device.type, enabled=False):
            return gradient @ self.values.detach().float().mT  # dA = dO V^T


def attentions(made: Tensor, source: Edge | None = None) -> list[Attention]:
    """Return what attention a tensor was made by, on all ways back to `source`, or to the beginning of the graph.

    Found are `F.scaled_dot_product_attention`, and softmax along the last of three dimensions or more.
    """
    start = edge_of(made)
    if start is None or start == source:
        return []
    seen, ahead, found = {start[0]}, [start[0]], []
    while ahead:
        node = ahead.pop()
        attention = _attention(node)
        if attention is not None:
            found.append(attention)
        for earlier, place in node.next_functions:
            if earlier is not None and (earlier, place) != source and earlier not in seen:
                seen.add(earlier)
                ahead.append(earlier)
    return found


def _attention(node: Any) -> Attention | None:
    name = node.name()
    if name.startswith("ScaledDotProduct"):
        return Attention(GradientEdge(node, 0), node._saved_value, node._saved_value.shape[-2])
    if name in ("SoftmaxBackward0", "SafeSoftmaxBackward0"):
        matrix = node._saved_result
        if matrix.ndim > 2 and node._saved_dim in (matrix.ndim - 1, _LAST):
            return Attention(GradientEdge(node, 0), None, matrix.shape[-1])
    return None


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of a module that puts out as many tokens as it takes.

    Attributes:
        name: The name of the module.
        module: The module.
        output: What it put out, (N, tokens, channels) or (tokens, N, channels).
        edge: Where that was in the graph at once.
        attention: The one attention inside.
    """

    name: str
    module: nn.Module
    output: Tensor
    edge: Edge
    attention: Attention


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a transformer, in their order.

    Attributes:
        names: Their dotted names.
        modules: The blocks.
        shape: That of what each of them puts out for one image.
        keys: How many tokens are attended to.
        is_pooled: Whether one attention after the last block pools the tokens.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    shape: torch.Size
    keys: int
    is_pooled: bool

    @contextmanager
    def ending_at(self, block: nn.Module) -> Iterator[Ending]:
        """Let the model go on from what `block` puts out with what follows its last block.

        The graph of gradients begins at the entry of the block. The other blocks run, and what they make is dropped.
        """
        ending = Ending()

        def pass_on(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if module is block:
                ending.tokens = output
                ending.inside = attentions(output)
            if module is self.modules[-1]:
                assert ending.tokens is not None
                ending.edge = edge_of(ending.tokens)
                return ending.tokens
            return output.detach().requires_grad_().clone()

        with hooked(self.modules, pass_on):
            yield ending


class Ending:
    """Where a model went on from the output of one of its blocks, filled in while it runs.

    Attributes:
        tokens: The output of the block.
        edge: Where that is in the graph.
        inside: The attention inside of the block.
    """

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self.edge: Edge | None = None
        self.inside: list[Attention] = []


def find_blocks(model: nn.Module, image: Tensor, forward: Forward, read: Callable[[Any], Tensor]) -> Blocks:
    """Find the blocks of a transformer by running it on one image, with gradients.

    Args:
        model: The model; to be called inside `isolated`.
        image: (1, C, *spatial).
        forward: Runs the model on images.
        read: Reads the scores (1, classes, ...) out of what `forward` returns.

    Raises:
        NoBlocksError: There are none, or not one after the other, or there is attention elsewhere.
    """
    with torch.enable_grad():
        image = image.detach().clone()
        if image.is_floating_point():  # so that parts that are frozen have gradients, too
            image = image.requires_grad_().clone()
        calls, output = _calls_with_one_attention(model, image, forward)
        scores = read(output)
    if not calls:
        raise NoBlocksError(
            model, "no module takes tokens, puts out as many and has one attention inside with a gradient"
        )
    kinds = {(type(call.module), call.output.shape) for call in calls}
    if len(kinds) > 1 or len({id(call.module) for call in calls}) < len(calls):
        first, last = calls[0].name, calls[-1].name
        raise NoBlocksError(model, f"the modules with attention, {first!r} to {last!r}, are not alike, or called twice")
    _check_order(model, calls, edge_of(image), scores)
    after = attentions(scores, calls[-1].edge)
    keys = {attention.keys for attention in (*after, *(call.attention for call in calls))}
    if len(attentions(scores)) > len(calls) + len(after):
        raise NoBlocksError(model, f"there is attention before {calls[0].name!r} that no such block holds")
    if len(after) > 1 or len(keys) > 1:
        raise NoBlocksError(model, f"{calls[-1].name!r} is followed by attention that does not pool its tokens")
    return Blocks(
        tuple(without_orig_mod(call.name) for call in calls),
        tuple(call.module for call in calls),
        calls[0].output.shape,
        keys.pop(),
        bool(after),
    )


def _check_order(model: nn.Module, calls: Sequence[_Call], image: Edge | None, scores: Tensor) -> None:
    """Raise if the scores are made from the image, or from a block, other than by way of the next block."""
    end, before, what = edge_of(scores), image, "the image"
    for call in calls:
        if end is None or (before is not None and not is_only_way(call.edge, end, before)):
            raise NoBlocksError(model, f"the answer is not made from {what} by way of {call.name!r} alone")
        before, what = call.edge, repr(call.name)


def _calls_with_one_attention(model: nn.Module, image: Tensor, forward: Forward) -> tuple[list[_Call], Any]:
    """Return the outermost calls of modules with as many tokens in as out and one attention; and the model's output."""
    names = {id(module): name for name, module in model.named_modules()}
    entered: dict[int, tuple[torch.Size, Edge | None]] = {}
    calls: list[_Call] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        tokens = next((each for each in inputs if isinstance(each, Tensor)), None)
        if tokens is not None:  # asked at once: the module may change it in place
            entered[id(module)] = tokens.shape, edge_of(tokens)

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        shape, source = entered.pop(id(module), (None, None))
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape != shape:
            return
        edge, found = edge_of(output), attentions(output, source)
        if edge is not None and len(found) == 1:
            name = names[id(module)]
            inner = f"{name}." if name else ""
            calls[:] = [call for call in calls if not call.name.startswith(inner)]
            calls.append(_Call(name, module, output, edge, found[0]))

    modules = list(model.modules())
    with pre_hooked(modules, enter), hooked(modules, leave):
        output = forward(image)
    return calls, output
