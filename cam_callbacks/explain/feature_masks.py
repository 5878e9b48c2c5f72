"""Scores of an image of which only a part of a layer's output is left: only what comes after the layer runs for each.

The model runs on one image up to the layer; there a hook puts in as many copies of the layer's output as there are
masks, each masked, and the rest of the model runs on all of them. A model that cannot go on with more rows than it
began with (it joins them with what it kept of the image) is shown the image once for each mask instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cam_callbacks.explain import layers, progress
from cam_callbacks.explain.hooks import hooked
from cam_callbacks.explain.layers import ReadLayer
from cam_callbacks.explain.network import Network
from cam_callbacks.explain.score_readers import ScoreReader

_TOLERANCE = 1e-2  # relative: rounding depends a little on the size of the batch
_ROUNDING = 1e-6

_Masking = Callable[[Tensor], Tensor]


class FeatureMasks:
    """Scores what is left of an image where a layer's output is masked.

    Args:
        network: The model and the images.
        layer: The name of the layer.
        read: How its output is read.
        reader: Reads the explained scores.
        own_scores: (N, T), those of the whole images.
    """

    def __init__(self, network: Network, layer: str, read: ReadLayer, reader: ScoreReader, own_scores: Tensor) -> None:
        self._network, self._read, self._reader = network, read, reader
        self._module = layers.find(network.model, layer)
        self._own_scores = own_scores
        self._from_one = not network.mixes_images
        """Whether one image is multiplied at the layer; not once that has failed."""

    def scores(self, image: int, masks: Tensor) -> Tensor:
        """Return (M, T) float32, the scores of one image, of whose layer only what each mask lets through is left.

        Args:
            image: Which of the N images.
            masks: (M, *spatial of the layer), factors of each position. What belongs to none, such as a class token,
                stays as it is.
        """
        parts: list[Tensor] = []

        def score(chunk: slice) -> None:
            parts.append(self._network.ranks.agreed(self._of_chunk(image, masks[chunk])))
            progress.advance(chunk.stop - chunk.start)

        self._network.in_chunks(len(masks), score)
        return torch.cat(parts)

    def _of_chunk(self, image: int, masks: Tensor) -> Tensor:
        if self._from_one and len(masks) > 1:
            found = self._multiplied(image, masks)
            if found is not None:
                return found
            self._from_one = False
        rows = torch.full((len(masks),), image, device=masks.device)
        return self._run(rows, lambda output: self._masked(output, masks), len(masks))

    def _multiplied(self, image: int, masks: Tensor) -> Tensor | None:
        """Return the scores from one image that is multiplied at the layer; None if the model cannot do that.

        One more copy is not masked: if it is not answered as the image is, the rest of the model does not take the
        copies for images.
        """
        with_whole = torch.cat([masks, torch.ones_like(masks[:1])])
        row = torch.tensor([image], device=masks.device)
        try:
            scores = self._run(
                row, lambda output: self._masked(self._copied(output, len(with_whole)), with_whole), len(with_whole)
            )
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever the model says to more rows than it was given
            return None
        off = (scores[-1] - self._own_scores[image]).norm()
        return None if bool(off > _TOLERANCE * self._own_scores[image].norm().clamp_min(_ROUNDING)) else scores[:-1]

    def _run(self, rows: Tensor, masking: _Masking, count: int) -> Tensor:
        images = self._network.images[rows].clone()
        with _replaced(self._module, self._read.call, masking):
            output = self._network.answer(images, rows)
        return self._reader.read(output, rows[:1].expand(count))

    def _copied(self, output: Tensor, count: int) -> Tensor:
        """Return the output for one image as that for `count` of them."""
        for dimension in range(output.ndim):
            if output.shape[dimension] == 1:
                copied = output.repeat_interleave(count, dim=dimension)
                if len(self._read.to_maps(copied)) == count:
                    return copied
        raise ValueError("no dimension of the images")

    def _masked(self, output: Tensor, masks: Tensor) -> Tensor:
        # Which entries of the output belong to which position is read from an output that counts its entries.
        entries = torch.arange(output.numel(), device=output.device).view(output.shape)
        exact = entries if output.device.type == "mps" else entries.double()  # a transform may cast them
        places = self._read.to_maps(exact).long()  # (M, K, *spatial)
        factors = torch.ones_like(output).flatten()
        factors[places] = masks.unsqueeze(1).expand(places.shape).to(output.dtype)
        return output * factors.view(output.shape)


@contextmanager
def _replaced(module: torch.nn.Module, call: int, change: _Masking) -> Iterator[None]:
    """Replace what one call of a module puts out."""
    calls = 0

    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return change(output) if calls == call + 1 else None

    with hooked([module], hook):
        yield
