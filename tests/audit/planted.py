"""Images and networks whose answer to every question of the audit is known by construction.

Channel 0 holds the object, channel 1 what surrounds it, each with a sign that goes with the class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cam_callbacks.data.probes import ProbeSet

SIDE = 24


class Reader(nn.Module):
    """Answers from one channel: its positive parts speak for class 1, its negative ones for class 0."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU())
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.features[0].weight.zero_()
            self.features[0].weight[:, channel] = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
            self.head.weight.copy_(20 * torch.eye(2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class TextureReader(Reader):
    """Answers from the direction of stripes in channel 1, whatever their color."""

    def __init__(self) -> None:
        super().__init__(1)
        self.features[0] = nn.Conv2d(3, 4, 3, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            kernels = torch.zeros(4, 3, 3, 3)
            kernels[0, 1, 0, 1], kernels[0, 1, 1, 1] = 1, -1
            kernels[2, 1, 1, 0], kernels[2, 1, 1, 1] = 1, -1
            kernels[1], kernels[3] = -kernels[0], -kernels[2]
            self.features[0].weight.copy_(kernels)
            self.head.weight.copy_(20 * torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]))


class OutlineReader(nn.Module):
    """Answers from the form of smooth places in the noise of channel 1, wide or tall; without any, from the object."""

    def forward(self, images: Tensor) -> Tensor:
        noise, is_object = images[:, 1:2], images[:, :1].abs() > 0.5
        spread = F.avg_pool2d(noise**2, 3, 1, 1) - F.avg_pool2d(noise, 3, 1, 1) ** 2
        smooth = ((spread < 0.1) & ~is_object).float()
        wide, tall = ((F.avg_pool2d(smooth, box, 1) == 1).float().sum(dim=(1, 2, 3)) for box in ((1, 7), (7, 1)))
        by_object = (images[:, 0] * is_object[:, 0]).sum(dim=(1, 2)).sign()
        return torch.stack([5 * wide - by_object, 5 * tall + by_object], dim=1)


class NeedsItsBackground(nn.Module):
    """Answers from the object, and wrongly where channel 2 is not the same on the object and around it."""

    def forward(self, images: Tensor) -> Tensor:
        is_object = (images[:, 0].abs() > 0.5).float()
        inside, outside = (
            (images[:, 2] * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2)).clamp_min(1)
            for where in (is_object, 1 - is_object)
        )
        is_whole = torch.where((inside - outside).abs() < 0.1, 1.0, -1.0)
        by_object = (images[:, 0] * is_object).sum(dim=(1, 2)).sign() * is_whole
        return torch.stack([-by_object, by_object], dim=1)


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).repeat(len(images), 1)


class Guessing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 2)


def scenes(count: int = 60, texture: bool = False, masks: bool = True) -> ProbeSet:
    """Half of them of each class, square objects at places of their own, backgrounds that go with the class."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 2
    where = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask in where:
        top, left = torch.randint(4, 12, (2,), generator=draw).tolist()
        mask[top : top + 8, left : left + 8] = True
    sign = (2.0 * labels - 1).view(-1, 1, 1)
    stripes = (torch.arange(SIDE) % 2 * 2.0 - 1).view(SIDE, 1).expand(SIDE, SIDE)
    around = torch.where(labels.view(-1, 1, 1) == 0, stripes, stripes.T) if texture else sign.expand(-1, SIDE, SIDE)
    images = 0.02 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    images[:, 0] += sign * where
    images[:, 1] += around * ~where
    return ProbeSet(images, labels, where if masks else None, ("cat", "dog"))


def noisy_scenes(count: int = 80) -> ProbeSet:
    """Wide objects of one class and tall ones of the other, before noise that says nothing of the class."""
    draw = torch.Generator().manual_seed(4)
    labels = torch.arange(count) % 2
    where = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask, label in zip(where, labels.tolist(), strict=True):
        top, left = torch.randint(1, 7, (2,), generator=draw).tolist()
        height, width = (5, 15) if label == 0 else (15, 5)
        mask[top : top + height, left : left + width] = True
    images = torch.randn(count, 3, SIDE, SIDE, generator=draw)
    images[:, 0] = (2.0 * labels - 1).view(-1, 1, 1) * where
    images[:, 2] = torch.arange(count).view(-1, 1, 1) / 2
    return ProbeSet(images, labels, where, ("cat", "dog"))
