"""History: the maps of earlier looks at the same probes, made in the same way, at the resolution of the layer."""

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
    """Past looks, oldest first. Beyond 64, the one closest to its neighbours is forgotten."""

    def __init__(self) -> None:
        self.looks: list[PastLook] = []
        self._same: dict[str, str] = {}  # what all looks have in common

    def goes_on(self, of: str, what: str) -> bool:
        """Whether all looks so far have this in common; where not, all are forgotten.

        Args:
            of: Which of their properties, such as their probes.
            what: The property of the looks to come.
        """
        same = self._same.get(of, what) == what
        if not same:
            self.looks = []
        self._same[of] = what
        return same

    def add(self, look: PastLook) -> None:
        """Append a look; it replaces those at its step and later, and all whose maps have another shape."""
        self.looks = [past for past in self.looks if past.step < look.step and past.raw.shape == look.raw.shape]
        self.looks.append(look)
        if len(self.looks) > _MOST_LOOKS:
            _forget_one(self.looks)

    def selected(self, count: int, now: PastLook) -> list[PastLook]:
        """The first look, the current one, and others at equal distances between them, at most `count`."""
        looks = [look for look in self.looks if look.step != now.step and look.raw.shape == now.raw.shape] + [now]
        if len(looks) <= count:
            return looks
        places = torch.linspace(0, len(looks) - 1, count).round().int()
        return [looks[place] for place in places.tolist()]

    def brightest(self) -> float:
        """The largest value of all maps, 0 if there is none."""
        return max((float(look.raw.nan_to_num().max()) for look in self.looks), default=0.0)

    @property
    def nbytes(self) -> int:
        """What the maps take in memory, in bytes."""
        return sum(look.raw.nbytes for look in self.looks)

    def state_dict(self, room: int) -> dict[str, Any]:
        """Tensors and primitives only; of the looks as many as go into `room` bytes, or none if two do not."""
        kept = History()
        kept.looks = list(self.looks)
        while kept.nbytes > room and len(kept.looks) > 2:
            _forget_one(kept.looks)
        looks = kept.looks if kept.nbytes <= room else []
        saved = [{"step": look.step, "epoch": look.epoch, "raw": look.raw} for look in looks]
        return {"looks": saved, "same": dict(self._same)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the looks of an earlier run."""
        self.looks = [PastLook(look["step"], look["epoch"], look["raw"]) for look in state["looks"]]
        self._same = dict(state["same"])


def _forget_one(looks: list[PastLook]) -> None:
    """Remove the look that is closest to its neighbours, neither the first nor the last."""
    steps = [look.step for look in looks]
    del looks[min(range(1, len(steps) - 1), key=lambda at: steps[at + 1] - steps[at - 1])]
