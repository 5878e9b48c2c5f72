"""Progress of a look, in the description of Lightning's own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cam_callbacks.explain import progress

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


@contextmanager
def progress_in_bar(trainer: Trainer) -> Iterator[None]:
    """Show `CAMMonitor 192 of 1600 passes` in Lightning's progress bar, if there is one, while a look is under way."""
    describe = _harmless(trainer)
    before = describe(None)
    try:

        def show(done: int, total: int) -> None:
            describe(f"CAMMonitor {done} of {total} passes")

        with progress.shown(show):
            yield
    finally:
        describe(before)


def has_bar(trainer: Trainer) -> bool:
    """Return whether the progress of a look is shown anywhere."""
    return _harmless(trainer)(None) is not None


def _harmless(trainer: Trainer) -> Callable[[str | None], str | None]:
    """Return the function that sets the description; where the bar fails, nothing is shown."""

    def describe(text: str | None) -> str | None:
        try:
            return _description_setter(trainer)(text)
        except Exception:  # a bar of a kind that we do not know must not end the run
            return None

    return describe


def _description_setter(trainer: Trainer) -> Callable[[str | None], str | None]:
    """Return a function that sets the description of the bar, and returns the one before; None sets nothing."""
    bar: Any = trainer.progress_bar_callback
    which = "test_progress_bar" if trainer.testing else "val_progress_bar"
    if bar is None or not getattr(bar, "is_enabled", False) or not trainer.is_global_zero:
        return lambda text: None
    if getattr(bar, "progress", None) is not None and getattr(bar, f"{which}_id", None) is not None:  # rich

        def describe_rich(text: str | None) -> str | None:
            task = getattr(bar, which)
            before = str(task.description)
            if text is not None:
                bar.progress.update(task.id, description=text)
                bar.progress.refresh()  # at once: a chunk may take long
            return before

        return describe_rich
    if hasattr(bar, f"_{which}") and hasattr(getattr(bar, f"_{which}"), "set_description_str"):  # tqdm

        def describe_tqdm(text: str | None) -> str | None:
            shown = getattr(bar, which)
            before = str(shown.desc)
            if text is not None:
                shown.set_description_str(text)
            return before

        return describe_tqdm
    return lambda text: None
