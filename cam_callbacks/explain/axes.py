"""Follows the axes of the images through a forward: what lies along each dimension of each tensor.

Whoever makes a tensor decides where its channels are: a convolution, its norm and pooling have them in dimension 1,
linear layers, layer norms and attention in the last. Rearrangements are followed exactly. What an unknown operation
makes is unknown; the sum with something known (a residual) makes it known again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cam_callbacks.explain.layouts import Layout, Run

_CHANNELS = "channels"


@dataclass(frozen=True)
class _Atom:
    """A factor of a dimension's size.

    Attributes:
        size: The factor.
        what: The channels, an axis of the images, -1 - axis for the places within each part of an axis that was taken
            apart, a run of positions with others around it, or None: not known.
    """

    size: int
    what: str | int | Run | None = None

    @property
    def is_axis(self) -> bool:
        return isinstance(self.what, int) and self.what >= 0


_Dim = tuple[_Atom, ...]
"""What lies along one dimension, slowest first."""


class AxisTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows what lies along the dimensions of all tensors that are made inside it.

    A tensor is recognized by its memory, shape and strides. Memory is used again, but whatever is made in it is noted
    in place of what was there.

    Args:
        images: (N, C, *spatial), what the forward begins with.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[object, tuple[_Dim, ...]] = {}
        self._images = len(images)
        self._axes = images.ndim - 2
        self._note(
            images, [(), _channels(images.shape[1]), *(_axis(k, images.shape[2 + k]) for k in range(self._axes))]
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        try:
            self._follow(func, args, kwargs or {}, result)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            for each in _tensors(result):  # an operation that is called in another way than known
                self._note(each, None)
        return result

    def forget(self) -> None:
        """Know nothing any more."""
        self._known.clear()

    def layout(self, output: Tensor) -> Layout | None:
        """Return the layout of an output; None if it is not known, or if there is no more than one position."""
        dims = self._of(output)
        channels = [place for place, dim in enumerate(dims) if _is_channels(dim)]
        runs = [(place, run) for place, dim in enumerate(dims) if (run := _run(dim)) is not None]
        taken = {*channels, *(place for place, _ in runs)}
        others = [place for place in range(output.ndim) if place not in taken]
        along = [axis for _, run in runs for axis in run.axes]
        if len(channels) != 1 or len(others) != 1 or len(set(along)) < len(along) or not output.is_floating_point():
            return None
        if output.shape[others[0]] != self._images or math.prod(run.count for _, run in runs) < 2:
            return None
        return Layout(others[0], channels[0], tuple(runs), self._axes)

    def channels(self, output: Tensor) -> int | None:
        """Return the dimension of an output's channels; None if it is not known."""
        places = [place for place, dim in enumerate(self._of(output)) if _is_channels(dim)]
        return places[0] if len(places) == 1 else None

    def has_no_positions(self, output: Tensor) -> bool:
        """Whether it is known that nothing but images and channels lies along an output."""
        dims = self._of(output)
        others = [place for place, dim in enumerate(dims) if not _is_channels(dim) and output.shape[place] > 1]
        return len(others) <= (self._images > 1) and any(map(_is_channels, dims))

    def _of(self, tensor: Tensor) -> list[_Dim]:
        try:
            known = self._known.get(_key(tensor))
        except (NotImplementedError, RuntimeError):  # it has no memory of its own
            known = None
        return list(known) if known is not None else [_unknown(size) for size in tensor.shape]

    def _note(self, tensor: Tensor, dims: Sequence[_Dim] | None) -> None:
        dims = [_unknown(size) for size in tensor.shape] if dims is None else dims
        sizes = zip(dims, tensor.shape, strict=True)
        fitting = tuple(dim if math.prod(atom.size for atom in dim) == size else _unknown(size) for dim, size in sizes)
        try:
            self._known[_key(tensor)] = fitting
        except (NotImplementedError, RuntimeError):
            return

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func.overloadpacket.__name__.removesuffix("_")  # of the form that works in place, too
        outputs = _tensors(result)
        if not outputs:
            return
        known = [(tensor, self._of(tensor)) for tensor in _tensors([*args, *kwargs.values()])]
        made = [None] * len(outputs) if not known else _made(name, func, args, kwargs, known, outputs)
        for output, dims in zip(outputs, made, strict=True):
            self._note(output, dims)


