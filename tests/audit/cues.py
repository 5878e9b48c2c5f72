"""Scenes in which several things go with the class, and networks that read one of them each."""

import torch
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


class Reads(nn.Module):
    """Answers from the direction of the object's stripes, its position, its size, the tint, or the noise."""

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
