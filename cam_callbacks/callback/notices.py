"""Notices: what a monitor tells the user."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from cam_callbacks._warnings import warn_in_training

_warn = rank_zero_only(warn_in_training)

IMAGES_LEFT_OUT = "images that are left out"
"""A subject of warnings, those of the probes and of the audit."""


class Notices:
    """Gives warnings and information, on the first rank only.

    Attributes:
        are_warnings_kept_back: Whether this is a sanity check, whose few batches may not be like the others: what is
            still true is said at the first look.
    """

    def __init__(self) -> None:
        self.are_warnings_kept_back = False
        self._given: set[str] = set()

    def warn_once(self, message: str, subject: str | None = None) -> None:
        """Give a warning, unless it, or one of the same subject, was given before."""
        if not self.are_warnings_kept_back and self._is_new(subject or message):
            _warn(message)

    def inform_once(self, message: str, subject: str | None = None) -> None:
        """Give information, unless it, or some of the same subject, was given before."""
        if self._is_new(subject or message):
            rank_zero_info(message)

    def announce(self, message: str, *, is_warning: bool) -> None:
        """Give a warning, or information, each time."""
        (_warn if is_warning else rank_zero_info)(message)

    def _is_new(self, message: str) -> bool:
        is_new = message not in self._given
        self._given.add(message)
        return is_new
