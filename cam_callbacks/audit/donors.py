"""Donors: which images give their background to which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Donors:
    """The images that give their background to each of N images, K times.

    Attributes:
        same: (N, K) int64, the indices of other images of the same class; -1 if there is none.
        other: (N, K) int64, the indices of images of another class; -1 if there is none.
    """

    same: Tensor
    other: Tensor

    @property
    def known(self) -> Tensor:
        """(N,) bool, whether an image has both."""
        return (self.same >= 0).all(dim=1) & (self.other >= 0).all(dim=1)

    def first(self, count: int) -> Donors:
        """Return the first so many of each kind."""
        return Donors(self.same[:, :count], self.other[:, :count])

    def of(self, rows: Tensor | slice) -> Donors:
        """Return the donors of the images at `rows`, a slice, indices, or a bool for each image."""
        return Donors(self.same[rows], self.other[rows])


def choose_donors(labels: Tensor, usable: Tensor, fingerprint: str, count: int = 1) -> Donors:
    """Choose donors, always the same ones for the same images.

    Within a class every image gives equally often, and to an image others each time, while there are others. To a class
    the other classes give in turn, in an order drawn for it, and so do the images within each of them.

    Args:
        labels: (N,) the classes.
        usable: (N,) bool, which images have a background to give.
        fingerprint: Hexadecimal digits that identify the images; they seed the choice.
        count: How many donors of each kind an image has.
    """
    generator = torch.Generator().manual_seed(int(fingerprint[:15], 16))
    same, other = (torch.full((len(labels), count), -1) for _ in range(2))
    classes = sorted(set(labels.tolist()))
    members = {c: ((labels == c) & usable).nonzero().flatten() for c in classes}
    members = {c: part[torch.randperm(len(part), generator=generator)] for c, part in members.items()}
    given = dict.fromkeys(classes, 0)
    for c in classes:
        own = members[c]
        if len(own) > 1:
            for turn in range(count):
                same[own, turn] = own.roll(1 + turn % (len(own) - 1))
        givers = [giver for giver in classes if giver != c and len(members[giver])]
        order = torch.randperm(len(givers), generator=generator).tolist()
        for place, image in enumerate(own.tolist() * count if givers else []):
            giver = givers[order[place % len(givers)]]
            other[image, place // len(own)] = members[giver][given[giver] % len(members[giver])]
            given[giver] += 1
    return Donors(same, other)


def with_rivals(
    donors: Donors, labels: Tensor, usable: Tensor, rivals: Mapping[int, Sequence[int]], fingerprint: str
) -> Donors:
    """Replace half of the donors of another class by images of the rivals of some classes, where there are any.

    To an image that has two donors one is a rival, and the other is any class; of those that have one donor, every
    second has a rival's. The rivals' images give in turn.

    Args:
        donors: What was chosen without regard to rivals.
        labels: (N,) the classes.
        usable: (N,) bool, which images have a background to give.
        rivals: By class, the classes that are hard to tell from it.
        fingerprint: Hexadecimal digits that identify the images; they seed the choice.
    """
    generator = torch.Generator().manual_seed(int(fingerprint[:15], 16))
    other = donors.other.clone()
    for label, classes in rivals.items():
        others = torch.tensor([each for each in classes if each != label], dtype=torch.long)
        givers = (torch.isin(labels, others) & usable).nonzero().flatten()
        givers = givers[torch.randperm(len(givers), generator=generator)]
        takers = ((labels == label) & donors.known).nonzero().flatten()
        places = torch.cartesian_prod(torch.arange(len(takers)), torch.arange(other.shape[1])).view(-1, 2)
        half = places[places.sum(dim=1) % 2 == 0]
        if len(givers):
            given = givers[torch.arange(len(half)) % len(givers)]
            is_new = (other[takers[half[:, 0]]] != given.unsqueeze(1)).all(dim=1)  # it may be a donor already
            half, given = half[is_new], given[is_new]
            other[takers[half[:, 0]], half[:, 1]] = given
    return Donors(donors.same, other)


def in_turn(takers: Tensor, givers: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (n, `count`) donors for each of n images: others, each of which gives about equally often; -1 for none.

    Where there are fewer others, some give more than once.

    Args:
        takers: (n,) int64, the indices of images.
        givers: (m,) int64, the indices of those that may give.
        count: How many donors an image has.
        generator: Draws the order in which they take turns.
    """
    givers = givers[torch.randperm(len(givers), generator=generator)]
    found = torch.full((len(takers), count), -1)
    for row, taker in enumerate(takers.tolist()):
        others = givers[givers != taker]
        if len(others):
            found[row] = others[(row * count + torch.arange(count)) % len(others)]
    return found
