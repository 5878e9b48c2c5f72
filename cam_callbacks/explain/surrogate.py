"""Gaussian processes over the masks of images, with which Score-CAM can skip most of its forward passes.

The masks of an image live in a space with as many dimensions as the layer has positions, far fewer than it has
channels, and the score of the masked image is a smooth function on it. A Gaussian process (Rasmussen & Williams 2006,
chapters 2 and 5) fitted to the scores of a few masks predicts the others and says how sure it is.

All images, targets and sides of masks are done at once, without waiting for the device. Shapes are in terms of B
images, T targets, S sides, n channels, d positions of the layer and m forwarded masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

Scale = Literal["probability", "logit", "score", "contrast"]

NOISE = 1e-3
"""Variance of what the masks at layer resolution do not tell, in units of the signal's."""
TINY = 1e-30

_LENGTH_SCALES = (0.5, 1.0, 2.0)  # in units of the median distance between masks
_MAX_IN_SAMPLE = 256  # masks: enough for the median of their distances
_MAX_EXCESS = 3.0  # how far predicted logits may exceed the largest one seen
_ROUNDING = 1e-6  # relative: scores that differ by less do not

# Nodes and weights for the mean of a function of a standard normal variable.
_NODES, _NODE_WEIGHTS = hermegauss(5)
_CONSTANTS = (_LENGTH_SCALES, _NODES, _NODE_WEIGHTS / math.sqrt(2 * math.pi))


class _Constants(NamedTuple):
    """Constants on the device of the images."""

    lengths: Tensor
    nodes: Tensor
    node_weights: Tensor


