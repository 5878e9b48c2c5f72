"""What lies along the dimensions of what an operation makes: the rules that `AxisTracker` follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain.dimensions import (
    Dim,
    around,
    changed,
    channels_dim,
    common,
    has_channels,
    is_channels,
    is_constant,
    is_known,
    padded,
    repeated_dim,
    resized,
    run_of,
    sliced,
    unknown_dim,
    viewed,
)
from cam_callbacks.explain.stretches import Stretch


def name_of(func: Any) -> str:
    """Return the name of an operation: that of the form out of place, and of what a quantized one stands for."""
    name: str = func.overloadpacket.__name__.removesuffix("_")
    if func.namespace != "quantized":
        return name
    name = name.removesuffix("_dynamic").removesuffix("_relu").removesuffix("_add")
    return next((plain for start, plain in _QUANTIZED.items() if name.startswith(start)), name)


def makes_constants(name: str) -> bool:
    """Whether what an operation makes does not depend on the values that it is given, only on their shape."""
    return name in _CONSTANTS


def made_by(
    name: str, func: Any, args: Any, kwargs: Any, known: list[tuple[Tensor, list[Dim]]], outputs: list[Tensor]
) -> list[list[Dim] | None]:
    """Return what lies along the dimensions of each output of an operation; None for one of which nothing is known."""
    output, rest = outputs[0], [None] * (len(outputs) - 1)
    first, dims = known[0]
    if name == "copy" and len(known) > 1:  # what it is copied to is overwritten
        return [common(output.shape, known[1:]), *rest]
    if torch.Tag.pointwise in func.tags or name in _LIKE_INPUT:
        return [common(output.shape, known), *rest]
    if name in _SPLITS:
        dimension = _argument(args, kwargs, 2, "dim", 0) % first.ndim
        starts, start = [], 0
        for each in outputs:
            starts.append(start)
            start += each.shape[dimension]
        return [sliced(dims, dimension, at, each.shape[dimension], 1) for at, each in zip(starts, outputs, strict=True)]
    if name == "unbind":
        gone = _argument(args, kwargs, 1, "dim", 0) % first.ndim
        return [[dim for place, dim in enumerate(dims) if place != gone] for _ in outputs]
    if name in _CONVOLUTIONS:
        return [[dims[0], channels_dim(output.shape[1]), *_convolved(name, args, dims[2:], output.shape[2:])], *rest]
    if name in _NORMS:
        like = dims if is_known(dims[1]) else [dims[0], channels_dim(first.shape[1]), *dims[2:]]
        return [like, *rest]
    if name == "native_layer_norm":
        single = len(args[1]) == 1 and not is_known(dims[-1])
        return [[*dims[:-1], channels_dim(first.shape[-1])] if single else dims, *rest]
    if name.startswith((*_POOLS, *_RESIZES)):
        if not output.ndim == first.ndim > 2:
            return [None, *rest]
        kept = first.ndim - _spatial_of(name, first.ndim)
        resize = _pooled if name.startswith(_POOLS) else _filled
        return [[*dims[:kept], *resize(name, args, dims[kept:], output.shape[kept:])], *rest]
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
    if all(map(is_constant, right[1])):
        mixes_positions = any(map(has_channels, dims[:-1])) and not is_channels(dims[-1])
        columns = unknown_dim(output.shape[-1]) if mixes_positions else channels_dim(output.shape[-1])
    return [*dims[:-1], columns]


def _joined(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim] | None:
    """What lies along tensors that are joined: channels, or positions and others around them."""
    known = [(tensor, dims) for tensor, dims in known if tensor.ndim == output.ndim]
    dimension = _argument(args, kwargs, 1, "dim", 0) % output.ndim
    made = common(output.shape, known)
    parts = [dims[dimension] for _, dims in known]
    runs = [run_of(dim) for dim in parts]
    found = [(place, run) for place, run in enumerate(runs) if run is not None]
    if any(map(is_channels, parts)) and all(is_channels(part) or is_constant(part) for part in parts):
        made[dimension] = channels_dim(output.shape[dimension])
    elif len(found) == 1 and not any(map(is_channels, parts)):
        place, run = found[0]
        before = sum(tensor.shape[dimension] for tensor, _ in known[:place])
        made[dimension] = around(replace(run, before=before + run.before), output.shape[dimension])
    else:
        made[dimension] = unknown_dim(output.shape[dimension])
    return made


def _convolved(name: str, args: Any, dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    in_order = name in ("convolution", "_convolution", "convolution_overrideable")
    if not (in_order and len(args) > 6 and isinstance(args[1], Tensor)):  # its arguments come in another form
        return resized(dims, shape)
    kernel, stride, padding, dilation = (
        _for_each(sizes, len(shape)) for sizes in (args[1].shape[2:], args[3], args[4], args[5])
    )
    covers = Stretch.in_spread_windows if args[6] else Stretch.in_windows
    return changed(dims, shape, lambda at, stretch: covers(stretch, kernel[at], stride[at], padding[at], dilation[at]))


def _pooled(name: str, args: Any, dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    kernel = _for_each(args[1], len(shape))
    stride = _for_each(args[2] if len(args) > 2 and args[2] else kernel, len(shape))
    padding = _for_each(args[3] if len(args) > 3 else 0, len(shape))
    dilation = _for_each(args[4] if len(args) > 4 and "max" in name else 1, len(shape))
    return changed(
        dims, shape, lambda at, stretch: stretch.in_windows(kernel[at], stride[at], padding[at], dilation[at])
    )


def _filled(name: str, args: Any, dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """Interpolation and adaptive pooling: they cover what their input covers."""
    return resized(dims, shape)


def _for_each(sizes: Any, count: int) -> Sequence[int]:
    """Return a size for each axis: one that is given alone is that of all."""
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    return given * count if len(given) == 1 else given


def _reduced(args: Any, kwargs: Any, known: Any, output: Tensor, place: int = 1) -> list[Dim] | None:
    tensor, dims = known[0]
    over = _argument(args, kwargs, place, "dim", None)
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
    return sliced(dims, dimension, start, output.shape[dimension], step)


def _selected(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    return [dim for place, dim in enumerate(dims) if place != args[1] % tensor.ndim]


def _shuffled(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    dims = known[0][1]
    return [*dims[:-3], channels_dim(output.shape[-3]), *resized(dims[-2:], output.shape[-2:])]


def _padded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    amounts = args[1][::2]  # before each dimension, the last one first
    before = [*[0] * (output.ndim - len(amounts)), *reversed(amounts)]
    return padded(known[0][1], output.shape, before)


def _stacked(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    dims = common(known[0][0].shape, known)
    dims.insert(_argument(args, kwargs, 1, "dim", 0) % output.ndim, unknown_dim(len(known)))
    return dims


def _rolled(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    dims = list(known[0][1])
    places = [place % output.ndim for place in _argument(args, kwargs, 2, "dims", [])]
    if not places:  # the whole storage
        return [unknown_dim(size) for size in output.shape]
    for by, place in zip(args[1], places, strict=True):
        run = run_of(dims[place])
        if run is not None and len(run.axes) == 1 and not run.before:
            (stretch,) = run.stretches
            rolled = (stretch.rolled + by * stretch.width) % (run.count * stretch.width)
            dims[place] = around(replace(run, stretches=(replace(stretch, rolled=rolled),)), output.shape[place])
        elif not is_channels(dims[place]):
            dims[place] = unknown_dim(output.shape[place])
    return dims


def _expanded(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    new = output.ndim - tensor.ndim
    return [
        dims[place - new] if place >= new and tensor.shape[place - new] == size else repeated_dim(size)
        for place, size in enumerate(output.shape)
    ]


def _repeated(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    tensor, dims = known[0]
    new = output.ndim - tensor.ndim
    made = [repeated_dim(size) for size in output.shape]
    for place, (dim, before) in enumerate(zip(dims, tensor.shape, strict=True), new):
        size = output.shape[place]
        if size == before:
            made[place] = dim
        elif before > 1 or is_channels(dim):
            made[place] = channels_dim(size) if is_channels(dim) else unknown_dim(size)
    return made


def _reordered(places: Callable[[Any, Any, Tensor], Sequence[int] | None]) -> Callable[..., list[Dim] | None]:
    """Return the rule where entries along some dimensions are put in another order, or chosen: channels remain such."""

    def rule(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim] | None:
        tensor, dims = known[0]
        changed = places(args, kwargs, tensor)
        if changed is None or output.ndim != tensor.ndim:
            return None
        made = list(dims)
        for place in changed:
            size = output.shape[place % output.ndim]
            made[place % output.ndim] = channels_dim(size) if is_channels(dims[place]) else unknown_dim(size)
        return made

    return rule


def _indexed(args: Any, kwargs: Any, tensor: Tensor) -> Sequence[int] | None:
    """Return the dimension that a list of indices is for; None unless it is one list."""
    places = [place for place, index in enumerate(args[1]) if index is not None]
    return places if len(places) == 1 and args[1][places[0]].ndim == 1 else None


def _reshaped(args: Any, kwargs: Any, known: Any, output: Tensor) -> list[Dim]:
    return viewed(known[0][1], output.shape)


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
    "roll": _rolled,
    "repeat": _repeated,
    "flip": _reordered(lambda args, kwargs, tensor: _argument(args, kwargs, 1, "dims", [])),
    "index": _reordered(_indexed),
    "sort": _reordered(lambda args, kwargs, tensor: [_argument(args, kwargs, 1, "dim", -1)]),
    "cumsum": _reordered(lambda args, kwargs, tensor: [_argument(args, kwargs, 1, "dim", 0)]),
    "index_select": _reordered(lambda args, kwargs, tensor: [_argument(args, kwargs, 1, "dim", 0)]),
    "stack": _stacked,
    **dict.fromkeys(("constant_pad_nd", "replication_pad1d", "replication_pad2d", "replication_pad3d"), _padded),
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"), _padded),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std"), _reduced),
    **dict.fromkeys(("linalg_vector_norm", "norm"), partial(_reduced, place=2)),
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
_CONSTANTS = {
    *(f"new_{what}" for what in ("empty", "empty_strided", "zeros", "ones", "full")),
    *(f"{what}_like" for what in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")),
}
_SPLITS = {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"}
_CONVOLUTIONS = {"convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable"}
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm")
_MORE_NORMS = ("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm")
_NORMS = {*_BATCH_NORMS, *_MORE_NORMS, "native_group_norm", "group_norm"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "addbmm", "mv"}
_QUANTIZED = {"conv": "convolution", "batch_norm": "batch_norm", "layer_norm": "native_layer_norm"}
_QUANTIZED.update(dict.fromkeys(("add", "mul", "relu", "leaky_relu", "hardswish", "elu", "prelu", "sigmoid"), "clone"))
_POOLS = ("max_pool", "avg_pool", "mkldnn_max_pool", "quantized_max_pool")
_RESIZES = ("_adaptive_avg_pool", "adaptive_", "upsample_", "_upsample_")


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
