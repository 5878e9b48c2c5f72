"""The question of a segmentation: where is the object?"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_callbacks.audit.attention import area_share, is_informative
from cam_callbacks.audit.classes import checked_classes, only_known
from cam_callbacks.audit.donors import Donors, in_turn
from cam_callbacks.audit.question import AuditTask, Question, Readings, generator_of
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader
from cam_callbacks.explain.targets import SegmentationTarget, Targets

_BACKGROUND = re.compile(r"backg|\bbg\b|\bvoid\b|unlabel|\bnone\b|\bother\b|\bignore|^0$", re.IGNORECASE)  # in a name
_INTERPOLATED = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Segments(Question):
    """Each image is asked where the class is that most of its pixels are of, which is its object.

    How right an answer is: the intersection over union (IoU) of where it sees the class, and where the class is; pixels
    without a label do not count. It may also be asked for the mean probability of the class on the object.

    Donors are images of the same class, and images that have nothing of the class; these may have no object at all.

    Args:
        probes: Images with `annotations` (N, *spatial) whole numbers: the class of each pixel, negative where it is not
            known. Class 0 is the background, and no object, unless classes have names and its name says otherwise.

    Raises:
        ValueError: There are none, or no class is there in two images and missing in another.
    """

    task: ClassVar[AuditTask] = "segmentation"
    is_counted: ClassVar[bool] = False
    asks_for_place: ClassVar[bool] = True
    reads_classes: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet) -> None:
        pixels = probes.annotations
        if pixels is None or pixels.is_floating_point() or pixels.dtype == torch.bool:
            raise ValueError(
                "probes have no class of each pixel; give ProbeSet(images, annotations=...), (N, *spatial)"
            )
        self._pixels = pixels.long()
        has_background = class_zero_is_background(probes.class_names)
        about = largest_classes(self._pixels, has_background)
        objects = self._pixels == about.view(-1, *[1] * (pixels.ndim - 1))
        super().__init__(replace(probes, masks=objects, masks_estimated=False), about.clamp_min(0))
        self.is_asked = (about >= 0) & is_informative(objects)
        if not any(len(self._with(label)) > 1 and len(self._without(label)) for label in self.about.unique().tolist()):  # type: ignore[no-untyped-call]
            hint = (
                "" if has_background else f". {probes.class_names.name(0)!r} is taken for an object, not for background"
            )
            raise ValueError(
                f"no class is the object of 2 of the {len(probes)} images and missing in another, which the audit needs"
                f"{hint}"
            )

    @property
    def chance(self) -> Tensor:
        """That of seeing the class everywhere."""
        assert self.probes.masks is not None
        known = (self._pixels >= 0).flatten(1).sum(dim=1)
        share = self.probes.masks.flatten(1).sum(dim=1) / known
        return share.where(self.is_asked, torch.nan)

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images of the same class, and images that have nothing of it."""
        generator = generator_of(self.probes)
        same, other = (torch.full((len(self.about), count), -1) for _ in range(2))
        for label in sorted(set(self.about[self.is_asked].tolist())):
            takers = self._with(label)
            for found, givers in ((same, takers), (other, self._without(label))):
                found[takers] = in_turn(takers, givers, count, generator)
        return Donors(same, other)

    def _with(self, label: int) -> Tensor:
        """Return (n,) the images whose object is of a class."""
        return (self.is_asked & (self.about == label)).nonzero().flatten()

    def _without(self, label: int) -> Tensor:
        """Return (n,) the images that have nothing of a class, and a background to give.

        If there are any with another object, it is these: its place is inpainted, like those of the class.
        """
        assert self.probes.masks is not None
        is_without = ~(self._pixels == label).flatten(1).any(dim=1)
        others = (is_without & self.is_asked).nonzero().flatten()
        if len(others) > 1:
            return others
        return (is_without & (area_share(self.probes.masks) < 1)).nonzero().flatten()

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return the IoU, the mean probability of the class on the object, and the share of the rest seen as the class.

        Raises:
            ValueError: The model returns no class for each pixel, or does not have a class.
        """
        logits = outputs.logits(output).float()
        rows, size = rows.cpu(), self._pixels.shape[1:]
        if logits.ndim != len(size) + 2:
            raise ValueError(f"the model returned {tuple(logits.shape)}; (N, classes, *spatial) is needed")
        if logits.shape[1] == 1:
            logits = torch.cat([-logits, logits], dim=1) / 2
        labels = checked_classes(self.about[rows], logits).to(logits.device)
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size=size, mode=_INTERPOLATED[len(size)], align_corners=False)
        pixels = self._pixels[rows].to(logits.device)
        like = labels.view(-1, *[1] * len(size))
        is_object, is_known = pixels == like, pixels >= 0
        seen = (logits.argmax(dim=1) == like) & is_known
        iou = _share(seen & is_object, seen | is_object)
        of_class = logits.softmax(dim=1)[torch.arange(len(labels), device=logits.device), labels]
        on_object = (of_class * is_object).flatten(1).sum(dim=1) / is_object.flatten(1).sum(dim=1)
        leaked = _share(seen & ~is_object, is_known & ~is_object)
        readings = torch.stack([iou, on_object, leaked])
        return only_known(readings.where(self.is_asked[rows].to(logits.device), torch.nan), logits)

    def targets(self, rows: Tensor) -> Targets:
        """Return the class of each image, where it is seen."""
        return [SegmentationTarget(index) for index in self.about[rows].tolist()]


def class_zero_is_background(class_names: Any) -> bool:
    """Return whether class 0 is the background: as its name says, or if the classes have no names."""
    return not class_names or bool(_BACKGROUND.search(class_names.name(0)))


def largest_classes(pixels: Tensor, has_background: bool) -> Tensor:
    """Return (N,) the class of the most pixels (N, *spatial), not the background; -1 for images without any."""
    found = torch.full((len(pixels),), -1)
    for row, of_image in enumerate(pixels):
        objects = of_image[of_image >= (1 if has_background else 0)]
        if len(objects):
            found[row] = torch.bincount(objects.long()).argmax()
    return found


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return (n,) how much of the positions of each image a part of them is, (n, *spatial) bool each; NaN of none."""
    return part.flatten(1).sum(dim=1) / whole.flatten(1).sum(dim=1)
