"""Models whose weights are sharded across ranks (`fully_shard`), which all ranks have to run together."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from cam_callbacks._checks import is_kind
from cam_callbacks.explain.hooks import hooked, pre_hooked

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RanksPartedError(Exception):
    """The ranks that run one model together are not about to do the same, most often because one has failed.

    It is raised on all of them.
    """

    def __init__(self) -> None:
        super().__init__("another rank, which has to run the model together with this one, has failed or goes on alone")

    @property
    def own_error(self) -> Exception | None:
        """The error of this rank; None where another one has failed."""
        return self.__cause__ if isinstance(self.__cause__, Exception) else None


def device_mesh(model: nn.Module) -> DeviceMesh | None:
    """Return the ranks across which the weights of a model are sharded; None if each rank holds all of them."""
    return next(iter(_meshes(model)), None)


def full_tensor(parameter: Tensor) -> Tensor:
    """Return a weight as one tensor. If it is sharded, all its ranks have to call this."""
    detached = parameter.detach()
    if not isinstance(detached, DTensor):
        return detached
    _meet("weight", detached.shape)
    return detached.full_tensor()


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """Let the ranks of a sharded model run it together inside, and fail together; do nothing for other models.

    Before each exchange of weights, and at the end, they ask each other whether all are at the same place. So a rank
    that fails, wherever that is, never leaves the others waiting. What fails on all of them alike may be caught inside,
    and all go on.

    Raises:
        RanksPartedError: What fails on one rank ends this for all; on that one, its own error is raised.
    """
    meshes = _meshes(model)
    if not meshes or _LOCKSTEP.get() is not None:
        yield
        return
    lockstep = _Lockstep(model, meshes)
    token = _LOCKSTEP.set(lockstep)
    failed: Exception | None = None
    try:
        with lockstep.listening():
            yield
    except Exception as error:
        failed = error
    finally:
        _LOCKSTEP.reset(token)
    failed = lockstep.end(failed)
    if failed is not None:
        raise failed


def share(error: Exception) -> None:
    """Call this before an error is caught for good inside `together`: only one that all ranks have may be.

    Raises:
        RanksPartedError: Another rank does not have it.
    """
    if isinstance(error, RanksPartedError):
        raise error
    try:
        _meet("error", type(error).__name__)
    except RanksPartedError as parted:
        raise parted from error


class Ranks:
    """The ranks that run one model together, on the same images.

    All of them go by what the first one reads. It decides what is forwarded next, and a pass that one rank makes and
    another does not ends the look, so that not even their rounding may differ. A model that is not sharded is run by
    each rank alone.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._groups = _groups(_meshes(model))

    @property
    def are_several(self) -> bool:
        """Whether no rank can run the model alone."""
        return bool(self._groups)

    def agreed(self, values: Tensor) -> Tensor:
        """Return the values that the first rank has."""
        if not self._groups:
            return values
        _meet("values", values.shape, values.dtype)
        values = values.clone(memory_format=torch.contiguous_format)
        for group in self._groups:
            torch.distributed.broadcast(values, group=group, group_src=0)
        return values

    def smallest(self, number: int, device: torch.device) -> int:
        """Return the smallest of the numbers that the ranks have."""
        if self._groups:
            _meet("number")
        found = torch.tensor(number, device=device)
        for group in self._groups:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group)
        return int(found)