class Surrogates:
    """Predicts the weight of every channel from the scores of those that were forwarded: a process for each side.

    The scale says how the weight w of a channel follows from its score v. `"probability"`: v is the logarithm of a
    probability, w = exp(min(v, 0)) - offset. `"logit"`: w = exp(v) relative to the largest v seen; predictions are kept
    from going far beyond that. `"score"`: w = v - offset. `"contrast"`: w = v minus the mean of v over all channels;
    the map is then sum_k v_k (A_k - mean A), so that w = v here, and their mean is taken off the channels.

    Scores are a Gaussian process over the masks with the Matern-3/2 kernel; its constant mean and its variance are
    estimated, and its length scale is chosen, by likelihood.

    Attributes:
        maps: (B, n, d), what the weights sum.
        contrast: (B, n), how much the mask of each channel varies; -1 of those that are not live.
        unseen: (B, S, n) bool, live channels whose score is not known yet.
        weights: (B, T, S, n) float64, the expected weight of each channel; exact for those that were forwarded, 0 for
            those that are not live.
        spread: (B, T, S), the standard deviation of the scores over all live channels, what is not known of them
            included.
        slope: (B, T, S, n), how much a wrong score changes the weight; 0 where it is known.
        variance: (B, T, S), of the process.
        dtype: Precise enough for covariances: float32; on a GPU, which may round its products to fewer bits, float64.

    Args:
        activations: (B, n, *spatial of the layer).
        live: (B, n) bool, the channels that have a weight.
        offset: (B, T), subtracted from every weight, except for logits. By contrast it changes nothing.
        scale: The kind of scores.
        sides: How many sides of each mask are asked for.
    """

    def __init__(self, activations: Tensor, live: Tensor, offset: Tensor, scale: Scale, sides: int = 1) -> None:
        maps = activations.flatten(2)
        low, high = torch.aminmax(maps, dim=2, keepdim=True)
        self.dtype = torch.float64 if live.is_cuda else torch.float32
        self._constants = _Constants(*(torch.tensor(each, device=live.device).double() for each in _CONSTANTS))
        self._live = live
        self._offset = offset.double()[:, :, None, None]
        self._scale_of_scores = scale
        self._distances = _distances((maps - low) / (high - low).clamp_min(TINY))
        self._unit = _median_distance(self._distances, live)
        self.contrast = (maps - maps.mean(dim=2, keepdim=True)).norm(dim=2).masked_fill(~live, -1)
        self.maps = maps
        if scale == "contrast":
            among_live = live.unsqueeze(2)
            self.maps = maps - (maps * among_live).sum(dim=1, keepdim=True) / among_live.sum(dim=1, keepdim=True)
        images, targets, channels = len(maps), offset.shape[1], maps.shape[1]
        self.unseen = live.unsqueeze(1).repeat(1, sides, 1)
        self._scores = maps.new_zeros(images, targets, sides, channels, dtype=torch.float64)
        self._seen = torch.zeros(images, sides, 0, dtype=torch.int64, device=maps.device)
        self._counts = torch.zeros_like(self._seen, dtype=torch.bool)

    def keep(self, images: Tensor) -> None:
        """Go on with some of the images only, (b,) int64."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[images])

    def landmarks(self, count: int) -> Tensor:
        """Return channels (B, count) to begin with, of much contrast and with masks far from each other; -1 for none.

        Of an image with fewer live channels all are returned.
        """
        chosen = torch.full((len(self.maps), count), -1, device=self.maps.device)
        nearest, left = torch.full_like(self.contrast, torch.inf), self._live.clone()
        worth = self.contrast
        for number in range(min(count, self.maps.shape[1])):
            best = torch.where(left, worth, -1).argmax(dim=1, keepdim=True)
            chosen[:, number : number + 1] = torch.where(left.gather(1, best), best, -1)
            left = left.scatter(1, best, value=False)
            nearest = torch.minimum(nearest, self._distances_from(best).squeeze(1))
            worth = nearest * self.contrast
        return chosen

    def observe(self, passes: Tensor, scores: Tensor) -> None:
        """Take in the scores (B, m, T) of masked images (B, m) that were forwarded, and predict all others again.

        Of n channels, i is the first side of channel i, and n + i the second; -1 stands for none.
        """
        sides, channels = self.unseen.shape[1:]
        channel = passes.clamp_min(0) % channels
        side = torch.arange(sides, device=passes.device).view(1, -1, 1)
        counts = (passes.unsqueeze(1) >= 0) & (passes.unsqueeze(1) // channels == side)  # (B, S, m)
        seen = channel.unsqueeze(1).expand_as(counts)
        self._seen = torch.cat([self._seen, seen], dim=2)
        self._counts = torch.cat([self._counts, counts], dim=2)
        is_new = torch.zeros_like(self.unseen, dtype=torch.int64).scatter_add_(2, seen, counts.long()) > 0
        self.unseen = self.unseen & ~is_new
        values = torch.where(counts.unsqueeze(1), scores.double().mT.unsqueeze(2), 0)  # (B, T, S, m)
        self._scores.scatter_add_(3, seen.unsqueeze(1).expand_as(values), values)
        self._fit()
        self._predict()

    def _fit(self) -> None:
        """Choose the length scales by the likelihood of the scores seen, with mean and variance estimated."""
        seen, counts = self._seen, self._counts.double()
        between = self._distances_from(seen).gather(3, seen.unsqueeze(2).expand(-1, -1, seen.shape[2], -1))
        lengths = self._constants.lengths.view(-1, 1) * self._unit  # (3, B)
        kernel = _matern(between.double(), lengths[:, :, None, None, None]) * (
            counts.unsqueeze(3) * counts.unsqueeze(2)
        )
        # What stands for none is a score of its own, which is 0.
        kernel.diagonal(dim1=-2, dim2=-1).add_(torch.where(self._counts, NOISE, 1.0))
        factors, _ = torch.linalg.cholesky_ex(kernel)  # (3, B, S, m, m); other than `cholesky` it does not wait
        scores = self._scores.movedim(1, 3).gather(2, seen.unsqueeze(3).expand(-1, -1, -1, self._scores.shape[1]))
        # The constant 1 and the scores, side by side: (B, S, m, 1 + T).
        columns = torch.cat([counts.unsqueeze(3), scores * counts.unsqueeze(3)], dim=3)
        columns = torch.linalg.solve_triangular(factors, columns.expand(*factors.shape[:3], -1, -1), upper=False)
        ones, scores = columns[..., :1], columns[..., 1:]
        norm = ones.square().sum(dim=-2).clamp_min(TINY)
        mean = (ones * scores).sum(dim=-2) / norm  # (3, B, S, T)
        residual = scores - mean.unsqueeze(-2) * ones
        number = counts.sum(dim=2).unsqueeze(2)  # (B, S, 1)
        variance = residual.square().sum(dim=-2) / (number - 1).clamp_min(1)
        determinant = factors.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1).unsqueeze(-1)
        likelihood = -(number - 1) / 2 * variance.clamp_min(TINY).log() - determinant - norm.log() / 2
        best = likelihood.argmax(dim=0).mT  # (B, T, S)
        images, _, sides = (
            torch.arange(size, device=seen.device).view(shape)
            for size, shape in zip(best.shape, [(-1, 1, 1), (1, -1, 1), (1, 1, -1)], strict=True)
        )
        self._lengths = lengths[best, images]
        self._factors = factors[best, images, sides]  # (B, T, S, m, m)
        targets = torch.arange(best.shape[1], device=seen.device).view(1, -1, 1)
        self._mean, self.variance = mean[best, images, sides, targets], variance[best, images, sides, targets]
        self._residual = residual[best, images, sides, :, targets]  # (B, T, S, m)

    def _predict(self) -> None:
        """Predict mean and standard deviation of every score, and of every weight."""
        covariance = _matern(self._distances_from(self._seen).unsqueeze(1), self._lengths[..., None, None]).double()
        covariance *= self._counts[:, None, :, :, None]
        self._whitened = torch.linalg.solve_triangular(self._factors, covariance, upper=False)  # (B, T, S, m, n)
        mean = self._mean.unsqueeze(3) + (self._residual.unsqueeze(3) @ self._whitened).squeeze(3)
        deviation = (self.variance.unsqueeze(3) * self.unsure()).sqrt()
        unseen, live = self.unseen.unsqueeze(1), self._live[:, None, None]
        mean, deviation = torch.where(unseen, mean, self._scores), torch.where(unseen, deviation, 0)
        nodes, node_weights = self._constants.nodes, self._constants.node_weights
        weights = self._weight(mean.unsqueeze(4) + deviation.unsqueeze(4) * nodes)  # (B, T, S, n, nodes)
        self.weights = torch.where(live, weights @ node_weights, 0)
        number = live.sum(dim=3).clamp_min(1)
        off = torch.where(live, self.weights - (self.weights.sum(dim=3) / number).unsqueeze(3), 0)
        spread = ((off.square() + deviation.square()).sum(dim=3) / number).sqrt()
        self.spread = unless_rounding(spread, self.weights.abs().amax(dim=3))
        weight_deviation = ((weights - self.weights.unsqueeze(4)).square() @ node_weights).sqrt()
        self.slope = torch.where(deviation > 0, weight_deviation / deviation.clamp_min(TINY), 0)

    def _weight(self, scores: Tensor) -> Tensor:
        offset = self._offset.unsqueeze(4)
        if self._scale_of_scores in ("score", "contrast"):
            return scores - offset
        if self._scale_of_scores == "probability":
            return scores.clamp_max(0).exp() - offset
        is_known = self._live.unsqueeze(1) & ~self.unseen
        largest = torch.where(is_known.unsqueeze(1), self._scores, -torch.inf).amax(dim=3)
        return (scores - largest[..., None, None]).clamp_max(_MAX_EXCESS).exp()

    @property
    def is_flat(self) -> Tensor:
        """(B, T, S) bool, whether scores by contrast are all equal so far; they say nothing of the others then."""
        return self.spread == 0 if self._scale_of_scores == "contrast" else torch.zeros_like(self.spread).bool()

    def unsure(self) -> Tensor:
        """Return (B, T, S, n), the variance of each score, in units of that of the process."""
        explained: Tensor = self._whitened.square().sum(dim=3)
        return (1 - explained).clamp_min(0) + NOISE

    def posterior(self, effects: Tensor) -> Tensor:
        """Return the posterior covariance of scores, in units of `variance`, times effects (B, T, S, n, d)."""
        whitened = self._whitened.to(self.dtype)
        found: Tensor = NOISE * effects - whitened.mT @ (whitened @ effects)
        for target in range(effects.shape[1]):
            for side in range(effects.shape[2]):
                prior = _matern(self._distances.to(self.dtype), self._lengths[:, target, side, None, None])
                found[:, target, side].baddbmm_(prior, effects[:, target, side])
        return found

    def covariances(self, target: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function that maps channels (B,) to the posterior covariances (B, S, n) of all scores with theirs.

        Args:
            target: (B,) int64, which of the T targets is asked for.
        """
        images = torch.arange(len(target), device=target.device)
        whitened = self._whitened[images, target].to(self.dtype)  # (B, S, m, n)
        lengths = self._lengths[images, target]  # (B, S)

        def with_channels(channels: Tensor) -> Tensor:
            own = whitened.gather(3, channels.view(-1, 1, 1, 1).expand(*whitened.shape[:3], 1))
            prior = _matern(self._distances_from(channels.view(-1, 1)).to(self.dtype), lengths.unsqueeze(2))
            found: Tensor = prior - (own.mT @ whitened).squeeze(2)
            found[images, :, channels] += NOISE
            return found

        return with_channels

    def _distances_from(self, channels: Tensor) -> Tensor:
        """Return (B, ..., n), the distances of channels (B, ...) from all."""
        rows = channels.flatten(1).unsqueeze(2).expand(-1, -1, self._distances.shape[2])
        return self._distances.gather(1, rows).view(*channels.shape, -1)


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


