"""A fixed set of images in a training: given, or picked from the batches that pass by, and kept from look to look."""

from __future__ import annotations

from typing import Any

from cam_callbacks.data.batches import Samples
from cam_callbacks.data.picking import ImagePicker
from cam_callbacks.data.probes import ProbeSet


class WatchedImages:
    """Keeps the images that are looked at again and again: the probes, or those of the audit.

    Args:
        count: How many to pick.
        given: The images, where the user gives them.
        are_given: Whether the user gives them, now or later, so that none are picked.
    """

    def __init__(self, count: int, given: ProbeSet | None = None, *, are_given: bool = False) -> None:
        self.count = count
        self.images = given
        self.are_given = are_given or given is not None
        self._is_synced = False  # whether all ranks hold the same images
        self._is_settled = False  # whether this evaluation needs no others
        self._fingerprint: str | None = None  # of the images that were kept last, in this run or an earlier one
        self._picker: ImagePicker | None = None

    def begin(self, anew: bool) -> None:
        """Begin to pick images, if there are none yet.

        Args:
            anew: Pick others, as for each test: its images are not those of the validation.
        """
        picks = not self.are_given and (self.images is None or anew)
        self._picker = ImagePicker(self.count) if picks else None
        self._is_settled = self._is_synced and not picks

    def give(self, images: ProbeSet) -> None:
        """Take the images that the user gives, now that they are read."""
        self.images = images

    @property
    def is_picking(self) -> bool:
        """Whether images are being picked from the batches."""
        return self._picker is not None

    @property
    def is_settled(self) -> bool:
        """Whether the images of this evaluation are known to all ranks; the same on all of them."""
        return self._is_settled

    def offer(self, samples: Samples, loader: int) -> None:
        """Consider the samples of a batch of one of the loaders."""
        if self._picker is not None:
            self._picker.offer(samples, loader)

    @property
    def picked(self) -> Samples | None:
        """What was picked from the batches of this evaluation; None where nothing was."""
        return self._picker.picked() if self._picker is not None and self.has_picked else None

    @property
    def has_picked(self) -> bool:
        """Whether an image was picked from the batches of this evaluation."""
        return self._picker is not None and not self._picker.is_empty

    def __len__(self) -> int:
        """Return how many there are now, or would be picked now."""
        if self._picker is not None:
            return len(self._picker)
        return 0 if self.images is None else len(self.images)

    @property
    def ignored(self) -> int:
        """How many images were left out of the choice: not finite, or unlike most."""
        return 0 if self._picker is None else self._picker.ignored

    @property
    def reasons(self) -> str:
        """Why images were left out, in words: `4 not finite, 2 of another size`."""
        left_out = {} if self._picker is None else self._picker.left_out
        return ", ".join(f"{count} {reason}" for reason, count in left_out.items())

    def keep(self, images: ProbeSet) -> bool:
        """Keep images for the evaluations to come, once all ranks have them.

        Returns:
            Whether they are those that were kept before, or the first.
        """
        fingerprint = images.fingerprint
        is_same = self._fingerprint in (None, fingerprint)
        self.images, self._fingerprint, self._is_synced = images, fingerprint, True
        return is_same

    @property
    def nbytes(self) -> int:
        """Bytes that the images take in a checkpoint; those that the user gives are not saved."""
        return 0 if self.images is None or self.are_given else self.images.nbytes

    def state_dict(self, room: int) -> dict[str, Any]:
        """Return tensors and primitives; with the images if they fit into `room` bytes, else they are picked again."""
        is_saved = self.images is not None and not self.are_given and self.nbytes <= room
        return {
            "count": self.count,
            "fingerprint": self._fingerprint,
            "images": self.images.state_dict() if self.images is not None and is_saved else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the images of an earlier run, unless others are given or another number is wanted."""
        self._is_synced = False
        self._fingerprint = state["fingerprint"]
        if state["images"] is not None and not self.are_given and state["count"] == self.count:
            self.images = ProbeSet.from_state_dict(state["images"])
