"""What is in the HTML file of a report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Parts(HTMLParser):
    """The scripts of a page by their kinds, its style, and whatever names another place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.places: list[str] = []
        self._kind: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag in ("script", "style"):
            self._kind = dict(attrs).get("type", tag)

    def handle_endtag(self, tag: str) -> None:
        self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is not None:
            self.scripts[self._kind] = self.scripts.get(self._kind, "") + data


def parts(path: Path) -> Parts:
    return Parts(path.read_text(encoding="utf-8"))


def content(path: Path) -> Any:
    return json.loads(parts(path).scripts["application/json"])
