"""What JPEG compression leaves in an image, and how strong it was: a quality, read from the image itself.

JPEG (ITU-T T.81) cuts an image into blocks of 8 x 8 pixels, from the upper left on, and rounds the 64 coefficients of
the cosine transform of each block to multiples of steps, which a table holds. So decoded images have coefficients at
multiples of steps, and hardly any between: how well they fit tells the table (Fan and de Queiroz 2003, doi
10.1109/TIP.2002.807361). The tables are those that libjpeg makes of a quality from 1 to 100, as nearly all software
does; only that of the brightness is read, for colors may be stored at half the resolution.
"""

from __future__ import annotations

from itertools import product
from math import log, pi, sqrt

import torch
from torch import Tensor

SIDE = 8  # of a block
_MIN_SIDE = 3 * SIDE  # of an image: in less, too few blocks are whole
UNCOMPRESSED = 100  # the quality of images without traces: steps of 1
_WEIGHTS = {1: (1.0,), 3: (0.299, 0.587, 0.114)}  # of the channels in the brightness (ITU-T T.871)
_QUALITIES = range(5, 96)  # finer steps are lost in the rounding of pixels
_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # at quality 50 (T.81, table K.1)
_LOW = tuple(torch.tensor([at for at in product(range(SIDE), repeat=2) if 0 < sum(at) < 6]).T)  # that are read
_ROUNDING = 1.0  # levels: how far the rounding of pixels moves a coefficient, three standard deviations
_NOT_ZERO = 1.5  # levels: more than rounding makes of a coefficient that is 0
_OTHERWISE = 0.1  # the share of coefficients, and of blocks, that do not fit: what was clipped, or drawn over
_ENOUGH = 20.0  # the logarithm of how many times likelier the table has to be than none
_SEVERAL = 2  # frequencies at least have different multiples of a step
_MAX_BLOCKS = 64  # that are read
_MAX_VALUES = 2**12  # of a channel of an image, that are compared
_LEVELS = 256  # of a channel
_NO_STEP = 1e-4  # of the range of a channel: two values that differ by less are one
_OFF_LEVEL = 0.05  # of the distance of two levels: more than the rounding of floating point numbers


def is_readable(images: Tensor) -> bool:
    """Return whether images can have traces: gray or of three colors, in two dimensions, of three blocks a side."""
    return images.ndim == 4 and images.shape[1] in _WEIGHTS and min(images.shape[2:]) >= _MIN_SIDE


def level_of(images: Tensor) -> Tensor:
    """Return (n, C) how far apart two of 256 levels are, normalized as images (n, C, H, W) are; NaN if they are not.

    It is the smallest difference between any two values of a channel, of which all others are multiples. Images that
    were resized without rounding have others, and a channel of one value has none. Each image is read by itself.
    """
    values = images.flatten(2)
    step = values.shape[2] // _MAX_VALUES + 1
    values = values[:, :, :: step + (step + 1) % 2].sort(dim=2).values  # an odd step does not stay in one column
    above = values - values[..., :1]
    whole = above[..., -1]
    steps = values.diff(dim=2)
    least = torch.where(steps > _NO_STEP * whole.unsqueeze(2), steps, torch.inf).amin(dim=2)
    count = (whole / least).round()  # 0 if there is no step
    level = whole / count
    places = above / level.unsqueeze(2)
    are_levels = (places - places.round()).abs().amax(dim=2) < _OFF_LEVEL
    return torch.where((count > 0) & (count < _LEVELS) & are_levels, level, torch.nan)


def brightness(images: Tensor, level: Tensor) -> Tensor:
    """Return the brightness of images (n, C, H, W), (n, 1, H, W) in levels (n, C), but for a constant."""
    weights = images.new_tensor(_WEIGHTS[images.shape[1]])
    return (images * (weights / level).view(*level.shape, 1, 1)).sum(dim=1, keepdim=True)


