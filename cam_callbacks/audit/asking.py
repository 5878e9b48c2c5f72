"""Ask a model about images, as they are and changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cam_callbacks.audit.changes import Change, Exchange, made_in_portions
from cam_callbacks.audit.question import Question, Read, Readings
from cam_callbacks.explain import progress
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.network import Network


class Asker:
    """Asks about some of the images of an audit, a chunk at a time: no more of them are ever changed at once.

    What the question does not understand raises a ValueError or a TypeError.

    Args:
        network: The model, with the first of the images.
        images: (N, C, *spatial).
        question: What is asked about each.
        rows: (n,), which of the images are asked about.
        dtype: The type of the images that the model is fed.

    Attributes:
        passes: Images that the model was shown so far.
    """

    def __init__(self, network: Network, images: Tensor, question: Question, rows: Tensor, dtype: torch.dtype) -> None:
        self._network, self._images, self._question, self._rows, self._dtype = network, images, question, rows, dtype
        self.passes = 0
        self._ways = 1  # in which an answer is read
        question.prepare(self._about_all)

    def about(self, change: Change) -> Readings:
        """Ask about each image after a change."""
        return self.about_places(lambda part: change(self._rows[part]))

    def about_places(self, make: Callable[[slice], Tensor]) -> Readings:
        """Ask about what `make` makes of each image, called with slices of the n images."""
        return self._ask(torch.arange(len(self._rows)), make)

    def about_exchange(self, exchange: Exchange) -> dict[str, Readings]:
        """Ask about all changes that an exchange makes, by name; NaN for images that lack a donor.

        They are made in the order of donors, so that few are prepared twice.
        """
        names, of_arms = zip(*exchange.arms(), strict=True)
        count = len(self._rows)
        donors = torch.cat([donors[self._rows] for donors in of_arms])
        known = exchange.known[self._rows].repeat(len(names))
        order = torch.where(known, donors, -1).argsort(stable=True)[int((~known).sum()) :]  # the known ones
        places, donors = order % count, donors[order]
        progress.advance(len(known) - len(order))

        def make(part: slice) -> Tensor:
            return exchange.made(self._images, self._rows[places[part]], donors[part], self._network.images.device)

        answers = torch.full((self._ways, len(known)), torch.nan, dtype=torch.float32)
        if len(order):
            answers[:, order] = self._ask(places, make)
        return dict(zip(names, answers.view(self._ways, len(names), count).unbind(dim=1), strict=True))

    def _about_all(self, read: Read) -> Readings:
        """Read something out of the answers to all images as they are."""
        return self._asked(torch.arange(len(self._images)), lambda part: self._images[part], read)

    def _ask(self, places: Tensor, make: Callable[[slice], Tensor]) -> Readings:
        """Ask about what `make` makes from slices of images, those at some places among the n."""
        found = self._asked(self._rows[places], make, self._question.read)
        progress.advance(len(places))
        self._ways = len(found)
        return found

    def _asked(self, rows: Tensor, make: Callable[[slice], Tensor], read: Read) -> Readings:
        """Read something out of the answers to what `make` makes from slices of the images at `rows` (n,)."""
        network, parts = self._network, list[Tensor]()

        def ask(chunk: slice) -> None:
            made = in_type(made_in_portions(make, chunk, self._images), self._dtype)
            images = made.to(network.images.device, network.dtype)
            own = rows[chunk].to(images.device)
            read_from = read(network.answer(images, own), own, network.outputs)
            parts.append(network.ranks.agreed(read_from))
            self.passes += len(own)

        network.in_chunks(len(rows), ask)
        return torch.cat(parts, dim=1).cpu()
