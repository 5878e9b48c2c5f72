"""Make the pictures of tab.md: train the example project, open TensorBoard on its logs, photograph the tab.

It needs the extra `test`, chromium and chromedriver, and takes some minutes:

    .venv/bin/python docs/pictures.py
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.support.ui import WebDriverWait

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from chromium import chromium
from servers import serving

DOCS = Path(__file__).parent
DEMO = DOCS.parent / "example_projects" / "color_bias" / "demo.py"
PATIENCE = 60  # seconds
SIZE = (1280, 1080)
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
        with serving(logs) as server, chromium(*SIZE) as browser:
            for name, (state, dark) in PICTURES.items():
                photograph(browser, server.address, state, dark, DOCS / "images" / f"{name}.png")


def train(folder: Path, epochs: int) -> Path:
    """Run the example project, and return the folder of its logs."""
    logs = folder / "logs"
    options = ["--epochs", str(epochs), "--num-images", "1024", "--logs", str(logs)]
    subprocess.run([sys.executable, str(DEMO), *options, "--picture", str(folder / "demo.png")], check=True)
    return logs


def photograph(browser: Chrome, address: str, state: str, dark: bool, file: Path) -> None:
    """Open the tab in a state, wait until it is drawn, and save what is seen."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    ours = "&".join(f"p.cam_callbacks.{part}" for part in state.split("&"))
    browser.get("about:blank")  # or only the hash would change
    browser.get(f"{address}/#cam_callbacks&{ours}")
    WebDriverWait(browser, PATIENCE).until(lambda _: browser.execute_script(DRAWN))
    browser.save_screenshot(str(file))


if __name__ == "__main__":
    main()
