"""The probes in a training: where they come from, and what of them outlives it. Knows the batches, not the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from cam_callbacks.data.batches import Samples
from cam_callbacks.data.picking import ImagePicker
from cam_callbacks.data.probes import ProbeSet

Source = str | Path | Dataset[Any]
"""A folder of photos, or a map-style data set."""


class Prober:
    """Keeps a fixed set of images: given, read from a folder or a data set, or picked from the batches that pass by.

    Args:
        source: Where they come from; None for the batches.
        num_probes: How many it picks.
    """

    def __init__(self, source: Source | ProbeSet | None, num_probes: int) -> None:
        self.num_probes = num_probes
        self.probes: ProbeSet | None = source if isinstance(source, ProbeSet) else None
        self.sent = False
        """Whether all ranks have them."""
        self._given = source is not None
        self._unread = None if isinstance(source, ProbeSet) else source
        self._collector: ImagePicker | None = None

    @property
    def collects(self) -> bool:
        """Whether it is picking images now."""
        return self._collector is not None

    @property
    def settled(self) -> bool:
        """Whether the probes of this evaluation are known, and known to all ranks."""
        return self._collector is None and self.sent

    def begin(self, testing: bool) -> None:
        """Begin to pick images, if there are none yet; test images are picked anew for each test."""
        wanted = not self._given and (self.probes is None or testing)
        self._collector = ImagePicker(self.num_probes) if wanted else None

    def read(self, read: Callable[[Source, int], ProbeSet]) -> None:
        """Read the images from their source, once."""
        if self._unread is not None:
            self.probes, self._unread = read(self._unread, self.num_probes), None

    def offer(self, samples: Samples) -> None:
        """Look at the samples of a batch."""
        if self._collector is not None:
            self._collector.offer(samples)

    def chosen(self) -> tuple[ProbeSet, int]:
        """The images of this evaluation, and how many that passed by could not be taken."""
        if self._collector is not None:
            return ProbeSet.of(self._collector.picked()), self._collector.ignored
        assert self.probes is not None
        return self.probes, 0

    def keep(self, probes: ProbeSet) -> None:
        """Keep the images for the looks to come, once all ranks have them."""
        self.probes, self.sent = probes, True

    def state_dict(self, room: int) -> dict[str, Any] | None:
        """Tensors and primitives only; None if the images were given, or do not go into `room` bytes."""
        if self.probes is None or self._given or self.probes.nbytes > room:
            return None
        return {"num_probes": self.num_probes, "images": self.probes.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on with the images of the earlier run, if none are given and it was to pick as many."""
        self.sent = False
        if state is not None and not self._given and state["num_probes"] == self.num_probes:
            self.probes = ProbeSet.from_state_dict(state["images"])
