"""A fixed set of images in a training: given, or picked from the batches that pass by, and kept from look to look."""

from __future__ import annotations

from typing import Any

from cam_callbacks.callback.kept_images import KeptImages
from cam_callbacks.data.batches import Samples
from cam_callbacks.data.picking import ImagePicker
from cam_callbacks.data.probes import ProbeSet


class WatchedImages(KeptImages):
    """Keeps the images that are looked at again and again.

    Args:
        count: How many to pick.
        given: The images, where the user gives them.
        are_given: Whether the user gives them, now or later, so that none are picked.
    """

    def __init__(self, count: int, given: ProbeSet | None = None, *, are_given: bool = False) -> None:
        super().__init__(count)
        self.images = given
        self.are_given = are_given or given is not None
        self._is_settled = False  # whether this evaluation needs no others
        self._picker: ImagePicker | None = None

    def begin(self, anew: bool) -> None:
        """Begin to pick images, if there are none yet.

        Args:
            anew: Pick others, as for each test: its images are not those of the validation.
        """
        picks = not self.are_given and (self.images is None or anew)
        self._picker = ImagePicker(self.count) if picks else None
        self._is_settled = self.is_synced and not picks

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
        return None if self._picker is None or self._picker.is_empty else self._picker.picked()

    @property
    def ignored(self) -> int:
        """How many images were left out of the choice: not finite, or unlike most."""
        return 0 if self._picker is None else self._picker.ignored

    @property
    def reasons(self) -> str:
        """Why images were left out, in words: `4 not finite, 2 of another size`."""
        left_out = {} if self._picker is None else self._picker.left_out
        return ", ".join(f"{count} {reason}" for reason, count in left_out.items())

    @property
    def is_saved(self) -> bool:
        """Whether the images belong in a checkpoint: not those that the user gives."""
        return self.images is not None and not self.are_given

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the images of an earlier run, unless others are given or another number is wanted."""
        super().load_state_dict(state | {"images": None} if self.are_given else state)
