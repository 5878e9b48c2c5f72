"""The choice of a layer where none is named: the last one that the answer is read from and whose map says where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cam_callbacks.explain import layers
from cam_callbacks.explain.attention_blocks import Attention, attentions
from cam_callbacks.explain.calls import MIN_SIDE, Call, Trace, depends, traced, traced_with_gradients
from cam_callbacks.explain.gradient_graph import dependence, edge_of, is_made_from, is_only_way
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import Forward, without_orig_mod
from cam_callbacks.explain.model_outputs import class_columns
from cam_callbacks.explain.probing import Probe

_FEW = 4  # images whose answers are compared
_LITTLE = 0.01  # of the difference between answers


@dataclass(frozen=True)
class Choice:
    """A layer that was chosen.

    Attributes:
        name: Its dotted name, with the call (`"relu[0]"`) if it is not the last one.
        reason: Why it was chosen, in words that follow its name.
    """

    name: str
    reason: str


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
    attention of a transformer with a class token, where nothing but that token is read, and no side branch. Of a
    transformer whose tokens are all read, a layer before the last attention is taken, too: after it each token holds
    what all of them say.

    Args:
        model: The model; to be called inside `isolated`.
        images: (N, C, *spatial); the first is used, and a few more where gradients do not tell all.
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
    trace = traced_with_gradients(model, images[:1], forward, read) or traced(model, images[:1], forward)
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
    if is_whole and _may_go_around(chosen, trace):
        is_whole = not _answers_differ_without(chosen, images, forward, read)
    least = " x ".join([str(MIN_SIDE)] * (images.ndim - 2))
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


def _finest_needed(calls: Sequence[Call], trace: Trace, gradients: bool) -> tuple[Call, bool]:
    """Return the last call whose map says where, or else the last of the finest, that all of the image passes through.

    Returns:
        The call, and whether there is one that all of it passes through.
    """
    latest_first = sorted(calls, key=lambda call: call.place, reverse=True)
    finest_first = sorted(latest_first, key=lambda call: call.positions, reverse=True)
    wanted = [*(call for call in latest_first if call.says_where), *finest_first]
    ends, image_is_read = _read_directly(trace)
    ends = ends or [calls[-1]]
    fit = [call for call in wanted if all(_leads_to(call, end, trace, gradients) for end in ends)]
    if fit:
        return _before_all_is_mixed(fit, trace), not image_is_read
    return next((call for call in wanted if call.edge is not None), calls[-1]), False


def _before_all_is_mixed(fit: Sequence[Call], trace: Trace) -> Call:
    """Return the first of the calls that fit; or, if it comes after the last attention, one that comes before.

    After an attention among all tokens each holds what all of them say, and the answer could be read from any: where a
    token is then says little.
    """
    first = fit[0]
    if not first.is_tokens or not first.says_where or trace.scores is None:
        return first
    if _mixes_all(attentions(trace.scores, first.edge), first) or not _mixes_all(attentions(first.output), first):
        return first
    earlier = (call for call in fit if call.says_where and call.is_tokens and call.positions == first.positions)
    return next((call for call in earlier if _mixes_all(attentions(trace.scores, call.edge), call)), first)


def _mixes_all(found: Sequence[Attention], call: Call) -> bool:
    """Whether one of these attentions is among all positions of a call."""
    return any(attention.keys >= call.positions for attention in found)


def _read_directly(trace: Trace) -> tuple[list[Call], bool]:
    """Return the calls whose positions the answer is read from other than by way of another one's.

    Returns:
        The calls, and whether the image itself is read so, too.
    """
    calls = [call for call in trace.calls if call.is_read and call.edge is not None]
    if trace.scores is None or not calls:
        return [], False
    *gradients, of_image = dependence(trace.scores, [*(call.output for call in calls), trace.image], direct=True)
    found = [call for call, gradient in zip(calls, gradients, strict=True) if depends(gradient, call.layout)]
    return found, depends(of_image, None)


def _leads_to(call: Call, end: Call, trace: Trace, gradients: bool) -> bool:
    """Whether all of the image passes through a call on its way to a later one, or they are the same.

    Where there are no gradients that say so, a call will do unless gradients are needed.
    """
    edge = end.edge and edge_of(end.output)  # after what has been added to it in place
    if call.edge is None or edge is None or trace.source is None:
        return call is end or not gradients
    return call.edge == edge or is_only_way(call.edge, edge, trace.source)


def _may_go_around(chosen: Call, trace: Trace) -> bool:
    """Whether there are layers that no gradient comes from, and that were not made from the chosen one."""
    return any(
        not call.is_read
        and call.layout is not None
        and call.has_features
        and not (call.edge is not None and chosen.edge is not None and is_made_from(call.edge, chosen.edge))
        for call in trace.calls
    )


def _answers_differ_without(chosen: Call, images: Tensor, forward: Forward, read: Callable[[Any], Tensor]) -> bool:
    """Whether the answers to a few images still differ where a layer puts out the same for all of them."""
    called = 0

    def repeat_first(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal called
        called += 1
        if called - 1 != chosen.call or not isinstance(output, Tensor) or chosen.layout is None:
            return None
        first = torch.zeros(output.shape[chosen.layout.batch], dtype=torch.int64, device=output.device)
        return output.index_select(chosen.layout.batch, first)

    few = images[:_FEW]
    answers = read(forward(few)).float()
    with hooked([chosen.module], repeat_first):
        without = read(forward(few)).float()
    spread, left = ((each - each[:1]).abs().amax() for each in (answers, without))
    return bool(left > _LITTLE * spread)


def _name(call: Call, trace: Trace) -> str:
    """Return the name by which the output of a call is found again: that of the module means its last call."""
    is_last = trace.count[id(call.module)] == call.call + 1
    return without_orig_mod(call.name) + ("" if is_last else f"[{call.call}]")


def _probe(
    candidates: Sequence[Call],
    class_map: bool,
    image: Tensor,
    forward: Forward,
    agreed: Callable[[Tensor], Tensor],
) -> None:
    """Find layouts that are not known, by changing patches of the image: from the last call to one that can be chosen.

    Raises:
        ValueError: The last of them has positions that are not understood: an earlier layer is no answer to that.
    """

    def can_be_chosen(call: Call) -> bool:
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


def _class_maps(calls: list[Call], trace: Trace, classes: int | None) -> list[Call]:
    """Return the calls with a channel for each class that no weights follow but those of others like them."""
    narrow = [call for call in calls if not call.is_tokens and call.output.shape[1] == classes]
    last_weights = max([trace.head, *(call.place for call in calls if call.has_weights and call not in narrow)])
    return [call for call in narrow if call.place >= last_weights]


def _count_classes(output: Any, read: Callable[[Any], Tensor]) -> int | None:
    try:
        return read(output).shape[1]
    except TypeError:
        return None  # e.g. a detector
