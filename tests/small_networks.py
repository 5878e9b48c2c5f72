"""A small network and images for it, which most tests of `explain` share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEAD = {2: -1.0, 5: 0.7}
"""Channels of the small network that are constant for every image, with the constant they have before the last ReLU."""


class SmallCNN(nn.Module):
    """Two strided convolutions with batch norm and ReLU (`features`), the spatial mean, a linear `head`.

    The map of `features` has a quarter of the resolution of the images.
    """

    def __init__(self, dimensions: int, channels: int, classes: int, inplace: bool) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
        self.features = nn.Sequential(
            conv(3, 8, kernel_size=3, stride=2, padding=1),
            norm(8),
            nn.ReLU(),
            conv(8, channels, kernel_size=3, stride=2, padding=1),
            norm(channels),
            nn.ReLU(inplace),
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(2).mean(dim=2))


def small_cnn(
    seed: int = 0,
    *,
    dimensions: int = 2,
    channels: int = 12,
    classes: int = 5,
    inplace: bool = False,
    dead: dict[int, float] = DEAD,
) -> SmallCNN:
    """Build a `SmallCNN` from a seed, in eval mode, its batch norms not the identity, some of its channels dead."""
    torch.manual_seed(seed)
    network = SmallCNN(dimensions, channels, classes, inplace).eval()
    with torch.no_grad():
        for norm in (network.features[1], network.features[4]):
            norm.running_mean.normal_(std=0.2)
            norm.running_var.uniform_(0.1, 0.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(0, 0.5)  # every channel that is not made dead lives
        for channel, constant in dead.items():
            network.features[4].weight[channel] = 0
            network.features[4].bias[channel] = constant
        # The scores of masked images differ enough for the weighting to matter, and no class wins without an image.
        network.head.weight.mul_(6)
        network.head.bias.sub_(network(torch.zeros(1, 3, *[24] * dimensions))[0])
    return network


def blobs(count: int, *size: int, seed: int = 1) -> Tensor:
    """Make normalized images (N, 3, *size) of soft colored blobs from a seed."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, *[4] * len(size), generator=draw) + torch.randn(
        count, 3, *[1] * len(size), generator=draw
    )
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(coarse, size=size, mode=mode, align_corners=False)
