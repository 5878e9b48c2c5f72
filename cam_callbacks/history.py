"""History: the maps of earlier looks at the same probes, at the resolution of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_LOOKS = 64


@dataclass(frozen=True, eq=False)
class PastLook:
    """The maps of one look.

    Attributes:
        step: The step of the trainer's scalars.
        epoch: The epoch.
        raw: (N, *spatial of the layer) float32, as in `Explanation`.
    """

    step: int
    epoch: int
    raw: Tensor


class History:
    """Past looks, oldest first. Beyond 64 every second one is forgotten, but never the first nor the last."""

    def __init__(self) -> None:
        self.looks: list[PastLook] = []

    def add(self, step: int, epoch: int, raw: Tensor) -> None:
        """Append a look; one at the same step is replaced. Maps of another shape than before begin the history anew."""
        if self.looks and self.looks[-1].raw.shape != raw.shape:
            self.looks.clear()
        self.looks = [look for look in self.looks if look.step != step]
        self.looks.append(PastLook(step, epoch, raw))
        if len(self.looks) > _MOST_LOOKS:
            self.looks = [*self.looks[:-1:2], self.looks[-1]]

    def selected(self, count: int) -> list[PastLook]:
        """The first look, the current one, and others at equal distances between them, at most `count`."""
        if len(self.looks) <= count:
            return list(self.looks)
        places = torch.linspace(0, len(self.looks) - 1, count).round().int()
        return [self.looks[place] for place in places.tolist()]

    def brightest(self) -> float:
        """The largest value of all maps, 0 if there is none."""
        return max((float(look.raw.nan_to_num().max()) for look in self.looks), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {"looks": [{"step": look.step, "epoch": look.epoch, "raw": look.raw} for look in self.looks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the looks of an earlier run."""
        self.looks = [PastLook(look["step"], look["epoch"], look["raw"]) for look in state["looks"]]
