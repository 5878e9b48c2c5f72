"""The report, opened from disk in a real browser, of the logs of real small trainings."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import Page, chromium
from tab_logs import HOSTILE, write_logs

from cam_callbacks.report.command import main

LOOKS, PROBES = 3, 4
BIASED, BALANCED = "biased/run", "balanced/run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the report of two runs and of a file that is none."""
    folder = tmp_path_factory.mktemp("logs")
    write_logs(folder, looks=LOOKS, probes=PROBES)
    (folder / "events.out.tfevents.foreign").write_bytes(b"not an event file, but long enough to be looked into")
    file = folder / "report.html"
    assert main(["report", str(folder), "-o", str(file), "--quiet"]) == 0
    return file.as_uri()


class Report(Page):
    def __init__(self, chrome: Any, url: str) -> None:
        super().__init__(chrome)
        self.url = url

    def open(self, state: str = "") -> None:
        self.chrome.get("about:blank")
        self.chrome.get(f"{self.url}#{state}")
        self.wait(self.shown)

    def in_print(self, selector: str) -> list[str]:
        """The texts of what is there to be printed."""
        found = self.chrome.find_elements("css selector", f".print {selector}")
        return [each.get_attribute("textContent") for each in found]


@pytest.fixture
def page(browser: Any, report: str) -> Iterator[Report]:
    page = Report(browser, report)
    page.errors()
    yield page
    assert page.errors() == []


def test_it_shows_verdict_curves_and_probes(page: Report) -> None:
    page.open(f"run={BIASED}")
    assert page.one("h1").text == "CAM report"
    assert "ALARM" in page.one(".verdict").text
    assert page.texts(".curve-row .term") == ["Gap of the audit", "Heat on object"]
    assert page.shown()[0][0] == PROBES


def test_its_slider_changes_the_picture(page: Report) -> None:
    page.open(f"run={BIASED}")
    ((_, last),) = page.shown()
    heat = page.heat()
    page.slide(".slider input", 0)
    page.wait(lambda: page.shown()[0][1] < last)
    assert page.heat() != heat


def test_it_has_all_that_is_known_of_a_run(page: Report) -> None:
    page.open(f"run={BIASED}")
    assert page.texts(".appendix summary") == [
        "The whole verdict",
        "Numbers by class",
        "Exchanged backgrounds",
        "All numbers",
        "What was not tested",
        "Settings and versions",
    ]
    for summary in page.all(".appendix summary"):
        summary.click()
    page.wait(lambda: page.all(".swaps img"))
    assert HOSTILE in page.texts(".appendix th")
    assert "a collar" in page.one("[data-title='What was not tested']").text
    assert "torch" in page.one("[data-title='Settings and versions']").text


def test_two_runs_compare(page: Report) -> None:
    page.open(f"run={BIASED}&vs={BALANCED}")
    page.wait(lambda: len(page.shown()) == 2)
    assert page.texts(".verdict h2") == [BIASED, BALANCED]


def test_its_address_is_a_link_to_what_is_seen(page: Report) -> None:
    page.open(f"run={BALANCED}")
    page.slide(".slider input", 0)
    page.all(".card")[2].click()
    title = page.wait(lambda: page.texts("dialog h2"))
    page.wait(lambda: "probe=2" in page.chrome.current_url)
    state = page.chrome.current_url.split("#")[1]
    page.open(state)
    assert page.wait(lambda: page.texts("dialog h2")) == title
    assert page.one(".where small").text == f"look 1 of {LOOKS}"


def test_a_broken_address_shows_what_is_there(page: Report) -> None:
    page.open("run=%E0%A4%A&step=x&probe=99&monitor=none&class=7&heat=x&nonsense")
    assert not page.all("dialog")
    assert page.texts(".none") == ["No probe is of this kind at this look."]


def test_files_that_were_left_out_are_named(page: Report) -> None:
    page.open()
    assert "events.out.tfevents.foreign" in page.one(".message").text


def test_what_the_classes_are_called_is_only_text(page: Report) -> None:
    page.open()
    assert HOSTILE in page.choices("class")
    assert page.chrome.find_elements("css selector", "img[src=x]") == []


def test_on_paper_it_is_complete_and_without_controls(page: Report) -> None:
    page.open()
    page.wait(lambda: page.in_print(".glossary"))
    assert page.in_print("h2.title") == [BALANCED, BIASED]
    assert any("ALARM" in text for text in page.in_print(".verdict"))
    assert len(page.in_print("figure")) == 2 * PROBES
    assert len(page.in_print("figure canvas")) == 2 * PROBES * LOOKS
    assert page.in_print("select") == page.in_print("input") == []
    page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not page.all(".screen")
        assert len(page.all(".print .plot")) == 4
        assert len(page.all(".print .swaps img")) == 2
    finally:
        page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_it_prints(page: Report) -> None:
    page.open()
    page.wait(lambda: page.in_print(".glossary"))
    pdf = base64.b64decode(page.chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
