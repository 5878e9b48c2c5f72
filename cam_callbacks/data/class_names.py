"""ClassNames: the one way to name a class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cam_callbacks._checks import check_list


class ClassNames(tuple[str, ...]):
    """The names of the classes, in the order of their indices; empty if they are not known.

    A tuple with three ways to name a class: `name` for people, `unique` where names must differ, `tag` for loggers.
    Names become text that can be shown and written: the name of a folder may not be valid UTF-8.

    Args:
        names: One name for each class, or None.

    Raises:
        TypeError: `names` is not a list.

    Example::

        >>> ClassNames(["cat", "dog"]).name(1)
        'dog'
        >>> ClassNames(["cat", "dog"]).name(7)
        '7'
    """

    __slots__ = ()

    def __new__(cls, names: Sequence[object] | None = None) -> ClassNames:
        """Check the names and make them text that can be shown and written."""
        check_list("class_names", names, object, "a list of names")
        return super().__new__(cls, (str(name).encode(errors="replace").decode() for name in names or ()))

    def name(self, index: int) -> str:
        """Return the name of a class, or its index if it has no name."""
        return self[index] if 0 <= index < len(self) else str(index)

    def unique(self, indices: Iterable[int]) -> dict[int, str]:
        """Return a name for each class, by index; classes that share a name have the index added to it."""
        names = {index: self.name(index) for index in sorted(set(indices))}
        all_names = list(names.values())
        return {i: name if all_names.count(name) == 1 else f"{name} ({i})" for i, name in names.items()}

    def tag(self, index: int) -> str:
        """Return the name of a class as part of a tag, in ASCII: some loggers make a file name of it.

        The index is appended if an earlier class has the same name, if nothing is left of the name, or if it ends like
        the tag of a bound or of a chance level, or in a number like those that are appended here.
        """
        names = [re.sub(r"[^\w-]", "_", self.name(i), flags=re.ASCII) for i in range(index + 1)]
        name = names[index]
        is_plain = name and names.count(name) == 1 and not re.search(r"_(low|high|chance|\d+)$", name)
        return name if is_plain else f"{name}_{index}"
