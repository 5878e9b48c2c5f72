"""A small network of two parts: features, and what comes after them."""

import torch
from torch import nn


class TwoParts(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 8, 3, 2, 1))
        self.head = head

    def forward(self, images):
        return self.head(self.features(images))


def head_of(channels):
    return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def two_parts():
    """Its 36 positions go on into convolutions and a linear layer, for images of 24 x 24."""
    torch.manual_seed(0)
    return TwoParts(head_of(8)).eval()
