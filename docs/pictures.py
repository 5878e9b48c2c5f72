"""Make the pictures of tab.md: train the example project, open TensorBoard on its logs, photograph the tab.

It needs selenium, chromium and chromedriver, and takes some minutes:

    .venv/bin/python docs/pictures.py
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

DOCS = Path(__file__).parent
DEMO = DOCS.parent / "example_projects" / "colour_bias" / "demo.py"
WIDTH, HEIGHT = 1280, 800
PATIENCE = 60  # seconds
PICTURES = {  # name: what stands in the address, whether it is dark
    "tab_light": ("run=biased", False),
    "tab_dark": ("run=balanced&sort=heat", True),
    "tab_compare": ("run=biased&vs=balanced", False),
    "tab_probe": ("run=biased&probe=0", False),
}
DRAWN = """
const page = document.querySelector('iframe')?.contentDocument;
const pictures = [...(page?.querySelectorAll('.card img, dialog .swaps img') ?? [])];
return pictures.length > 0 && pictures.every((each) => each.complete) && !page.body.innerText.includes('\u2026');
"""


def main() -> None:
    """Train where there are no logs yet, then take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, help="of the example project, with the runs biased and balanced")
    parser.add_argument("--epochs", type=int, default=10, help="of the training, where no logs are given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = args.logs or train(Path(folder), args.epochs)
        with tensorboard(logs) as address, chromium() as browser:
            for name, (state, dark) in PICTURES.items():
                photograph(browser, address, state, dark, DOCS / "images" / f"{name}.png")


def train(folder: Path, epochs: int) -> Path:
    """Run the example project, and return the folder of its logs."""
    logs = folder / "logs"
    options = ["--epochs", str(epochs), "--num-images", "1024", "--logs", str(logs)]
    subprocess.run([sys.executable, str(DEMO), *options, "--picture", str(folder / "demo.png")], check=True)
    return logs


@contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard that runs on these logs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        yield next(word for word in line.split() if word.startswith("http://"))
    finally:
        server.terminate()
        server.communicate()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, of the size of the pictures."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield browser
    finally:
        browser.quit()


def photograph(browser: webdriver.Chrome, address: str, state: str, dark: bool, file: Path) -> None:
    """Open the tab in a state, wait until it is drawn, and save what is seen."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    ours = "&".join(f"p.cam_callbacks.{part}" for part in state.split("&"))
    browser.get("about:blank")  # or only the hash would change
    browser.get(f"{address}#cam_callbacks&{ours}")
    WebDriverWait(browser, PATIENCE).until(lambda _: browser.execute_script(DRAWN))
    browser.save_screenshot(str(file))


if __name__ == "__main__":
    main()
