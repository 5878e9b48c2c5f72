"""How wrong heatmaps may be whose weights are predicted, and which masked images to forward to make them better.

The aim is the heatmap, a linear function of the weights; so the next masked images are those that shrink the expected
error of the *heatmap* most (A-optimal design), and the work ends when that error is small. Shapes are named as in
`cam_callbacks.explain.surrogate`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cam_callbacks.explain.surrogate import NOISE, Surrogates, difference_of_sides, scales_of_sides

_DEVIATIONS = 4.0  # how many standard deviations of the squared error are added to its mean
_MIN_ERROR = 1e-3  # while a score is predicted: a lower estimate would be too low too often
_BLANK = 1e-12  # share of a map's squared norm below which what the ReLU leaves has no contrast


class HeatmapErrors:
    """How wrong the heatmaps of some images may be.

    A heatmap is h = ReLU(sum_k w_k A_k) at layer resolution. With e the part of its error that is neither constant
    nor along h (those change no Pearson correlation), its correlation with the exact heatmap is
    r = 1 / sqrt(1 + |e|^2 / |h - mean|^2). For |e|^2 its mean plus four standard deviations are taken.

    Where both sides of each mask are asked for, w is the difference of two weights, each scaled by its spread (see
    `scales_of_sides`). Each side is a process of its own, independent of the other, so their parts of e add up.

    Attributes:
        estimates: (B, T) float64, upper estimates of 1 - r, in [0, 1]: 0 if all scores are known or the heatmap is
            surely blank, and at least 0.001 otherwise.

    Args:
        surrogates: They predict the weights; those of a second side are subtracted.
    """

    def __init__(self, surrogates: Surrogates) -> None:
        self._surrogates = surrogates
        dtype, unseen = surrogates.dtype, surrogates.unseen.unsqueeze(1)  # (B, 1, S, n)
        maps = surrogates.maps.to(dtype)  # (B, n, d)
        scales = scales_of_sides(surrogates.spread.unbind(dim=2))
        of_sides = [scale.unsqueeze(2) for scale in scales]
        raw = difference_of_sides(surrogates.weights.unbind(dim=2), of_sides).to(dtype) @ maps  # (B, T, d)
        shape = raw.clamp_min(0) - raw.clamp_min(0).mean(dim=2, keepdim=True)
        squared_norm = shape.square().sum(dim=2)
        blank = squared_norm <= _BLANK * raw.square().sum(dim=2)
        # Nothing where the score is known.
        effects = maps[:, None, None] * (surrogates.slope * unseen).to(dtype).unsqueeze(4)
        # What the ReLU lets through, without what is constant or along the map; of a blank map all counts.
        effects *= ((raw > 0) | blank.unsqueeze(2))[:, :, None, None]
        shown = ~blank[:, :, None, None, None]
        effects -= effects.mean(dim=4, keepdim=True) * shown
        along = (effects @ shape[:, :, None, :, None]) / squared_norm.masked_fill(blank, 1)[:, :, None, None, None]
        effects -= along * shape[:, :, None, None] * shown
        self._effects = effects  # (B, T, S, n, d), what a wrong score of each channel does to the heatmap
        self._variance = (torch.stack(scales, dim=2) ** 2 * surrogates.variance).to(dtype)
        self._together = surrogates.posterior(effects)  # what goes along with it: its covariance, but for the variance
        together = self._together * self._variance[..., None, None]
        of_positions = (effects * together).sum(dim=(2, 3))  # (B, T, d), the variance of the error of each
        bound = of_positions.sum(dim=2).clamp_min(0) + _DEVIATIONS * math.sqrt(2) * _norm(effects, together)
        ordinary = (1 - (1 + bound / squared_norm).rsqrt()).double().clamp_min(_MIN_ERROR)
        ordinary = ordinary.nan_to_num(1.0)  # numbers too large for covariances: nothing is known of the error
        surely_blank = (raw + _DEVIATIONS * of_positions.clamp_min(0).sqrt() <= 0).all(dim=2)
        flat = unseen & surrogates.is_flat.unsqueeze(3)  # (B, T, S, n)
        is_flat, is_known = flat.flatten(2).any(dim=2), ~unseen.flatten(2).any(dim=2)
        self.estimates = torch.where(blank, torch.where(surely_blank, 0.0, ordinary.new_ones(())), ordinary)
        self.estimates = torch.where(is_flat, 1.0, self.estimates).masked_fill(is_known, 0)
        self._by_contrast = blank | is_flat
        self._unknown = torch.where(is_flat[:, :, None, None], flat, unseen)  # what is asked for by contrast

    def next_passes(self, count: int, target: Tensor) -> Tensor:
        """Return masked images (B, count) to forward: those that shrink an error most, one after the other.

        Of n channels, i is the first side of channel i, and n + i the second; -1 stands for none. If the heatmap looks
        blank, but not surely, or all scores of a side are equal, they are those of most contrast; if nothing is
        unknown, none.

        Args:
            count: The most that are returned.
            target: (B,) int64, whose error is to shrink.
        """
        images = torch.arange(len(target), device=target.device)
        candidates, contrast = self._unknown[images, target].flatten(1), self._surrogates.contrast
        contrast = contrast.repeat(1, self._surrogates.unseen.shape[1])
        most = torch.where(candidates, contrast, -1).topk(min(count, contrast.shape[1]), dim=1)
        by_contrast = torch.where(most.values >= 0, most.indices, -1)
        chosen = torch.where(
            self._by_contrast[images, target].unsqueeze(1), by_contrast, self._best(by_contrast.shape[1], target)
        )
        return torch.where(self.estimates[images, target].unsqueeze(1) > 0, chosen, -1)

    def _best(self, count: int, target: Tensor) -> Tensor:
        """Return the (B, count) masked images that shrink the error of a target (B,) most, one after the other."""
        images = torch.arange(len(target), device=target.device)
        effects, together = self._effects[images, target], self._together[images, target]  # (B, S, n, d)
        squares = together.square().sum(dim=3)  # (B, S, n), of what goes along with each channel
        covariance_with = self._surrogates.covariances(target)
        variance, unsure = self._variance[images, target].unsqueeze(2), self._surrogates.unsure()[images, target]
        candidates = self._surrogates.unseen.flatten(1)
        sides, channels = effects.shape[1:3]
        side = torch.arange(sides, device=target.device)
        columns = effects.new_zeros(count, len(target), sides, channels)
        moved = effects.new_zeros(count, len(target), sides, effects.shape[3])  # what each column does to the heatmap
        chosen = []
        for number in range(count):
            gains = (variance * squares / unsure.clamp_min(NOISE)).flatten(1)
            best = torch.where(candidates, gains, -1).argmax(dim=1, keepdim=True)
            chosen.append(torch.where(candidates.gather(1, best), best, -1))
            candidates = candidates.scatter(1, best, value=False)
            # Count it as forwarded: the covariance of its side shrinks by column * column^T.
            channel = best.squeeze(1) % channels
            column, earlier = covariance_with(channel), columns[:number]
            own = earlier.gather(3, channel.view(1, -1, 1, 1).expand(*earlier.shape[:3], 1))
            column -= (own * earlier).sum(dim=0)
            column /= column[images, :, channel].clamp_min(NOISE).sqrt().unsqueeze(2)
            column *= side.eq(best // channels).unsqueeze(2)
            columns[number], moved[number] = column, (column.unsqueeze(2) @ effects).squeeze(2)
            now = moved[number]
            along = (together @ now.unsqueeze(3)).squeeze(3)
            along -= (earlier * (moved[:number] * now).sum(dim=3, keepdim=True)).sum(dim=0)
            squares = squares - 2 * column * along + column.square() * now.square().sum(dim=2, keepdim=True)
            unsure = unsure - column.square()
        return torch.cat(chosen, dim=1)


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Return the Frobenius norm (B, T) of a^T b, the covariance of the heatmap's error.

    It has as many rows and columns as the layer has positions. Where these are more than the channels, the norm is
    taken from two matrices of channels by channels: |a^T b|^2 = sum of (a a^T) * (b b^T).

    Args:
        a: (B, T, S, n, d), what a change of each score does to the d positions.
        b: (B, T, S, n, d), the same for what goes along with it.
    """
    a, b = a.flatten(2, 3), b.flatten(2, 3)
    if a.shape[3] <= a.shape[2]:
        return (a.mT @ b).square().sum(dim=(2, 3)).sqrt()
    return ((a @ a.mT) * (b @ b.mT)).sum(dim=(2, 3)).clamp_min(0).sqrt()
