"""Which ways a model goes from its images to its answer, read from the graph that autograd keeps of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node

Edge: TypeAlias = tuple[Node, int]
"""A tensor in the graph: the operation that made it, and which of its outputs it is."""


def edge_of(tensor: Tensor) -> Edge | None:
    """Return where a tensor is in the graph; None if no operation with gradients made it.

    Ask at once: an in-place operation moves the tensor to another place.
    """
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def is_only_way(way: Edge, start: Edge, source: Edge) -> bool:
    """Return whether all that `start` was made from `source` passes through `way`, and something does.

    Args:
        way: A tensor that may lie between the two.
        start: The later tensor.
        source: The earlier one.
    """
    seen, ahead, is_on_the_way = {start}, [start], False
    while ahead:
        operation, _ = ahead.pop()
        for node, place in operation.next_functions:
            if node is None:
                continue
            edge = node, place
            if edge == way:
                is_on_the_way = True
            elif edge == source:
                return False
            elif edge not in seen:
                seen.add(edge)
                ahead.append(edge)
    return is_on_the_way


def is_made_from(late: Edge, early: Edge) -> bool:
    """Return whether a tensor was made from another, earlier one."""
    seen, ahead = {late}, [late]
    while ahead:
        operation, _ = ahead.pop()
        for node, place in operation.next_functions:
            if node is not None and (node, place) not in seen:
                seen.add((node, place))
                ahead.append((node, place))
    return early in seen and late != early


def dependence(output: Tensor, inputs: Sequence[Tensor], direct: bool = False) -> list[Tensor | None]:
    """Return gradients of an output: NaN wherever it depends on an input, else 0. The graph is kept.

    NaN is passed back because, unlike a gradient, it does not vanish where weights are 0, as those of a head that is
    not trained yet may be.

    Args:
        output: What may depend on the inputs.
        inputs: Those asked about.
        direct: Whether an input does not count where the output depends on it by way of another one only.

    Returns:
        A gradient for each input; None for those that the output was not made from.
    """
    passed: dict[int, Tensor] = {}

    def stop(tensor: Tensor) -> torch.utils.hooks.RemovableHandle:
        def note(gradient: Tensor) -> Tensor:
            passed[id(tensor)] = gradient
            return torch.zeros_like(gradient)

        return tensor.register_hook(note)  # type: ignore[no-any-return, no-untyped-call]

    handles = [stop(tensor) for tensor in {id(tensor): tensor for tensor in inputs}.values()] if direct else []
    try:
        nan = torch.full_like(output, torch.nan)
        gradients = torch.autograd.grad(output, inputs, nan, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return [passed.get(id(tensor)) for tensor in inputs] if direct else list(gradients)
