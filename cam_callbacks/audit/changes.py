"""What is done to the images of an audit: made from indices, on the device of the model, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cam_callbacks.audit import interventions
from cam_callbacks.audit.donors import Donors
from cam_callbacks.explain.portions import few
from cam_callbacks.explain.written import unwatched

_SHARE_OF_FREE = 0.1

Change = Callable[[Tensor], Tensor]
"""Called with the indices (n,) of images; makes what they are changed into, (n, C, *spatial)."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """An exchange of what lies outside of `kept` with donors of the same class, and with donors of another class.

    Attributes:
        name: The name of the gap that is measured with it.
        kept: (N, *spatial) bool, what the images keep.
        known: (n,) bool, which of the first n images have all donors.
        donors: The donors of these.
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

    def made(self, images: Tensor, some: Tensor, donors: Tensor, device: torch.device) -> Tensor:
        """Return what the images (N, C, *spatial) at `some` (n,) become with donors (n,), (n, C, *spatial)."""
        givers, place = donors.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        given, kept = images[givers].to(device), self.kept[givers].to(device)
        if self.prepare is not None:
            given = self.prepare(given, kept)
        place = place.to(device)
        return self.exchange(images[some].to(device), self.kept[some].to(device), given[place], kept[place])

    def is_in(self, answers: Mapping[str, Tensor]) -> bool:
        """Return whether there are answers to all changes that it makes."""
        return all(name in answers for name, _ in self.arms())

    def with_donors(self, kind: str, answers: Mapping[str, Tensor]) -> Tensor:
        """Return (R, N, K) what is read with each donor of a kind, "same" or "other"; NaN for images that lack one.

        Args:
            kind: The kind.
            answers: By change, (R, N) what is read out of the answers.
        """
        of_donors = [answers[name] for name, _ in self.arms() if name.startswith(f"{self.name}/{kind}/")]
        return torch.stack(of_donors, dim=2).where(self.known.unsqueeze(1), torch.nan)


def changes_without_donors(
    images: Tensor, masks: Tensor | None, is_even: Tensor, limits: Tensor, device: torch.device
) -> dict[str, Change]:
    """Return what is done to images without others, by name.

    Args:
        images: (N, C, *spatial).
        masks: (N, *spatial) bool; None if there are none.
        is_even: (N,) bool: of these the background is shown alone, of the others the object.
        limits: The smallest and the largest value of each channel: `interventions.value_range`.
        device: Where the changes are made.
    """

    def taken(some: Tensor) -> Tensor:
        return images[some].to(device)

    changes: dict[str, Change] = {"nothing": taken}
    if masks is not None:
        color = interventions.mean_color_of_all(images).to(device)

        def blurred(some: Tensor) -> Tensor:
            shown, objects = taken(some), masks[some].to(device)
            background = interventions.blurred(interventions.without_object(shown, objects))
            return interventions.before(background, shown, objects)

        def alone(some: Tensor) -> Tensor:
            shown, objects = taken(some), masks[some].to(device)
            is_background = is_even[some].to(device)
            found = interventions.on_color(shown, objects, color)
            found[is_background] = interventions.without_object(shown[is_background], objects[is_background])
            return found

        changes |= {"blurred": blurred, "alone": alone}
    if images.shape[1] == 3:
        of_device = limits.to(device)
        changes["brighter"] = lambda some: interventions.brighter(taken(some), of_device)
        changes["roll"] = lambda some: interventions.roll_colors(taken(some))
        changes["gray"] = lambda some: interventions.gray(taken(some))
    return changes


def where_they_fit(images: Tensor, device: torch.device) -> Tensor:
    """Return images on a GPU if nearly all of its free memory stays free; else as they are, fetched when needed."""
    if device.type != "cuda" or images.nbytes > _SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]:
        return images
    return images.to(device)


def made_in_portions(make: Callable[[slice], Tensor], chunk: slice, images: Tensor) -> Tensor:
    """Return the images of a chunk, which `make` makes from slices, in the layout in which a `Runner` holds images.

    Args:
        make: Called with one slice after the other of those that make up the chunk.
        chunk: At least one image.
        images: (N, C, *spatial), others of the same size.
    """
    found, step = torch.empty(0), few(images)
    with unwatched():  # it writes to nothing that is watched
        for start in range(chunk.start, chunk.stop, step):
            made = make(slice(start, min(start + step, chunk.stop)))
            if start == chunk.start:
                found = made.new_empty(chunk.stop - chunk.start, *made.shape[2:], made.shape[1]).movedim(-1, 1)
            place = start - chunk.start
            found[place : place + len(made)] = made
    return found


def like(flags: Tensor, images: Tensor) -> Tensor:
    """Return one flag an image, (n,), as (n, 1, ...), to choose between images."""
    return flags.view(-1, *[1] * (images.ndim - 1))
