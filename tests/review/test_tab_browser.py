"""The CAM tab in a real TensorBoard, driven in a real browser, on the logs of real small trainings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from chromium import GRAY, Page, chromium
from tab_logs import HOSTILE, write_logs

from cam_callbacks import GradCAM

LOOKS, PROBES = 3, 4  # of the fixture `logs`
BIASED, BALANCED, PLAIN = "biased/run", "balanced/run", "plain/run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="module")
def address(browser: Any, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a TensorBoard shows three runs, the third without an audit, with the heat of two classes."""
    folder = tmp_path_factory.mktemp("shown") / "logs"
    shutil.copytree(logs, folder)
    write_logs(folder, ["plain"], looks=1, probes=PROBES, audit=None, method=GradCAM(), explain="both")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        words = next(line for line in server.stderr if "http://" in line).split()
        url = next(word for word in words if word.startswith("http://"))
        Page(browser).wait(lambda: _served(url) == [BALANCED, BIASED, PLAIN])
        yield url
    finally:
        server.terminate()
        server.communicate()


def _served(url: str) -> list[str]:
    try:
        with urlopen(f"{url}data/plugin/cam_callbacks/runs") as answer:
            return [each["run"] for each in json.load(answer)["runs"]]
    except URLError:
        return []


class Tab(Page):
    """The tab; TensorBoard around it takes seconds to load, so that most tests go without."""

    def __init__(self, chrome: Any, url: str) -> None:
        super().__init__(chrome)
        self.url = url

    def open(self, **state: str) -> None:
        """Open the page that TensorBoard shows in the frame of the tab."""
        self.chrome.get("about:blank")  # or only the hash would change
        self.chrome.get(f"{self.url}data/plugin_entry.html?name=cam_callbacks{_hash(state)}")
        self.wait(self.shown)

    def open_in_tensorboard(self, link: str) -> None:
        """Open TensorBoard and go into the frame of the tab."""
        self.chrome.get("about:blank")
        self.chrome.get(link)
        self.enter()

    def enter(self) -> None:
        self.chrome.switch_to.frame(self.wait(lambda: self.all("iframe"))[0])
        self.wait(self.shown)

    def in_address_bar(self) -> str:
        return str(self.chrome.execute_script("return window.top.location.href"))


def _hash(state: dict[str, str]) -> str:
    return "#" + "&".join(["cam_callbacks", *(f"p.cam_callbacks.{key}={value}" for key, value in state.items())])


def _parts(link: str) -> set[str]:
    return set(link.partition("#")[2].split("&"))


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    tab.errors()
    yield tab
    assert tab.errors() == []


def test_the_tab_is_there_by_itself_and_dark_where_tensorboard_is(tab: Tab) -> None:
    tab.chrome.get("about:blank")
    tab.chrome.get(tab.url)
    tab.wait(lambda: tab.all("[data-plugin-id=cam_callbacks]"))[0].click()
    tab.enter()
    assert tab.shown()[0][0] == PROBES
    assert tab.choices("run") == [BALANCED, BIASED, PLAIN]
    color = "return getComputedStyle(document.body).backgroundColor"
    light = tab.chrome.execute_script(color)
    tab.chrome.execute_script("window.top.document.body.classList.add('dark-mode')")
    tab.wait(lambda: tab.chrome.execute_script(color) != light)


def test_the_verdict_is_in_words_and_leads_to_what_they_mean(tab: Tab) -> None:
    tab.open(run=BIASED)
    assert "ALARM" in tab.one(".verdict").text
    assert "of 100 answers" in tab.one(".verdict").text
    assert not tab.all("[data-term=bg_gap]")
    tab.one(".verdict .term").click()
    assert "one of another class" in tab.wait(lambda: tab.all("[data-term=bg_gap]"))[0].text


def test_curves_of_the_audit_lie_over_the_slider(tab: Tab) -> None:
    tab.open(run=BIASED)
    assert tab.texts(".curve-row .term") == ["Gap of the audit", "Heat on object"]
    assert len(tab.chrome.find_elements("css selector", ".curve-row:first-child .point")) == LOOKS
    assert len(tab.chrome.find_elements("css selector", ".curve-row:first-child .threshold")) == 1


def test_the_slider_changes_the_picture(tab: Tab) -> None:
    tab.open(run=BIASED)
    ((_, last),) = tab.shown()
    heat = tab.heat()
    tab.slide(".slider input", 0)
    tab.wait(lambda: tab.shown()[0][1] < last)
    assert tab.heat() != heat
    assert "epoch 0" in tab.one(".where").text


def test_keys_move_through_the_looks(tab: Tab) -> None:
    tab.open(run=BIASED)
    tab.one(".pane h2").click()
    looks = []
    for key in ("\ue011", "\ue014", "\ue010", "\ue012"):  # Home, right, End, left
        tab.press(key)
        looks.append(tab.one(".where small").text)
    assert looks == [f"look {place} of {LOOKS}" for place in (1, 2, 3, 2)]
    tab.press("\ue010", " ")
    tab.wait(lambda: tab.one(".play").text == "Play")  # from the first to the last, and it stops there
    assert tab.one(".where small").text == f"look {LOOKS} of {LOOKS}"


