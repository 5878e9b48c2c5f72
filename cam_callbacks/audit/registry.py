"""What can be exchanged besides the background: a registry, and what users add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cam_callbacks._checks import check_bool, check_callable, check_choice, is_list
from cam_callbacks.audit import compression, detail, placing
from cam_callbacks.audit.measures import MARGIN_GAP, MEASURES

ExchangeFn: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
"""Called as `exchange(images, masks, donors, donor_masks)`; returns changed images (n, C, *spatial).

`images` and `donors` are (n, C, *spatial) float32 as the model is fed them, on its device; `masks` and `donor_masks`
are (n, *spatial) bool, True on the object; without masks they are all False. None of them may be changed in place.
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
        title_without_masks: The title to use without masks, if it differs.
        placebo: Called alike: does what the exchange does to an image besides exchanging. Its gap is subtracted from
            that of the exchange. None for none.
        warns_only: Whether it never gives an alarm, because it cannot help changing something else, too.
        moves_object: Whether the object is at another place afterwards, so that it is left out where a place is asked
            for, in segmentation and detection.
        masks: `"needed"`: it is left out without masks. `"optional"`: it uses them if there are any. `"unused"`: masks
            make no difference. The first two give a warning only, unless masks are given.

    Raises:
        ValueError: The name is not one, or ends in `_trace`, as those of placebos do; or `masks` is none of the three.
        TypeError: `exchange` or `placebo` does not take four arguments, or `warns_only` or `moves_object` is not a
            bool.

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
    title_without_masks: str = ""
    placebo: ExchangeFn | None = None
    warns_only: bool = False
    moves_object: bool = False
    masks: Literal["needed", "optional", "unused"] = "unused"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or not self.name.isascii():
            raise ValueError(f"name={self.name!r} must be of letters, digits and _, no digit first, such as 'corner'")
        if self.name.endswith("_trace"):
            raise ValueError(f"name={self.name!r} must not end in _trace, as the names of placebos do")
        check_bool("warns_only", self.warns_only)
        check_bool("moves_object", self.moves_object)
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
        TypeError: It is neither a name nor an `Intervention`.
    """
    if isinstance(named, Intervention):
        return named
    if not isinstance(named, str):
        raise TypeError(f"interventions: {named!r} is neither a name nor an Intervention(name, exchange)")
    check_choice("interventions", named, tuple(_BUILT_IN), "or an Intervention")
    return _BUILT_IN[named]


class InterventionError(ValueError):
    """An exchange of the user fails, or returns something else than images."""


def chosen(named: Sequence[str | Intervention]) -> list[Intervention]:
    """Return interventions, some of which are named.

    Raises:
        ValueError: A name is not one that is built in; or two have one name, or one has the name of another measure.
        TypeError: They are not a list, or one of them is neither a name nor an `Intervention`.
    """
    if not is_list(named):
        raise TypeError(f"interventions={named!r} must be a list of names, or of Intervention(...)")
    found = [intervention(each) for each in named]
    names = [each.name for each in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"interventions: {', '.join(sorted(twice))} is given twice; each needs a name of its own")
    own = [each for each in found if each != _BUILT_IN.get(each.name)]
    taken = {each.name for each in own if each.gap in MEASURES or each.gap == MARGIN_GAP}
    if taken:
        raise ValueError(f"interventions: {', '.join(sorted(taken))} is the name of a measure; choose another one")
    return found


def checked(given: Intervention, exchange: ExchangeFn) -> ExchangeFn:
    """Return an exchange of an intervention that says what is wrong with what it returns."""

    def call(images: Tensor, masks: Tensor, donors: Tensor, donor_masks: Tensor) -> Tensor:
        what = f"the exchange of Intervention({given.name!r}, ...)"
        try:
            returned: Any = exchange(images, masks, donors, donor_masks)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise InterventionError(f"{what} fails ({type(error).__name__}: {error})") from error
        if not isinstance(returned, Tensor) or returned.shape != images.shape:
            got = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
            raise InterventionError(f"{what} must return images of shape {tuple(images.shape)}; it returned {got}")
        changed = returned.detach().to(images)
        if not torch.isfinite(changed).all():
            raise InterventionError(f"{what} returned NaN or infinity")
        return changed

    return call


_BUILT_IN: dict[str, Intervention] = {
    each.name: each
    for each in (
        Intervention(
            "position",
            placing.moved,
            title="the position of the object",
            placebo=placing.with_trace_of_move,
            warns_only=True,  # the place that the object leaves shows only if it moves far
            moves_object=True,
            masks="needed",
        ),
        Intervention(
            "size",
            placing.resized_as,
            title="the size of the object, or the scale of what is on it",
            placebo=placing.with_trace_of_size,
            warns_only=True,
            moves_object=True,
            masks="needed",
        ),
        Intervention(
            "detail",
            detail.exchanged,
            title="how sharp, noisy or rich in contrast the background is",
            title_without_masks="how sharp, noisy or rich in contrast the image is",
            masks="optional",
        ),
        Intervention(
            "compression",
            compression.recompressed,
            title="how strongly the image was compressed, as JPEG files are",
            warns_only=True,  # the arms change unequally many images, and a fragile network may answer to any change
        ),
        Intervention(
            "mirror",
            placing.mirrored,
            title="which way the object faces",
            placebo=placing.with_trace_of_mirror,
            warns_only=True,  # the form of an object may say which way it faces, and rightly
            moves_object=True,
            masks="needed",
        ),
    )
}
