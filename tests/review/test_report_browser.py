"""The report, opened from disk in a real browser, of the logs of real small trainings."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from chromium import GRAY, Page, chromium
from tab_logs import HOSTILE

from cam_callbacks.review.command import main
from cam_callbacks.review.report import collect
from cam_callbacks.review.report_page import page as make_page

LOOKS, PROBES = 3, 4  # of the fixture `logs`
BIASED, BALANCED = "biased/run", "balanced/run"
PAPER = {"width": 690, "height": 800, "deviceScaleFactor": 1, "mobile": False}  # of A4, without its margins


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def report(browser: Any, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the report of two runs and of a file that is none."""
    folder = tmp_path_factory.mktemp("reported") / "logs"
    shutil.copytree(logs, folder)
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


class Made:
    """Writes and opens a report whose content a test has changed."""

    def __init__(self, report: str, folder: Path) -> None:
        self.content = collect([Path(urlparse(report).path).parent])
        self.file = folder / "made.html"

    def audit(self, run: str) -> dict[str, Any]:
        """The last audit of a run."""
        (found,) = (each for each in self.content["runs"] if each["timeline"]["run"] == run)
        audit: dict[str, Any] = found["timeline"]["looks"][-1]["audit"]
        return audit

    def open(self, page: Report, state: str) -> None:
        self.file.write_text(make_page(self.content), encoding="utf-8")
        page.chrome.get("about:blank")
        page.chrome.get(f"{self.file.as_uri()}#{state}")
        page.wait(page.shown)


@pytest.fixture
def made(report: str, tmp_path: Path) -> Made:
    return Made(report, tmp_path)


def test_the_gap_is_that_of_the_class_that_the_verdict_is_about(page: Report, made: Made) -> None:
    audit = made.audit(BIASED)
    audit["verdict"] |= {"classes": ["owl"], "overall": False}
    audit["measures"]["bg_gap"]["overall"] |= {"value": 0.01, "low": 0.0, "high": 0.02}
    audit["measures"]["bg_gap"]["per_class"]["owl"] |= {"value": 0.42, "low": 0.3, "high": 0.5}
    made.open(page, f"run={BIASED}")
    assert "costs 42 of 100 answers of the class owl (0.42 [0.30, 0.50])" in page.one(".verdict").text
    assert page.texts(".curve-row:first-child .readout p") == ["0.42\n[0.30, 0.50]\nowl"]


def test_a_number_without_a_name_is_named_once(page: Report, made: Made) -> None:
    audit = made.audit(BIASED)
    audit["words"] |= {"one": "number"}
    audit["verdict"] |= {"classes": ["number 0"], "overall": False}
    audit["measures"]["bg_gap"]["per_class"]["number 0"] = audit["measures"]["bg_gap"]["overall"]
    made.open(page, f"run={BIASED}")
    assert " of 100 answers of number 0 (" in page.one(".verdict").text


@pytest.mark.parametrize("state", ["too few images", "not learned"])
def test_what_is_not_judged_has_no_number_and_is_explained(page: Report, made: Made, state: str) -> None:
    said = {"state": state, "background": state, "classes": [], "overall": False, "text": "Nothing is judged."}
    made.audit(BIASED)["verdict"] |= said
    made.open(page, f"run={BIASED}")
    assert "of 100 answers" not in page.one(".verdict").text
    page.one(".verdict .term").click()
    assert page.wait(lambda: page.texts(".glossary .marked dt")) == ["verdict"]
    assert state in page.one(".glossary .marked").text.lower()


def test_an_untestable_background_has_no_number_beside_a_finding(page: Report, made: Made) -> None:
    found = {"state": "warning", "background": "not testable", "text": "Warning: answers seem to depend on the size."}
    made.audit(BIASED)["verdict"] |= found
    made.open(page, f"run={BIASED}")
    assert page.one(".verdict .state").text == "warning"
    assert "of 100 answers" not in page.one(".verdict").text


