"""Stretch: which part of the image the positions along an axis cover, through convolutions, padding and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Stretch:
    """What equally wide positions along an axis cover, in pixels of the image.

    A layer with a stride centers its positions up to half a position beside where they lie side by side. Networks are
    built as if this did not matter, and it does not until they are upsampled; so the beginning has two bounds.

    Attributes:
        least: Where the first position begins, at least.
        most: Where it begins, at most.
        width: Of one position.
        cell: The widest position that the values have passed through.
        rolled: How far the positions are rolled around, as in Swin's shifted windows.
        unpadded: How many positions there were before some were added; a part of as many undoes that.
    """

    least: float = 0.0
    most: float = 0.0
    width: float = 1.0
    cell: float = 1.0
    rolled: float = 0.0
    unpadded: int | None = field(default=None, compare=False)

    def from_position(self, place: float) -> Stretch:
        """Return what is covered if the first position is the one at `place`, which may be negative."""
        by = place * self.width
        return replace(self, least=self.least + by, most=self.most + by)

    def in_windows(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Stretch:
        """Return what the outputs of a convolution or a pooling cover: each centered at the middle of its window."""
        center = -padding + dilation * (kernel - 1) / 2 + 0.5
        return self._moved(center - stride / 2, stride)

    def in_spread_windows(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Stretch:
        """Return what the outputs of a transposed convolution cover."""
        center = (padding - dilation * (kernel - 1) / 2) / stride + 0.5
        return self._moved(center - 0.5 / stride, 1 / stride)

    def every(self, step: int, start: int) -> Stretch:
        """Return what every `step`-th position covers, from `start` on."""
        return self.from_position(start - start % step).in_windows(1, step, -(start % step))

    def _moved(self, by: float, times: float) -> Stretch:
        """Return a stretch that begins `by` positions later, its positions `times` as wide."""
        moved = self.from_position(by)
        if times != 1 and abs(by) < max(times, 1) / 2:  # less than half of the wider position
            moved = replace(moved, least=min(self.least, moved.least), most=max(self.most, moved.most))
        return replace(moved, width=self.width * times, cell=self.coarsest)

    def resized(self, before: int, after: int) -> Stretch:
        """Return what is covered by another number of positions that cover the same."""
        return replace(self, width=self.width * before / after, cell=self.coarsest)

    def in_blocks(self, size: float) -> Stretch:
        """Return what blocks of `size` positions cover."""
        return replace(self, width=self.width * size)

    @property
    def coarsest(self) -> float:
        """The width of the widest position that the values have passed through, their own included."""
        return max(self.cell, self.width)

    def margins(self, positions: int, pixels: int) -> tuple[int, int]:
        """Return how many positions to add before and after, negative ones to remove, so that they cover the image.

        None are added as long as each position is shown at most half of its width away from where it is.

        Args:
            positions: How many there are.
            pixels: The length of the image along this axis.
        """
        begin = min(max((pixels - positions * self.width) / 2, self.least), self.most)
        shown = pixels / positions
        first = begin + self.width / 2 - shown / 2
        last = begin + (positions - 0.5) * self.width - (pixels - shown / 2)
        if max(abs(first), abs(last)) <= self.width / 2 + _ROUNDING:
            return 0, 0
        end = begin + positions * self.width
        return round(begin / self.width), round((pixels - end) / self.width)


def merged(stretches: Sequence[Stretch], positions: int) -> Stretch | None:
    """Return what the sum of values covers that each cover a stretch: that of the finest; None if they contradict it.

    Others may be apart from it by the widest position that they have passed through.

    Args:
        stretches: Of the values.
        positions: How many each of them has.
    """
    finest = min(stretches, key=lambda each: each.coarsest)
    as_fine = [finest]
    for each in stretches:
        wider = (each.width - finest.width) * positions
        apart = max(_gap(each.least, each.most, finest), _gap(each.least + wider, each.most + wider, finest))
        if each.rolled != finest.rolled or apart > each.coarsest + _ROUNDING:
            return None
        if abs(wider) < _ROUNDING and (each.coarsest == finest.coarsest or apart == 0):
            as_fine.append(each)
    # what they have in common, or what lies between them
    least, most = sorted((max(each.least for each in as_fine), min(each.most for each in as_fine)))
    return replace(finest, least=least, most=most)


def _gap(least: float, most: float, other: Stretch) -> float:
    """How far an interval is from that in which another stretch begins."""
    return max(0.0, least - other.most, other.least - most)