def test_probes_can_be_sorted_by_a_number_both_ways(tab: Tab) -> None:
    tab.open(run=BIASED)

    def numbers() -> list[float]:
        return [float(text) for text in tab.texts(".card .labels .number:nth-child(3)")]

    tab.choose("sort", "probability of the true class")
    rising = tab.wait(lambda: numbers() == sorted(numbers()) and numbers())
    tab.one(".direction").click()
    assert tab.wait(lambda: numbers() == sorted(numbers(), reverse=True) and numbers()) == rising[::-1]


def test_probes_can_be_filtered_by_class_and_to_mistakes(tab: Tab) -> None:
    tab.open(run=BALANCED, step="0")
    assert tab.shown()[0][0] == PROBES
    mistakes = len(tab.all(".card.mistake"))
    assert mistakes > 0
    tab.choose("class", "owl")
    tab.wait(lambda: tab.shown()[0][0] < PROBES)
    assert set(tab.texts(".card .name:nth-child(2)")) == {"owl"}
    tab.choose("class", "all classes")
    tab.one("input[name=wrong]").click()
    tab.wait(lambda: tab.shown()[0][0] == mistakes)
    assert len(tab.all(".card.mistake")) == mistakes


def test_heat_is_a_layer_of_its_own(tab: Tab) -> None:
    tab.open(run=BIASED)
    heat = tab.heat()
    tab.choose("colors", "gray")
    tab.wait(lambda: tab.heat() != heat)
    tab.slide("input[name=heat]", 0)
    assert tab.chrome.execute_script("return getComputedStyle(document.querySelector('.card canvas')).opacity") == "0"
    assert tab.all(".card img")


def test_under_heat_photos_are_dark_and_gray_until_color_is_chosen(tab: Tab) -> None:
    tab.open(run=BIASED)
    tab.wait(lambda: set(tab.filters(".card img")) == {GRAY})
    tab.choose("photo", "color")
    tab.wait(lambda: set(tab.filters(".card img")) == {"none"})
    tab.wait(lambda: "p.cam_callbacks.photo=color" in _parts(tab.in_address_bar()))
    tab.open(run=BIASED, photo="color")
    tab.all(".card")[0].click()
    tab.wait(lambda: tab.all("dialog .tile canvas"))
    assert set(tab.filters("dialog .tile img")) == {"none"}
    tab.press("\ue00c")  # Escape
    tab.wait(lambda: not tab.all("dialog"))
    tab.choose("photo", "gray")
    tab.wait(lambda: set(tab.filters(".card img")) == {GRAY})
    tab.wait(lambda: "photo=" not in tab.in_address_bar())


def test_photos_without_heat_over_them_stay_in_color(tab: Tab) -> None:
    tab.open(run=BIASED)
    tab.wait(lambda: set(tab.filters(".card img")) == {GRAY})
    tab.slide("input[name=heat]", 0)
    tab.wait(lambda: set(tab.filters(".card img")) == {"none"})
    assert not tab.all(".controls .scale")
    tab.slide("input[name=heat]", 5)
    tab.wait(lambda: set(tab.filters(".card img")) == {GRAY})


def test_a_scale_stands_beside_the_heat_in_its_colors(tab: Tab) -> None:
    tab.open(run=BIASED)
    colors = "return arguments[0].toDataURL()"
    assert tab.texts(".controls .scale") == ["0\n1\neach map, or pair, its own range"]
    inferno = tab.chrome.execute_script(colors, tab.one(".controls .scale canvas"))
    tab.choose("colors", "viridis")
    tab.wait(lambda: tab.chrome.execute_script(colors, tab.one(".controls .scale canvas")) != inferno)
    tab.all(".card")[0].click()
    assert tab.wait(lambda: tab.texts("dialog .scale")) == ["0\n1\neach map, or pair, its own range"]


def test_a_card_opens_the_history_of_its_probe(tab: Tab) -> None:
    tab.open(run=BIASED)
    tab.all(".card")[1].click()
    tab.wait(lambda: len(tab.all("dialog .tile canvas")) == LOOKS)
    assert tab.texts("dialog .tile small") == [f"epoch {epoch}" for epoch in range(LOOKS)]
    tab.wait(lambda: all(text != "…" for text in tab.texts("dialog .tile .number")))
    assert tab.all("dialog .channels canvas")
    tab.wait(lambda: tab.all("dialog .swaps img"))
    tab.all("dialog .tile")[0].click()
    tab.wait(lambda: "epoch 0" in tab.one("dialog dl.facts").text)
    tab.press("\ue00c")  # Escape
    tab.wait(lambda: not tab.all("dialog"))
    tab.wait(lambda: "step=" in tab.in_address_bar() and "probe=" not in tab.in_address_bar())


