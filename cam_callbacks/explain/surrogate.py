"""A Gaussian process over the masks of one image, that lets Score-CAM skip most of its forward passes.

The masks of an image live in a space of as many dimensions as the layer has positions, far fewer than it has
channels, and the score of the masked image is a smooth function on it. A Gaussian process (Rasmussen & Williams 2006,
chapters 2 and 5) fitted to the scores of a few masks predicts the others, and says how sure it is. What is wanted is
the heatmap, a linear function of the weights; so the next channels to forward are those that shrink the expected
error of the *heatmap* most (A-optimal design), and the work ends when that error is small.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["probability", "logit", "score"]

_LENGTH_SCALES = (0.5, 1.0, 2.0)  # in units of the median distance between masks
_NOISE = 1e-3  # variance of what the masks at layer resolution do not tell, in units of the signal's
_SPREAD = 4.0  # how many standard deviations of the squared error are added to its mean
_LEAST_ERROR = 1e-3  # as long as one score is predicted: below this the estimate would be too low too often
# Gauss-Hermite nodes and weights for the mean and the variance of a function of a standard normal variable.
_NODES = (-2.8569700138728056, -1.3556261799742659, 0.0, 1.3556261799742659, 2.8569700138728056)
_NODE_WEIGHTS = (
    0.011257411327720691,
    0.22207592200561266,
    0.5333333333333333,
    0.22207592200561266,
    0.011257411327720691,
)


class Surrogate:
    """Predicts the weight of every channel of one image from the scores of those that were forwarded.

    The weight w of a channel follows from its value v by the scale. `"probability"`: v is the logarithm of a
    probability, w = exp(min(v, 0)) - offset. `"logit"`: w = exp(v) relative to the largest seen, and predictions are
    kept from going far beyond that. `"score"`: w = v - offset. Values are a Gaussian process with the Matern-3/2 kernel
    over masks; its constant mean and its variance are estimated, its length scale is chosen, by likelihood.

    Args:
        activations: (n, *spatial of the layer), the live channels of one image.
        scale: What the values are.
        offset: Subtracted from every weight, but for logits.
    """

    def __init__(self, activations: Tensor, scale: Scale = "probability", offset: float = 0.0) -> None:
        maps = activations.flatten(1)  # (n, d)
        low, high = torch.aminmax(maps, dim=1, keepdim=True)
        self._maps = maps
        self._masks = (maps - low) / (high - low)
        self._contrast = (maps - maps.mean(dim=1, keepdim=True)).norm(dim=1)
        # A sample of the masks is enough for the median distance.
        sample = self._masks[:: max(1, len(maps) // 256)]
        distances = torch.cdist(sample, sample)
        self._unit = float(distances[distances > 0].median()) if bool((distances > 0).any()) else 1.0
        self._scale_of_values = scale
        self._offset = offset
        self._seen = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
        self._channels = torch.empty(0, dtype=torch.long, device=maps.device)
        self._scores = torch.empty(0, dtype=torch.float64, device=maps.device)

    def landmarks(self, count: int) -> Tensor:
        """(count,) channels to begin with: of much contrast, and with masks far from each other."""
        chosen = [int(self._contrast.argmax())]
        nearest = torch.full_like(self._contrast, torch.inf)
        while len(chosen) < min(count, len(self._maps)):
            last = self._masks[chosen[-1]]
            nearest = torch.minimum(nearest, (self._masks - last).norm(dim=1))
            nearest[chosen] = -1  # below those that equal a chosen one, which count 0
            chosen.append(int((nearest * self._contrast).argmax()))
        return torch.tensor(chosen, device=self._maps.device)

    def observe(self, channels: Tensor, scores: Tensor) -> None:
        """Take in the scores (m,) of channels (m,) that were forwarded, and predict all others anew."""
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
            fits = -(count - 1) / 2 * variance.clamp_min(1e-30).log() - factor.diagonal().log().sum()
            likelihood = float(fits - (ones @ ones).log() / 2)
            if likelihood > best:
                best = likelihood
                self._scale = scale * self._unit
                self._factor, self._residual = factor, residual
                self._mean, self._variance = mean, variance

    def _predict(self) -> None:
        """Mean and standard deviation of every score, and of every weight."""
        covariance = _matern(torch.cdist(self._masks[self._channels], self._masks), self._scale).double()
        self._whitened = torch.linalg.solve_triangular(self._factor, covariance, upper=False)  # (m, n)
        mean = self._mean + self._residual @ self._whitened
        unsure = (1 - self._whitened.square().sum(dim=0)).clamp_min(0) + _NOISE
        deviation = (self._variance * unsure).sqrt()
        mean[self._channels], deviation[self._channels] = self._scores, 0
        nodes, node_weights = (
            torch.tensor(part, dtype=torch.float64, device=mean.device) for part in (_NODES, _NODE_WEIGHTS)
        )
        weights = self._weight(mean.unsqueeze(1) + deviation.unsqueeze(1) * nodes)  # (n, nodes)
        self.weights = weights @ node_weights
        """(n,) float64, the expected weight of each channel; exact for those that were forwarded."""
        weight_deviation = ((weights - self.weights.unsqueeze(1)).square() @ node_weights).sqrt()
        self._slope = torch.where(deviation > 0, weight_deviation / deviation.clamp_min(1e-30), 0)

    def _weight(self, scores: Tensor) -> Tensor:
        if self._scale_of_values == "score":
            return scores - self._offset
        if self._scale_of_values == "probability":
            return scores.clamp_max(0).exp() - self._offset
        return (scores - self._scores.max()).clamp_max(3).exp()

    def plan(self, count: int) -> tuple[float, Tensor]:
        """How wrong the heatmap may be, and what to forward next.

        The heatmap is h = ReLU(sum_k w_k A_k) at layer resolution. With e the part of its error that is neither
        constant nor along h (those change no Pearson correlation), the correlation with the exact map is 1 / sqrt(1 +
        |e|^2 / |h - mean|^2). For |e|^2 its mean plus four standard deviations are taken.

        Returns:
            The estimate of 1 - Pearson correlation, in [0, 1], at least 0.001 while a score is predicted, and the
            (count or fewer,) channels that shrink it most.
        """
        left = int((~self._seen).sum())
        if left == 0:
            return 0.0, self._channels[:0]
        raw = (self.weights @ self._maps.double()).float()
        shape = raw.clamp_min(0) - raw.clamp_min(0).mean()
        squared_norm = float(shape.square().sum())
        # What a change of each score does to the map, (n, d); nothing where the score is known.
        effect = self._maps * self._slope.float().unsqueeze(1) * ~self._seen.unsqueeze(1)
        prior = _matern(torch.cdist(self._masks, self._masks), self._scale)
        whitened = self._whitened.float()
        variance = float(self._variance)

        def together_with(effect: Tensor) -> Tensor:
            """Posterior covariance times effect, (n, d): what a wrong score of each channel goes along with."""
            explained: Tensor = whitened.T @ (whitened @ effect)
            return prior @ effect - explained + _NOISE * effect

        if squared_norm <= 1e-12 * float(raw.square().sum()):
            deviation = (variance * (effect * together_with(effect)).sum(dim=0)).clamp_min(0).sqrt()
            if bool((raw + _SPREAD * deviation <= 0).all()):
                return 0.0, self._channels[:0]  # blank, surely
            return 1.0, (self._contrast * ~self._seen).topk(min(count, left)).indices
        effect = effect * (raw > 0)
        effect = effect - effect.mean(dim=1, keepdim=True)
        effect = effect - (effect @ shape).unsqueeze(1) * shape / squared_norm
        together = together_with(effect)
        spread = variance * (effect.T @ together)  # (d, d) covariance of the error of the heatmap
        mean_square = spread.diagonal().sum().clamp_min(0)
        bound = mean_square + _SPREAD * (2 * spread.square().sum()).sqrt()
        error = max(float(1 - (1 + bound / squared_norm).rsqrt()), _LEAST_ERROR)

        unsure = (1 - whitened.square().sum(dim=0)).clamp_min(0) + _NOISE
        candidates = ~self._seen
        chosen: list[int] = []
        columns: list[Tensor] = []
        while len(chosen) < min(count, left):
            gain = together.square().sum(dim=1) / unsure.clamp_min(_NOISE)
            pick = int(torch.where(candidates, gain, -1).argmax())
            chosen.append(pick)
            candidates[pick] = False
            # What forwarding this channel will tell of the others: the covariance shrinks by column * column^T.
            column = prior[pick] - whitened[:, pick] @ whitened
            column[pick] += _NOISE
            for earlier in columns:
                column = column - earlier[pick] * earlier
            column = column / column[pick].clamp_min(_NOISE).sqrt()
            columns.append(column)
            together = together - column.unsqueeze(1) * (column @ effect)
            unsure = unsure - column.square()
        return error, torch.tensor(chosen, device=self._maps.device)


def _matern(distances: Tensor, scale: float) -> Tensor:
    """The Matern kernel with nu = 3/2 (Rasmussen & Williams 2006, eq. 4.17)."""
    r = distances * (math.sqrt(3) / scale)
    return (1 + r) * (-r).exp()
