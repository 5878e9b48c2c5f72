"""The pages that users read, and the other files that tools look into."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^(?P<fence>```+)[^\n]*\n.*?^(?P=fence)$", re.MULTILINE | re.DOTALL)
"""Blocks of code in a page."""


def pages(root: Path = ROOT) -> list[Path]:
    """Return all pages: the README, how to contribute, the documentation, the pages of the example projects."""
    return [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *sorted((root / "docs").rglob("*.md")),
        *sorted((root / "example_projects").rglob("*.md")),
    ]


PAGES = pages()


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
