"""Which way a model goes from its images to a layer, read from the graph that autograd keeps of a forward pass."""

from __future__ import annotations

from typing import TypeAlias

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
