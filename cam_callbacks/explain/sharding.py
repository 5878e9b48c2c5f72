"""Models whose weights are sharded across ranks (`fully_shard`), which all ranks have to run together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


def device_mesh(model: nn.Module) -> DeviceMesh | None:
    """Return the ranks across which the weights of a model are sharded; None if each rank holds all of them."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return next((part.device_mesh for part in model.parameters() if isinstance(part, DTensor)), None)


def full_tensor(parameter: Tensor) -> Tensor:
    """Return a weight as one tensor. If it is sharded, all its ranks have to call this."""
    detached = parameter.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


class Ranks:
    """The ranks that run one model together, on the same images.

    All of them go by what the first one reads. It decides what is forwarded next, and a pass that one rank makes and
    another does not would never end, so that not even their rounding may differ. A model that is not sharded is run by
    each rank alone.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        mesh = device_mesh(model)
        self._groups = [] if mesh is None else [mesh.get_group(dimension) for dimension in range(mesh.ndim)]

    @property
    def are_several(self) -> bool:
        """Whether no rank can run the model alone."""
        return bool(self._groups)

    def agreed(self, values: Tensor) -> Tensor:
        """Return the values that the first rank has."""
        if not self._groups:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        for group in self._groups:
            torch.distributed.broadcast(values, group=group, group_src=0)
        return values

    def smallest(self, number: int, device: torch.device) -> int:
        """Return the smallest of the numbers that the ranks have."""
        found = torch.tensor(number, device=device)
        for group in self._groups:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group)
        return int(found)