def _distances(masks: Tensor) -> Tensor:
    """Return the distances (B, n, n) between masks (B, n, d), which float64 keeps exact where they are small."""
    masks = masks.double()
    products = masks @ masks.mT
    squares = products.diagonal(dim1=1, dim2=2).clone()
    squared = products.mul_(-2).add_(squares.unsqueeze(1)).add_(squares.unsqueeze(2))
    return squared.clamp_min_(0).sqrt_().float()


def _median_distance(distances: Tensor, live: Tensor) -> Tensor:
    """Return (B,) float64, the median distance between live masks that differ, of a sample; 1 where none do."""
    step = max(1, live.shape[1] // _MAX_IN_SAMPLE)
    sample, live = distances[:, ::step, ::step], live[:, ::step]
    differ = (sample > 0) & live.unsqueeze(1) & live.unsqueeze(2)
    return torch.where(differ, sample, torch.nan).flatten(1).nanmedian(dim=1).values.nan_to_num(1.0).double()


def _matern(distances: Tensor, lengths: Tensor) -> Tensor:
    """The Matern kernel with nu = 3/2 (Rasmussen & Williams 2006, eq. 4.17), in the type of the distances."""
    r = distances * (math.sqrt(3) / lengths).to(distances.dtype)
    return (-r).exp_().mul_(r.add_(1))
