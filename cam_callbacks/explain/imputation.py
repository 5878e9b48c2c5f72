"""Noisy linear imputation: pixels are taken out of images so that their place says little (Rong et al. 2022).

ROAD (arXiv 2202.00449), section 4: each missing pixel is the weighted mean of its eight neighbors, those beside it with
weight 1/6, those across corners with 1/12, and a little noise is added, which hides how smooth that is. All missing
pixels of an image are one system of linear equations. It is solved for all images at once and from coarse to fine: each
solution, enlarged, is where conjugate gradients begin at the next size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_KERNEL = torch.tensor([[1 / 12, 1 / 6, 1 / 12], [1 / 6, 0, 1 / 6], [1 / 12, 1 / 6, 1 / 12]])
_COARSEST = 8  # pixels along an axis, of the coarsest images
_STEPS, _STEPS_COARSEST = 32, 64  # of conjugate gradients, at each size
_NOISE = 0.01  # standard deviation, in units of the image's: that of the authors for images in [0, 1]


def imputed(images: Tensor, missing: Tensor, noise: Tensor | None = None) -> Tensor:
    """Fill the missing pixels of images by noisy linear imputation.

    Args:
        images: (N, C, H, W).
        missing: (N, 1, H, W) bool; of each image at least one pixel is not missing.
        noise: (N, C, H, W), drawn from the normal distribution; None for no noise.

    Returns:
        (N, C, H, W), equal to `images` where nothing is missing.
    """
    filled = _solved(images.float(), missing)
    if noise is not None:
        deviation = images.float().flatten(1).std(dim=1).view(-1, 1, 1, 1)
        filled = filled + _NOISE * deviation * noise
    return torch.where(missing, filled.to(images.dtype), images)


def _solved(images: Tensor, missing: Tensor) -> Tensor:
    """Return images (N, C, H, W) whose missing pixels solve the equations to about a tenth of the deviation."""
    if max(images.shape[2:]) <= _COARSEST:
        return _relaxed(images, torch.where(missing, _mean_of_known(images, missing), images), missing, _STEPS_COARSEST)
    known = (~missing).to(images)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    blocks = F.avg_pool2d(images * known, 2, ceil_mode=True) / share.clamp_min(torch.finfo(share.dtype).eps)
    coarse = _solved(blocks, share == 0)
    guess = F.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)
    return _relaxed(images, torch.where(missing, guess, images), missing, _STEPS)


def _mean_of_known(images: Tensor, missing: Tensor) -> Tensor:
    known = (~missing).to(images)
    mean: Tensor = (images * known).sum(dim=(2, 3), keepdim=True) / known.sum(dim=(2, 3), keepdim=True)
    return mean


def _relaxed(images: Tensor, values: Tensor, missing: Tensor, steps: int) -> Tensor:
    """Bring the missing pixels of `values` nearer to the solution, by some steps of conjugate gradients.

    The equation of a pixel: (sum of its neighbors' weights) x - (weighted sum of the neighbors) = 0.
    """
    channels = images.shape[1]
    kernel = _KERNEL.to(images).expand(channels, 1, 3, 3)
    total = F.conv2d(torch.ones_like(images[:1]), kernel, padding=1, groups=channels)  # less at the edges
    inside = missing.to(images)

    def lacking(each: Tensor) -> Tensor:
        return (F.conv2d(each, kernel, padding=1, groups=channels) - total * each) * inside

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(2, 3), keepdim=True)

    tiny = torch.finfo(images.dtype).tiny
    residual = lacking(values)
    direction, size = residual, product(residual, residual)
    for _ in range(steps):
        along = -lacking(direction)
        step = size / product(direction, along).clamp_min(tiny)
        values = values + step * direction
        residual = residual - step * along
        previous, size = size, product(residual, residual)
        direction = residual + size / previous.clamp_min(tiny) * direction
    return values
