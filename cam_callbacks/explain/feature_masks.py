"""Scores of images of which only a part of a layer's output is left: only what comes after the layer runs for each.

The model runs on one image up to the layer; there a hook puts in as many copies of the layer's output as there are
masks, each masked, and the rest of the model runs on all of them. A model that cannot go on with more rows than it
began with (it joins them with what it kept of the image) is shown the image once for each mask instead.

One position of many changes a score by little, often by less than 16 bits can tell. So the model runs in 32 bits if it
can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain import layers, progress
from cam_callbacks.explain.blocks import Blocks
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import readable
from cam_callbacks.explain.network import Network
from cam_callbacks.explain.precision import FullPrecision, rounding_of
from cam_callbacks.explain.sharding import share

_TOLERANCE = 1e-2  # relative: rounding depends a little on the size of the batch
_LITTLE, _ROUNDINGS = 1e-4, 4  # of the spread of scores; and of their rounding
_IMAGES_TRIED, _MASKS_TRIED = 6, 16
_ROUNDING = 1e-6
_BESIDE = 2  # copies beside those that are masked
_BASE = 256  # of the digits of whole numbers, which every floating type holds

_Masking = Callable[[Tensor], Tensor]


class FeatureMasks:
    """Scores what is left of images where a layer's output is masked.

    Args:
        network: The model and the images.
        forward_pass: What the pass over the whole images gave.
        layer: The index of the layer among `forward_pass.layers`.

    Attributes:
        rounding: The relative rounding of scores that is known of so far.
    """

    def __init__(self, network: Network, forward_pass: ForwardPass, layer: int) -> None:
        self._network = network
        self._module = layers.find(network.model, forward_pass.layers[layer])
        self._layer = forward_pass.readers[layer]
        self._reader = forward_pass.reader
        features = forward_pass.activations[layer][0]
        self._spatial, self._size = features.shape[1:], features.numel()
        self._copies_for_one = 1
        self._comes_first = False  # before the layer's own hooks
        self._own_scores = forward_pass.target_scores  # (N, T)
        self._precision: FullPrecision | None = None
        self._found: tuple[int, Tensor] | None = None  # where in the layer's output images and positions are
        self.rounding = rounding_of(network.images)
        if not network.ranks.are_several:
            self._begin_full_precision()

    def _begin_full_precision(self) -> None:
        """Run in 32 bits from now on if there is memory for that, and the model can."""
        rows = self._network.rows
        try:
            self._precision = FullPrecision(self._network.model)
            with self._in_full_precision():
                runs = self._tried(lambda: self._scores(rows[:1], rows[:1])) is not None
                if runs and self._precision.differs:
                    parts: list[Tensor] = []
                    self._network.in_chunks(len(rows), lambda part: parts.append(self._scores(rows[part], rows[part])))
                    self._own_scores = torch.cat(parts)
                    self.rounding = 0.0
        except torch.OutOfMemoryError:
            runs = False
        if not runs:
            self._precision = None

    def _in_full_precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self._precision is None else self._precision.on()

    @cached_property
    def takes_copies(self) -> bool:
        """Whether the rest of the model runs on copies of one image's features; else each mask takes a whole pass."""
        with self._in_full_precision():
            self._come_before_hooks_that_keep_it()
        if self._network.mixes_images:
            return False
        noise = torch.rand(1, *self._spatial, generator=torch.Generator().manual_seed(0)).to(self._own_scores)
        with self._in_full_precision(), self._measuring():
            first = self._network.rows[:1]
            found = self._tried(lambda: self._of_copies(first, torch.zeros_like(first), noise))
        if found is None or not found[2]:
            return False
        with self._in_full_precision():
            return self._are_independent(noise, found[0][0], found[1][0])

    def _are_independent(self, mask: Tensor, copy: Tensor, whole: Tensor) -> bool:
        """Whether a masked copy among others is answered as in a pass of its own; say so if others influence it.

        Args:
            mask: (1, *spatial).
            copy: (T,), the scores of the masked copy among others.
            whole: (T,), those of a copy that is not masked.
        """
        alone, again = (self._tried(lambda: self._of_one(mask)) for _ in range(2))
        if alone is None or again is None:
            return False
        limit = _TOLERANCE * torch.maximum(whole.abs(), (whole - alone).abs())
        differs, is_chance = (bool(((each - alone).abs() > limit).any()) for each in (copy, again))
        if differs and not is_chance:
            self._network.forward_alone()
        return not differs

    def _come_before_hooks_that_keep_it(self) -> None:
        """Replace the layer's output before its own hooks are called, if the rest of the model reads what they kept."""
        if getattr(self._module, "_forward_hooks", None) and self._makes_no_difference():
            self._comes_first = True
            self._comes_first = not self._makes_no_difference()

    def _makes_no_difference(self) -> bool:
        """Whether the first image is answered alike with the layer's output and with nothing of it."""
        everything = self._own_scores.new_ones(1, *self._spatial)
        whole, nothing = (self._tried(partial(self._of_one, mask)) for mask in (everything, 0 * everything))
        return whole is not None and nothing is not None and torch.allclose(whole, nothing, rtol=_ROUNDING, atol=0)

    def _of_one(self, mask: Tensor) -> Tensor:
        """Return the scores (T,) of the first image where its features are masked, by a pass of its own."""
        row = torch.zeros(1, dtype=torch.int64, device=mask.device)
        return self._masked_scores(row, lambda output: self._masked(output, mask), row)[0]

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Find how many copies take the memory of one image, by what innermost modules put out for one mask inside."""
        past = False
        before, after = self._network.images[0].numel(), 1

        def measure(module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal past, before, after
            if isinstance(output, Tensor) and past:
                after = max(after, output.numel() // (1 + _BESIDE))
            elif isinstance(output, Tensor) and next(module.children(), None) is None:
                before = max(before, output.numel())
            past = past or module is self._module

        with hooked(self._network.model.modules(), measure):
            yield
        self._copies_for_one = max(1, before // max(after, self._size))

    def scores(self, masks: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Score each image where only what a mask lets through is left of the layer's output.

        Args:
            masks: (M, *grid of the blocks), factors. What belongs to no position, such as a class token, stays.
            blocks: Of the layer's positions.

        Returns:
            The scores (N, M, T) float32, and those of the whole images (N, M, T), each taken beside them.
        """
        progress.expect(len(self._own_scores) * len(masks))
        takes_copies = self.takes_copies
        with self._in_full_precision():
            together = len(self._own_scores) if takes_copies and self._reads_features_alone(masks, blocks) else 1
            found: tuple[Tensor, Tensor] | None = None
            if takes_copies:
                found = self._tried(lambda: self._by_copies(together, masks, blocks))
            if found is not None:
                return found
            if takes_copies:
                progress.expect(len(self._own_scores) * len(masks))
            scores = self._by_whole_passes(masks, blocks)
            return scores, self._own_scores.unsqueeze(1).expand_as(scores)

    def _reads_features_alone(self, masks: Tensor, blocks: Blocks) -> bool:
        """Whether the rest of the model answers copies of several images by these copies alone.

        What it keeps of an image goes with all copies of that image; of several, it may be put to copies of another
        one. So some masked copies of some images are put in again while the model is shown these images in two other
        orders: if that makes a difference, images are shown one at a time.
        """
        count, most = len(self._own_scores), self._network.batch_size
        rows = self._network.rows[_spaced(count, min(_IMAGES_TRIED, most), masks.device)]
        if len(rows) < 2:
            return False
        some = masks[_spaced(len(masks), min(_MASKS_TRIED, most * self._copies_for_one // len(rows)), masks.device)]
        own = blocks.spread(some).repeat(len(rows), *[1] * len(self._spatial))
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(len(some))
        kept: list[Tensor] = []

        def copies(output: Tensor) -> Tensor:
            if not kept:
                kept.append(self._masked(output, own, owner))
            return kept[0].clone()

        orders = [rows.roll(by) for by in range(min(3, len(rows)))]  # two others, for images that are alike
        found = [self._tried(partial(self._masked_scores, order, copies, rows[owner])) for order in orders]
        if any(scores is None or len(scores) != len(owner) for scores in found):
            return False
        first, *others = (scores.view(len(rows), len(some), -1) for scores in found)
        spread = first.amax(dim=1, keepdim=True) - first.amin(dim=1, keepdim=True)
        limit = _LITTLE * spread + _ROUNDINGS * max(self.rounding, _ROUNDING) * first.abs()
        return not any(((other - first).abs() > limit).any() for other in others)

    def _by_copies(self, together: int, masks: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor] | None:
        """Return what `scores` does; None if an unmasked copy among the others is not answered as its image is."""
        scores: list[Tensor] = []
        wholes: list[Tensor] = []
        right: list[Tensor] = []
        count = len(masks)
        at_once = min(self._copies_for_one, count)  # so that one image more than the batch size is shown at most
        for images in self._network.rows.split(together):  # type: ignore[no-untyped-call]

            def score(chunk: slice, images: Tensor = images) -> None:
                start, stop = chunk.start * at_once, min(chunk.stop * at_once, len(images) * count)
                first, last = start // count, (stop - 1) // count
                pairs = torch.arange(start, stop, device=masks.device)
                own = blocks.spread(masks[pairs % count])
                found, whole, is_right = self._of_copies(images[first : last + 1], pairs // count - first, own)
                scores.append(found)
                wholes.append(whole)
                right.append(is_right)
                progress.advance(len(found))

            self._network.in_chunks(-(-len(images) * count // at_once), score)
        if not torch.stack(right).all():
            return None
        shape = (len(self._own_scores), len(masks), -1)
        return torch.cat(scores).view(shape), torch.cat(wholes).view(shape)

    def _by_whole_passes(self, masks: Tensor, blocks: Blocks) -> Tensor:
        parts: list[Tensor] = []

        def score(chunk: slice) -> None:
            pairs = torch.arange(chunk.start, chunk.stop, device=masks.device)
            rows, own = pairs // len(masks), blocks.spread(masks[pairs % len(masks)])
            parts.append(self._masked_scores(rows, lambda output: self._masked(output, own), rows))
            progress.advance(len(pairs))

        count = len(self._own_scores)
        self._network.in_chunks(count * len(masks), score)
        return torch.cat(parts).view(count, len(masks), -1)

    def _of_copies(self, rows: Tensor, owner: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score copies of the features of some images.

        Two more copies of each image are masked nowhere, and everywhere. If the former is not answered as the image
        is, the rest of the model does not take the copies for images.

        Args:
            rows: (B,), the images.
            owner: (M,), of which of these each copy is.
            masks: (M, *spatial).

        Returns:
            The scores (M, T) of those that are masked, (M, T) of the copy of the same image that is not, and whether
            they can be trusted.
        """
        each = torch.arange(len(rows), device=rows.device)
        whole, empty = (value * masks.new_ones(len(rows), *masks.shape[1:]) for value in (1, 0))
        owner, masks = torch.cat([owner, each, each]), torch.cat([masks, whole, empty])
        scores = self._masked_scores(rows, lambda output: self._masked(output, masks, owner), rows[owner])
        scores, wholes, empties = scores.split([len(masks) - 2 * len(rows), len(rows), len(rows)])  # type: ignore[no-untyped-call]
        own = self._own_scores[rows]
        scale = torch.maximum(own.abs(), (wholes - empties).abs().nan_to_num()).clamp_min(_ROUNDING)
        return scores, wholes[owner[: len(scores)]], ~((wholes - own).abs() > _TOLERANCE * scale).any()

    def _tried(self, run: Callable[[], Any]) -> Any:
        """Return what `run` returns; None if the model fails, whatever it says to more rows than it was given."""
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            share(error)
            return None

    def _masked_scores(self, rows: Tensor, masking: _Masking, images: Tensor) -> Tensor:
        """Return the scores (M, T) of M images `images` (M,), which the model makes from the images `rows`."""
        with _replaced(self._module, self._layer.call, masking, self._comes_first):
            return self._scores(rows, images)

    def _scores(self, rows: Tensor, images: Tensor) -> Tensor:
        shown = self._network.images[rows].clone()
        if self._precision is not None and shown.is_floating_point():
            shown = shown.to(torch.promote_types(shown.dtype, torch.float32))
        output = self._network.answer(shown, rows)
        self.rounding = max(self.rounding, rounding_of(output))
        return self._network.ranks.agreed(self._reader.read(output, images))

    def _masked(self, output: Tensor, masks: Tensor, owner: Tensor | None = None) -> Tensor:
        """Return the output for M images, each masked by its own mask.

        Args:
            output: For the M images, or for B of which they are copies.
            masks: (M, *spatial).
            owner: (M,), of which of B images each is a copy; None for M different ones.
        """
        self.rounding = max(self.rounding, rounding_of(output))
        if self._found is None:
            batch = self._images_of(output)
            self._found = batch, self._places(output.narrow(batch, 0, 1))
        batch, places = self._found
        rows = output.movedim(batch, 0)
        if owner is not None:
            rows = rows[owner]  # in the memory format that they have
        factors = torch.cat([masks.flatten(1), torch.ones_like(masks.flatten(1)[:, :1])], dim=1).to(output.dtype)
        return (rows * factors.index_select(1, places).view(len(masks), *rows.shape[1:])).movedim(0, batch)

    def _images_of(self, output: Tensor) -> int:
        """Return which dimension of the output counts the images: where there is more of it, more are read."""
        count = len(self._layer.to_maps(output))
        for dimension, size in enumerate(output.shape):
            if size == count and len(self._layer.to_maps(output.repeat_interleave(2, dim=dimension))) == 2 * count:
                return dimension
        raise ValueError("no dimension of the layer's output counts the images")

    def _places(self, output: Tensor) -> Tensor:
        """Return for each entry of the output for one image, in order, its position; the number of these for none."""
        count = self._spatial.numel()
        # Which entries are at a position is read from an output that counts its entries, digit by digit.
        numbers = torch.arange(output.numel(), device=output.device).view(output.shape)
        entries, unit = torch.zeros_like(self._layer.to_maps(output), dtype=torch.int64), 1
        while unit < output.numel():
            entries += self._layer.to_maps((numbers // unit % _BASE).to(output.dtype)).long() * unit
            unit *= _BASE
        if len(torch.unique(entries)) != entries.numel() or int(entries.max()) >= output.numel():
            raise ValueError("reshape_transform does not only put the values of the layer's output in another order")
        places = torch.full((output.numel(),), count, device=output.device)
        positions = torch.arange(count, device=output.device).view(1, 1, *self._spatial)
        places[entries] = positions.expand(entries.shape)
        return places


def _spaced(count: int, most: int, device: torch.device) -> Tensor:
    """Return indices of `most` of `count`, or all, at equal distances."""
    most = max(1, min(count, most))
    return torch.arange(most, device=device) * count // most


@contextmanager
def _replaced(module: torch.nn.Module, call: int, change: _Masking, first: bool) -> Iterator[None]:
    """Replace what one call of a module puts out, before its own hooks are called or after."""
    calls = 0

    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call + 1:
            return None
        changed = change(readable(output))
        if not output.is_quantized:
            return changed
        return torch.quantize_per_tensor(changed, output.q_scale(), output.q_zero_point(), output.dtype)

    with hooked([module], hook, first=first):
        yield
