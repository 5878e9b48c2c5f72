"""Write the pages, and parts of pages, that are made from lists in the code: `make pages`.

docs/faults.md from tests/faults.py, docs/models.md from tests/model_zoo.py, the table of the audit's scalars in
docs/logged.md from cam_callbacks/audit/measures.py, and that of projects in docs/tasks.md from
tests/strangers/strangers.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from pages import ROOT, markdown_table

sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "strangers")]

from faults import FAULTS, ON_TWO_RANKS, PASSES_THROUGH  # noqa: E402
from model_zoo import METHODS, ZOO, Entry  # noqa: E402
from strangers import PROJECTS  # noqa: E402

from cam_callbacks.audit.measure_spec import MeasureSpec  # noqa: E402
from cam_callbacks.audit.measures import MEASURES  # noqa: E402

MADE = "<!-- `make pages` makes this {}; change {} instead -->"
END = "<!-- end of the table -->"
MASKS = {
    "needed": "needed",
    "optional": "used",
    "excluded": "only without",
    "estimated": "only estimated",
    "unused": "",
}


def faults(_before: str) -> str:
    """Return docs/faults.md."""
    rows = []
    for fault in FAULTS.values():
        ends = fault.outcome.error and fault.outcome is not PASSES_THROUGH
        rows.append([fault.stage, fault.what, fault.outcome.words, "it ends with the error" if ends else "the same"])
    lines = [
        MADE.format("page", "tests/faults.py"),
        "",
        "# Faults",
        "",
        f"{len(FAULTS)} things that go wrong once training has begun, and what happens then.",
        "`tests/callback/test_faults.py` brings each of them about. Except for the last two, the run goes on to its",
        "end; weights, optimizer state and metrics are bit for bit those of a run without CAMMonitor; no hook, train",
        "flag, gradient or random number state is left behind. A warning about something skipped holds the traceback.",
        "",
        f"Errors on one of two processes are brought about in {', '.join(ON_TWO_RANKS)}: both processes skip the same.",
        "",
        'The last column says what becomes of the run with `on_error="raise"` instead of `"warn"`.',
        "",
        *markdown_table(["where", "what goes wrong", "what happens", 'with `on_error="raise"`'], rows),
    ]
    return "\n".join(lines) + "\n"


def models(_before: str) -> str:
    """Return docs/models.md."""
    rows = [
        [
            entry.library,
            f"`{entry.name}`",
            _chosen(entry.layer, entry.usual_size, 224),
            _chosen(entry.small_layer, entry.size, 64),
            *(_cell(entry, method) for method in METHODS),
        ]
        for entry in ZOO
    ]
    lines = [
        MADE.format("page", "tests/model_zoo.py"),
        "",
        "# Models",
        "",
        "Which layer of a model is chosen if `target_layer` is left out, for images of 224 and of 64 pixels (or of the",
        "size in brackets), and which methods explain the model: yes, or no with a part of the error. CAM always takes",
        "the last layer, whatever the size of the images. `tests/explain/test_models.py` makes sure of it, with random",
        "weights, and for large models with fewer pixels that lead to the same choice. If your model is not listed:",
        "[Choose the layer](how_to/choose_the_layer.md).",
        "",
        *markdown_table(["library", "model", "chosen at 224 pixels", "at 64 pixels", *METHODS], rows),
    ]
    return "\n".join(lines) + "\n"


def _chosen(layer: str, size: tuple[int, ...], side: int) -> str:
    return f"`{layer}`" if size == (side, side) else f"`{layer}` ({' x '.join(map(str, size))})"


def _cell(entry: Entry, method: str) -> str:
    if method in entry.refused:
        return f'no: "{entry.refused[method]}"'
    return f"yes, at `{entry.layers[method]}`" if method in entry.layers else "yes"


def logged(before: str) -> str:
    """Return docs/logged.md, with the table of the audit's measures made anew."""
    begin = MADE.format("table", "cam_callbacks/audit/measures.py")
    rows = [
        [f"`cam/{spec.name}`", spec.title, MASKS[spec.masks], "; ".join(_endings(spec)), spec.source]
        for spec in MEASURES.values()
    ]
    table = markdown_table(["tag", "what it is", "masks", "endings that it has", "source"], rows)
    return _with_table(before, begin, table)


def tasks(before: str) -> str:
    """Return docs/tasks.md, with the table of strangers' projects made anew."""
    rows = [[name, project.batch, project.returns, project.shown] for name, project in PROJECTS.items()]
    table = markdown_table(["a project", "its batches", "its model returns", "what `CAMMonitor()` shows"], rows)
    return _with_table(before, MADE.format("table", "tests/strangers/strangers.py"), table)


def _with_table(before: str, begin: str, table: list[str]) -> str:
    head, rest = before.split(begin)
    return "\n".join([f"{head}{begin}", "", *table, "", END + rest.split(END)[1]])


def _endings(spec: MeasureSpec) -> list[str]:
    ends = ["`_by_class/<name>`"] if spec.is_logged_per_class else []
    ends += ["`_low`, `_high`"] if spec.has_interval else []
    return ends + (["`_chance`"] if spec.chance.split(",")[0] not in ("", "0") else [])


GENERATED: dict[str, Callable[[str], str]] = {
    "docs/faults.md": faults,
    "docs/logged.md": logged,
    "docs/models.md": models,
    "docs/tasks.md": tasks,
}
"""The function that makes each page from what it holds now."""


def outdated(root: Path = ROOT) -> dict[str, str]:
    """Return what the generated pages that differ from their sources should hold, by path."""
    found = {}
    for path, make in GENERATED.items():
        before = (root / path).read_text(encoding="utf-8")
        if before != (after := make(before)):
            found[path] = after
    return found


if __name__ == "__main__":
    for path, text in outdated().items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(f"{path} is written anew")
