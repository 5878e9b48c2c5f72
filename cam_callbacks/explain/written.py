"""What a forward writes in place, into tensors, NumPy arrays and generators of random numbers: put back as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    is_traceable_wrapper_subclass,
)

WRITABLE = (Tensor, np.ndarray, torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_AT_ONCE = 2**27  # bytes that are copied whether they will be written to or not
_UNDECLARED = frozenset({"running_mean", "running_var"})  # batch norms write to them, and their schemas do not say so


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts back what is written in place to given values, by whatever name or alias.

    Up to 128 MiB of them are copied at once, the smallest first. Each tensor beyond, and each in memory that others may
    write to meanwhile (shared with other processes, a file's, a buffer's), is copied when an operation is about to
    write to it: let what may write run inside `self.watched()`. Memory that tensors share is copied once.

    A tensor that is given other memory (`tensor.data = other`) is given its own back. It keeps the other where that
    has another shape, type or device: then a library has packed or gathered it, and knows so.

    Not put back are arrays beyond 128 MiB or in memory of others, and tensors of both kinds that are written to past
    torch's operations, or in another thread. What another thread writes to the rest meanwhile is lost.

    Args:
        values: Values of the kinds `WRITABLE`; what cannot be copied, such as a sparse or a lazy tensor, is left alone.
    """

    supports_higher_order_operators = True

    def __init__(self, values: Iterable[object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._aliases: list[tuple[Tensor, Tensor, object]] = []
        self._watched: dict[int, torch.UntypedStorage] = {}
        self._copies: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []
        self._put_back: list[Callable[[], object]] = []
        memory: dict[int, torch.UntypedStorage | np.ndarray[Any, Any]] = {}
        with torch._C.DisableTorchFunctionSubclass():
            for value in values:
                with suppress(Exception):  # a value may be as odd as it likes
                    if isinstance(value, Tensor):
                        memory.update((storage._cdata, storage) for storage in map(self._alias, _plain(value)))
                    elif isinstance(value, np.ndarray):
                        if not _is_of_others(value):
                            memory[id(value)] = np.asarray(value)
                    else:
                        self._put_back.append(_rewinding(value))
        left = _AT_ONCE
        for key, each in sorted(memory.items(), key=lambda item: _bytes(item[1])):
            left -= _bytes(each)
            if isinstance(each, np.ndarray):
                if left >= 0 and each.flags.writeable:
                    self._put_back.append(partial(_refill, each, each.copy()))
            elif left >= 0 and not _is_of_others(each):
                self._copies.append((each, each.clone()))  # type: ignore[no-untyped-call]
            else:
                self._watched[key] = each

    def watched(self) -> AbstractContextManager[object]:
        """Return the context in which a tensor is copied before it is written to."""
        return self if self._watched else nullcontext()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for place, name in _written(func):
            written = args[place] if place < len(args) else kwargs.get(name)
            for tensor in written if isinstance(written, (list, tuple)) else [written]:
                if isinstance(tensor, Tensor):
                    self._keep(tensor)
        return func(*args, **kwargs)

    def restore(self) -> None:
        """Let all values be what they were when this was made."""
        for tensor, alias, place in self._aliases:
            if _place(tensor) != place and (_memory(tensor) == _memory(alias) or _form(tensor) == _form(alias)):
                with torch.inference_mode(alias.is_inference()):
                    tensor.data = alias
        for storage, copy in self._copies:
            if storage.nbytes() < copy.nbytes():
                storage.resize_(copy.nbytes())
            now, before = _numbers(storage, copy.nbytes()), _numbers(copy, copy.nbytes())
            # Other devices would be waited for at each comparison; memory of the CPU may be a file's, only to be read.
            if now.device.type != "cpu" or not torch.equal(now, before):
                now.copy_(before)
        for put_back in self._put_back:
            with suppress(Exception):
                put_back()

    def _alias(self, tensor: Tensor) -> torch.UntypedStorage:
        """Remember which memory a tensor has, and return that."""
        alias = tensor.data
        self._aliases.append((tensor, alias, _place(alias)))
        return alias.untyped_storage()

    def _keep(self, tensor: Tensor) -> None:
        """Copy the memory of a tensor, if it is to be put back and is not copied yet."""
        memory: list[int] = []
        with suppress(Exception):  # a tensor may be as odd as it likes
            memory = list(map(_memory, _plain(tensor)))
        for key in memory:
            if key in self._watched:
                storage = self._watched[key]
                self._copies.append((storage, storage.clone()))  # type: ignore[no-untyped-call]
                del self._watched[key]  # not before: if there is no memory for the copy, nothing is written either


@contextmanager
def unwatched() -> Iterator[None]:
    """Let no writing be watched inside: `torch.compile` does not compile while operations are, and all are slower."""
    modes: list[Writes] = []
    while isinstance(mode := _get_current_dispatch_mode(), Writes):
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        modes.append(mode)
    try:
        yield
    finally:
        for mode in reversed(modes):
            mode.__enter__()  # type: ignore[no-untyped-call]


@cache
def _written(operation: Any) -> tuple[tuple[int, str], ...]:
    """Return which arguments an operation writes to, by their places and names."""
    schema = getattr(operation, "_schema", None)
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(() if schema is None else schema.arguments)
        if argument.name in _UNDECLARED or (argument.alias_info is not None and argument.alias_info.is_write)
    )


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the values of a tensor: itself, unless its class wraps others."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    elif tensor.layout == torch.strided and not is_lazy(tensor) and tensor.untyped_storage().device.type != "meta":
        yield tensor


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> object:
    """Return where in which memory the values of a tensor are."""
    return _memory(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _form(tensor: Tensor) -> object:
    return tensor.shape, tensor.dtype, tensor.device


def _bytes(memory: torch.UntypedStorage | np.ndarray[Any, Any]) -> int:
    return memory.nbytes if isinstance(memory, np.ndarray) else memory.nbytes()


def _is_of_others(memory: torch.UntypedStorage | np.ndarray[Any, Any]) -> bool:
    """Whether memory is not, or not only, that of torch or NumPy: shared, mapped from a file, lent by a buffer."""
    if isinstance(memory, np.ndarray):
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        return isinstance(memory, np.memmap) or not (memory.base is None or isinstance(memory.base, Tensor))
    return memory.device.type == "cpu" and (memory.is_shared() or not memory.resizable())


def _numbers(storage: torch.UntypedStorage, size: int) -> Tensor:
    """Return the first `size` bytes of a storage as a tensor (numbers,), of eight bytes each where that is possible."""
    dtype = torch.uint8 if size % 8 else torch.int64
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, 0, (size // dtype.itemsize,), (1,))


def _refill(array: np.ndarray[Any, Any], copy: np.ndarray[Any, Any]) -> None:
    if array.shape != copy.shape or array.tobytes() != copy.tobytes():
        array[...] = copy


def _rewinding(generator: Any) -> Callable[[], object]:
    """Return what lets a generator of random numbers draw again what it would draw now."""
    if isinstance(generator, random.Random):
        return partial(random.Random.setstate, generator, random.Random.getstate(generator))
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return partial(setattr, bits, "state", bits.state)
    return partial(generator.set_state, generator.get_state())
