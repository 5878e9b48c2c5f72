"""The processes over which a model's weights are spread (`fully_shard`), and how they stay together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cam_callbacks.explain import layers


class Processes:
    """All of them run the model on the same images, and go by what the first one reads.

    What they read decides what is forwarded next, and a pass that one process makes and another does not would never
    end: so not even their rounding may differ. A model that each process holds for itself has no others.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        mesh = layers.device_mesh(model)
        self._groups = [] if mesh is None else [mesh.get_group(dimension) for dimension in range(mesh.ndim)]

    @property
    def are_several(self) -> bool:
        """Whether none of them can run the model alone."""
        return bool(self._groups)

    def agreed(self, values: Tensor) -> Tensor:
        """The values that the first process has."""
        if not self._groups:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        for group in self._groups:
            torch.distributed.broadcast(values, group=group, group_src=0)
        return values

    def smallest(self, number: int, device: torch.device) -> int:
        """The smallest of the numbers that they have."""
        found = torch.tensor(number, device=device)
        for group in self._groups:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group)
        return int(found)
