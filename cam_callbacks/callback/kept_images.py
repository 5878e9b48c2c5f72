"""KeptImages: images that stay the same from look to look, and in checkpoints."""

from __future__ import annotations

from typing import Any

from cam_callbacks.data.probes import ProbeSet


class KeptImages:
    """Keeps images through a training, and the runs that resume it.

    Args:
        count: How many are wanted; those of a checkpoint that was made for another number are not taken.

    Attributes:
        images: The images; None until they are known.
        is_synced: Whether all ranks hold the same images.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.images: ProbeSet | None = None
        self.is_synced = False
        self._fingerprint: str | None = None  # of the images that were kept last, in this run or an earlier one

    def keep(self, images: ProbeSet) -> bool:
        """Keep images for the evaluations to come, once all ranks have them.

        Returns:
            Whether they are those that were kept before, or the first.
        """
        fingerprint = images.fingerprint
        is_same = self._fingerprint in (None, fingerprint)
        self.images, self._fingerprint, self.is_synced = images, fingerprint, True
        return is_same

    @property
    def is_saved(self) -> bool:
        """Whether the images belong in a checkpoint."""
        return self.images is not None

    @property
    def nbytes(self) -> int:
        """Bytes that the images take in a checkpoint."""
        return 0 if self.images is None or not self.is_saved else self.images.nbytes

    def state_dict(self, room: int) -> dict[str, Any]:
        """Return tensors and primitives; with the images if they fit into `room` bytes, else they are picked again."""
        is_saved = self.is_saved and self.nbytes <= room
        return {
            "count": self.count,
            "fingerprint": self._fingerprint,
            "images": self.images.state_dict() if self.images is not None and is_saved else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the images of an earlier run, unless another number is wanted."""
        self.is_synced = False
        self._fingerprint = state["fingerprint"]
        if state["images"] is not None and state["count"] == self.count:
            self.images = ProbeSet.from_state_dict(state["images"])
