"""The adaptive search for the weights of channels: a few masked images a round, until each heatmap is good enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cam_callbacks.explain import progress
from cam_callbacks.explain.heatmap_error import HeatmapErrors
from cam_callbacks.explain.surrogate import Scale, Surrogates

_FIRST_PASSES = 16
_PASSES_A_ROUND, _PASSES_A_ROUND_ON_GPU = 8, 16  # there a few passes more take less time than another decision
_MIN_PROBABILITY = 1e-30  # before the logarithm
_MANY = 256  # passes of an image, more than most take
_MEMORY = 2**27  # bytes on a CPU; on a GPU a share of what is free
_SHARE_OF_FREE = 0.25

MaskedScores = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called with images (pairs,), channels (pairs,), and (pairs,) bool whether by one minus the mask or None for never;
returns scores (pairs, T)."""


class PredictedWeights(NamedTuple):
    """What an adaptive search has found.

    Attributes:
        weights: (N, T, S, K) float64, of each side of the masks; 0 for channels that are not live, NaN for a target of
            which a score was not finite.
        spread: (N, T, S) float64, the standard deviation of scores over the live channels.
        error: (N, T) float64, the estimated error of each heatmap.
    """

    weights: Tensor
    spread: Tensor
    error: Tensor


@dataclass(frozen=True)
class AdaptiveSearch:
    """Finds the weights of channels with as few masked images as the tolerance allows.

    The T targets of an image share all passes; the one with the largest estimated error chooses the next ones. What all
    images ask for in a round is forwarded together, so that chunks stay full. Images are searched in groups, as many at
    once as memory is worth: 128 MiB, or a quarter of what is free on a GPU.

    Attributes:
        score: Forwards masked images.
        scale: The kind of scores.
        sides: How many sides of each mask are asked for, 1 or 2.
        tolerance: The estimated error at which a heatmap is good enough.
        max_passes: The most masked images for each image; None for no limit.
        smallest: Called with a number; returns the smallest of all ranks that run the same model together.
    """

    score: MaskedScores
    scale: Scale
    sides: int
    tolerance: float
    max_passes: int | None
    smallest: Callable[[int], int] = int

    def weights(self, activations: Tensor, live: Tensor, offset: Tensor) -> PredictedWeights:
        """Return the weights of all channels, most of them predicted.

        Args:
            activations: (N, K, *spatial of the layer).
            live: (N, K) bool, the channels to weigh.
            offset: (N, T), subtracted from all scores.
        """
        count, targets = offset.shape
        # It needs double precision, which MPS does not have.
        device = torch.device("cpu") if live.device.type == "mps" else live.device
        zeros = torch.zeros(count, targets, dtype=torch.float64, device=device)
        found = PredictedWeights(
            zeros[:, :, None, None].repeat(1, 1, self.sides, live.shape[1]),
            zeros.unsqueeze(2).repeat(1, 1, self.sides),
            zeros,
        )
        with_live = live.any(dim=1).nonzero().flatten()
        if not len(with_live):
            return found
        for images in with_live.split(self._images_at_once(activations[0], targets)):  # type: ignore[no-untyped-call]
            self._search(images, activations, live, offset, found)
        return found

    def _images_at_once(self, activations: Tensor, targets: int) -> int:
        """Return how many images with activations (K, *spatial) are searched together."""
        channels, values = len(activations), activations.numel()
        passes = min(self.max_passes or _MANY, channels * self.sides, _MANY)
        of_processes = 32 * values + 24 * passes * (channels + passes)  # of each target and side
        each = 20 * channels**2 + 16 * values + targets * self.sides * of_processes
        memory = _MEMORY
        if activations.is_cuda:
            device = activations.device
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            memory = int(_SHARE_OF_FREE * (torch.cuda.mem_get_info(device)[0] + cached))
        return self.smallest(max(1, memory // each))

    def _search(
        self, images: Tensor, activations: Tensor, live: Tensor, offset: Tensor, found: PredictedWeights
    ) -> None:
        """Search for the weights of some images (b,), and put them into what is found."""
        device, given, channels = found.error.device, live.device, live.shape[1]
        maps, own_live, own_offset = (each[images].to(device) for each in (activations, live, offset))
        with torch.autocast(device.type, enabled=False):
            surrogates = Surrogates(maps, own_live, own_offset, self.scale, self.sides)
            first = surrogates.landmarks((_FIRST_PASSES + _PASSES_A_ROUND) // self.sides)
        # What is decided by numbers of passes is decided on the CPU: each round waits for the device once.
        spared = surrogates.unseen.sum(dim=(1, 2)).cpu()
        left = spared if self.max_passes is None else spared.clamp_max(self.max_passes)
        wanted = self._first_passes(first.cpu(), left, channels)
        unknown = torch.zeros(len(images), offset.shape[1], dtype=torch.bool, device=device)
        error = torch.ones_like(unknown, dtype=torch.float64)
        while True:
            goes_on = (wanted >= 0).any(dim=1)
            if not goes_on.all():
                done, further = (_sent((goes_on == on).nonzero().flatten(), device) for on in (False, True))
                places = _sent(images, device)
                found.weights[places[done]] = surrogates.weights[done].masked_fill(
                    unknown[done][:, :, None, None], torch.nan
                )
                found.spread[places[done]] = surrogates.spread[done]
                found.error[places[done]] = error[done]
                progress.advance(int(spared[~goes_on].sum()))
                if not len(further):
                    return
                surrogates.keep(further)
                images = _sent(places[further], given)
                unknown, error = unknown[further], error[further]
                wanted, left, spared = wanted[goes_on], left[goes_on], spared[goes_on]
            number = (wanted >= 0).sum(dim=1)
            left, spared = left - number, spared - number
            values = self._values(images, wanted, channels, device)
            unknown = unknown | ~torch.isfinite(values).all(dim=1)
            with torch.autocast(device.type, enabled=False):
                surrogates.observe(_sent(wanted, device), values.nan_to_num(0.0, 0.0, 0.0))
                error, passes = self._decide(surrogates, unknown)
            wanted = _first_of(passes.cpu(), left)

    def _decide(self, surrogates: Surrogates, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimated error (b, T) of each heatmap, and the next masked images (b, m), -1 for none.

        Args:
            surrogates: They predict the weights.
            unknown: (b, T) bool, of which target a score was not finite.
        """
        errors = HeatmapErrors(surrogates)
        worst = errors.estimates.masked_fill(unknown, -1).max(dim=1)
        count = _PASSES_A_ROUND_ON_GPU if unknown.is_cuda else _PASSES_A_ROUND
        passes = errors.next_passes(count, worst.indices)
        passes = torch.where((worst.values > self.tolerance).unsqueeze(1), passes, -1)
        return errors.estimates.masked_fill(unknown, torch.nan), passes

    def _first_passes(self, landmarks: Tensor, left: Tensor, channels: int) -> Tensor:
        """Return the masked images (b, m) to begin with, -1 for none; all of them where few are left (b,)."""
        few = left <= _FIRST_PASSES + _PASSES_A_ROUND
        landmarks = _first_of(landmarks, torch.where(few, left, _FIRST_PASSES) // self.sides)
        of_sides = [torch.where(landmarks >= 0, landmarks + side * channels, -1) for side in range(self.sides)]
        return torch.cat(of_sides, dim=1)

    def _values(self, images: Tensor, wanted: Tensor, channels: int, device: torch.device) -> Tensor:
        """Return the scores (b, m, T) of masked images (b, m) as the surrogates take them, 0 for none."""
        row, place = (wanted >= 0).nonzero(as_tuple=True)
        chosen = _sent(wanted[row, place], images.device)
        turned = chosen >= channels if self.sides == 2 else None
        scores = self.score(images[_sent(row, images.device)], chosen % channels, turned)
        if self.scale == "probability":
            scores = scores.clamp_min(_MIN_PROBABILITY).log()
        values = torch.zeros(*wanted.shape, scores.shape[1], device=device)
        places = (_sent(each, device) for each in (row, place))
        values[tuple(places)] = scores.to(values)
        return values


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for a CUDA device."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _first_of(passes: Tensor, count: Tensor) -> Tensor:
    """Return passes (b, m) without those after the first `count` (b,)."""
    return torch.where(torch.arange(passes.shape[1], device=passes.device) < count.unsqueeze(1), passes, -1)
