"""Scores of images of which only a part of a layer's output is left: only what comes after the layer runs for each.

The model runs on one image up to the layer; there a hook puts in as many copies of the layer's output as there are
masks, each masked, and the rest of the model runs on all of them. A model that cannot go on with more rows than it
began with (it joins them with what it kept of the image) is shown the image once for each mask instead.

One position of many changes a score by little, often by less than 16 bits can tell. So the model runs in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain import layers, progress
from cam_callbacks.explain.forward_pass import ForwardPass
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import readable
from cam_callbacks.explain.network import Network
from cam_callbacks.explain.precision import in_full_precision, rounding_of
from cam_callbacks.explain.sharding import share

_TOLERANCE = 1e-2  # relative: rounding depends a little on the size of the batch
_ROUNDING = 1e-6
_COPIES = 4  # those at the layer together hold at most so many times the numbers of a batch of images

_Masking = Callable[[Tensor], Tensor]


class FeatureMasks:
    """Scores what is left of images where a layer's output is masked.

    Args:
        network: The model and the images.
        forward_pass: What the pass over the whole images gave.
        layer: The index of the layer among `forward_pass.layers`.

    Attributes:
        own_scores: (N, T) float32, the scores of the whole images.
        rounding: Of scores, relative.
    """

    def __init__(self, network: Network, forward_pass: ForwardPass, layer: int) -> None:
        self._network = network
        self._module = layers.find(network.model, forward_pass.layers[layer])
        self._layer = forward_pass.readers[layer]
        self._reader = forward_pass.reader
        self.own_scores = forward_pass.target_scores
        self.rounding = 0.0
        features = forward_pass.activations[layer][0]
        self._spatial = features.shape[1:]
        self._copies_for_one = max(1, _COPIES * network.images[0].numel() // max(1, features.numel()))
        self._is_full = not network.ranks.are_several
        if self._is_full:
            self._score_in_full_precision()

    def _score_in_full_precision(self) -> None:
        """Score the whole images anew where full precision makes a difference; give it up if the model then fails."""
        rows = self._network.rows
        with in_full_precision(self._network.model) as precision:
            self._is_full = self._tried(lambda: self._scores(rows[:1], rows[:1])) is not None
            if self._is_full and precision.differs:
                parts: list[Tensor] = []
                self._network.in_chunks(len(rows), lambda chunk: parts.append(self._scores(rows[chunk], rows[chunk])))
                self.own_scores = torch.cat(parts)

    def _precision(self) -> AbstractContextManager[object]:
        return in_full_precision(self._network.model) if self._is_full else nullcontext()

    @cached_property
    def takes_copies(self) -> bool:
        """Whether the rest of the model runs on copies of one image's features; else each mask takes a whole pass."""
        if self._network.mixes_images:
            return False
        with self._precision():
            found = self._tried(lambda: self._of_copies(0, self.own_scores.new_ones(1, *self._spatial)))
        return found is not None and bool(found[1])

    def scores(self, masks: Tensor) -> Tensor:
        """Return (N, M, T) float32, the scores of each image, of whose layer only what a mask lets through is left.

        Args:
            masks: (M, *spatial of the layer), factors of each position. What belongs to none, such as a class token,
                stays as it is.
        """
        progress.expect(len(self.own_scores) * len(masks))
        takes_copies = self.takes_copies
        with self._precision():
            found = self._tried(lambda: self._by_copies(masks)) if takes_copies else None
            return self._by_whole_passes(masks) if found is None else found

    def _by_copies(self, masks: Tensor) -> Tensor | None:
        """Return the scores; None if an unmasked copy among the others is not answered as its image is."""
        parts: list[Tensor] = []
        right: list[Tensor] = []
        for image in range(len(self.own_scores)):

            def score(chunk: slice, image: int = image) -> None:
                chosen = masks[chunk.start * self._copies_for_one : chunk.stop * self._copies_for_one]
                scores, is_right = self._of_copies(image, chosen)
                parts.append(scores)
                right.append(is_right)
                progress.advance(len(chosen))

            self._network.in_chunks(-(-len(masks) // self._copies_for_one), score)
        if not torch.stack(right).all():
            return None
        return torch.cat(parts).view(len(self.own_scores), len(masks), -1)

    def _by_whole_passes(self, masks: Tensor) -> Tensor:
        parts: list[Tensor] = []

        def score(chunk: slice) -> None:
            pairs = torch.arange(chunk.start, chunk.stop, device=masks.device)
            rows = pairs // len(masks)
            parts.append(self._run(rows, lambda output: self._masked(output, masks[pairs % len(masks)]), rows))
            progress.advance(len(pairs))

        count = len(self.own_scores)
        self._network.in_chunks(count * len(masks), score)
        return torch.cat(parts).view(count, len(masks), -1)

    def _of_copies(self, image: int, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (M, T) from one image that is multiplied at the layer, and whether they can be trusted.

        Two more copies are masked nowhere, and everywhere. If the former is not answered as the image is, the rest of
        the model does not take the copies for images.
        """
        extra = torch.stack([torch.ones_like(masks[0]), torch.zeros_like(masks[0])])
        masks = torch.cat([masks, extra])
        row = torch.tensor([image], device=masks.device)
        scores = self._run(row, lambda output: self._copied(output, masks), row.expand(len(masks)))
        *_, whole, empty = scores
        own = self.own_scores[image]
        scale = torch.maximum(own.norm(), (whole - empty).norm()).clamp_min(_ROUNDING)
        return scores[:-2], ~((whole - own).norm() > _TOLERANCE * scale)

    def _tried(self, run: Callable[[], Any]) -> Any:
        """Return what `run` returns; None if the model fails, whatever it says to more rows than it was given."""
        try:
            return run()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            share(error)
            return None

    def _run(self, rows: Tensor, masking: _Masking, images: Tensor) -> Tensor:
        """Return the scores (M, T) of M images `images` (M,), which the model makes from the images `rows`."""
        with _replaced(self._module, self._layer.call, masking):
            return self._scores(rows, images)

    def _scores(self, rows: Tensor, images: Tensor) -> Tensor:
        shown = self._network.images[rows].clone()
        if self._is_full and shown.is_floating_point():
            shown = shown.to(torch.promote_types(shown.dtype, torch.float32))
        output = self._network.answer(shown, rows)
        self.rounding = max(self.rounding, rounding_of(output))
        return self._network.ranks.agreed(self._reader.read(output, images))

    def _copied(self, output: Tensor, masks: Tensor) -> Tensor:
        """Return the output for one image as that for M of them, each masked."""
        batch = next(
            dimension
            for dimension in range(output.ndim)
            if output.shape[dimension] == 1
            and len(self._layer.to_maps(output.repeat_interleave(2, dim=dimension))) == 2
        )
        # Which position each entry belongs to; the one after the last: none.
        positions = masks[0].numel()
        places = torch.full((output.numel(),), positions, device=output.device)
        own = self._entries(output)
        places[own] = torch.arange(positions, device=output.device).view(1, 1, *masks.shape[1:]).expand(own.shape)
        factors = torch.cat([masks.flatten(1), torch.ones_like(masks.flatten(1)[:, :1])], dim=1).to(output.dtype)
        copies = output.unsqueeze(0) * factors[:, places].view(len(masks), *output.shape)
        return copies.squeeze(batch + 1).movedim(0, batch)

    def _masked(self, output: Tensor, masks: Tensor) -> Tensor:
        """Return the output for M images, each masked by its own mask."""
        places = self._entries(output)
        factors = torch.ones_like(output).flatten()
        factors[places] = masks.unsqueeze(1).expand(places.shape).to(output.dtype)
        return output * factors.view(output.shape)

    def _entries(self, output: Tensor) -> Tensor:
        """Return (M, K, *spatial) int64, which entry of the output each value of its maps is."""
        # It is read from an output that counts its entries, which a transform may cast.
        entries = torch.arange(output.numel(), device=output.device).view(output.shape)
        maps: Tensor = self._layer.to_maps(entries if output.device.type == "mps" else entries.double())
        return maps.long()


@contextmanager
def _replaced(module: torch.nn.Module, call: int, change: _Masking) -> Iterator[None]:
    """Replace what one call of a module puts out."""
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

    with hooked([module], hook):
        yield
