"""A Gaussian process over the masks of one image, with which Score-CAM can skip most of its forward passes.

The masks of an image live in a space with as many dimensions as the layer has positions, far fewer than it has
channels, and the score of the masked image is a smooth function on it. A Gaussian process (Rasmussen & Williams 2006,
chapters 2 and 5) fitted to the scores of a few masks predicts the others and says how sure it is. The aim is the
heatmap, a linear function of the weights; so the next channels to forward are those that shrink the expected error of
the *heatmap* most (A-optimal design), and the work ends when that error is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

Scale = Literal["probability", "logit", "score", "contrast"]

_LENGTH_SCALES = (0.5, 1.0, 2.0)  # in units of the median distance between masks
_NOISE = 1e-3  # variance of what the masks at layer resolution do not tell, in units of the signal's
_DEVIATIONS = 4.0  # how many standard deviations of the squared error are added to its mean
_MIN_ERROR = 1e-3  # while a score is predicted: a lower estimate would be too low too often
_MAX_IN_SAMPLE = 256  # masks: enough for the median of their distances
_BLANK = 1e-12  # share of a map's squared norm below which what the ReLU leaves has no contrast
_MAX_EXCESS = 3.0  # how far predicted logits may exceed the largest one seen
_TINY = 1e-30
_ROUNDING = 1e-6  # relative: scores that differ by less do not

# Nodes and weights for the mean of a function of a standard normal variable.
_NODES, _NODE_WEIGHTS = hermegauss(5)
_NODE_WEIGHTS = _NODE_WEIGHTS / math.sqrt(2 * math.pi)


class Surrogate:
    """Predicts the weight of every channel of one image from the scores of those that were forwarded.

    The scale says how the weight w of a channel follows from its score v. `"probability"`: v is the logarithm of a
    probability, w = exp(min(v, 0)) - offset. `"logit"`: w = exp(v) relative to the largest v seen; predictions are kept
    from going far beyond that. `"score"`: w = v - offset. `"contrast"`: w = v minus the mean of v over all channels;
    the map is then sum_k v_k (A_k - mean A), so that w = v here, and their mean is taken off the channels.

    Scores are a Gaussian process over the masks with the Matern-3/2 kernel; its constant mean and its variance are
    estimated, and its length scale is chosen, by likelihood.

    Args:
        activations: (n, *spatial of the layer), the live channels of one image.
        scale: The kind of scores.
        offset: Subtracted from every weight, except for logits. By contrast it changes nothing.
    """

    def __init__(self, activations: Tensor, scale: Scale = "probability", offset: float = 0.0) -> None:
        maps = activations.flatten(1)  # (n, d)
        low, high = torch.aminmax(maps, dim=1, keepdim=True)
        self._maps = maps - maps.mean(dim=0) if scale == "contrast" else maps
        self._masks = (maps - low) / (high - low)
        self._contrast = (maps - maps.mean(dim=1, keepdim=True)).norm(dim=1)
        sample = self._masks[:: max(1, len(maps) // _MAX_IN_SAMPLE)]
        distances = torch.cdist(sample, sample)
        self._unit = float(distances[distances > 0].median()) if bool((distances > 0).any()) else 1.0
        self._kind_of_scores = scale
        self._offset = offset
        self._seen = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
        self._channels = torch.empty(0, dtype=torch.long, device=maps.device)
        self._scores = torch.empty(0, dtype=torch.float64, device=maps.device)

    def landmarks(self, count: int) -> Tensor:
        """Return (count,) channels to begin with: of much contrast, and with masks far from each other."""
        chosen = [int(self._contrast.argmax())]
        nearest = torch.full_like(self._contrast, torch.inf)
        while len(chosen) < min(count, len(self._maps)):
            last = self._masks[chosen[-1]]
            nearest = torch.minimum(nearest, (self._masks - last).norm(dim=1))
            nearest[chosen] = -1  # below those that equal a chosen one, which count 0
            chosen.append(int((nearest * self._contrast).argmax()))
        return torch.tensor(chosen, device=self._maps.device)

    def observe(self, channels: Tensor, scores: Tensor) -> None:
        """Take in the scores (m,) of channels (m,) that were forwarded, and predict all others again."""
        self._channels = torch.cat([self._channels, channels])
        self._scores = torch.cat([self._scores, scores.double()])
        self._seen[channels] = True
        self._fit()
        self._predict()

    def _fit(self) -> None:
        """Choose the length scale by the likelihood of the scores seen, with mean and variance estimated."""
        count = len(self._channels)
        masks = self._masks[self._channels].double()
        distances = torch.cdist(masks, masks)
        identity = torch.eye(count, dtype=torch.float64, device=masks.device)
        # The constant 1 and the scores, side by side: (m, 2).
        sides = torch.stack([torch.ones_like(self._scores), self._scores], dim=1)
        best = -math.inf
        for scale in _LENGTH_SCALES:
            factor = torch.linalg.cholesky(_matern(distances, scale * self._unit) + _NOISE * identity)
            ones, scores = torch.linalg.solve_triangular(factor, sides, upper=False).T
            mean = (ones @ scores) / (ones @ ones)
            residual = scores - mean * ones
            variance = (residual @ residual) / max(count - 1, 1)
            fits = -(count - 1) / 2 * variance.clamp_min(_TINY).log() - factor.diagonal().log().sum()
            likelihood = float(fits - (ones @ ones).log() / 2)
            if likelihood > best:
                best = likelihood
                self._scale = scale * self._unit
                self._factor, self._residual = factor, residual
                self._mean, self._variance = mean, variance

    def _predict(self) -> None:
        """Predict mean and standard deviation of every score, and of every weight."""
        covariance = _matern(torch.cdist(self._masks[self._channels], self._masks), self._scale).double()
        self._whitened = torch.linalg.solve_triangular(self._factor, covariance, upper=False)  # (m, n)
        mean = self._mean + self._residual @ self._whitened
        unsure = (1 - self._whitened.square().sum(dim=0)).clamp_min(0) + _NOISE
        deviation = (self._variance * unsure).sqrt()
        mean[self._channels], deviation[self._channels] = self._scores, 0
        nodes, node_weights = (torch.tensor(part, device=mean.device) for part in (_NODES, _NODE_WEIGHTS))
        weights = self._weight(mean.unsqueeze(1) + deviation.unsqueeze(1) * nodes)  # (n, nodes)
        self.weights = weights @ node_weights
        """(n,) float64, the expected weight of each channel; exact for those that were forwarded."""
        spread = (self.weights.var(correction=0) + deviation.square().mean()).sqrt()
        self.spread = unless_rounding(spread, self.weights.abs().max())
        """(), the standard deviation of scores over all channels, what is not known of them included."""
        weight_deviation = ((weights - self.weights.unsqueeze(1)).square() @ node_weights).sqrt()
        self._slope = torch.where(deviation > 0, weight_deviation / deviation.clamp_min(_TINY), 0)

    def _weight(self, scores: Tensor) -> Tensor:
        if self._kind_of_scores in ("score", "contrast"):
            return scores - self._offset
        if self._kind_of_scores == "probability":
            return scores.clamp_max(0).exp() - self._offset
        return (scores - self._scores.max()).clamp_max(_MAX_EXCESS).exp()


class HeatmapError:
    """How wrong a heatmap may be, and which masked images to forward to make it better.

    The heatmap is h = ReLU(sum_k w_k A_k) at layer resolution. With e the part of its error that is neither constant
    nor along h (those change no Pearson correlation), its correlation with the exact heatmap is
    r = 1 / sqrt(1 + |e|^2 / |h - mean|^2). For |e|^2 its mean plus four standard deviations are taken.

    Where both sides of each mask are asked for, w is the difference of two weights, each scaled by its spread (see
    `scales_of_sides`). Each side is a process of its own, independent of the other, so their parts of e add up.

    Attributes:
        estimate: An upper estimate of 1 - r, in [0, 1]: 0 if all scores are known or the heatmap is surely blank, and
            at least 0.001 otherwise.

    Args:
        surrogates: Of each side, over the same masks; the weights of the second are subtracted.
    """

    def __init__(self, surrogates: Sequence[Surrogate]) -> None:
        scales = scales_of_sides([surrogate.spread for surrogate in surrogates])
        self._sides = [_Side(*pair) for pair in zip(surrogates, scales, strict=True)]
        self._contrast = surrogates[0]._contrast
        self._weights = difference_of_sides([surrogate.weights for surrogate in surrogates], scales)
        self._asked_for_contrast: Tensor | None = None
        self.estimate = self._estimated() if any(bool(side.unseen.any()) for side in self._sides) else 0.0

    def _estimated(self) -> float:
        # Scores by contrast that are all equal so far say nothing of how far others may be from them.
        flat = torch.cat([side.unseen & side.is_flat for side in self._sides])
        if flat.any():
            self._asked_for_contrast = flat
            return 1.0
        maps = self._sides[0].maps
        raw = (self._weights @ maps.double()).float()
        shape = raw.clamp_min(0) - raw.clamp_min(0).mean()
        squared_norm = float(shape.square().sum())
        if squared_norm <= _BLANK * float(raw.square().sum()):
            self._asked_for_contrast = torch.cat([side.unseen for side in self._sides])
            variances = [(side.own_effect * side.variance * side.posterior(side.own_effect)) for side in self._sides]
            deviation = torch.stack(variances).sum(dim=(0, 1)).clamp_min(0).sqrt()
            return 0.0 if bool((raw + _DEVIATIONS * deviation <= 0).all()) else 1.0
        for side in self._sides:
            effect = side.own_effect * (raw > 0)
            effect = effect - effect.mean(dim=1, keepdim=True)
            side.effect = effect - (effect @ shape).unsqueeze(1) * shape / squared_norm
            side.together = side.posterior(side.effect)
        mean_square, spread = _trace_and_norm(
            torch.cat([side.effect for side in self._sides]),
            torch.cat([side.variance * side.together for side in self._sides]),
        )
        bound = mean_square.clamp_min(0) + _DEVIATIONS * math.sqrt(2) * spread
        return max(float(1 - (1 + bound / squared_norm).rsqrt()), _MIN_ERROR)

    def next_passes(self, count: int) -> Tensor:
        """Return (`count` or fewer,) masked images to forward, those that shrink the error most, one after the other.

        Of n channels, i is the first side of channel i, and n + i the second. If the heatmap looks blank, but not
        surely, or all scores of a side are equal, they are those of most contrast; if nothing is unknown, none.
        """
        unseen = torch.cat([side.unseen for side in self._sides])
        count = min(count, int(unseen.sum()))
        if self.estimate == 0 or count == 0:
            return unseen.nonzero().flatten()[:0]
        if self._asked_for_contrast is not None:
            count = min(count, int(self._asked_for_contrast.sum()))
            contrast = self._contrast.repeat(len(self._sides))
            return torch.where(self._asked_for_contrast, contrast, -1).topk(count).indices
        chosen: list[int] = []
        while len(chosen) < count:
            pick = int(torch.cat([side.gains() for side in self._sides]).argmax())
            chosen.append(pick)
            self._sides[pick // len(self._contrast)].forward(pick % len(self._contrast))
        return torch.tensor(chosen, device=unseen.device)


class _Side:
    """What a surrogate does not know yet, and how much less that is once more channels are forwarded."""

    effect: Tensor
    """(n, d), what a wrong score of each channel does to the heatmap."""
    together: Tensor
    """(n, d), what goes along with a wrong score of each channel: the covariance, but for the variance."""

    def __init__(self, surrogate: Surrogate, scale: Tensor) -> None:
        self.maps = surrogate._maps
        self.unseen = ~surrogate._seen
        self.is_flat = surrogate._kind_of_scores == "contrast" and bool(surrogate.spread == 0)
        self.variance = float(scale) ** 2 * float(surrogate._variance)
        self._prior = _matern(torch.cdist(surrogate._masks, surrogate._masks), surrogate._scale)
        self._whitened = surrogate._whitened.float()
        self._unsure = (1 - self._whitened.square().sum(dim=0)).clamp_min(0) + _NOISE
        self._candidates = self.unseen.clone()
        self._columns: list[Tensor] = []
        # Nothing where the score is known.
        self.own_effect = self.maps * surrogate._slope.float().unsqueeze(1) * self.unseen.unsqueeze(1)

    def posterior(self, effect: Tensor) -> Tensor:
        """Return posterior covariance times effect, (n, d)."""
        explained: Tensor = self._whitened.T @ (self._whitened @ effect)
        return self._prior @ effect - explained + _NOISE * effect

    def gains(self) -> Tensor:
        """Return (n,), how much the squared error shrinks if a channel is forwarded; -1 for those that are."""
        gains = self.variance * self.together.square().sum(dim=1) / self._unsure.clamp_min(_NOISE)
        return torch.where(self._candidates, gains, -1)

    def forward(self, channel: int) -> None:
        """Count a channel as forwarded: the covariance shrinks by column * column^T."""
        self._candidates[channel] = False
        column = self._prior[channel] - self._whitened[:, channel] @ self._whitened
        column[channel] += _NOISE
        for earlier in self._columns:
            column = column - earlier[channel] * earlier
        column = column / column[channel].clamp_min(_NOISE).sqrt()
        self._columns.append(column)
        self.together = self.together - column.unsqueeze(1) * (column @ self.effect)
        self._unsure = self._unsure - column.square()


def difference_of_sides(sides: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """Return the scores (..., n) of the first side minus those of the second, if there is one, both scaled."""
    first, *second = (scale * scores for scale, scores in zip(scales, sides, strict=True))
    return first - second[0] if second else first


def scales_of_sides(spreads: Sequence[Tensor]) -> list[Tensor]:
    """Return what the scores of each of two sides are multiplied by, so that both have the mean of the spreads.

    Scores of what masks keep vary more than those of what is left without it; so both count alike.

    Args:
        spreads: Of each side, the standard deviation of its scores over the channels. One side alone is not scaled.
    """
    if len(spreads) == 1:
        return [torch.ones_like(spreads[0])]
    mean = torch.stack(list(spreads)).mean(dim=0)
    return [torch.where(spread > 0, mean / spread, 0) for spread in spreads]


def unless_rounding(spread: Tensor, largest: Tensor) -> Tensor:
    """Return the standard deviation of scores, or 0 if it is rounding, given the largest magnitude of a score."""
    return torch.where(spread > _ROUNDING * largest, spread, 0)


def _trace_and_norm(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return trace and Frobenius norm of a^T b, the covariance of the heatmap's error but for the variance.

    It has as many rows and columns as the layer has positions. Where these are more than the channels, the norm is
    taken from two matrices of channels by channels: |a^T b|^2 = sum of (a a^T) * (b b^T).

    Args:
        a: (n, d), what a change of each of n scores does to the d positions.
        b: (n, d), the same for what goes along with it.
    """
    trace = (a * b).sum()
    if a.shape[1] <= a.shape[0]:
        return trace, (a.T @ b).square().sum().sqrt()
    return trace, ((a @ a.T) * (b @ b.T)).sum().clamp_min(0).sqrt()


def _matern(distances: Tensor, scale: float) -> Tensor:
    """The Matern kernel with nu = 3/2 (Rasmussen & Williams 2006, eq. 4.17)."""
    r = distances * (math.sqrt(3) / scale)
    return (1 + r) * (-r).exp()