def _made(
    name: str, func: Any, args: Any, kwargs: Any, known: list[tuple[Tensor, list[_Dim]]], outputs: list[Tensor]
) -> list[list[_Dim] | None]:
    """Return what lies along the dimensions of each output of an operation; None for one of which nothing is known."""
    output, rest = outputs[0], [None] * (len(outputs) - 1)
    first, dims = known[0]
    if torch.Tag.pointwise in func.tags or name in _LIKE_INPUT:
        return [_common(output.shape, known), *rest]
    if name in _SPLITS:
        dimension = _argument(args, kwargs, 2, "dim", 0) % first.ndim
        starts, start = [], 0
        for each in outputs:
            starts.append(start)
            start += each.shape[dimension]
        return [
            _sliced(dims, dimension, at, each.shape[dimension], 1) for at, each in zip(starts, outputs, strict=True)
        ]
    if name in _CONVOLUTIONS:
        return [[dims[0], _channels(output.shape[1]), *_resized(dims[2:], output.shape[2:])], *rest]
    if name in _NORMS:
        like = dims if _is_known(dims[1]) else [dims[0], _channels(first.shape[1]), *dims[2:]]
        return [like, *rest]
    if name == "native_layer_norm":
        single = len(args[1]) == 1 and not _is_known(dims[-1])
        return [[*dims[:-1], _channels(first.shape[-1])] if single else dims, *rest]
    if name.startswith(_RESIZES):
        leading = 2 if output.ndim == first.ndim > 2 else 0
        kept = first.ndim - _spatial_of(name, first.ndim)
        return [[*dims[:kept], *_resized(dims[kept:], output.shape[kept:])] if leading else None, *rest]
    if name in _PRODUCTS:
        return [_product(known[-2], known[-1], output), *rest]
    if name.startswith("_scaled_dot_product"):
        return [[*dims[:-1], known[2][1][-1]], *rest]
    if name in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"):
        return [[*dims[:-1], _channels(output.shape[-1])], *rest]
    rule = _REARRANGE.get(name)
    return [rule(args, kwargs, known, output) if rule else None, *rest]


def _product(left: tuple[Tensor, list[_Dim]], right: tuple[Tensor, list[_Dim]], output: Tensor) -> list[_Dim]:
    """Matrices: rows of the left one, columns of the right one, which are channels if it is a weight."""
    dims, columns = left[1], right[1][-1]
    if not any(map(_is_known, right[1])):
        others_have_channels = any(atom.what == _CHANNELS for dim in dims[:-1] for atom in dim)
        mixes_positions = others_have_channels and not _is_channels(dims[-1])
        columns = _unknown(output.shape[-1]) if mixes_positions else _channels(output.shape[-1])
    return [*dims[:-1], columns]


def _common(shape: Sequence[int], known: Sequence[tuple[Tensor, list[_Dim]]]) -> list[_Dim]:
    """What lies along the result of an operation on each element: what its operands agree on."""
    dims: list[_Dim] = []
    for place, size in enumerate(shape):
        found = set()
        for tensor, own in known:
            at = place - len(shape) + tensor.ndim
            if at >= 0 and tensor.shape[at] == size and _is_known(own[at]):
                found.add(own[at])
        dims.append(found.pop() if len(found) == 1 else _unknown(size))
    return dims


