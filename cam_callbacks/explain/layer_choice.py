"""The choice of a layer where none is named: the last one that the answer is read from and whose map says where."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain import layers
from cam_callbacks.explain.axes import AxisTracker, tracked
from cam_callbacks.explain.gradient_graph import Edge, dependence, edge_of, is_only_way
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import Forward, readable, without_orig_mod
from cam_callbacks.explain.layouts import Layout
from cam_callbacks.explain.model_outputs import class_columns
from cam_callbacks.explain.probing import Probe
from cam_callbacks.explain.sharding import share

_MIN_SIDE = 6  # positions along an axis, of a map that says where


@dataclass(frozen=True)
class Choice:
    """A layer that was chosen.

    Attributes:
        name: Its dotted name, with the call (`"relu[0]"`) if it is not the last one.
        reason: Why it was chosen, in words that follow its name.
    """

    name: str
    reason: str


@dataclass(eq=False)
class _Call:
    """One call of a module whose output has positions, or may have.

    Attributes:
        place: Its place among all such calls.
        name: The dotted name of the module.
        module: The module.
        output: Its output, kept so that its identity stays unique.
        layout: How the output is read; None if that is not known.
        edge: Where the output is in the graph of gradients; None without gradients.
        call: Which of the module's calls it is.
        inner: The calls of parts of the module that returned the very same tensor.
        is_read: Whether the answer depends on the positions of the output; True if that is not known.
        gradient: NaN wherever the answer depends on a value of the output, else 0; None if that is not known.
        channels: The dimension of the channels, if it is known.
        is_input: Whether it is the image in another form: as many channels and positions, and no weights before it.
    """

    place: int
    name: str
    module: nn.Module
    output: Tensor
    layout: Layout | None
    edge: Edge | None
    call: int
    inner: list[_Call]
    is_read: bool = True
    gradient: Tensor | None = None
    channels: int | None = None
    is_input: bool = False

    @property
    def positions(self) -> int:
        """The number of positions; 0 if the layout is not known."""
        return 0 if self.layout is None else math.prod(self.layout.spatial)

    @property
    def says_where(self) -> bool:
        """Whether there are enough positions for a map."""
        return self.layout is not None and self.positions >= _MIN_SIDE**self.layout.axes

    @property
    def has_weights(self) -> bool:
        return next(self.module.parameters(recurse=False), None) is not None

    @property
    def is_tokens(self) -> bool:
        """Whether the output is tokens, has the channels last, or may have."""
        return self.layout is None or not self.layout.is_channels_first

    @property
    def has_features(self) -> bool:
        """Whether the output is features, not merely rearranged ones or a step within an attention."""
        if self.inner:
            return any(call.has_features for call in self.inner)
        return not (self.is_input or _computes_no_features(self.module)) and (
            not self.is_tokens or _is_block_or_norm(self.module)
        )


@dataclass(eq=False)
class _Trace:
    """The calls of one forward.

    Attributes:
        output: What the model returned.
        calls: All calls whose output has positions, or may have, in their order.
        head: How many of them come before the last call of a module with weights whose output has no positions.
        source: Where the image is in the graph of gradients; None without gradients.
        scores: The scores in the output, with their graph of gradients; None without.
        count: How often each module was called, by its identity.
    """

    output: Any
    calls: list[_Call]
    head: int
    source: Edge | None
    count: dict[int, int]
    scores: Tensor | None = None


def choose(
    model: nn.Module,
    images: Tensor,
    forward: Forward,
    class_map: bool = False,
    agreed: Callable[[Tensor], Tensor] = lambda values: values,
    read: Callable[[Any], Tensor] = class_columns,
    gradients: bool = False,
) -> Choice:
    """Choose a layer by running `forward` on one image: the last that the answer is read from and whose map says where.

    A map says where with 6 positions along each axis, that is, 6 of a signal, 6 x 6 of an image and 6 x 6 x 6 of a
    volume, or with as many in another proportion, such as 3 x 12. If no layer has that many, the last of the finest is
    chosen. It has to be one that all of the image passes through on its way to whatever the answer is read from: not a
    branch that a shortcut leads around, and not one of two streams.

    Passed over are: pooling, because the map is finer just before it; class maps (as many channels as the model has
    classes, and no weights after them but those of other class maps, as at the end of SqueezeNet), because they are the
    answer, not what it was read from; and layers that compute no features (dropout, identity, softmax, permutation). If
    several modules return the very same tensor (a block and the last layer in it), the outermost one gives the name.

    Of layers that return tokens, or have the channels last, only blocks and normalizations are considered, because they
    carry what is passed on.

    If the model has gradients, only layers are considered whose positions the answer depends on: none after the last
    attention of a transformer with a class token, where nothing but that token is read, and no side branch.

    Args:
        model: The model; to be called inside `isolated`.
        images: (N, C, *spatial); only the first is used.
        forward: Runs the model on images.
        class_map: Whether the weights of the last linear layer are to be read: then the last layer with positions is
            chosen, however few these are, and it may be a class map.
        agreed: Gives all ranks the values of the first.
        read: Reads the scores (N, classes, *spatial) out of what `forward` returns.
        gradients: Whether the gradient at the layer is needed: then a layer before the last has to have one, which it
            has not inside a part that runs without gradients, such as a frozen one.

    Raises:
        ValueError: No layer has spatial output, or that of a late one is not understood.
    """
    trace = _traced_with_gradients(model, images[:1], forward, read) or _traced(model, images[:1], forward)
    reached = [call for call in trace.calls if call.is_read]
    is_known = bool(reached)  # whether the answer depends on any: not if it has no gradient
    reached = reached or trace.calls
    class_maps = [] if class_map else _class_maps(reached, trace, _count_classes(trace.output, read))
    candidates = [call for call in reached if call.has_features and call not in class_maps]
    if not candidates:
        candidates = [call for call in reached if not call.is_input]
    _probe(candidates, class_map, images[:1], forward, agreed)
    known = [call for call in candidates if call.layout is not None and (call.is_read or not is_known)]
    if not known:
        raise ValueError(_why_none(model, images, forward, bool(candidates)))
    if class_map:
        return Choice(_name(known[-1], trace), "the last with positions, which the weights of CAM belong to")
    chosen, is_whole = _finest_needed(known, trace, gradients)
    least = " x ".join([str(_MIN_SIDE)] * (images.ndim - 2))
    fits = f"the last with at least {least} positions"
    reason = fits if chosen.says_where else f"the finest that fits: none has {least} positions"
    return Choice(
        _name(chosen, trace), reason if is_whole else f"{reason}, which only a part of the image goes through"
    )


def _why_none(model: nn.Module, images: Tensor, forward: Forward, has_candidates: bool) -> str:
    """Return why no layer can be chosen, and what to do."""
    name = type(model).__name__
    whole = [] if has_candidates else layers.running_as_one(model, lambda: forward(images[:1]))
    if not has_candidates and next(model.parameters(), None) is None:
        whole = [""]  # what is frozen has no parameters any more
    if not has_candidates and not whole:
        return (
            f"no layer of {name} puts out positions, for images {tuple(images.shape)}: a network of linear layers "
            "alone has none. If one does, name it by target_layer, and give reshape_transform, a callable from its "
            "output to (N, channels, *spatial)"
        )
    if whole:
        parts = ", ".join(repr(each) if each else name for each in whole)
        return (
            f"no layer of {name} can be chosen: {parts} runs as one, as modules do that are scripted, traced or "
            f"exported, and calls none of its parts; {layers.CALL_THE_PARTS}"
        )
    return (
        f"no layer of {name} has an output whose positions are known, neither from its modules nor from its response "
        f"to a change of a small patch, for images {tuple(images.shape)}; name one by target_layer, and give "
        "reshape_transform, a callable from its output to (N, channels, *spatial)"
    )


def _finest_needed(calls: Sequence[_Call], trace: _Trace, gradients: bool) -> tuple[_Call, bool]:
    """Return the last call whose map says where, or else the last of the finest, that all of the image passes through.

    Returns:
        The call, and whether there is one that all of it passes through.
    """
    latest_first = sorted(calls, key=lambda call: call.place, reverse=True)
    finest_first = sorted(latest_first, key=lambda call: call.positions, reverse=True)
    wanted = [*(call for call in latest_first if call.says_where), *finest_first]
    ends = _read_directly(trace) or [calls[-1]]
    for call in wanted:
        if all(_leads_to(call, end, trace, gradients) for end in ends):
            return call, True
    return next((call for call in wanted if call.edge is not None), calls[-1]), False


def _read_directly(trace: _Trace) -> list[_Call]:
    """Return the calls whose positions the answer is read from other than by way of another one's."""
    calls = [call for call in trace.calls if call.is_read and call.layout is not None and call.edge is not None]
    if trace.scores is None or not calls:
        return []
    gradients = dependence(trace.scores, [call.output for call in calls], direct=True)
    return [call for call, gradient in zip(calls, gradients, strict=True) if _depends(gradient, call.layout)]


