"""Threads for work that lets others run meanwhile, such as encoding pictures."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

_MOST = 8


def threads() -> ThreadPoolExecutor:
    """Return a pool of as many threads as there are cores, eight at most."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST))