def test_a_run_without_a_whole_look_says_so_and_shows_no_other(page: Report, made: Made) -> None:
    empty = {"timeline": {"run": "empty", "monitor": "cam", "settings": None, "photos": [], "looks": []}}
    made.content["runs"].append(empty | {"looks": {}, "swaps": {}})
    made.open(page, f"run={BIASED}")
    page.choose("run", "empty")
    page.wait(lambda: page.texts(".message") == ["empty: no complete look yet."])
    assert not page.all(".pane, .verdict")
    page.choose("run", BALANCED)
    page.wait(lambda: page.all(".pane"))
    assert page.texts(".verdict h2") == [BALANCED]
    assert not page.all(".message:not(:empty)")


def test_monitors_that_differ_are_named(page: Report, made: Made) -> None:
    for run in made.content["runs"]:
        if run["timeline"]["run"] == BALANCED:
            run["timeline"]["monitor"] = "cam_test"
    made.open(page, f"run={BIASED}&vs={BALANCED}")
    assert page.texts(".verdict h2") == [f"{BIASED}, cam", f"{BALANCED}, cam_test"]


def test_only_cards_in_view_are_painted(page: Report, made: Made) -> None:
    empty = "return [...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().top > 1100)"
    for run in made.content["runs"]:
        run["timeline"]["photos"] *= 30
        for look in run["looks"].values():
            for part in ("probes", "maps", "channels"):
                look[part] *= 30
    made.open(page, f"run={BIASED}")
    blank = (
        "return [...document.querySelectorAll('.card canvas')].map((canvas) =>"
        " canvas.getContext('2d').getImageData(80, 80, 1, 1).data[3] === 0)"
    )
    below = page.chrome.execute_script(empty)
    painted = page.wait(lambda: not (found := page.chrome.execute_script(blank))[0] and found)
    assert any(below)
    assert all(unpainted for unpainted, far in zip(painted, below, strict=True) if far)
    page.chrome.execute_script("[...document.querySelectorAll('.card')].at(-1).scrollIntoView()")
    page.wait(lambda: not page.chrome.execute_script(blank)[-1])


def test_it_shows_verdict_curves_and_probes(page: Report) -> None:
    page.open(f"run={BIASED}")
    assert page.one("h1").text == "CAM report"
    assert "ALARM" in page.one(".verdict").text
    assert page.texts(".curve-row .term") == ["Gap of the audit", "Heat on object"]
    assert page.shown()[0][0] == PROBES


def test_a_curve_without_numbers_is_there_only_to_say_that_masks_lack(page: Report, made: Made) -> None:
    for found in made.content["runs"]:
        for look in found["timeline"]["looks"]:
            look["audit"]["measures"]["heat_on_object"]["overall"]["value"] = None
    made.open(page, f"run={BIASED}")
    assert page.texts(".curve-row .term") == ["Gap of the audit"]
    made.audit(BIASED)["masks"] = "none"
    made.open(page, f"run={BIASED}")
    assert page.texts(".curve-row .term") == ["Gap of the audit", "Heat on object"]


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
        "Swapped backgrounds",
        "What the data gives away",
        "All numbers",
        "Settings and versions",
    ]
    for summary in page.all(".appendix summary"):
        summary.click()
    page.wait(lambda: page.all(".swaps img"))
    assert HOSTILE in page.texts(".appendix th")
    assert "a collar" in page.one("[data-title='The whole verdict']").text
    assert "torch" in page.one("[data-title='Settings and versions']").text


def told(auc: float, gives_away: bool, shows_object: bool) -> dict[str, Any]:
    where = "image" if shows_object else "background"
    known = {"name": "contrast", "where": where, "label": "owl", "auc": auc, "chance": 0.55, "p_value": 0.001}
    return {**known, "count": 48, "gives_away": gives_away, "shows_object": shows_object}


