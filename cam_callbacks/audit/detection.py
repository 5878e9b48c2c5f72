"""The question of a detector: is the object found?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from cam_callbacks.audit.donors import Donors, choose_donors
from cam_callbacks.audit.question import AuditTask, Question, Readings, check_labels
from cam_callbacks.data.probes import ProbeSet
from cam_callbacks.explain.model_outputs import OutputReader
from cam_callbacks.explain.targets import Targets

_FOUND_IOU, _FOUND_SCORE = 0.5, 0.5
_KEYS = ("boxes", "scores", "labels")


class Boxes(Question):
    """Each image is asked for the box of its object, of its class.

    It is found if a box of the class has a score of 0.5 at least, and an intersection over union (IoU) with the
    object's box of 0.5 at least. It may also be asked for the largest IoU times score of all boxes of the class.

    The model returns what torchvision's detectors do: for each image a mapping with `boxes` (M, 4), left, top, right
    and bottom in pixels, `scores` (M,) and `labels` (M,), as tensors, arrays or lists.

    Args:
        probes: Images (N, C, H, W) with labels of two classes or more, as the model counts them, and masks that are
            True within the object's box.

    Raises:
        ValueError: There are no labels or masks, all objects belong to one class, or the images are not (N, C, H, W).
    """

    task: ClassVar[AuditTask] = "detection"
    endings: ClassVar[tuple[str, ...]] = ("", "_score")
    asks_for_place: ClassVar[bool] = True
    reads_classes: ClassVar[bool] = False

    def __init__(self, probes: ProbeSet) -> None:
        super().__init__(probes, check_labels(probes))
        if probes.masks is None or probes.images.ndim != 4:
            raise ValueError(
                "a detection needs images (N, C, H, W) and where the object is: masks (N, H, W), True within its box, "
                "or in a batch boxes (N, 4)"
            )
        self._boxes = torch.stack([_box_of(mask) for mask in probes.masks])
        self.is_asked = probes.masks.flatten(1).any(dim=1)

    @property
    def chance(self) -> float:
        """That of a box around the whole image."""
        assert self.probes.masks is not None
        whole = torch.tensor([[0.0, 0.0, self.probes.images.shape[3], self.probes.images.shape[2]]])
        return float((iou_of_boxes(self._boxes, whole) >= _FOUND_IOU).float().mean())

    def donors(self, usable: Tensor, count: int) -> Donors:
        """Choose images with an object of the same class, and of another one."""
        return choose_donors(self.about, usable, self.probes.fingerprint, count)

    def read(self, output: Any, rows: Tensor, outputs: OutputReader) -> Readings:
        """Return whether objects are found, and the largest IoU times score.

        Raises:
            TypeError: The model does not return boxes.
        """
        parts = _checked(output, len(rows))
        readings = [self._read_one(found, row) for found, row in zip(parts, rows.tolist(), strict=True)]
        return torch.tensor(readings, dtype=torch.float32).T.to(rows.device)

    def _read_one(self, found: Mapping[str, Any], row: int) -> tuple[float, float]:
        boxes, scores, labels = (torch.as_tensor(found[key]).detach().float().cpu() for key in _KEYS)
        own = labels == int(self.about[row])
        if not own.any():
            return 0.0, 0.0
        if not (torch.isfinite(boxes[own]).all() and torch.isfinite(scores[own]).all()):
            return float("nan"), float("nan")
        overlap = iou_of_boxes(boxes[own], self._boxes[row : row + 1])[:, 0]
        is_found = bool(((overlap >= _FOUND_IOU) & (scores[own] >= _FOUND_SCORE)).any())
        return float(is_found), float((overlap * scores[own]).max())

    def targets(self, rows: Tensor) -> Targets:
        """Return None: which of the boxes a heatmap would be about is not known before."""
        return None


def iou_of_boxes(first: Tensor, second: Tensor) -> Tensor:
    """Return (n, m) the intersection over union of boxes (n, 4) and (m, 4): left, top, right, bottom."""
    a, b = first.unsqueeze(1), second.unsqueeze(0)
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(dim=-1)
    areas = [(each[..., 2:] - each[..., :2]).clamp_min(0).prod(dim=-1) for each in (a, b)]
    return common / (areas[0] + areas[1] - common).clamp_min(torch.finfo(torch.float32).tiny)


def _box_of(mask: Tensor) -> Tensor:
    """Return the box (4,) around a mask (H, W): left, top, right, bottom; zeros if it is empty."""
    rows, columns = (mask.any(dim=other).nonzero().flatten() for other in (1, 0))
    if not len(rows):
        return torch.zeros(4)
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _checked(output: Any, count: int) -> Sequence[Mapping[str, Any]]:
    """Return what was found in each of so many images."""
    is_list = isinstance(output, (list, tuple)) and len(output) == count
    if not is_list or not all(isinstance(each, Mapping) and all(key in each for key in _KEYS) for each in output):
        raise TypeError(
            f"a detector returns for each image a mapping with boxes, scores and labels; the model returned "
            f"{type(output).__name__}. Give forward_fn, a callable (model, images) -> [{{'boxes': (M, 4), 'scores': "
            "(M,), 'labels': (M,)}, ...]"
        )
    found: Sequence[Mapping[str, Any]] = output
    return found
