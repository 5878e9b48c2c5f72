"""Ask a model about changed images: whether its answers are right, and for the probability of the true class."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from cam_callbacks.audit.changes import Change, Exchange, made_in_portions
from cam_callbacks.explain import progress
from cam_callbacks.explain.image_types import in_type
from cam_callbacks.explain.model_outputs import ClassScores
from cam_callbacks.explain.network import Network

Answer: TypeAlias = tuple[Tensor, Tensor]
"""(n,) whether answers are right, and (n,) the probability of the true class; NaN without an answer."""


class Asker:
    """Asks about some of the images of an audit, a chunk at a time: no more of them are ever changed at once.

    A label that the model does not have raises a ValueError.

    Args:
        network: The model.
        images: (N, C, *spatial).
        labels: (N,).
        rows: (n,), which of the images are asked about.
        dtype: The type of the images that the model is fed.

    Attributes:
        passes: Images that the model was shown so far.
    """

    def __init__(self, network: Network, images: Tensor, labels: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
        self._network, self._images, self._labels, self._rows, self._dtype = network, images, labels, rows, dtype
        self.passes = 0

    def about(self, change: Change) -> Answer:
        """Ask about each image after a change."""
        return self.about_places(lambda part: change(self._rows[part]))

    def about_places(self, make: Callable[[slice], Tensor]) -> Answer:
        """Ask about what `make` makes of each image, called with slices of the n images."""
        return self._ask(torch.arange(len(self._rows)), make)

    def about_exchange(self, exchange: Exchange) -> dict[str, Answer]:
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

        answers = torch.full((2, len(known)), torch.nan, dtype=torch.float32)
        if len(order):
            answers[:, order] = torch.stack(self._ask(places, make))
        correct, probability = answers.view(2, len(names), count)
        return dict(zip(names, zip(correct, probability, strict=True), strict=True))

    def _ask(self, places: Tensor, make: Callable[[slice], Tensor]) -> Answer:
        """Ask about what `make` makes from slices of images, those at some places among the n."""
        network = self._network
        parts: list[Answer] = []

        def ask(chunk: slice) -> None:
            own = places[chunk]
            made = in_type(made_in_portions(make, chunk, self._images), self._dtype)
            images = made.to(network.images.device, network.dtype)
            scores = network.scores_of(images, own.to(images.device))
            parts.append(_answer(scores, self._labels[self._rows[own]]))
            progress.advance(len(own))
            self.passes += len(own)

        network.in_chunks(len(places), ask)
        correct, probability = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return correct, probability


def _answer(scores: ClassScores, labels: Tensor) -> Answer:
    """Return the answer on the device of the scores."""
    count = scores.logits.shape[1]
    unknown = labels[(labels < 0) | (labels >= count)]
    if len(unknown):
        raise ValueError(f"labels contains {sorted(set(unknown.tolist()))}, but the model has {count} classes")
    labels = labels.to(scores.logits.device)
    known = torch.isfinite(scores.probabilities).all(dim=1)
    correct = (scores.probabilities.argmax(dim=1) == labels).float()
    probability = scores.probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return torch.where(known, correct, torch.nan), torch.where(known, probability, torch.nan)
