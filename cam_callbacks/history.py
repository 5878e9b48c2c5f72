"""History: the maps of earlier looks at the same probes, made in the same way, at the resolution of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MAX_LOOKS = 64


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
    """Maps of past looks, oldest first. Beyond 64, the one closest to its neighbors is forgotten."""

    def __init__(self) -> None:
        self.looks: list[PastMaps] = []
        self._made_by: str | None = None

    def clear(self) -> None:
        """Forget all maps."""
        self.looks = []

    def reset_if_changed(self, made_by: str) -> bool:
        """Forget all maps if they were made in another way.

        Args:
            made_by: How the maps to come are made: method, layer and what is explained.

        Returns:
            Whether they were.
        """
        changed = self._made_by not in (None, made_by)
        if changed:
            self.clear()
        self._made_by = made_by
        return changed

    def add(self, now: PastMaps) -> None:
        """Append maps; they replace those at their step and later, and all of another shape."""
        shape = now.layer_maps.shape
        self.looks = [past for past in self.looks if past.step < now.step and past.layer_maps.shape == shape]
        self.looks.append(now)
        if len(self.looks) > _MAX_LOOKS:
            _forget_one(self.looks)

    def selected(self, count: int, now: PastMaps) -> list[PastMaps]:
        """Return the first look, the current one, and others at equal distances between them, at most `count`."""
        shape = now.layer_maps.shape
        looks = [past for past in self.looks if past.step != now.step and past.layer_maps.shape == shape] + [now]
        if len(looks) <= count:
            return looks
        places = torch.linspace(0, len(looks) - 1, count).round().int()
        return [looks[place] for place in places.tolist()]

    def brightest(self) -> float:
        """Return the largest value of all maps, 0 without any."""
        return max((float(past.layer_maps.nan_to_num().max()) for past in self.looks), default=0.0)

    @property
    def nbytes(self) -> int:
        """Bytes that the maps take in memory."""
        return sum(past.layer_maps.nbytes for past in self.looks)

    def state_dict(self, room: int) -> dict[str, Any]:
        """Return tensors and primitives; as many looks as fit into `room` bytes, or none if not even two do."""
        kept = History()
        kept.looks = list(self.looks)
        while kept.nbytes > room and len(kept.looks) > 2:
            _forget_one(kept.looks)
        looks = kept.looks if kept.nbytes <= room else []
        saved = [{"step": past.step, "epoch": past.epoch, "layer_maps": past.layer_maps} for past in looks]
        return {"looks": saved, "made_by": self._made_by}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the looks of an earlier run."""
        self.looks = [PastMaps(look["step"], look["epoch"], look["layer_maps"]) for look in state["looks"]]
        self._made_by = state["made_by"]


def _forget_one(looks: list[PastMaps]) -> None:
    """Remove the look that is closest to its neighbors, neither the first nor the last."""
    steps = [look.step for look in looks]
    del looks[min(range(1, len(steps) - 1), key=lambda at: steps[at + 1] - steps[at - 1])]
