"""What the probability of a class is when parts of the images are kept, taken away, or put into other images.

Each function of `PERTURBATIONS` takes a `Ranking` of the pixels and returns one number for each image, NaN where it
cannot be known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.explain.imputation import imputed

Probability = Callable[[Tensor], Tensor]
"""Called with images (N, C, *spatial), variants of those that are explained; returns (N,), the probability of the class
of each."""

ROAD_SHARES = (0.2, 0.4, 0.6, 0.8)
TRANSPLANTED = 0.2
_BLUR = 7  # the window is a 7th of the image


@dataclass(eq=False)
class Scene:
    """Images, what replaces their pixels, and what the model answers. The same for all heatmaps.

    Attributes:
        images: (N, C, *spatial).
        recipients: (N, C, *spatial), for each image another one, of another class, into which it is transplanted; NaN
            where there is none.
        others: (N, C, *spatial), for each image a third one, of another class than either; NaN where there is none.
        probability: Of the class of each image, for variants of the images.
        steps: How many times the same number of pixels is replaced, for curves.
        drawn: (N, 2, C, *spatial), of each image numbers drawn evenly in [0, 1], and from the normal distribution.
    """

    images: Tensor
    recipients: Tensor
    others: Tensor
    probability: Probability
    steps: int
    drawn: Tensor

    @cached_property
    def whole(self) -> Tensor:
        """(N,) the probability for the images as they are."""
        return self.probability(self.images)

    @cached_property
    def blurred(self) -> Tensor:
        """The images, blurred by a window of a 7th of their size."""
        window = [max(1, size // _BLUR) // 2 * 2 + 1 for size in self.images.shape[2:]]
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(window) - 1]
        half = [size // 2 for size in window]
        return pool(self.images, window, stride=1, padding=half, count_include_pad=False)

    @cached_property
    def flat(self) -> Tensor:
        """The mean color of each image."""
        return self.images.mean(dim=tuple(range(2, self.images.ndim)), keepdim=True).expand_as(self.images)

    @cached_property
    def noise(self) -> Tensor:
        """Pixels drawn evenly between the least and the largest value of each image."""
        low, high = torch.aminmax(self.images.flatten(1), dim=1)
        low, high = (each.view(-1, *[1] * (self.images.ndim - 1)) for each in (low, high))
        return low + self.drawn[:, 0] * (high - low)

    @cached_property
    def recipients_alone(self) -> Tensor:
        """(N,) the probability of the class of each image for its recipient."""
        return _of_known(self.probability, self.recipients)


class Ranking:
    """The pixels of images in the order of a heatmap, hottest first; of equal ones the first in reading order.

    Args:
        scene: The images.
        heatmaps: (N, *spatial), finite.
    """

    def __init__(self, scene: Scene, heatmaps: Tensor) -> None:
        self.scene = scene
        self._spatial = heatmaps.shape[1:]
        self._order = heatmaps.flatten(1).argsort(dim=1, descending=True, stable=True)

    def hottest(self, share: float) -> Tensor:
        """Return (N, 1, *spatial) bool, the given share of the pixels of each image, the hottest ones."""
        return self._chosen(self._order[:, : round(share * self._order.shape[1])])

    def coldest(self, share: float) -> Tensor:
        """Return (N, 1, *spatial) bool, the given share of the pixels of each image, the coldest ones."""
        return self._chosen(self._order[:, self._order.shape[1] - round(share * self._order.shape[1]) :])

    def _chosen(self, pixels: Tensor) -> Tensor:
        chosen = torch.zeros_like(self._order, dtype=torch.bool).scatter_(1, pixels, True)
        return chosen.view(len(chosen), 1, *self._spatial)

    def replaced(self, source: Tensor, target: Tensor) -> Tensor:
        """Return (steps, N), the probability while more and more pixels of `target` are those of `source`."""
        shares = [(step + 1) / self.scene.steps for step in range(self.scene.steps)]
        probability = self.scene.probability
        return torch.stack([probability(torch.where(self.hottest(share), source, target)) for share in shares])


def kept_half(ranking: Ranking) -> Tensor:
    """Return (N,), the probability if all but the hottest half of the pixels are set to 0."""
    return ranking.scene.probability(ranking.scene.images * ranking.hottest(0.5))


def insertion(ranking: Ranking) -> Tensor:
    """Return (N,), the area under the probability while pixels come back to the blurred image, hottest first."""
    scene = ranking.scene
    return _area(scene.probability(scene.blurred), ranking.replaced(scene.images, scene.blurred))


def deletion(ranking: Ranking) -> Tensor:
    """Return (N,), the area under the probability while pixels become the mean color, hottest first."""
    scene = ranking.scene
    return _area(scene.whole, ranking.replaced(scene.flat, scene.images))


def pixel_flipping(ranking: Ranking) -> Tensor:
    """Return (N,), how far the probability falls on average while pixels become noise, hottest first."""
    scene = ranking.scene
    return scene.whole - ranking.replaced(scene.noise, scene.images).mean(dim=0)


def road(ranking: Ranking) -> Tensor:
    """Return (N,), half of what the coldest pixels matter less than the hottest if they are imputed."""
    scene = ranking.scene
    differences = []
    for share in ROAD_SHARES:
        cold, hot = (
            scene.probability(imputed(scene.images, missing, scene.drawn[:, 1]))
            for missing in (ranking.coldest(share), ranking.hottest(share))
        )
        differences.append((cold - hot) / 2)
    return torch.stack(differences).mean(dim=0)


def transplant(ranking: Ranking) -> Tensor:
    """Return (N,), by how much the hottest fifth of an image, put into another one, raises its class there."""
    return _transplanted(ranking, ranking.hottest(TRANSPLANTED), ranking.scene.images)


def transplant_cold(ranking: Ranking) -> Tensor:
    """Return (N,), the same for the coldest fifth."""
    return _transplanted(ranking, ranking.coldest(TRANSPLANTED), ranking.scene.images)


def transplant_other(ranking: Ranking) -> Tensor:
    """Return (N,), the same for the place of the hottest fifth, filled from an image of a third class."""
    return _transplanted(ranking, ranking.hottest(TRANSPLANTED), ranking.scene.others)


def _transplanted(ranking: Ranking, place: Tensor, source: Tensor) -> Tensor:
    scene = ranking.scene
    return _of_known(scene.probability, torch.where(place, source, scene.recipients)) - scene.recipients_alone


def _of_known(probability: Probability, images: Tensor) -> Tensor:
    """Return the probability of images; NaN of those with a NaN."""
    known = images.isfinite().flatten(1).all(dim=1)
    return torch.where(known, probability(images.nan_to_num()), torch.nan)


def _area(first: Tensor, curve: Tensor) -> Tensor:
    """Return the area under a curve of equal steps, by trapezoids."""
    return torch.trapezoid(torch.cat([first.unsqueeze(0), curve]), dx=1 / len(curve), dim=0)


PERTURBATIONS: dict[str, Callable[[Ranking], Tensor]] = {
    each.__name__: each
    for each in (transplant, transplant_cold, transplant_other, insertion, deletion, road, pixel_flipping)
}
