"""What lies along one dimension of a tensor: channels, an axis of the images, parts of both, or something unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cam_callbacks.explain.layouts import Run
from cam_callbacks.explain.stretches import Stretch, merged

_CHANNELS, _CONSTANT, _REPEATED = "channels", "constant", "repeated"
_WHOLE = Stretch()


@dataclass(frozen=True)
class Atom:
    """A factor of a dimension's size.

    Attributes:
        size: The factor.
        what: The channels, an axis of the images, -1 - axis for the places within each part of an axis that was taken
            apart, a run of positions with others around it, "constant" in a tensor that was not made from the images,
            "repeated" where one value was, or None: not known.
        stretch: What the positions of an axis cover.
    """

    size: int
    what: str | int | Run | None = None
    stretch: Stretch = _WHOLE

    @property
    def is_axis(self) -> bool:
        """Whether it is an axis of the images, or a part of one."""
        return isinstance(self.what, int) and self.what >= 0


Dim = tuple[Atom, ...]
"""What lies along one dimension, slowest first."""


def unknown_dim(size: int) -> Dim:
    """Return a dimension of which only the size is known."""
    return (Atom(size),)


def constant_dim(size: int) -> Dim:
    """Return a dimension of a tensor that was not made from the images."""
    return (Atom(size, _CONSTANT),)


def repeated_dim(size: int) -> Dim:
    """Return a dimension along which one value is repeated."""
    return (Atom(size, _REPEATED),)


def channels_dim(size: int) -> Dim:
    """Return a dimension of channels."""
    return (Atom(size, _CHANNELS),)


def axis_dim(axis: int, size: int, stretch: Stretch = _WHOLE) -> Dim:
    """Return a dimension that is an axis of the images."""
    return (Atom(size, axis, stretch),)


def is_channels(dim: Dim) -> bool:
    """Whether a dimension is all channels."""
    return bool(dim) and all(atom.what == _CHANNELS for atom in dim)


def has_channels(dim: Dim) -> bool:
    """Whether channels are among what lies along a dimension."""
    return any(atom.what == _CHANNELS for atom in dim)


def is_constant(dim: Dim) -> bool:
    """Whether a dimension is that of a tensor that was not made from the images."""
    return any(atom.what == _CONSTANT for atom in dim)


def is_known(dim: Dim) -> bool:
    """Whether something is known of what lies along a dimension."""
    return any(atom.what not in (None, _CONSTANT, _REPEATED) for atom in dim)


def is_repeated(dim: Dim) -> bool:
    """Whether one value is repeated along a dimension."""
    return bool(dim) and all(atom.what == _REPEATED for atom in dim)


def run_of(dim: Dim) -> Run | None:
    """Return the positions that a dimension consists of, or that lie in it; None if there are none."""
    if len(dim) == 1 and isinstance(dim[0].what, Run):
        return dim[0].what
    if dim and all(atom.is_axis for atom in dim):
        axes = tuple(int(atom.what) for atom in dim)  # type: ignore[arg-type]
        return Run(axes, tuple(atom.size for atom in dim), stretches=tuple(atom.stretch for atom in dim))
    return None


def around(run: Run, size: int) -> Dim:
    """Return a run of positions in a dimension of `size`, with what else there is around it."""
    if run.count == size:
        parts = zip(run.grid, run.axes, run.stretches, strict=True)
        return tuple(Atom(length, axis, stretch) for length, axis, stretch in parts)
    return (Atom(size, run),)


def axis_of(dim: Dim) -> Atom | None:
    """Return the one axis of the images that a dimension is, others before and after its positions; None if it is none.

    Nor is one that is rolled around.
    """
    run = run_of(dim)
    if run is None or len(run.axes) != 1 or run.stretches[0].rolled:
        return None
    size = math.prod(atom.size for atom in dim)
    return Atom(size, run.axes[0], run.stretches[0].from_position(-run.before))


def changed(dims: Sequence[Dim], shape: Sequence[int], change: Callable[[int, Stretch], Stretch]) -> list[Dim]:
    """Return what lies along dimensions of another size: `change` says what an axis of the images covers.

    Args:
        dims: The dimensions before.
        shape: Their sizes now.
        change: Called with the place of an axis among them, and what it covered.
    """
    made: list[Dim] = []
    for place, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        axis = axis_of(dim)
        if axis is not None:
            made.append((replace(axis, size=size, stretch=change(place, axis.stretch)),))
        else:
            made.append(dim if math.prod(atom.size for atom in dim) == size else unknown_dim(size))
    return made


def resized(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """Axes keep their place when their length changes, and cover the same; anything else that changes is unknown."""
    sizes = [math.prod(atom.size for atom in dim) for dim in dims]
    made = changed(dims, shape, lambda place, stretch: stretch.resized(sizes[place], shape[place]))
    return [
        repeated_dim(now) if before == 1 < now and not is_known(dim) else dim
        for before, now, dim in zip(sizes, shape, made, strict=True)
    ]


def padded(dims: Sequence[Dim], shape: Sequence[int], before: Sequence[int]) -> list[Dim]:
    """Return what lies along dimensions with `before` entries of no position before them, or fewer if negative."""
    sizes = [math.prod(atom.size for atom in dim) for dim in dims]

    def moved(place: int, stretch: Stretch) -> Stretch:
        unpadded = sizes[place] if shape[place] > sizes[place] else None
        return replace(stretch.from_position(-before[place]), unpadded=unpadded)

    made = changed(dims, shape, moved)
    for place, (dim, size) in enumerate(zip(dims, shape, strict=True)):
        run = run_of(dim)
        if is_channels(dim):
            made[place] = channels_dim(size)
        elif run is not None and len(run.axes) > 1 and 0 <= run.before + before[place] <= size - run.count:
            made[place] = around(replace(run, before=run.before + before[place]), size)
    return made


def sliced(dims: Sequence[Dim], dimension: int, start: int, count: int, step: int) -> list[Dim]:
    """What lies along a part of a tensor. Less than half of an axis is another image, of which nothing is known."""
    dim, made = dims[dimension], list(dims)
    run, axis = run_of(dim), axis_of(dim)
    made[dimension] = unknown_dim(count)
    if step == 1 and start == 0 and count == math.prod(atom.size for atom in dim):
        made[dimension] = dim
    elif is_channels(dim):
        made[dimension] = channels_dim(count)
    elif run is not None and step == 1 and start <= run.before and start + count >= run.before + run.count:
        made[dimension] = around(replace(run, before=run.before - start), count)
    elif axis is not None and (2 * count * step > axis.size or (step == 1 and count == axis.stretch.unpadded)):
        part = replace(axis.stretch.every(step, start), unpadded=None)
        made[dimension] = (replace(axis, size=count, stretch=part),)
    return made


def common(shape: Sequence[int], known: Sequence[tuple[Tensor, Sequence[Dim]]]) -> list[Dim]:
    """What lies along the result of an operation on each element: what those operands agree on that show the images."""
    dims: list[Dim] = []
    for place, size in enumerate(shape):
        own = [each[place - len(shape) + tensor.ndim] for tensor, each in known if _reaches(tensor, place, shape)]
        telling = [dim for dim in own if not (is_constant(dim) or is_repeated(dim)) and (size > 1 or is_known(dim))]
        dims.append(_agreed(telling, size) if telling or not any(map(is_repeated, own)) else repeated_dim(size))
    return dims


def _reaches(tensor: Tensor, place: int, shape: Sequence[int]) -> bool:
    """Whether an operand has a dimension for one of the result, in which it is not repeated."""
    at = place - len(shape) + tensor.ndim
    return at >= 0 and tensor.shape[at] == shape[place]


def _agreed(dims: Sequence[Dim], size: int) -> Dim:
    kinds = {tuple((atom.size, atom.what) for atom in dim) for dim in dims}
    if len(set(dims)) == 1:
        return dims[0]
    if len(kinds) != 1:
        return unknown_dim(size)
    made = []
    for atoms in zip(*dims, strict=True):
        stretch = merged([atom.stretch for atom in atoms], atoms[0].size) if atoms[0].is_axis else _WHOLE
        if stretch is None:
            return unknown_dim(size)
        made.append(replace(atoms[0], stretch=stretch))
    return tuple(made)


def viewed(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """What lies along the dimensions of a view: factors are put together, and taken apart, in their order."""
    atoms = [atom for dim in dims for atom in dim if atom.size > 1]
    made: list[Dim] = []
    for size in shape:
        dim: list[Atom] = []
        left = size
        while left > 1 and atoms:
            atom = atoms.pop(0)
            if left % atom.size == 0:
                dim.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                outer, inner = _halves(atom, left)
                atoms.insert(0, inner)
                dim.append(outer)
                left = 1
            else:
                return [unknown_dim(each) for each in shape]
        made.append(_put_together(dim))
    if len(shape) == len(dims):  # a channel that is alone stays one
        pairs = zip(made, dims, shape, strict=True)
        made = [old if size == 1 and is_channels(old) else new for new, old, size in pairs]
    return made


def _halves(atom: Atom, count: int) -> tuple[Atom, Atom]:
    """Return the outer factor of an atom, of size `count`, and the inner one."""
    size = atom.size // count
    if isinstance(atom.what, str):
        return Atom(count, atom.what), Atom(size, atom.what)
    if not atom.is_axis:
        return Atom(count), Atom(size)
    return Atom(count, atom.what, atom.stretch.in_blocks(size)), Atom(size, -1 - int(atom.what))  # type: ignore[arg-type]


def _put_together(atoms: Sequence[Atom]) -> Dim:
    """Make one atom again of an axis that was taken apart."""
    made: list[Atom] = []
    for atom in atoms:
        if made and made[-1].is_axis and atom.what == -1 - int(made[-1].what):  # type: ignore[arg-type]
            whole = made[-1]
            made[-1] = Atom(whole.size * atom.size, whole.what, whole.stretch.in_blocks(1 / atom.size))
        else:
            made.append(atom)
    return tuple(made)