def _leads_to(call: _Call, end: _Call, trace: _Trace, gradients: bool) -> bool:
    """Whether all of the image passes through a call on its way to a later one, or they are the same.

    Where there are no gradients that say so, a call will do unless gradients are needed.
    """
    if call is end or call.output is end.output:
        return True
    if call.edge is None or end.edge is None or trace.source is None:
        return not gradients
    return is_only_way(call.edge, end.edge, trace.source)


def _name(call: _Call, trace: _Trace) -> str:
    """Return the name by which the output of a call is found again: that of the module means its last call."""
    is_last = trace.count[id(call.module)] == call.call + 1
    return without_orig_mod(call.name) + ("" if is_last else f"[{call.call}]")


def _probe(
    candidates: Sequence[_Call],
    class_map: bool,
    image: Tensor,
    forward: Forward,
    agreed: Callable[[Tensor], Tensor],
) -> None:
    """Find layouts that are not known, by changing patches of the image: from the last call to one that can be chosen.

    Raises:
        ValueError: The last of them has positions that are not understood: an earlier layer is no answer to that.
    """

    def can_be_chosen(call: _Call) -> bool:
        return call.says_where or (class_map and call.layout is not None)

    last = max((call.place for call in candidates if call.layout is not None), default=-1)
    enough = max((call.place for call in candidates if can_be_chosen(call)), default=-1)
    unknown = [call for call in candidates if call.layout is None and call.place > enough]
    if not unknown:
        return
    probe = Probe(forward, image, [call.module for call in unknown], 1, agreed)
    for call in reversed(unknown):
        call.layout = probe.layout(call.module, call.call, call.output.shape, call.channels)
        if call.layout is not None:
            call.is_read = call.gradient is None or bool((call.layout.to_maps(call.gradient) != 0).any())
            if call.is_read:
                last = max(last, call.place)
                if can_be_chosen(call):
                    return
        elif call.place > last and not probe.answers_everywhere_alike(call.module, call.call, call.output.shape):
            raise ValueError(
                f"no layer can be chosen: {without_orig_mod(call.name)!r} comes late and has an output of shape "
                f"{tuple(call.output.shape)} for images {tuple(image.shape)}, and neither its modules nor its response "
                "to a change of a small patch tell where positions and channels are. Name a layer by target_layer; for "
                "this one, give reshape_transform, a callable from its output to (N, channels, *spatial)"
            )


