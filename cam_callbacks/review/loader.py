"""The entry point `tensorboard_plugins`, which TensorBoard loads when it starts.

An error here would keep TensorBoard from starting, for everybody who has this package installed: nothing is imported
that could fail, and if anything is missing, the tab is left out.
"""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

from cam_callbacks.review import schema

_log = logging.getLogger(__name__)


class CAMLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Creates the plugin of the CAM tab."""

    def fix_flags(self, flags: Any) -> None:
        """Keep all steps of our own records unless the user has set a number; TensorBoard's default is ten."""
        try:
            flags.samples_per_plugin.setdefault(schema.PLUGIN, 0)
        except Exception as error:
            _log.warning("Not all steps are kept for the CAM tab: %r", error)

    def load(self, context: Any) -> Any:
        """Return the plugin; None, and so no tab, if it cannot be created."""
        try:
            from cam_callbacks.review.plugin import CAMPlugin

            return CAMPlugin(context)
        except Exception as error:
            _log.warning("The CAM tab is left out: %r", error)
            return None
