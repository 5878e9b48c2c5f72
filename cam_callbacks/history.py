"""History: the maps of earlier looks at the same probes, made in the same way, at the resolution of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST_LOOKS = 64


@dataclass(frozen=True, eq=False)
class PastMaps:
    """The maps of one look.

    Attributes:
        step: The step of the trainer's scalars.
        epoch: The epoch.
        layer_maps: (N, *spatial of the layer) float32, as in `Explanation`.
    """

    step: int
    epoch: int
    layer_maps: Tensor


class History:
    """Past looks, oldest first. Beyond 64, the one closest to its neighbors is forgotten."""

    def __init__(self) -> None:
        self.looks: list[PastMaps] = []
        self._same: dict[str, str] = {}  # what all looks have in common

    def reset_if_changed(self, of: str, what: str) -> bool:
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

    def add(self, look: PastMaps) -> None:
        """Append a look; it replaces those at its step and later, and all whose maps have another shape."""
        self.looks = [
            past for past in self.looks if past.step < look.step and past.layer_maps.shape == look.layer_maps.shape
        ]
        self.looks.append(look)
        if len(self.looks) > _MOST_LOOKS:
            _forget_one(self.looks)

    def selected(self, count: int, now: PastMaps) -> list[PastMaps]:
        """The first look, the current one, and others at equal distances between them, at most `count`."""
        looks = [
            look for look in self.looks if look.step != now.step and look.layer_maps.shape == now.layer_maps.shape
        ] + [now]
        if len(looks) <= count:
            return looks
        places = torch.linspace(0, len(looks) - 1, count).round().int()
        return [looks[place] for place in places.tolist()]

    def brightest(self) -> float:
        """The largest value of all maps, 0 if there is none."""
        return max((float(look.layer_maps.nan_to_num().max()) for look in self.looks), default=0.0)

    @property
    def nbytes(self) -> int:
        """What the maps take in memory, in bytes."""
        return sum(look.layer_maps.nbytes for look in self.looks)

    def state_dict(self, room: int) -> dict[str, Any]:
        """Tensors and primitives only; of the looks as many as go into `room` bytes, or none if two do not."""
        kept = History()
        kept.looks = list(self.looks)
        while kept.nbytes > room and len(kept.looks) > 2:
            _forget_one(kept.looks)
        looks = kept.looks if kept.nbytes <= room else []
        saved = [{"step": look.step, "epoch": look.epoch, "layer_maps": look.layer_maps} for look in looks]
        return {"looks": saved, "same": dict(self._same)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the looks of an earlier run."""
        self.looks = [PastMaps(look["step"], look["epoch"], look["layer_maps"]) for look in state["looks"]]
        self._same = dict(state["same"])


def _forget_one(looks: list[PastMaps]) -> None:
    """Remove the look that is closest to its neighbors, neither the first nor the last."""
    steps = [look.step for look in looks]
    del looks[min(range(1, len(steps) - 1), key=lambda at: steps[at + 1] - steps[at - 1])]