def _class_maps(calls: list[_Call], trace: _Trace, classes: int | None) -> list[_Call]:
    """Return the calls with a channel for each class that no weights follow but those of others like them."""
    narrow = [call for call in calls if not call.is_tokens and call.output.shape[1] == classes]
    last_weights = max([trace.head, *(call.place for call in calls if call.has_weights and call not in narrow)])
    return [call for call in narrow if call.place >= last_weights]


def _count_classes(output: Any, read: Callable[[Any], Tensor]) -> int | None:
    try:
        return read(output).shape[1]
    except TypeError:
        return None  # e.g. a detector


def _traced(model: nn.Module, image: Tensor, forward: Forward) -> _Trace:
    trace = _Trace(None, [], head=0, source=edge_of(image), count={})
    calls, count = trace.calls, trace.count
    names = {id(module): name for name, module in model.named_modules()}

    weights_ran = False

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal weights_ran
        weights_ran = weights_ran or next(module.parameters(), None) is not None
        call = count.get(id(module), 0)
        count[id(module)] = call + 1
        output = readable(output)
        layout = tracker.layout(output) if isinstance(output, Tensor) else None
        if layout is not None or _may_have_positions(output, tracker):
            name = names[id(module)]
            inner = [each for each in calls if each.output is output and each.name.startswith(f"{name}.")]
            is_input = not weights_ran and layout is not None and layout.to_maps(output).shape == image.shape
            calls.append(
                _Call(
                    len(calls),
                    name,
                    module,
                    output,
                    layout,
                    edge_of(output),
                    call,
                    inner,
                    channels=tracker.channels(output),
                    is_input=is_input,
                )
            )
        elif next(module.parameters(recurse=False), None) is not None:
            trace.head = len(calls)

    def forget() -> None:
        calls.clear()
        count.clear()

    tracker = AxisTracker(image)
    with hooked([module for name, module in model.named_modules() if name], note):
        trace.output = tracked(lambda: forward(image), tracker, forget)
    return trace


