"""docs/tested.md says what the tests are now."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_is_up_to_date() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    checked = subprocess.run(
        [sys.executable, "tests/tested_where.py", "--check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr[-3000:]
