"""Scenes and networks for each task: channel 0 holds the object, channel 1 what surrounds it; a network reads one.

`reads` is how much of what surrounds the object a network uses: 0, nothing; 1, nothing else.
"""

import torch
from torch import Tensor, nn

from cam_callbacks import audit_model
from cam_callbacks.data.probes import ProbeSet

SIDE = 24
_OBJECT = 6


def _squares(count: int, seed: int, low: int = 1, high: int = SIDE - _OBJECT - 1) -> Tensor:
    """Return (N, SIDE, SIDE) bool, a square each at a place of its own."""
    draw = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(low, high, (2,), generator=draw).tolist()
        mask[top : top + _OBJECT, left : left + _OBJECT] = True
    return masks


def _images(inside: Tensor, around: Tensor, masks: Tensor, seed: int) -> Tensor:
    """Return images with values (N,) inside of masks in channel 0, and around them in channel 1."""
    images = 0.02 * torch.randn(len(masks), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    images[:, 0] += inside.view(-1, 1, 1) * masks
    images[:, 1] += around.view(-1, 1, 1) * ~masks
    return images


def labeled(count: int = 96, agreement: float = 1.0) -> ProbeSet:
    """Three labels, each there or not; what surrounds the objects goes with the first one. Some have no object."""
    draw = torch.Generator().manual_seed(1)
    marks = torch.rand(count, 3, generator=draw) < 0.5
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for mask, row in zip(masks, marks.tolist(), strict=True):
        for label, is_there in enumerate(row):
            left = int(torch.randint(1, SIDE - _OBJECT - 1, (1,), generator=draw))
            if is_there:
                mask[8 * label + 1 : 8 * label + 1 + _OBJECT, left : left + _OBJECT] = True
    agrees = torch.rand(count, generator=draw) < agreement
    around = torch.where(marks[:, 0] == agrees, 1.0, -1.0)
    names = ("ruler", "wheeze", "nodule")
    return ProbeSet(_images(torch.ones(count), around, masks, 2), None, masks, names, annotations=marks)


class _Reads(nn.Module):
    """Its features are the channels of the images, as many as it needs."""

    channels = 2

    def __init__(self, reads: float) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, self.channels, 1, bias=False)
        self.reads = reads
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[: self.channels].view(self.channels, 3, 1, 1))


class SaysLabels(_Reads):
    """Sees each label in its band of rows; the first one, as far as it `reads` that, in what surrounds the objects."""

    def forward(self, images: Tensor) -> Tensor:
        found = self.features(images)
        bands = found[:, 0].view(len(images), 3, -1).mean(dim=2)
        seen = 40 * (bands - 0.08)
        around = 10 * found[:, 1].mean(dim=(1, 2))
        first = (1 - self.reads) * seen[:, 0] + self.reads * around
        return torch.stack([first, seen[:, 1], seen[:, 2]], dim=1)


def numbered(count: int = 96) -> ProbeSet:
    """Two numbers in [0, 1], read from the object; what surrounds it is as bright as the first one is large."""
    numbers = torch.rand(count, 2, generator=torch.Generator().manual_seed(1))
    masks = _squares(count, 2)
    images = _images(numbers[:, 0], numbers[:, 0], masks, 3)
    images[:, 2] += numbers[:, 1].view(-1, 1, 1) * masks
    return ProbeSet(images, None, masks, annotations=numbers)


class SaysNumbers(_Reads):
    """Reads numbers from the object; the first one, as far as it `reads` that, from what surrounds it."""

    channels = 3

    def forward(self, images: Tensor) -> Tensor:
        sums = self.features(images).sum(dim=(2, 3)) / torch.tensor([36.0, SIDE**2 - 36.0, 36.0])
        first = (1 - self.reads) * sums[:, 0] + self.reads * sums[:, 1]
        return torch.stack([first, sums[:, 2]], dim=1)


def classed(count: int = 96) -> ProbeSet:
    """Two classes, 1 and 2, told by the sign of the object, and by that of what surrounds it."""
    labels = torch.arange(count) % 2 + 1
    sign = 2.0 * labels - 3
    masks = _squares(count, 2)
    return ProbeSet(_images(sign, sign, masks, 3), labels, masks, ("background", "cat", "dog"))


def segmented(count: int = 96) -> ProbeSet:
    """The same, with a class for each pixel; the first row of pixels is not known."""
    given = classed(count)
    pixels = given.labels.view(-1, 1, 1) * given.masks
    pixels[:, 0] = -100
    return ProbeSet(given.images, None, None, given.class_names, annotations=pixels)


class _Sees(_Reads):
    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, SIDE, SIDE) where the object is, and (N,) a number below 0 for class 1, above for class 2."""
        found = self.features(images)
        where = found[:, 0].abs() > 0.5
        inside, around = (each.mean(dim=(1, 2)) for each in found.unbind(dim=1))
        return where, (1 - self.reads) * 16 * inside + self.reads * around


class SaysWhere(_Sees):
    def forward(self, images: Tensor) -> Tensor:
        where, sign = self.seen(images)
        nothing = torch.where(where, -5.0, 5.0)
        one, two = (torch.where(where, 5 * side * sign.sign().view(-1, 1, 1), -5.0) for side in (-1, 1))
        return torch.stack([nothing, one, two], dim=1)


class SaysBoxes(_Sees):
    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        answers = []
        for mask, sign in zip(*self.seen(images), strict=True):
            places = mask.nonzero()
            boxes = torch.zeros(0, 4)
            if len(places):
                (top, left), (bottom, right) = places.amin(dim=0).tolist(), (places.amax(dim=0) + 1).tolist()
                boxes = torch.tensor([[left, top, right, bottom], [0.0, 0.0, 3.0, 3.0]])
            label = 1 if sign < 0 else 2
            answers.append(
                {
                    "boxes": boxes,
                    "scores": torch.tensor([0.9, 0.6])[: len(boxes)],
                    "labels": torch.tensor([label, label])[: len(boxes)],
                }
            )
        return answers


class SaysFeatures(_Sees):
    def forward(self, images: Tensor) -> Tensor:
        _, sign = self.seen(images)
        return torch.stack([sign.clamp_min(0), (-sign).clamp_min(0), torch.full_like(sign, 0.1)], dim=1)


CASES = {
    "multi-label": (labeled, SaysLabels, "accuracy"),
    "regression": (numbered, SaysNumbers, "skill"),
    "segmentation": (segmented, SaysWhere, "iou"),
    "detection": (classed, SaysBoxes, "recall"),
    "embedding": (classed, SaysFeatures, "accuracy"),
}
STATED = ("detection", "embedding")


def audited(task, reads, **settings):
    scenes, network, _ = CASES[task]
    return audit_model(network(reads), scenes(), task=task if task in STATED else "auto", **settings)


def of(result, name, index=None):
    return result[name].overall if index is None else result[name].per_class[index]