def _may_have_positions(output: Any, tracker: AxisTracker) -> bool:
    """Whether positions may lie along an output of which that is not known."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or sum(size > 1 for size in output.shape) < 2:
        return False
    return output.ndim > 2 and not tracker.has_no_positions(output)


def _traced_with_gradients(
    model: nn.Module, image: Tensor, forward: Forward, read: Callable[[Any], Tensor]
) -> _Trace | None:
    """Return what `_traced` does, and of each call whether the output depends on it; None without gradients."""
    try:
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            trace = _traced(model, image.detach().clone().requires_grad_().clone(), forward)
            trace.scores = read(trace.output)
            reached = [call for call in trace.calls if call.output.requires_grad]
            found = dependence(trace.scores, [call.output for call in reached])
            gradients = {id(call): gradient for call, gradient in zip(reached, found, strict=True)}
            for call in trace.calls:
                call.gradient = gradients.get(id(call))
                call.is_read = _depends(call.gradient, call.layout)
            return trace
    except (RuntimeError, TypeError, ValueError) as error:
        share(error)
        # There are no gradients, or tensors without values, or an output that is not understood. An error of the model
        # itself comes again, and is raised, when it runs without gradients.
        return None


def _depends(gradient: Tensor | None, layout: Layout | None) -> bool:
    """Whether the answer depends on positions, by the gradient that `dependence` found."""
    return gradient is not None and bool(((gradient if layout is None else layout.to_maps(gradient)) != 0).any())


_POOLING = [f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP") for d in (1, 2, 3)]
_DROPOUT = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
_WITHOUT_FEATURES = tuple(getattr(nn, name) for name in [*_POOLING, *_DROPOUT, "Identity", "Softmax"])


def _computes_no_features(module: nn.Module) -> bool:
    # torchvision's Permute is recognized by its name, without importing torchvision.
    return isinstance(module, _WITHOUT_FEATURES) or type(module).__name__ == "Permute"


def _is_block_or_norm(module: nn.Module) -> bool:
    """Whether a module is a block or a normalization, not a part of an attention or of a block's inner network."""
    return next(module.children(), None) is not None or "norm" in type(module).__name__.lower()