def _viewed(dims: Sequence[_Dim], shape: Sequence[int]) -> list[_Dim]:
    """What lies along the dimensions of a view: factors are put together, and taken apart, in their order."""
    atoms = [atom for dim in dims for atom in dim if atom.size > 1]
    made: list[_Dim] = []
    for size in shape:
        dim: list[_Atom] = []
        left = size
        while left > 1 and atoms:
            atom = atoms.pop(0)
            if left % atom.size == 0:
                dim.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                outer, inner = _halves(atom)
                atoms.insert(0, _Atom(atom.size // left, inner))
                dim.append(_Atom(left, outer))
                left = 1
            else:
                return [_unknown(each) for each in shape]
        made.append(_put_together(dim))
    if len(shape) == len(dims):  # a channel that is alone stays one
        pairs = zip(made, dims, shape, strict=True)
        made = [old if size == 1 and _is_channels(old) else new for new, old, size in pairs]
    return made


def _halves(atom: _Atom) -> tuple[str | int | None, str | int | None]:
    """What the outer and the inner factor of an atom are."""
    if atom.what == _CHANNELS:
        return _CHANNELS, _CHANNELS
    return (int(atom.what), -1 - int(atom.what)) if atom.is_axis else (None, None)  # type: ignore[arg-type]


def _put_together(atoms: Sequence[_Atom]) -> _Dim:
    """Make one atom again of an axis that was taken apart."""
    made: list[_Atom] = []
    for atom in atoms:
        if made and made[-1].is_axis and atom.what == -1 - int(made[-1].what):  # type: ignore[arg-type]
            made[-1] = _Atom(made[-1].size * atom.size, made[-1].what)
        else:
            made.append(atom)
    return tuple(made)


def _sliced(dims: Sequence[_Dim], dimension: int, start: int, count: int, step: int) -> list[_Dim]:
    """What lies along a part of a tensor. Less than half of an axis is another image, of which nothing is known."""
    dim, made = dims[dimension], list(dims)
    run = _run(dim)
    made[dimension] = _unknown(count)
    if _is_channels(dim):
        made[dimension] = _channels(count)
    elif run is not None and step == 1 and start <= run.before and start + count >= run.before + run.count:
        made[dimension] = _around(replace(run, before=run.before - start), count)
    elif len(dim) == 1 and dim[0].is_axis and 2 * count * step > dim[0].size:
        made[dimension] = (_Atom(count, dim[0].what),)
    return made


def _joined(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim] | None:
    """What lies along tensors that are joined: channels, or positions and others around them."""
    known = [(tensor, dims) for tensor, dims in known if tensor.ndim == output.ndim]
    dimension = _argument(args, kwargs, 1, "dim", 0) % output.ndim
    made = _common(output.shape, known)
    parts = [dims[dimension] for _, dims in known]
    runs = [_run(dim) for dim in parts]
    found = [(place, run) for place, run in enumerate(runs) if run is not None]
    if all(map(_is_channels, parts)):
        made[dimension] = _channels(output.shape[dimension])
    elif len(found) == 1 and not any(map(_is_channels, parts)):
        place, run = found[0]
        before = sum(tensor.shape[dimension] for tensor, _ in known[:place])
        made[dimension] = _around(replace(run, before=before + run.before), output.shape[dimension])
    else:
        made[dimension] = _unknown(output.shape[dimension])
    return made


def _around(run: Run, size: int) -> _Dim:
    """A run of positions in a dimension of `size`, with what else there is around it."""
    if run.count == size:
        return tuple(_Atom(length, axis) for axis, length in zip(run.axes, run.grid, strict=True))
    return (_Atom(size, run),)


def _run(dim: _Dim) -> Run | None:
    if len(dim) == 1 and isinstance(dim[0].what, Run):
        return dim[0].what
    if dim and all(atom.is_axis for atom in dim):
        return Run(tuple(int(atom.what) for atom in dim), tuple(atom.size for atom in dim))  # type: ignore[arg-type]
    return None


def _resized(dims: Sequence[_Dim], shape: Sequence[int]) -> list[_Dim]:
    """Axes keep their place when their length changes; anything else that changes is unknown."""
    made = []
    for dim, size in zip(dims, shape, strict=True):
        if math.prod(atom.size for atom in dim) == size:
            made.append(dim)
        else:
            made.append((_Atom(size, dim[0].what),) if len(dim) == 1 and dim[0].is_axis else _unknown(size))
    return made


def _reduced(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim] | None:
    tensor, dims = known[0]
    over = _argument(args, kwargs, 1, "dim", None)
    over = range(tensor.ndim) if over is None else [over] if isinstance(over, int) else over
    places = {place % tensor.ndim for place in over} if len(over) else set(range(tensor.ndim))
    if output.ndim == tensor.ndim:
        return [() if place in places else dim for place, dim in enumerate(dims)]
    return [dim for place, dim in enumerate(dims) if place not in places]


def _permuted(order: Callable[[Any, int], Sequence[int]]) -> Callable[..., list[_Dim]]:
    return lambda args, kwargs, known, output: [known[0][1][place] for place in order(args, known[0][0].ndim)]


def _swapped(args: Any, dimensions: int) -> list[int]:
    places = list(range(dimensions))
    a, b = args[1], args[2]
    places[a], places[b] = places[b], places[a]
    return places


def _unsqueezed(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    dims = list(known[0][1])
    dims.insert(args[1] % output.ndim, ())
    return dims


def _squeezed(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    tensor, dims = known[0]
    wanted = range(tensor.ndim) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {place % tensor.ndim for place in wanted if tensor.shape[place] == 1}
    return [dim for place, dim in enumerate(dims) if place not in gone]


def _part(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    tensor, dims = known[0]
    dimension = _argument(args, kwargs, 1, "dim", 0) % tensor.ndim
    start, step = _argument(args, kwargs, 2, "start", None) or 0, _argument(args, kwargs, 4, "step", 1)
    start = max(0, start + tensor.shape[dimension] if start < 0 else start)
    return _sliced(dims, dimension, start, output.shape[dimension], step)


def _selected(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    tensor, dims = known[0]
    return [dim for place, dim in enumerate(dims) if place != args[1] % tensor.ndim]


def _shuffled(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    dims = known[0][1]
    return [*dims[:-3], _channels(output.shape[-3]), *_resized(dims[-2:], output.shape[-2:])]


def _padded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    return _resized(known[0][1], output.shape)


def _expanded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    return _common(output.shape, known)


def _reshaped(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[_Dim]:
    return _viewed(known[0][1], output.shape)


_REARRANGE: dict[str, Callable[..., list[_Dim] | None]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _reshaped),
    "permute": _permuted(lambda args, _: args[1]),
    **dict.fromkeys(("transpose",), _permuted(_swapped)),
    **dict.fromkeys(("t",), _permuted(lambda _, dimensions: list(range(dimensions))[::-1])),
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "slice": _part,
    "select": _selected,
    "cat": _joined,
    "expand": _expanded,
    **dict.fromkeys(("constant_pad_nd", "replication_pad1d", "replication_pad2d", "replication_pad3d"), _padded),
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"), _padded),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm"), _reduced),
}
_COPIES = (
    "clone",
    "detach",
    "alias",
    "_to_copy",
    "contiguous",
    "copy",
    "lift_fresh",
    "native_dropout",
    "requires_grad",
)
_ACTIVATIONS = (
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "relu",
    "relu6",
    "gelu",
    "silu",
    "mish",
    "elu",
    "leaky_relu",
    "celu",
)
_MORE_ACTIVATIONS = (
    "selu",
    "softplus",
    "log_sigmoid_forward",
    "threshold",
    "_prelu_kernel",
    "prelu",
    "rrelu",
    "softshrink",
)
_WITHIN_A_ROW = ("_softmax", "_log_softmax", "softmax", "_safe_softmax", "rms_norm", "_fused_rms_norm")
_LIKE_INPUT = {*_COPIES, *_ACTIVATIONS, *_MORE_ACTIVATIONS, *_WITHIN_A_ROW}
_SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"}
_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable"}
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm")
_MORE_NORMS = ("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm")
_NORMS = {*_BATCH_NORMS, *_MORE_NORMS, "native_group_norm", "group_norm"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "addbmm", "mv"}
_RESIZES = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_", "upsample_", "_upsample_", "mkldnn_max_pool")


def _spatial_of(name: str, dimensions: int) -> int:
    """How many spatial dimensions a pooling or an upsampling works on, which its name says."""
    digits = [int(name[at - 1]) for at in range(1, len(name)) if name[at] == "d" and name[at - 1].isdigit()]
    return digits[0] if digits else dimensions - 2


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for each in values for tensor in _tensors(each)] if isinstance(values, (tuple, list)) else []


def _key(tensor: Tensor) -> object:
    memory = tensor.untyped_storage()._cdata
    return memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _unknown(size: int) -> _Dim:
    return (_Atom(size),)


def _channels(size: int) -> _Dim:
    return (_Atom(size, _CHANNELS),)


def _axis(axis: int, size: int) -> _Dim:
    return (_Atom(size, axis),)


def _is_channels(dim: _Dim) -> bool:
    return bool(dim) and all(atom.what == _CHANNELS for atom in dim)


def _is_known(dim: _Dim) -> bool:
    return any(atom.what is not None for atom in dim)
