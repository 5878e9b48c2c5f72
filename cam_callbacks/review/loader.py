"""What TensorBoard loads at its start, from the entry point `tensorboard_plugins`.

An error here would keep TensorBoard from starting, for everybody who has this package installed: nothing is imported
that could fail, and whatever is missing leaves the tab out.
"""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

from cam_callbacks.review import schema

_log = logging.getLogger(__name__)


class CAMLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the plugin of the CAM tab."""

    def fix_flags(self, flags: Any) -> None:
        """Keep all steps of our own records, where the user has not said how many; TensorBoard's default is ten."""
        try:
            flags.samples_per_plugin.setdefault(schema.PLUGIN, 0)
        except Exception as error:
            _log.warning("Not all steps are kept for the CAM tab: %r", error)

    def load(self, context: Any) -> Any:
        """The plugin; None, and with it no tab, where it cannot be made."""
        try:
            from cam_callbacks.review.plugin import CAMPlugin

            return CAMPlugin(context)
        except Exception as error:
            _log.warning("The CAM tab is left out: %r", error)
            return None
