"""docs/tested.md says what the tests are now."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    made = subprocess.run(
        [sys.executable, "tests/tested_where.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    docs = ROOT / "docs" / "tested.md"
    assert docs.read_text() == made.stdout, "python tests/tested_where.py > docs/tested.md writes it anew"
