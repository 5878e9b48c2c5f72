"""What can be exchanged besides the background: a registry, and what users add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cam_callbacks._checks import check_callable, check_choice
from cam_callbacks.audit import detail, interventions, placing
from cam_callbacks.audit.measures import MEASURES

ExchangeFn: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Called as `exchange(images, masks, donors, donor_masks)`; returns changed images.

`images` and `donors` are (n, C, *spatial) float32 as the model is fed them, on its device; `masks` and `donor_masks`
are (n, *spatial) bool, True on the object, and nowhere True where there are no masks. None of them may be changed.
"""


@dataclass(frozen=True)
class Intervention:
    """Something of an image that is exchanged with that of another image, to find out whether answers depend on it.

    The audit gives each image what a donor of the same class has, and what one of another class has. The gap is the
    accuracy with the former minus that with the latter, as for backgrounds; what the exchange itself breaks is in both
    and cancels. It becomes the measure `NAME_gap`, and `NAME_gap_probability`.

    Args:
        name: Its name, of letters, digits and `_`.
        exchange: Called as `exchange(images, masks, donors, donor_masks)`, with n images (n, C, *spatial) as the model
            is fed them, their masks (n, *spatial) bool, and a donor of each with its mask; returns n images. It draws
            no random numbers, or the gap is noisier.
        title: What answers would depend on, in words: "the position of the object"; the name if not given.
        placebo: Called alike: does what the exchange does to an image besides exchanging. Its gap is subtracted from
            that of the exchange. None for none.
        masks: `"needed"`: it is left out where there are no masks. `"optional"`: without masks, which tell it from what
            the object is, it gives a warning only. `"unused"`: masks make no difference.

    Raises:
        ValueError: The name is not one, or `masks` is none of the three.
        TypeError: `exchange` or `placebo` does not take four arguments.

    Example::

        from cam_callbacks import Audit, CAMMonitor, Intervention

        def with_corner_of(images, masks, donors, donor_masks):
            changed = images.clone()
            changed[:, :, :16, :16] = donors[:, :, :16, :16]
            return changed

        CAMMonitor(audit=Audit(interventions=[Intervention("corner", with_corner_of)]))
    """

    name: str
    exchange: ExchangeFn
    _: KW_ONLY
    title: str = ""
    placebo: ExchangeFn | None = None
    masks: Literal["needed", "optional", "unused"] = "unused"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or not self.name.isascii():
            raise ValueError(f"name={self.name!r} must be of letters, digits and _, such as 'corner'")
        what = "a callable: images, masks, donors, donor_masks -> images"
        if self.exchange is None:
            raise TypeError(f"exchange=None must be {what}")
        check_callable("exchange", self.exchange, what, takes=4)
        check_callable("placebo", self.placebo, what, takes=4)
        check_choice("masks", self.masks, ("needed", "optional", "unused"))
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " "))

    @property
    def gap(self) -> str:
        """The name of its measure."""
        return f"{self.name}_gap"

    @property
    def placebo_gap(self) -> str | None:
        """The name of the measure of its placebo, if it has one."""
        return None if self.placebo is None else f"{self.name}_trace_gap"


def intervention(named: str | Intervention) -> Intervention:
    """Return an intervention, which may be named.

    Raises:
        ValueError: The name is not one that is built in.
        TypeError: It is no intervention.
    """
    if isinstance(named, Intervention):
        return named
    if not isinstance(named, str):
        raise TypeError(f"interventions: {named!r} is neither a name nor an Intervention(name, exchange)")
    check_choice("interventions", named, tuple(_BUILT_IN), "or an Intervention")
    return _BUILT_IN[named]


def check_distinct(names: Sequence[str]) -> None:
    """Raise a ValueError if two interventions have one name, or one has the name of a measure of the background."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"interventions: {', '.join(sorted(twice))} is given twice; each needs a name of its own")
    taken = {name for name in names if name not in _BUILT_IN and f"{name}_gap" in MEASURES}
    if taken:
        raise ValueError(f"interventions: {', '.join(sorted(taken))} is the name of a measure; choose another one")


def checked(given: Intervention, exchange: ExchangeFn) -> ExchangeFn:
    """Return an exchange of an intervention that says what is wrong with what it returns."""

    def call(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
        returned: Any = exchange(images, masks, donors, donor_masks)
        if not isinstance(returned, Tensor) or returned.shape != images.shape:
            got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise ValueError(
                f"the exchange of Intervention({given.name!r}, ...) must return images of shape "
                f"{tuple(images.shape)}; it returned {got}"
            )
        changed = returned.detach().to(images)
        if not torch.isfinite(changed).all():
            raise ValueError(f"the exchange of Intervention({given.name!r}, ...) returned NaN or infinity")
        return changed

    return call


def _with_detail_of(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
    """Give each background as much detail as the donor's has; the object stays. Without masks it is the whole image.

    Both are measured without what is in either object's place, so that neither object counts, nor its size.
    """
    holes = masks | donor_masks
    has_masks = bool(holes.any())
    own, other = (interventions.without_object(each, holes) if has_masks else each for each in (images, donors))
    background = interventions.without_object(images, masks) if has_masks else images
    both = torch.cat([own.flatten(2), other.flatten(2)], dim=2)
    low, high = torch.stack(torch.aminmax(both, dim=2)).view(2, *images.shape[:2], *[1] * (images.ndim - 2))
    changed = detail.with_detail_of(background, own, other).clamp(low, high)
    return interventions.before(changed, images, masks)


_BUILT_IN: dict[str, Intervention] = {
    each.name: each
    for each in (
        Intervention(
            "position",
            placing.moved,
            title="the position of the object",
            placebo=placing.with_trace_of_move,
            masks="needed",
        ),
        Intervention(
            "size",
            placing.resized_as,
            title="the size of the object",
            placebo=placing.with_trace_of_size,
            masks="needed",
        ),
        Intervention(
            "detail", _with_detail_of, title="how sharp, blurred or noisy the background is", masks="optional"
        ),
    )
}