def to_blocks(values: Tensor) -> Tensor:
    """Return the coefficients (n, rows * columns, 8, 8) of values (n, 1, 8 * rows, 8 * columns), the mean first."""
    count, _, height, width = values.shape
    blocks = values.reshape(count, height // SIDE, SIDE, width // SIDE, SIDE).transpose(2, 3).flatten(1, 2)
    basis = _basis(values.device)
    return _times(basis, _times(basis, blocks).mT).mT


def from_blocks(coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """Return values (n, 1, *size), of sides that are multiples of 8, with these coefficients: `to_blocks` undone."""
    basis = _basis(coefficients.device).T
    blocks = _times(basis, _times(basis, coefficients).mT).mT
    rows, columns = (side // SIDE for side in size)
    return blocks.reshape(-1, rows, columns, SIDE, SIDE).transpose(2, 3).reshape(-1, 1, *size)


def _times(basis: Tensor, blocks: Tensor) -> Tensor:
    """Return blocks (..., 8, 8) whose rows are multiplied by a basis (8, 8); never in fewer bits, as matmul may."""
    return (blocks.unsqueeze(-2) * basis).sum(dim=-1)


def _basis(device: torch.device) -> Tensor:
    """Return (8, 8) the orthonormal cosines, the lowest frequency first."""
    place = torch.arange(SIDE, device=device)
    found = torch.cos(pi * (2 * place + 1) * place.unsqueeze(1) / (2 * SIDE)) * sqrt(2 / SIDE)
    found[0] /= sqrt(2)
    return found


def steps_of(quality: Tensor) -> Tensor:
    """Return the steps (n, 8, 8) that libjpeg takes at each quality (n,) int64 from 1 to 100."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality).view(-1, 1, 1)
    table = torch.tensor(_STEPS, device=quality.device)
    return ((table * scale + 50) // 100).clamp(1, 255).float()


def quality_of(coefficients: Tensor) -> Tensor:
    """Return the quality (n,) int64 at which images were compressed; 100 where there are no traces.

    For each quality, the likelihood of the coefficients that are not 0, near its multiples, is compared with that of no
    table, as of which each place between two multiples would be as likely. A few may fit nothing, and so may whole
    blocks. The blocks of a regular pattern or of a flat drawing are alike without any compression: so k equal values of
    a frequency count as 1 + log k, and several frequencies must have different multiples. If brightness or contrast
    were stretched after decoding, another quality may be read.

    Args:
        coefficients: (n, blocks, 8, 8) of the brightness, in levels: `to_blocks`. A part of them is read.
    """
    some = torch.linspace(0, coefficients.shape[1] - 1, min(coefficients.shape[1], _MAX_BLOCKS)).round().long()
    down, across = (at.to(coefficients.device) for at in _LOW)
    found = coefficients[:, some.to(coefficients.device)][:, :, down, across]  # (n, blocks, frequencies)
    are_equal = _how_many_are_equal(found)
    counts = (found.abs() > _NOT_ZERO) * (1 + are_equal.log()) / are_equal
    qualities = torch.tensor(_QUALITIES, device=found.device)
    evidence = [_evidence(found, counts, steps) for steps in steps_of(qualities)[:, down, across]]
    most, best = torch.stack(evidence, dim=1).max(dim=1)
    quality = qualities[best]
    several = _have_several_multiples(found, steps_of(quality)[:, down, across]).sum(dim=1) >= _SEVERAL
    return torch.where((most > _ENOUGH) & several, quality, UNCOMPRESSED)


def _how_many_are_equal(coefficients: Tensor) -> Tensor:
    """Return (n, blocks, frequencies) in how many blocks a frequency has the same coefficient, but for rounding."""
    sizes = (coefficients.abs() / (2 * _ROUNDING)).round().mT.contiguous()
    ordered = sizes.sort(dim=2).values
    return (torch.searchsorted(ordered, sizes, right=True) - torch.searchsorted(ordered, sizes)).mT


def _have_several_multiples(coefficients: Tensor, steps: Tensor) -> Tensor:
    """Return (n, frequencies): whether coefficients (n, blocks, frequencies) lie at different multiples of steps."""
    size, steps = coefficients.abs(), steps.unsqueeze(1)
    multiples = (size / steps).round()
    is_one = (multiples > 0) & ((size - multiples * steps).abs() <= _ROUNDING)
    most, least = multiples.where(is_one, 0.0).amax(dim=1), multiples.where(is_one, torch.inf).amin(dim=1)
    return most > least


def _evidence(coefficients: Tensor, counts: Tensor, steps: Tensor) -> Tensor:
    """Return (n,) the logarithm of how much likelier coefficients are with these steps (frequencies,) than without.

    Args:
        coefficients: (n, blocks, frequencies).
        counts: What each of them counts.
        steps: (frequencies,).
    """
    off = coefficients / steps
    is_near = off.sub_(off.round()).abs_() <= _ROUNDING / steps
    gain = (_OTHERWISE + (1 - _OTHERWISE) * steps / (2 * _ROUNDING)).log()
    of_blocks = (torch.where(is_near, gain, log(_OTHERWISE)) * counts).sum(dim=2)
    return torch.logaddexp(of_blocks + log(1 - _OTHERWISE), of_blocks.new_tensor(log(_OTHERWISE))).sum(dim=1)
