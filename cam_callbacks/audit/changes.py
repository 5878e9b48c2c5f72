"""What is done to the images of an audit: made on the device of the model, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cam_callbacks.audit import interventions
from cam_callbacks.audit.donors import Donors
from cam_callbacks.explain.written import unwatched

_AT_ONCE = 2**22  # values: 16 MiB, so that memory is needed for a few images only, however large they are
Change = Callable[[Tensor], Tensor]
"""Called with the indices (n,) of images; makes what they are changed into, (n, C, *spatial)."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """An exchange of what lies outside of `kept` with donors of the same class, and with donors of another class.

    Attributes:
        name: The name of the gap that is measured with it.
        kept: (N, *spatial) bool, what the images keep.
        known: (N,) bool, which images have all donors.
        donors: The donors.
        exchange: Called as `exchange(images, kept, donors, kept_of_donors)` with n images and their n donors.
        prepare: Called as `prepare(donors, kept_of_donors)`: what is done to a donor first, whoever it gives to; None
            for nothing.
    """

    name: str
    kept: Tensor
    known: Tensor
    donors: Donors
    exchange: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor, Tensor], Tensor] | None = None

    def arms(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each change that it makes, and (N,) its donors: `bg_gap/same/0`, and so on."""
        for kind, donors in (("same", self.donors.same), ("other", self.donors.other)):
            for turn, each in enumerate(donors.unbind(dim=1)):
                yield f"{self.name}/{kind}/{turn}", each

    def changes(self, images: Tensor, given: Tensor, device: torch.device) -> Iterator[tuple[str, Change]]:
        """Yield the name of each change that it makes, and the change.

        Args:
            images: (N, C, *spatial).
            given: (N, C, *spatial), the same ones as donors: `prepared`.
            device: Where the changes are made.
        """
        for name, donors in self.arms():
            yield name, partial(self._exchanged, images, given, donors, device)

    def _exchanged(self, images: Tensor, given: Tensor, donors: Tensor, device: torch.device, some: Tensor) -> Tensor:
        givers = donors[some].clamp_min(0)
        parts = (images[some], self.kept[some], given[givers], self.kept[givers])
        return self.exchange(*(part.to(device) for part in parts))

    def prepared(self, images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
        """Return the images (N, C, *spatial) as donors; those that are not at `rows` and give to none are undefined."""
        if self.prepare is None:
            return images
        found = torch.empty_like(images)
        givers = [donors[rows].clamp_min(0) for _, donors in self.arms()]
        needed = torch.cat([rows, *givers]).unique()  # type: ignore[no-untyped-call]
        for some in _few(needed, images):
            found[some] = self.prepare(images[some].to(device), self.kept[some].to(device)).to(images.device)
        return found

    def with_donors(self, kind: str, answers: Mapping[str, Tensor]) -> Tensor:
        """Return (N, K) the answers with each donor of a kind, "same" or "other"; NaN for images that lack one."""
        of_donors = [answers[name] for name, _ in self.arms() if name.startswith(f"{self.name}/{kind}/")]
        return torch.where(self.known.unsqueeze(1), torch.stack(of_donors, dim=1), torch.nan)

    def gap(self, answers: Mapping[str, Tensor]) -> Tensor:
        """Return (N, K) the answers with donors of the same class minus those with donors of another class."""
        return self.with_donors("same", answers) - self.with_donors("other", answers)


def changes_without_donors(
    images: Tensor, masks: Tensor | None, backgrounds: Tensor, is_even: Tensor, device: torch.device
) -> dict[str, Change]:
    """Return what is done to images without others, by name.

    Args:
        images: (N, C, *spatial).
        masks: (N, *spatial) bool; None if there are none.
        backgrounds: (N, C, *spatial), the images without their objects; not used without masks.
        is_even: (N,) bool: of these the background is shown alone, of the others the object.
        device: Where the changes are made.
    """

    def taken(some: Tensor) -> Tensor:
        return images[some].to(device)

    changes: dict[str, Change] = {"nothing": taken}
    if masks is not None:
        color = interventions.mean_color_of_all(images).to(device)

        def blurred(some: Tensor) -> Tensor:
            background = interventions.blurred(backgrounds[some].to(device))
            return interventions.before(background, taken(some), masks[some].to(device))

        def alone(some: Tensor) -> Tensor:
            objects = interventions.on_color(taken(some), masks[some].to(device), color)
            return torch.where(like(is_even[some], images).to(device), backgrounds[some].to(device), objects)

        changes |= {"blurred": blurred, "alone": alone}
    if images.shape[1] == 3:
        limits = interventions.value_range(images).to(device)
        changes["brighter"] = lambda some: interventions.brighter(taken(some), limits)
        changes["roll"] = lambda some: interventions.roll_colors(taken(some))
        changes["gray"] = lambda some: interventions.gray(taken(some))
    return changes


def made(change: Change, images: Tensor, rows: Tensor) -> Tensor:
    """Return what the images (N, C, *spatial) at `rows` (n,) are changed into, (n, C, *spatial), on the CPU."""
    with unwatched():  # it writes to nothing that is watched
        return torch.cat([change(some).cpu() for some in _few(rows, images)])


def _few(rows: Tensor, images: Tensor) -> Sequence[Tensor]:
    """Divide rows (n,) of images (N, C, *spatial) into those of a few images each."""
    few: tuple[Tensor, ...] = rows.split(max(1, _AT_ONCE // images[0].numel()))  # type: ignore[no-untyped-call]
    return few


def like(flags: Tensor, images: Tensor) -> Tensor:
    """Return one flag an image, (n,), as (n, 1, ...), to choose between images."""
    return flags.view(-1, *[1] * (images.ndim - 1))
