"""Estimate the foregrounds of images without masks by OpenCV's GrabCut (Rother et al. 2004)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain import progress

_MAX_SIDE = 128
_MIN_SIDE = 8
_MARGIN = 0.08  # of the side
_ITERATIONS = 3
_MIN_SHARE, _MAX_SHARE = 0.02, 0.95  # of the image


def can_estimate() -> bool:
    """Return whether OpenCV can be imported; it may be installed and lack a library of the system."""
    try:
        import_module("cv2")
    except Exception:
        return False
    return True


def with_estimated_masks(probes: ProbeSet) -> ProbeSet:
    """Return the probes with estimated masks if they have none, and if masks can be estimated."""
    if probes.masks is not None or probes.images.ndim != 4 or not can_estimate():
        return probes
    return replace(probes, masks=estimate_masks(probes.images), masks_estimated=True)


def estimate_masks(images: Tensor) -> Tensor:
    """Estimate the object in each image: what GrabCut keeps of a rectangle 8% from the edge.

    Images larger than 128 pixels are reduced to that first. The same images always have the same masks.

    Args:
        images: (N, C, H, W), in any range; each is scaled to its own minimum and maximum. Of more than three bands
            their three principal components are taken, so that all of them count.

    Returns:
        (N, H, W) bool on the CPU. A mask is empty if GrabCut took less than 2% or more than 95% of the image for the
        object: no foreground was found.

    Raises:
        ImportError: OpenCV is not installed.
    """
    import cv2

    progress.expect(len(images))
    masks = []
    # In a thread of its own: GrabCut needs a seed, and each thread has its own random number generator of OpenCV.
    with ThreadPoolExecutor(max_workers=1) as thread:
        for mask in thread.map(partial(_grab_cut, cv2), _as_bytes(images)):
            masks.append(mask)
            progress.advance(1)
    found = torch.from_numpy(np.stack(masks)).float().unsqueeze(1)
    return F.interpolate(found, images.shape[2:], mode="bilinear").squeeze(1) > 0.5


def _as_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Return images as (N, h, w, 3) uint8, at most 128 pixels high and wide."""
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


def _grab_cut(cv2: Any, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    height, width = picture.shape[:2]
    top, left = max(1, round(height * _MARGIN)), max(1, round(width * _MARGIN))
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
