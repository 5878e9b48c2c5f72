"""Headless Chromium for the tests of the tab and of the report, and for the pictures of the documentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE = 300
"""Seconds after which a page that has not become what a test waits for is taken to be wrong; machines may be busy."""


GRAY = "grayscale(1) brightness(0.5)"
"""The filter of photos under heat."""


@contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """A Selenium driver; skips the test where there is no browser."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs a browser: pip install selenium")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield chrome
    finally:
        chrome.quit()


_SHOWN = """[...document.querySelectorAll(arguments[0])].filter(each => {
    const box = each.closest("select") ?? each  // an option has no box of its own
    const {width, height} = box.getBoundingClientRect()
    return width * height > 0 && box.checkVisibility({opacityProperty: true, visibilityProperty: true})
})"""
"""In one call for all elements: to ask the browser for each of them takes most of the time of a test."""


class Page:
    """What a user sees of the view, and does with it."""

    def __init__(self, chrome: Any) -> None:
        self.chrome = chrome

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds, and return what it gives; parts of the page may come and go meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(self.chrome, PATIENCE, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return patient.until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        """The elements of a CSS selector that are shown."""
        return list(self.chrome.execute_script(f"return {_SHOWN}", selector))

    def one(self, selector: str) -> Any:
        """The only such element."""
        (found,) = self.all(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        """What is written in those that are shown."""
        return list(self.chrome.execute_script(f"return {_SHOWN}.map(each => each.innerText.trim())", selector))

    def choose(self, name: str, words: str) -> None:
        """Choose from a list by the words in it."""
        from selenium.webdriver.support.ui import Select

        Select(self.one(f"select[name={name}]")).select_by_visible_text(words)

    def choices(self, name: str) -> list[str]:
        return self.texts(f"select[name={name}] option")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()

    def slide(self, selector: str, value: int) -> None:
        """Set a slider as a hand would."""
        self.chrome.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            self.one(selector),
            value,
        )

    def shown(self) -> list[tuple[int, int]]:
        """Of each run that is shown the number of its cards and the step of the look."""
        return [
            (len(pane.find_elements("css selector", ".card")), int(facts.split("step ")[1].split(" ")[0]))
            for pane in self.all(".pane")
            if "step " in (facts := pane.find_element("css selector", "header .facts").text)
        ]

    def heat(self, card: int = 0) -> str:
        """The heatmap of a card, as it is drawn."""
        return str(self.chrome.execute_script("return arguments[0].toDataURL()", self.all(".card canvas")[card]))

    def filters(self, selector: str) -> list[str]:
        """What the elements of a CSS selector are seen through, whether they are shown or not."""
        script = "return [...document.querySelectorAll(arguments[0])].map(each => getComputedStyle(each).filter)"
        return list(self.chrome.execute_script(script, selector))

    def errors(self) -> list[str]:
        """What the console of the browser has complained of since the last time."""
        return [
            entry["message"]
            for entry in self.chrome.get_log("browser")
            if entry["level"] == "SEVERE" and "favicon" not in entry["message"]
        ]
