"""Installs a wheel into an environment of its own, without extras, and tries it; minutes, and 6 GB for PyTorch.

python tools/clean_install.py dist/*.whl
python tools/clean_install.py dist/*.whl --constraint tools/lowest.txt --extras masks  # with these versions
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
LISTING = "data/plugins_listing"
PATIENCE = 120  # seconds


def main() -> None:
    """Install the wheel that is named on the command line, and try it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--constraint", type=Path, help="a file of versions for pip")
    parser.add_argument("--extras", default="", help="of the package, separated by commas")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = f"{args.wheel.resolve()}[{args.extras}]" if args.extras else str(args.wheel.resolve())
        python = install(Path(folder) / "env", wheel, args.constraint)
        check(python, Path(folder))


def install(env: Path, wheel: str, constraint: Path | None = None) -> Path:
    """A new environment with the wheel and what it requires; its Python."""
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    python = env / "bin" / "python"
    constraints = ["--constraint", constraint.resolve()] if constraint else []
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, *constraints], check=True)
    return python


def check(python: Path, folder: Path) -> None:
    """Run what the README promises, in the folder; an error where it does not hold."""
    subprocess.run([python, "-m", "pip", "check"], cwd=folder, check=True)
    example = re.search(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert example is not None
    (folder / "train.py").write_text(example[1], encoding="utf-8")
    subprocess.run([python, "train.py"], cwd=folder, check=True)
    print("The example of the README runs.")
    print(f"TensorBoard has the tab: {tab(python, folder / 'lightning_logs')}")
    report = [python.with_name("cam-callbacks"), "report", "lightning_logs", "-o", "report.html"]
    subprocess.run(report, cwd=folder, check=True)
    for statement in (
        "import torch",
        "import pytorch_lightning",
        "import cam_callbacks",
        "import cam_callbacks.review.loader",
        "from cam_callbacks import ScoreCAM, ProbeSet",
        "from cam_callbacks import CAMMonitor",
    ):
        print(f"{statement}: {seconds(python, folder, statement):.2f} s")


def tab(python: Path, logs: Path) -> dict[str, object]:
    """What a TensorBoard that is started on the logs says of our plugin; an error if it is not active."""
    command = [python.with_name("tensorboard"), "--logdir", logs, "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        address = next(word for word in line.split() if word.startswith("http://"))
        deadline = time.monotonic() + PATIENCE
        while True:
            with urllib.request.urlopen(address + LISTING) as answer:
                found = json.load(answer).get("cam_callbacks", {})
            if found.get("enabled"):
                return dict(found)
            assert time.monotonic() < deadline, f"the tab does not become active: {found}"
            time.sleep(1)
    finally:
        server.terminate()
        server.communicate()


def seconds(python: Path, folder: Path, statement: str) -> float:
    """How long the statement takes in a fresh Python, that Python's start not counted; the best of three."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    runs = [subprocess.run([python, "-c", code], cwd=folder, check=True, capture_output=True, text=True) for _ in "123"]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main()
