"""Exchange how much fine and coarse detail images have: their power at each spatial frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from cam_callbacks.audit.inpainting import grown
from cam_callbacks.audit.interventions import before, limits_of_both, without_object

_BANDS = 12
_MOST = 10.0  # how much stronger or weaker a frequency becomes at most
_FEW = 1e-12  # of the power of an image


def exchanged(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Give each background as much detail as the donor's has; the object stays. Without masks it is the whole image.

    Both are measured without what is in either object's place, so that neither object counts, nor its size.

    Args:
        images: (n, C, *spatial).
        masks: (n, *spatial) bool; all False without masks.
        donors: (n, C, *spatial), the donor of each image.
        donor_masks: (n, *spatial) bool.
    """
    holes = masks | donor_masks
    has_masks = bool(holes.any())
    own, other = (without_object(each, holes) if has_masks else each for each in (images, donors))
    background = without_object(images, masks) if has_masks else images
    low, high = limits_of_both(own, other)
    changed = with_detail_of(background, own, other).clamp(low, high)
    is_all = grown(holes).flatten(1).all(dim=1).view(-1, *[1] * (images.ndim - 1))  # no background is left to measure
    return torch.where(is_all, images, before(changed, images, masks))


def with_detail_of(images: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Change the detail of each image as that of one image differs from that of another one.

    How much stronger the power of `others` is than that of `own`, at each spatial frequency whatever its direction,
    that of the image becomes, channel by channel; phases, which hold what is seen, and mean colors stay. It becomes as
    much sharper, more blurred, or noisier, or has as much more contrast. Frequencies become at most ten times as
    strong, or weak.

    Args:
        images: (n, C, *spatial).
        own: (n, C, *spatial), where the power of each image is measured: the image itself, or a part of it.
        others: (n, C, *spatial), where that of the other image is measured.
    """
    axes = tuple(range(2, images.ndim))
    with torch.autocast(images.device.type, enabled=False):
        bands = _bands(images.shape[2:], images.device)  # (frequencies, bands)
        first, second = (_power(torch.fft.rfftn(each, dim=axes), bands) for each in (own, others))
        gain = (second / first).sqrt().clamp(1 / _MOST, _MOST)
        smooth = (gain.log() @ bands.T).exp()  # (n, C, frequencies), from band to band by degrees
        smooth[..., 0] = 1  # the mean stays
        found = torch.fft.rfftn(images, dim=axes)
        changed: Tensor = torch.fft.irfftn(found * smooth.view(found.shape), images.shape[2:], axes)
    return changed


def _bands(size: torch.Size, device: torch.device) -> Tensor:
    """Return (frequencies, bands): how far each frequency, in whatever direction, is of each band; rows sum to 1."""
    *others, last = size
    along = [torch.fft.fftfreq(side, device=device) for side in others] + [torch.fft.rfftfreq(last, device=device)]
    radius = torch.stack([each.square() for each in torch.meshgrid(*along, indexing="ij")]).sum(dim=0).sqrt().flatten()
    place = radius / radius.max().clamp_min(_FEW) * (_BANDS - 1)
    return (1 - (place.unsqueeze(1) - torch.arange(_BANDS, device=device)).abs()).clamp_min(0)


def _power(found: Tensor, bands: Tensor) -> Tensor:
    """Return (n, C, bands) the mean power in each band, without the mean of the channel; a little at least."""
    power = found.abs().square().flatten(2)  # (n, C, frequencies)
    weights = bands.clone()
    weights[0] = 0
    least = (_FEW * power.sum(dim=2, keepdim=True)).clamp_min(torch.finfo(power.dtype).tiny)
    return (power @ weights) / weights.sum(dim=0).clamp_min(_FEW) + least
