"""Exchange how much fine and coarse detail images have: their power at each spatial frequency."""

from __future__ import annotations

import torch
from torch import Tensor

_BANDS = 12
_MOST = 10.0  # how much stronger or weaker a frequency becomes at most
_FEW = 1e-12  # of the power of an image


def with_detail_of(images: Tensor, donors: Tensor) -> Tensor:
    """Give each image as much detail of each size as its donor has.

    The mean power of the donor at each spatial frequency, whatever its direction, becomes that of the image; phases,
    which hold what is seen, and mean colors stay. An image becomes as sharp, as blurred, as noisy as its donor, and has
    as much contrast; what lossy compression took is taken. Frequencies become at most ten times as strong, or weak.

    Args:
        images: (n, C, *spatial).
        donors: (n, C, *spatial).
    """
    axes = tuple(range(2, images.ndim))
    bands = _bands(images.shape[2:], images.device)  # (frequencies, bands)
    found = torch.fft.rfftn(images.float(), dim=axes)
    own, other = (_power(each, bands) for each in (found, torch.fft.rfftn(donors.float(), dim=axes)))
    gain = (other / own).sqrt().clamp(1 / _MOST, _MOST)
    smooth = (gain.log() @ bands.T).exp()  # (n, frequencies), from band to band by degrees
    smooth[:, 0] = 1  # the mean stays
    changed: Tensor = torch.fft.irfftn(
        found * smooth.view(len(images), 1, *found.shape[2:]), s=images.shape[2:], dim=axes
    )
    return changed


def _bands(size: torch.Size, device: torch.device) -> Tensor:
    """Return (frequencies, bands): how far each frequency, in whatever direction, is of each band; rows sum to 1."""
    *others, last = size
    along = [torch.fft.fftfreq(side, device=device) for side in others] + [torch.fft.rfftfreq(last, device=device)]
    radius = torch.stack([each.square() for each in torch.meshgrid(*along, indexing="ij")]).sum(dim=0).sqrt().flatten()
    place = radius / radius.max().clamp_min(_FEW) * (_BANDS - 1)
    return (1 - (place.unsqueeze(1) - torch.arange(_BANDS, device=device)).abs()).clamp_min(0)


def _power(found: Tensor, bands: Tensor) -> Tensor:
    """Return (n, bands) the mean power in each band, of all channels, without their means; a little at least."""
    power = found.abs().square().mean(dim=1).flatten(1)  # (n, frequencies)
    weights = bands.clone()
    weights[0] = 0
    least = (_FEW * power.sum(dim=1, keepdim=True)).clamp_min(torch.finfo(power.dtype).tiny)
    return (power @ weights) / weights.sum(dim=0).clamp_min(_FEW) + least
