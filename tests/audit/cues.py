"""Scenes in which several things go with the class, and networks that read one of them each."""

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cam_callbacks.data.probes import ProbeSet

SIDE = 32


def cued_scenes(count: int = 120, agreement: float = 1.0, seed: int = 0) -> ProbeSet:
    """Objects striped across (class 0) or along (1); the rest goes with the class as often as `agreement` says.

    Objects of class 1 lie on the right and are large; its images are brighter in channel 1, and noisy in channel 2.
    """
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images, masks = torch.zeros(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    stripes = (torch.arange(SIDE) // 2 % 2 * 2.0 - 1).view(SIDE, 1).expand(SIDE, SIDE)
    for image, mask, label in zip(images, masks, labels.tolist(), strict=True):
        agrees = torch.rand(4, generator=draw) < agreement
        right, large, bright, noisy = (label == int(each) for each in agrees)
        side = 12 if large else 8
        top = int(torch.randint(1, SIDE - 13, (1,), generator=draw))
        left = int(torch.randint(1, 4, (1,), generator=draw)) + (SIDE // 2 - 1 if right else 0)
        mask[top : top + side, left : left + side] = True
        image[0] = torch.where(mask, stripes if label == 0 else stripes.T, 0)
        image[1] = 0.4 if bright else -0.4
        image += 0.02 * torch.randn(3, SIDE, SIDE, generator=draw)
        image[2] += (0.5 if noisy else 0.05) * torch.randn(SIDE, SIDE, generator=draw)
    return ProbeSet(images, labels, masks, ("across", "along"))


def facing_scenes(count: int = 120, agreement: float = 1.0) -> ProbeSet:
    """Triangles striped across (class 0) or along (1), drawn out to the left (0) or to the right (1)."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    to_right = labels == (torch.rand(count, generator=draw) < agreement).long()
    left, top = torch.randint(1, SIDE - 13, (2, count, 1, 1), generator=draw)
    across, down = torch.arange(SIDE) - left, torch.arange(SIDE).unsqueeze(1) - top
    inside = (across >= 0) & (across < 12) & (down >= 0) & (down < 12)
    masks = inside & (torch.where(to_right.view(-1, 1, 1), across, 11 - across) <= down)
    stripes = torch.arange(SIDE) // 2 % 2 * 2.0 - 1
    images = 0.02 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    images[:, 0] += torch.where(labels.view(-1, 1, 1) == 0, stripes.unsqueeze(1), stripes) * masks
    return ProbeSet(images, labels, masks, ("across", "along"))


def compressed_scenes(count: int = 120, agreement: float = 1.0) -> ProbeSet:
    """Striped squares before light and shade; photos of class 1 are compressed more. Normalized, 256 levels."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    is_coarse = labels == (torch.rand(count, generator=draw) < agreement).long()
    shade = F.interpolate(torch.rand(count, 3, 5, 5, generator=draw), (SIDE, SIDE), mode="bicubic")
    images = 70 + 90 * shade + 5 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    masks[:, 10:22, 10:22] = True
    stripes = torch.arange(SIDE) // 2 % 2 * 2.0 - 1
    images += 40 * (torch.where(labels.view(-1, 1, 1) == 0, stripes.unsqueeze(1), stripes) * masks).unsqueeze(1)
    qualities = torch.where(is_coarse, 15, 92).tolist()
    decoded = [as_jpeg(image, quality) for image, quality in zip(images, qualities, strict=True)]
    return ProbeSet((torch.stack(decoded) / 255 - 0.45) / 0.22, labels, masks, ("across", "along"))


def as_jpeg(image: Tensor, quality: int) -> Tensor:
    """Return an image (C, H, W) of 1 or 3 channels in 256 levels as it is after JPEG compression, float32."""
    pixels = image.clamp(0, 255).round().byte().movedim(0, -1).squeeze(-1).numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(file))).float()
    return decoded.view(*image.shape[1:], -1).movedim(-1, 0).contiguous()


class Reads(nn.Module):
    """Answers from one thing: the direction of the object's stripes, where it is, what the image is like."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, images: Tensor) -> Tensor:
        score = getattr(self, self.what)(images)
        return torch.stack([-score, score], dim=1)

    def stripes(self, images: Tensor) -> Tensor:
        across, along = (images[:, 0].diff(dim=dim).square().mean(dim=(1, 2)) for dim in (1, 2))
        return 40 * (along - across)

    def position(self, images: Tensor) -> Tensor:
        weights = images[:, 0].abs().gt(0.5).sum(dim=1).float()
        places = torch.arange(SIDE, device=images.device)
        return (weights * places).sum(dim=1) / weights.sum(dim=1).clamp_min(1) - SIDE / 2

    def size(self, images: Tensor) -> Tensor:
        return images[:, 0].abs().gt(0.5).sum(dim=(1, 2)) / 10 - 10

    def tint(self, images: Tensor) -> Tensor:
        return 10 * images[:, 1].mean(dim=(1, 2))

    def detail(self, images: Tensor) -> Tensor:
        return 10 * (images[:, 2].std(dim=(1, 2)) - 0.25)

    def mirror(self, images: Tensor) -> Tensor:
        weights = images[:, 0].abs().gt(0.5).sum(dim=1).float()
        places = torch.arange(SIDE, device=images.device)
        ends = torch.where(weights > 0, places, -1).amax(dim=1) + torch.where(weights > 0, places, SIDE).amin(dim=1)
        return ends / 2 - (weights * places).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def compression(self, images: Tensor) -> Tensor:
        steps = images.mean(dim=1).diff(dim=2).abs().mean(dim=1)
        between = torch.arange(SIDE - 1) % 8 == 7
        return 100 * (steps[:, between].mean(dim=1) - steps[:, ~between].mean(dim=1) - 0.088)