def test_true_class_and_rival_stand_side_by_side_where_both_are_explained(tab: Tab) -> None:
    tab.open(run=PLAIN)
    tab.wait(lambda: len(tab.all(".card .pictures > span")) == 2 * PROBES)
    names = tab.texts(".card .pictures .name")
    own, rivals = names[::2], names[1::2]
    assert own == tab.texts(".card .labels .name")[::2]  # the true class; the predicted one follows it
    assert all(one != other for one, other in zip(own, rivals, strict=True))
    left, right = tab.all(".card .pictures > span")[:2]
    assert left.location["y"] == right.location["y"]
    assert left.location["x"] < right.location["x"]
    tab.all(".card")[0].click()
    tab.wait(lambda: len(tab.all("dialog .tile .pictures > span")) == 2)
    tab.wait(lambda: f"rival class\n{rivals[0]}" in tab.one("dialog dl.facts").text)


def test_two_runs_compare_look_by_look(tab: Tab) -> None:
    tab.open(run=BIASED)
    tab.choose("vs", BALANCED)
    tab.wait(lambda: len(tab.shown()) == 2)
    assert tab.texts(".verdict h2") == [BIASED, BALANCED]
    assert tab.texts(".pane h2") == [BIASED, BALANCED]
    tab.slide(".slider input", 1)
    tab.wait(lambda: "epoch 1" in tab.one(".where").text)
    tab.wait(lambda: len({step for _, step in tab.shown()}) == 1 and "epoch 1" in tab.texts(".pane .facts")[1])


def test_a_link_restores_what_was_seen(tab: Tab) -> None:
    tab.open_in_tensorboard(tab.url + _hash({"run": BALANCED}))
    tab.choose("vs", BIASED)
    tab.wait(lambda: len(tab.shown()) == 2)
    tab.choose("sort", "heat on object")
    tab.slide(".slider input", 0)
    tab.all(".card")[0].click()
    title = tab.wait(lambda: tab.texts("dialog h2"))
    tab.wait(lambda: "probe=" in tab.in_address_bar())
    link = tab.in_address_bar()
    assert link.startswith(f"{tab.url}#cam_callbacks&")
    tab.open_in_tensorboard(link)
    tab.wait(lambda: len(tab.shown()) == 2)
    assert tab.wait(lambda: tab.texts("dialog h2")) == title
    tab.press("\ue00c")
    tab.wait(lambda: not tab.all("dialog"))
    assert tab.texts(".pane h2") == [BALANCED, BIASED]
    assert tab.one(".where small").text == f"look 1 of {LOOKS}"
    assert tab.one("select[name=sort]").get_attribute("value") == "heat"


def test_choosing_runs_writes_the_address(tab: Tab) -> None:
    tab.open()
    tab.wait(lambda: {"p.cam_callbacks.monitor=cam", "p.cam_callbacks.step=14"} <= _parts(tab.in_address_bar()))
    tab.choose("run", BIASED)
    tab.wait(lambda: "run=biased" in tab.in_address_bar())
    tab.choose("vs", BALANCED)
    tab.wait(lambda: "vs=balanced" in tab.in_address_bar())


def test_a_link_to_what_is_not_there_shows_what_is(tab: Tab) -> None:
    tab.open(run="gone", step="7000", probe="99", sort="nonsense", colors="nonsense", vs="%E0%A4%A")
    assert tab.one(".message").text == f"Not in this log folder: gone, %E0%A4%A. Shown instead: {BALANCED}."
    assert tab.choices("colors")
    assert tab.shown()[0][0] == PROBES
    assert not tab.all("dialog")


def test_what_the_classes_are_called_is_only_text(tab: Tab) -> None:
    tab.open(run=BIASED)
    assert HOSTILE in tab.choices("class")
    for summary in tab.all(".appendix summary"):
        summary.click()
    assert HOSTILE in tab.texts(".appendix th")
    assert tab.chrome.find_elements("css selector", "img[src=x]") == []


def test_a_run_without_an_audit_says_so(tab: Tab) -> None:
    tab.open(run=PLAIN)
    assert "has no audit" in tab.one(".verdict").text
    assert not tab.all(".curve-row")
    assert tab.shown()[0][0] == PROBES


def test_nothing_is_wider_than_a_small_screen(tab: Tab) -> None:
    tab.open(run=BIASED, vs=BALANCED)
    tab.wait(lambda: len(tab.shown()) == 2)
    assert tab.chrome.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_it_opens_on_the_run_whose_last_verdict_is_worst(tab: Tab) -> None:
    tab.open()
    assert tab.one("select[name=run]").get_attribute("value") == BIASED
    assert "alarm" in tab.texts(".verdict .state")[0]
    assert tab.choices("run") == [BALANCED, BIASED, PLAIN]
    tab.open(run=BALANCED)
    assert tab.one("select[name=run]").get_attribute("value") == BALANCED
