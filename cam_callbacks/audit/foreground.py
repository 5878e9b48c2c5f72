"""Estimate the foregrounds of images without masks by OpenCV's GrabCut (Rother et al. 2004), three times for each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_callbacks._threads import threads
from cam_callbacks.audit.mask_fn import MaskFn, masks_by
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import progress

_MAX_SIDE = 96
_MIN_SIDE = 8
_MARGIN, _OTHER_MARGINS = 0.05, (0.1, 0.02)  # of the side; larger ones cut objects that lie off the center
_MIN_AGREEMENT = 0.8  # intersection over union
_ITERATIONS = 3
_MIN_SHARE, _MAX_SHARE = 0.02, 0.95  # of the image


def can_estimate() -> bool:
    """Return whether OpenCV can be imported; it may be installed and lack a library of the system."""
    try:
        import_module("cv2")
    except Exception:
        return False
    return True


def with_estimated_masks(probes: ProbeSet, mask_fn: MaskFn | None = None) -> ProbeSet:
    """Return the probes with estimated masks if they have none: by `mask_fn`, or by GrabCut where it can estimate them.

    Raises:
        ValueError: `mask_fn` fails, or what it returns is not masks of these images.
    """
    if probes.masks is not None:
        return probes
    if mask_fn is not None:
        return replace(probes, masks=masks_by(mask_fn, probes.images), masks_estimated=True)
    if probes.images.ndim != 4 or not can_estimate():
        return probes
    masks = estimate_masks(probes.images)
    return replace(probes, masks=masks, masks_estimated=True, mask_agreement=masks.flatten(1).any(dim=1))


def estimate_masks(images: Tensor) -> Tensor:
    """Estimate the object in each image, where three estimates agree.

    An estimate is what GrabCut keeps of a rectangle 2%, 5%, or 10% from the edge. If two of the three have an
    intersection over union of 0.8 or less, the mask is empty; else it is that of 5%. Images larger than 96 pixels are
    reduced to that first. The same images always have the same masks.

    Args:
        images: (N, C, H, W), in any range; each is scaled to its own minimum and maximum. Of more than three bands
            their three principal components are taken, so that all of them count.

    Returns:
        (N, H, W) bool on the CPU. A mask is empty, too, if GrabCut took less than 2% or more than 95% of the image for
        the object.

    Raises:
        ImportError: OpenCV is not installed.
    """
    import cv2

    progress.expect(len(images))
    masks = []
    # In threads of their own: GrabCut needs a seed, and each thread has its own random number generator of OpenCV.
    with threads() as pool:
        for mask in pool.map(partial(_agreed_foreground, cv2), _as_bytes(images)):
            masks.append(mask)
            progress.advance(1)
    found = torch.from_numpy(np.stack(masks)).float().unsqueeze(1)
    return F.interpolate(found, images.shape[2:], mode="bilinear").squeeze(1) > 0.5


def _as_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Return images as (N, h, w, 3) uint8, at most 96 pixels high and wide."""
    shown = images.detach().float().cpu()
    scale = min(1.0, _MAX_SIDE / max(shown.shape[2:]))
    if scale < 1:
        size = [max(_MIN_SIDE, round(side * scale)) for side in shown.shape[2:]]
        shown = F.interpolate(shown, size, mode="bilinear", antialias=True)
    if shown.shape[1] != 3:
        shown = _in_three_bands(shown)
    low, high = (pick(dim=(1, 2, 3), keepdim=True) for pick in (shown.amin, shown.amax))
    scaled = (shown - low) / (high - low).clamp_min(1e-12) * 255
    pictures: NDArray[np.uint8] = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pictures


def _in_three_bands(images: Tensor) -> Tensor:
    """Return images (N, C, h, w) in three bands: of more, those combinations in which the pixels differ most."""
    if images.shape[1] < 3:
        return torch.cat([images, images.mean(dim=1, keepdim=True).expand(-1, 3 - images.shape[1], -1, -1)], dim=1)
    pixels = images.flatten(2)
    centered = (pixels - pixels.mean(dim=2, keepdim=True)).double()
    _, axes = torch.linalg.eigh(centered @ centered.mT)  # (N, C, C), of least spread first
    strongest: Tensor = (axes[:, :, -3:].mT @ centered).float()
    return strongest.view(len(images), 3, *images.shape[2:])


def _agreed_foreground(cv2: Any, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the foreground of a picture (h, w, 3) by the middle start, (h, w); an empty one where others disagree."""
    found = [_grab_cut(cv2, picture, _MARGIN)]
    for margin in _OTHER_MARGINS:
        other = _grab_cut(cv2, picture, margin)
        if not all(_overlap(other, each) > _MIN_AGREEMENT for each in found):
            return np.zeros_like(other)
        found.append(other)
    return found[0]


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the intersection over the union; 0 of two that are empty, which agree on nothing."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def _grab_cut(cv2: Any, picture: NDArray[np.uint8], margin: float) -> NDArray[np.bool_]:
    """Return what GrabCut keeps of a rectangle within a picture (h, w, 3): (h, w), empty if that is too little or much.

    Args:
        cv2: The module of OpenCV.
        picture: The picture.
        margin: The distance of the rectangle from the edge, as a share of the side.
    """
    height, width = picture.shape[:2]
    top, left = ceil(height * margin), ceil(width * margin)
    rectangle = (left, top, width - 2 * left, height - 2 * top)
    labels = np.zeros((height, width), dtype=np.uint8)
    cv2.setRNGSeed(0)  # it begins with k-means
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(picture, labels, rectangle, *models, _ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # e.g. an image of fewer than three pixels
        return np.zeros((height, width), dtype=np.bool_)
    found: NDArray[np.bool_] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found if _MIN_SHARE <= found.mean() <= _MAX_SHARE else np.zeros_like(found)