def test_the_data_is_told_in_short_and_whole_at_a_click(page: Report, made: Made) -> None:
    apart = [told(0.9, True, False), *(told(0.6, False, False) for _ in range(5))]
    made.audit(BIASED)["data"] = [*apart, told(0.8, True, True)]
    made.open(page, f"run={BIASED}")
    page.one("[data-title='What the data gives away'] summary").click()
    rows = page.wait(lambda: page.texts("table.data tbody tr"))
    assert [row.split("\t")[-1] for row in rows] == ["gives it away", *["48"] * 3, rows[4], "tells it"]
    assert rows[4] == "The object is a part of these, so that they may be right"
    assert page.texts("table.data .high") == ["0.90"]
    page.one(".more button").click()
    assert page.wait(lambda: len(page.texts("table.data tbody tr")) == 8)
    assert not page.all(".more")


def test_all_that_was_exchanged_stands_side_by_side(page: Report, made: Made) -> None:
    audit = made.audit(BIASED)
    assert not page.all(".dependences")  # the background alone
    audit["measures"]["size_gap"] = audit["measures"]["bg_gap"]
    size = {"title": "the size", "gap": "size_gap", "placebo": None, "cost": 0.3, "state": "not judged", "about": "why"}
    audit["dependences"].append(size)
    made.open(page, f"run={BIASED}")
    first, second = page.texts(".verdict .dependences tbody tr")
    assert first.startswith("the background")
    assert "alarm in all classes together" in first
    assert second.startswith("the size")
    assert second.endswith("0.30\tnot judged why")
    assert any("the size" in text for text in page.in_print(".dependences"))


def test_only_numbers_that_probes_have_can_be_sorted_by(page: Report, made: Made) -> None:
    for found in made.content["runs"]:
        for look in found["looks"].values():
            look["probes"] = [{**probe, "probability_label": None} for probe in look["probes"]]
    made.open(page, f"run={BIASED}")
    assert "heat on object" in page.choices("sort")
    assert "probability of the true class" not in page.choices("sort")


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
    page.open("run=%E0%A4%A&step=x&probe=99&monitor=none&class=7&sort=no&down=1&heat=x&photo=x&nonsense")
    assert not page.all("dialog")
    assert page.shown()[0][0] == PROBES
    assert page.one("select[name=class]").get_attribute("value") == ""
    assert page.one("select[name=sort]").get_attribute("value") == ""
    assert page.one("select[name=photo]").get_attribute("value") == "gray"
    assert page.one(".screen").get_attribute("style") == "--heat: 0.5;"
    assert not page.all(".direction")
    assert page.one(".message").text.startswith("Not in this log folder: ")


def test_files_that_were_left_out_are_named(page: Report) -> None:
    page.open()
    assert page.texts(".skipped summary") == ["Left out: 1 event file"]
    page.one(".skipped summary").click()
    assert page.texts(".skipped li") == ["events.out.tfevents.foreign is not an event file"]


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
        page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PAPER)
        assert page.chrome.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        page.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PAPER | {"width": 1280})
        page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_on_paper_photos_under_heat_are_gray_unless_color_is_chosen(page: Report) -> None:
    page.open("heat=0")
    page.wait(lambda: page.in_print(".glossary"))
    assert set(page.filters(".print figure img")) == {GRAY}
    assert page.in_print(".scale") == ["01each map, or pair, its own range"] * 2
    page.choose("photo", "color")
    page.wait(lambda: set(page.filters(".print figure img")) == {"none"})


def test_photos_whose_heat_is_blank_or_skipped_and_drawings_stay_in_color(page: Report, made: Made) -> None:
    for run in made.content["runs"]:
        *_, last = run["looks"].values()
        last["probes"][0]["blank"] = last["probes"][1]["skipped"] = True
        last["signals"] = run["timeline"]["run"] == BALANCED
    made.open(page, f"run={BIASED}")
    page.wait(lambda: page.filters(".card img") == ["none", "none", *[GRAY] * (PROBES - 2)])
    made.open(page, f"run={BALANCED}")
    page.wait(lambda: page.all(".card canvas"))
    assert set(page.filters(".card img")) == {"none"}


def test_it_prints(page: Report) -> None:
    page.open()
    page.wait(lambda: page.in_print(".glossary"))
    pdf = base64.b64decode(page.chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF")
