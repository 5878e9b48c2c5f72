"""The page of a report: its template, filled with data, style and script, so that it needs no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from cam_callbacks.review.glossary import terms
from cam_callbacks.review.schema import ReportJson

_PAGE = Path(__file__).parent / "page"
_IMPORT = re.compile(r"^import (\{[^}]*\}) from '\./([\w.-]+)';$", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_OTHER = re.compile(r"^\s*(?:import|export)\b.*", re.MULTILINE)


def page(content: ReportJson) -> str:
    """Return the HTML of a report. Its content security policy allows no script but its own."""
    sources = {file.name: file.read_text(encoding="utf-8") for file in _PAGE.iterdir()}
    script = bundled("report.js", sources)
    names = dict.fromkeys(run["timeline"]["run"] for run in content["runs"])
    return Template(sources["report.html"]).substitute(
        title=html.escape(f"CAM report: {', '.join(names)}"),
        style=sources["style.css"],
        data=json.dumps({**content, "terms": terms()}, separators=(",", ":")).replace("<", r"\u003c"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def bundled(entry: str, sources: Mapping[str, str]) -> str:
    """Join JavaScript modules into one: browsers allow a page that is opened from disk no imports of other files.

    Each module becomes a function, and so keeps its own names. It may only import `{names}` from modules beside it, and
    export functions, classes and constants where it declares them.

    Args:
        entry: The name of the module that starts the page.
        sources: The code of the modules, by name.

    Raises:
        ValueError: A module imports or exports in another way, or modules import each other in a circle.
    """
    joined: dict[str, str] = {}
    _join(entry, sources, joined, ())
    return "const modules = {};\n" + "".join(joined.values())


def _join(name: str, sources: Mapping[str, str], joined: dict[str, str], importers: tuple[str, ...]) -> None:
    """Append a module after all that it imports."""
    if name in importers:
        raise ValueError(f"modules import each other in a circle: {' -> '.join((*importers, name))}")
    code = sources[name]
    for _, imported in _IMPORT.findall(code):
        if imported not in joined:
            _join(imported, sources, joined, (*importers, name))
    body = _IMPORT.sub(lambda match: f"const {match[1].replace(' as ', ': ')} = modules['{match[2]}'];", code)
    body = _EXPORT.sub("", body)
    if other := _OTHER.search(body):
        raise ValueError(f"{name}: {other[0].strip()!r} is not understood; import {{ names }} from './module.js'")
    exports = ", ".join(_EXPORT.findall(code))
    joined[name] = f"modules['{name}'] = await (async () => {{\n{body}return {{ {exports} }};\n}})();\n"