class _Lockstep:
    """Keeps the ranks of a sharded model at the same place: they meet before each exchange of weights.

    Weights are exchanged when a part of the model that was given to `fully_shard` begins its forward, or its backward.

    Args:
        model: The model.
        meshes: The ranks that hold its weights.
    """

    def __init__(self, model: nn.Module, meshes: list[DeviceMesh]) -> None:
        self._shards = _shards(model)
        self._parts = list(dict.fromkeys([model, *self._shards]))
        self._groups = _groups(meshes)
        self._device = meshes[0].device_type
        self._parted: RanksPartedError | None = None
        self._has_run = False
        self._forwards = 0  # that have begun and not ended
        self._is_in_backward = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meet before each exchange of weights inside."""
        with ExitStack() as stack:
            for place, part in enumerate(self._parts):
                stack.enter_context(pre_hooked([part], partial(self._begin_forward, place), first=True))
                stack.enter_context(hooked([part], partial(self._end_forward, place), first=True))
            yield

    def meet(self, *what: object) -> None:
        """Go on if all ranks are about to do the same.

        Args:
            *what: What this rank is about to do; compared by its text.

        Raises:
            RanksPartedError: On all ranks, now and whenever this is called again.
        """
        if self._parted is not None:
            raise self._parted
        number = zlib.crc32(repr(what).encode())
        found = torch.tensor([number, -number], device=self._device)
        for group in self._groups:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group)
        largest, smallest_negated = found.tolist()
        if largest != -smallest_negated:
            self._parted = RanksPartedError()
            raise self._parted

    def end(self, error: Exception | None) -> Exception | None:
        """Meet for the last time; where the model was stopped in the middle, let it begin anew the next time.

        Args:
            error: What this rank has come to the end with.

        Returns:
            The error of this rank, or else that another one has failed; None where all is well.
        """
        try:
            self.meet("end" if error is None else "error")
        except RanksPartedError as parted:
            error = error or parted
        is_broken_off = self._forwards > 0 or self._is_in_backward
        if self._has_run and (error is not None or is_broken_off):
            self._begin_anew()
        return error.own_error or error if isinstance(error, RanksPartedError) else error

    def _begin_forward(self, place: int, _module: nn.Module, _inputs: Any) -> None:
        self.meet("forward", place)
        self._has_run = True
        self._forwards += 1

    def _end_forward(self, place: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._forwards -= 1
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(partial(self._begin_backward, place))  # type: ignore[no-untyped-call]

    def _begin_backward(self, place: int, _gradient: Tensor) -> None:
        self.meet("backward", place)
        if not self._is_in_backward:
            self._is_in_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self._is_in_backward = False

    def _begin_anew(self) -> None:
        """Give up the forward, or backward, that has ended in the middle, and the weights that were gathered for it."""
        inner = {each for part in self._shards for each in part.modules() if each is not part}
        for root in self._shards:
            if root in inner:
                continue
            try:
                root.reset_iter_state()
            except (AttributeError, RuntimeError):  # torch does not have it yet, or this is a part of a larger model
                for part in self._shards:
                    part.reshard()


_LOCKSTEP: ContextVar[_Lockstep | None] = ContextVar("the ranks that run a sharded model", default=None)


def _meet(*what: object) -> None:
    lockstep = _LOCKSTEP.get()
    if lockstep is not None:
        lockstep.meet(*what)


_KNOWN: WeakKeyDictionary[nn.Module, list[DeviceMesh]] = WeakKeyDictionary()


def _meshes(model: nn.Module) -> list[DeviceMesh]:
    """Return all groups of ranks across which weights of a model are sharded.

    After a forward its weights may still be gathered, and look like those of any other model. So what was found once is
    remembered, and what is not known yet is asked of the shards.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    if model not in _KNOWN:
        found = _visible_meshes(model)
        shards = _shards(model)
        if shards and not found:
            for part in shards:
                part.reshard()
            found = _visible_meshes(model)
        if not found:
            return []
        _KNOWN[model] = found
    return _KNOWN[model]


def _visible_meshes(model: nn.Module) -> list[DeviceMesh]:
    return list(dict.fromkeys(part.device_mesh for part in model.parameters() if isinstance(part, DTensor)))


def _shards(model: nn.Module) -> list[Any]:
    """Return the parts of a model that were given to `fully_shard`."""
    return [part for part in model.modules() if is_kind(part, "FSDPModule")]


def _groups(meshes: list[DeviceMesh]) -> list[ProcessGroup]:
    groups = [mesh.get_group(dimension) for mesh in meshes for dimension in range(mesh.ndim)]
    return list({group.group_name: group for group in groups}.values())
