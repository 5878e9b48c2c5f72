"""A small network of two parts: features, and what comes after them."""

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
