"""What lies along the dimensions of what an operation makes: the rules that `AxisTracker` follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain.layouts import Run

_CHANNELS = "channels"


@dataclass(frozen=True)
class Atom:
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
        """Whether it is an axis of the images, or a part of one."""
        return isinstance(self.what, int) and self.what >= 0


Dim = tuple[Atom, ...]
"""What lies along one dimension, slowest first."""


def name_of(func: Any) -> str:
    """Return the name of an operation: that of the form out of place, and of what a quantized one stands for."""
    name: str = func.overloadpacket.__name__.removesuffix("_")
    if func.namespace != "quantized":
        return name
    name = name.removesuffix("_dynamic").removesuffix("_relu").removesuffix("_add")
    return next((plain for start, plain in _QUANTIZED.items() if name.startswith(start)), name)


def made_by(
    name: str, func: Any, args: Any, kwargs: Any, known: list[tuple[Tensor, list[Dim]]], outputs: list[Tensor]
) -> list[list[Dim] | None]:
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
        return [[dims[0], channels_dim(output.shape[1]), *_resized(dims[2:], output.shape[2:])], *rest]
    if name in _NORMS:
        like = dims if _is_known(dims[1]) else [dims[0], channels_dim(first.shape[1]), *dims[2:]]
        return [like, *rest]
    if name == "native_layer_norm":
        single = len(args[1]) == 1 and not _is_known(dims[-1])
        return [[*dims[:-1], channels_dim(first.shape[-1])] if single else dims, *rest]
    if name.startswith(_RESIZES):
        leading = 2 if output.ndim == first.ndim > 2 else 0
        kept = first.ndim - _spatial_of(name, first.ndim)
        return [[*dims[:kept], *_resized(dims[kept:], output.shape[kept:])] if leading else None, *rest]
    if name in _PRODUCTS:
        return [_product(known[-2], known[-1], output), *rest]
    if name == "linear":
        return [[*dims[:-1], channels_dim(output.shape[-1])], *rest]
    if name.startswith("_scaled_dot_product"):
        return [[*dims[:-1], known[2][1][-1]], *rest]
    if name in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"):
        return [[*dims[:-1], channels_dim(output.shape[-1])], *rest]
    rule = _REARRANGE.get(name)
    return [rule(args, kwargs, known, output) if rule else None, *rest]


def _product(left: tuple[Tensor, list[Dim]], right: tuple[Tensor, list[Dim]], output: Tensor) -> list[Dim]:
    """Matrices: rows of the left one, columns of the right one, which are channels if it is a weight."""
    dims, columns = left[1], right[1][-1]
    if not any(map(_is_known, right[1])):
        others_have_channels = any(atom.what == _CHANNELS for dim in dims[:-1] for atom in dim)
        mixes_positions = others_have_channels and not is_channels(dims[-1])
        columns = unknown_dim(output.shape[-1]) if mixes_positions else channels_dim(output.shape[-1])
    return [*dims[:-1], columns]


def _common(shape: Sequence[int], known: Sequence[tuple[Tensor, list[Dim]]]) -> list[Dim]:
    """What lies along the result of an operation on each element: what its operands agree on."""
    dims: list[Dim] = []
    for place, size in enumerate(shape):
        found = set()
        for tensor, own in known:
            at = place - len(shape) + tensor.ndim
            if at >= 0 and tensor.shape[at] == size and _is_known(own[at]):
                found.add(own[at])
        dims.append(found.pop() if len(found) == 1 else unknown_dim(size))
    return dims


def _viewed(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """What lies along the dimensions of a view: factors are put together, and taken apart, in their order."""
    atoms = [atom for dim in dims for atom in dim if atom.size > 1]
    made: list[Dim] = []
    for size in shape:
        dim: list[Atom] = []
        left = size
        while left > 1 and atoms:
            atom = atoms.pop(0)
            if left % atom.size == 0:
                dim.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                outer, inner = _halves(atom)
                atoms.insert(0, Atom(atom.size // left, inner))
                dim.append(Atom(left, outer))
                left = 1
            else:
                return [unknown_dim(each) for each in shape]
        made.append(_put_together(dim))
    if len(shape) == len(dims):  # a channel that is alone stays one
        pairs = zip(made, dims, shape, strict=True)
        made = [old if size == 1 and is_channels(old) else new for new, old, size in pairs]
    return made


def _halves(atom: Atom) -> tuple[str | int | None, str | int | None]:
    """What the outer and the inner factor of an atom are."""
    if atom.what == _CHANNELS:
        return _CHANNELS, _CHANNELS
    return (int(atom.what), -1 - int(atom.what)) if atom.is_axis else (None, None)  # type: ignore[arg-type]


def _put_together(atoms: Sequence[Atom]) -> Dim:
    """Make one atom again of an axis that was taken apart."""
    made: list[Atom] = []
    for atom in atoms:
        if made and made[-1].is_axis and atom.what == -1 - int(made[-1].what):  # type: ignore[arg-type]
            made[-1] = Atom(made[-1].size * atom.size, made[-1].what)
        else:
            made.append(atom)
    return tuple(made)


def _sliced(dims: Sequence[Dim], dimension: int, start: int, count: int, step: int) -> list[Dim]:
    """What lies along a part of a tensor. Less than half of an axis is another image, of which nothing is known."""
    dim, made = dims[dimension], list(dims)
    run = run_of(dim)
    made[dimension] = unknown_dim(count)
    if is_channels(dim):
        made[dimension] = channels_dim(count)
    elif run is not None and step == 1 and start <= run.before and start + count >= run.before + run.count:
        made[dimension] = _around(replace(run, before=run.before - start), count)
    elif len(dim) == 1 and dim[0].is_axis and 2 * count * step > dim[0].size:
        made[dimension] = (Atom(count, dim[0].what),)
    return made


def _joined(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim] | None:
    """What lies along tensors that are joined: channels, or positions and others around them."""
    known = [(tensor, dims) for tensor, dims in known if tensor.ndim == output.ndim]
    dimension = _argument(args, kwargs, 1, "dim", 0) % output.ndim
    made = _common(output.shape, known)
    parts = [dims[dimension] for _, dims in known]
    runs = [run_of(dim) for dim in parts]
    found = [(place, run) for place, run in enumerate(runs) if run is not None]
    if all(map(is_channels, parts)):
        made[dimension] = channels_dim(output.shape[dimension])
    elif len(found) == 1 and not any(map(is_channels, parts)):
        place, run = found[0]
        before = sum(tensor.shape[dimension] for tensor, _ in known[:place])
        made[dimension] = _around(replace(run, before=before + run.before), output.shape[dimension])
    else:
        made[dimension] = unknown_dim(output.shape[dimension])
    return made


def _around(run: Run, size: int) -> Dim:
    """A run of positions in a dimension of `size`, with what else there is around it."""
    if run.count == size:
        return tuple(Atom(length, axis) for axis, length in zip(run.axes, run.grid, strict=True))
    return (Atom(size, run),)


def run_of(dim: Dim) -> Run | None:
    """Return the positions that a dimension consists of, or that lie in it; None if there are none."""
    if len(dim) == 1 and isinstance(dim[0].what, Run):
        return dim[0].what
    if dim and all(atom.is_axis for atom in dim):
        return Run(tuple(int(atom.what) for atom in dim), tuple(atom.size for atom in dim))  # type: ignore[arg-type]
    return None


def _resized(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """Axes keep their place when their length changes; anything else that changes is unknown."""
    made = []
    for dim, size in zip(dims, shape, strict=True):
        if math.prod(atom.size for atom in dim) == size:
            made.append(dim)
        else:
            made.append((Atom(size, dim[0].what),) if len(dim) == 1 and dim[0].is_axis else unknown_dim(size))
    return made


def _reduced(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim] | None:
    tensor, dims = known[0]
    over = _argument(args, kwargs, 1, "dim", None)
    over = range(tensor.ndim) if over is None else [over] if isinstance(over, int) else over
    places = {place % tensor.ndim for place in over} if len(over) else set(range(tensor.ndim))
    if output.ndim == tensor.ndim:
        return [() if place in places else dim for place, dim in enumerate(dims)]
    return [dim for place, dim in enumerate(dims) if place not in places]


def _permuted(order: Callable[[Any, int], Sequence[int]]) -> Callable[..., list[Dim]]:
    return lambda args, kwargs, known, output: [known[0][1][place] for place in order(args, known[0][0].ndim)]


def _swapped(args: Any, dimensions: int) -> list[int]:
    places = list(range(dimensions))
    a, b = args[1], args[2]
    places[a], places[b] = places[b], places[a]
    return places


def _unsqueezed(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    dims = list(known[0][1])
    dims.insert(args[1] % output.ndim, ())
    return dims


def _squeezed(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    wanted = range(tensor.ndim) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {place % tensor.ndim for place in wanted if tensor.shape[place] == 1}
    return [dim for place, dim in enumerate(dims) if place not in gone]


def _part(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    dimension = _argument(args, kwargs, 1, "dim", 0) % tensor.ndim
    start, step = _argument(args, kwargs, 2, "start", None) or 0, _argument(args, kwargs, 4, "step", 1)
    start = max(0, start + tensor.shape[dimension] if start < 0 else start)
    return _sliced(dims, dimension, start, output.shape[dimension], step)


def _selected(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    return [dim for place, dim in enumerate(dims) if place != args[1] % tensor.ndim]


def _shuffled(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    dims = known[0][1]
    return [*dims[:-3], channels_dim(output.shape[-3]), *_resized(dims[-2:], output.shape[-2:])]


def _padded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    return _resized(known[0][1], output.shape)


def _expanded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    return _common(output.shape, known)


def _reshaped(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    return _viewed(known[0][1], output.shape)


_REARRANGE: dict[str, Callable[..., list[Dim] | None]] = {
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
    "quantize_per_tensor",
    "quantize_per_tensor_dynamic",
    "dequantize",
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
_QUANTIZED = {"conv": "convolution", "batch_norm": "batch_norm", "layer_norm": "native_layer_norm"}
_QUANTIZED.update(dict.fromkeys(("add", "mul", "relu", "leaky_relu", "hardswish", "elu", "prelu", "sigmoid"), "clone"))
_RESIZES = ("max_pool", "avg_pool", "_adaptive_avg_pool", "adaptive_", "upsample_", "_upsample_", "mkldnn_max_pool")


def _spatial_of(name: str, dimensions: int) -> int:
    """How many spatial dimensions a pooling or an upsampling works on, which its name says."""
    digits = [int(name[at - 1]) for at in range(1, len(name)) if name[at] == "d" and name[at - 1].isdigit()]
    return digits[0] if digits else dimensions - 2


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in arguments or results, also those in their lists."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for each in values for tensor in tensors_in(each)] if isinstance(values, (tuple, list)) else []


def unknown_dim(size: int) -> Dim:
    """Return a dimension of which only the size is known."""
    return (Atom(size),)


def channels_dim(size: int) -> Dim:
    """Return a dimension of channels."""
    return (Atom(size, _CHANNELS),)


def axis_dim(axis: int, size: int) -> Dim:
    """Return a dimension that is an axis of the images."""
    return (Atom(size, axis),)


def is_channels(dim: Dim) -> bool:
    """Whether a dimension is all channels."""
    return bool(dim) and all(atom.what == _CHANNELS for atom in dim)


def _is_known(dim: Dim) -> bool:
    return any(atom.what is not None for atom in dim)
