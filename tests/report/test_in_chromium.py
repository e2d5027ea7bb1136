"""Every kind of page in a headless Chromium of the system: opened from the disk, pointed at, chosen in, read, printed.

The browser is $CHROMIUM, or one of `chromium`, `chromium-browser`, `google-chrome` (Debian: apt-get install chromium).
Without one the tests are skipped. Tables come from planted values, those of swaps, circuits and scans from tiny models.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import new_model
from tests.report import studies
from tests.report.test_circuits import SCORES, circuit_of
from tests.studies.test_scan import AGAINST, PROMPT, words

from align_transformers import grid, scan
from align_transformers.report import save_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium: set CHROMIUM, or apt-get install chromium")
LONG = " ".join(f"w{n}" for n in range(10, 23))
PAIRS = [f"w1 w3 w4 {LONG}", f"w5 w6 w4 {LONG}"], [f"w1 w9 w4 {LONG}", f"w5 w8 w4 {LONG}"]  # wider than a phone
KINDS = (*studies.STUDIES, "interchange", "circuit", "scan")
SERIOUS = {"serious", "critical"}
# The ratio of the contrast of each text of the page's drawings with what lies below it, as WCAG defines it.
CONTRASTS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const bright = ([r, g, b]) => [r, g, b].map(c => c / 255).map(
    c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  ).reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = getComputedStyle(document.body).backgroundColor;
  return [...document.querySelectorAll(".panel svg text")].filter(text => text.getClientRects().length).map(text => {
    const look = getComputedStyle(text), cell = look.getPropertyValue("--g");
    const probe = document.createElement("i");
    probe.style.color = text.classList.contains("c") && !text.classList.contains("u") ? cell : ground;
    document.body.append(probe);
    const below = channels(getComputedStyle(probe).color), over = channels(look.fill), dim = Number(look.opacity);
    probe.remove();
    const seen = over.slice(0, 3).map((c, n) => c * dim + below[n] * (1 - dim));
    const [a, b] = [bright(seen), bright(below)].sort((x, y) => y - x);
    return [text.textContent, (a + 0.05) / (b + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    made = {name: save_page(table(), folder / f"{name}.html") for name, table in studies.STUDIES.items()}
    model, reader = new_model("llama"), words()
    table = grid(model, *PAIRS, tokenizer=reader, answers=[("w4", "w5")] * 2, components=["block_output", "mlp_output"])
    made["interchange"] = save_page(table, folder / "interchange.html")
    made["circuit"] = circuit_of(SCORES).page(folder / "circuit.html")
    found = scan(model, PROMPT, AGAINST, tokenizer=reader, answers=("w4", "w5"), verify=4)
    made["scan"] = found.page(folder / "scan.html")
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's own sandbox needs rights that containers lack; the pages are our own
        started = driver.chromium.launch(executable_path=FOUND, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page in the browser, and all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.tab = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(path.as_uri())

    def says(self) -> list[str]:
        """What pointing shows, line by line."""
        return [line for line in self.tab.locator("#pointed-at").inner_text().split("\n") if line]

    def rows(self, panel: Any) -> list[list[str]]:
        """The table behind a panel, once it is opened."""
        panel.locator("summary").click()
        panel.locator("tbody tr").first.wait_for()
        return panel.locator("tbody tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.textContent))")


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Open a kind of page: it must have asked for nothing but itself, and complained of nothing."""
    every: list[tuple[str, Opened]] = []

    def opening(name: str, **options: Any) -> Opened:
        every.append((name, Opened(browser, pages[name], **options)))
        return every[-1][1]

    yield opening
    for name, one in every:
        assert [url for url in one.asked if not url.startswith("blob:")] == [pages[name].as_uri()]
        assert one.complaints == []
        one.context.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_page_is_read_in_both_themes_by_all(name: str, opened: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    for scheme in ("light", "dark"):
        one = opened(name, color_scheme=scheme)
        found = Axe().run(one.tab).response
        assert [rule["id"] for rule in found["passes"] if rule["id"] == "color-contrast"]  # it was looked at
        assert [(rule["id"], [n["html"] for n in rule["nodes"]]) for rule in found["violations"]
                if rule["impact"] in SERIOUS] == []  # fmt: skip
        least = min(one.tab.evaluate(CONTRASTS), key=lambda each: each[1], default=("", 21.0))
        assert least[1] >= 4.5, least


@pytest.mark.parametrize("name", KINDS)
def test_a_page_fits_a_phone_and_prints(name: str, opened: Any) -> None:
    one = opened(name, viewport={"width": 390, "height": 844})
    assert one.tab.evaluate("document.documentElement.scrollWidth") <= 390
    one.tab.emulate_media(media="print", color_scheme="dark")
    assert one.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"  # on paper
    assert one.tab.pdf().startswith(b"%PDF-")


@pytest.mark.parametrize("name", KINDS)
def test_no_word_of_a_drawing_is_cut(name: str, opened: Any) -> None:
    cut = opened(name).tab.evaluate("""[...document.querySelectorAll("svg text")].filter(word => {
        const own = word.getBoundingClientRect(), whole = word.ownerSVGElement.getBoundingClientRect();
        return own.width && (own.left < whole.left - 2 || own.right > whole.right + 2 || own.top < whole.top - 2
            || own.bottom > whole.bottom + 2);
    }).map(word => word.textContent)""")
    assert cut == []


def plain(lines: list[str]) -> str:
    """What is told, without the way it is laid out."""
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", [name for name in KINDS if name != "circuit"])
def test_pointing_at_a_mark_shows_its_row_of_the_table(name: str, opened: Any) -> None:
    one = opened(name)
    panels = one.tab.locator(".panel:visible").all()
    assert panels
    for panel in panels[:3]:
        marks, rows = panel.locator(".m:not(text)"), one.rows(panel)
        assert marks.count() == len(rows) > 0
        for number in {0, len(rows) // 2, len(rows) - 1}:
            marks.nth(number).hover(force=True)
            at = marks.evaluate_all("marks => marks.findIndex(mark => mark.classList.contains('on'))")
            assert at == number or panel.locator("path.m").count()  # points of a curve may lie on each other
            assert plain(one.says()) == plain(rows[at][-1].split("; "))
        one.tab.mouse.move(0, 0)
        assert one.says() == []


def test_the_numbers_shown_are_those_of_the_study(opened: Any) -> None:
    one = opened("swaps")
    [row] = [row for row in one.rows(one.tab.locator(".panel").first) if row[:2] == ["1", "·Needle"]]
    assert float(row[2]) == 0.5 + 1 / 16  # of two pairs: 0.5 and 0.625
    one.tab.locator(".panel").first.locator("svg .m").nth(1 * 4 + 2).hover()
    assert one.says() == ["layer 1, token ·Needle", "recovered 0.562 [0.5, 0.625], n = 2"]


@pytest.mark.parametrize("way", ["mouse", "keys"])
def test_a_number_a_pair_and_a_map_are_chosen(way: str, opened: Any) -> None:
    one = opened("interchange")

    def choose(name: str, words: str) -> None:
        select = one.tab.get_by_label(name, exact=True)
        if way == "mouse":
            select.select_option(words)
            return
        select.focus()
        while select.locator("option:checked").inner_text() != words:
            select.press("ArrowDown")

    def shown() -> list[list[str]]:
        panels = one.tab.locator(".panel:visible")
        heads = panels.locator("svg").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
        return [head.split(".")[0] for head in heads]

    maps = [f"{name}_output: Map of recovered, 3 layers by 16 positions" for name in ("block", "mlp")]
    assert shown()[:2] == maps
    choose("maps", "mlp_output")
    assert [head for head in shown() if "Map of" in head] == maps[1:]
    choose("number", "effect")
    assert any("Map of effect" in head for head in shown())
    assert not any("recovered" in head for head in shown())
    choose("pairs", "pair 1")
    [head] = shown()
    assert head.startswith("mlp_output: Map of effect")
    one.tab.locator(".panel:visible .m").first.hover()
    assert "n = 2" not in plain(one.says())


def test_a_map_is_walked_with_the_keys(opened: Any) -> None:
    one = opened("swaps")
    one.tab.locator(".panel .wide").first.focus()
    walked = []
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        one.tab.keyboard.press(key)
        walked.append(one.says()[0])
    wanted = ["layer 2, token The", "layer 1, token The", "layer 1, token ·Space", "layer 2, token ·Space"]
    assert walked == [*wanted, "layer 2, token The", "layer 2, token The"]
    one.tab.keyboard.press("Escape")
    assert one.says() == []


def test_a_table_is_saved_and_copied(opened: Any, tmp_path: Path) -> None:
    one = opened("swaps", permissions=["clipboard-read", "clipboard-write"])
    panel = one.tab.locator(".panel").first
    rows = one.rows(panel)
    with one.tab.expect_download() as kept:
        panel.get_by_role("button", name="Download CSV").click()
    kept.value.save_as(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    assert (head, lines) == (["layer", "token", "recovered", "details"], rows)
    panel.get_by_role("button", name="Copy").click()
    panel.get_by_role("button", name="Copied").wait_for()
    copied = one.tab.evaluate("navigator.clipboard.readText()")
    assert [line.split("\t") for line in copied.split("\n")] == [head, *rows]


def test_a_circuit_is_filtered_and_read(opened: Any) -> None:
    one = opened("circuit")
    slider, edges = one.tab.locator("input[type=range]"), one.tab.locator(".e:not(.off)")
    assert edges.count() == len(SCORES)
    slider.focus()
    for _ in range(len(SCORES) - 2):
        one.tab.keyboard.press("ArrowLeft")
    strongest = sorted(SCORES, key=lambda edge: -abs(SCORES[edge]))[:2]
    assert edges.count() == 2
    kept = edges.evaluate_all("all => all.map(one => one.querySelector('title').textContent)")
    for sender, _ in strongest:
        assert any(sender in words for words in kept)
    one.tab.locator(f'.node[data-n="{strongest[0][0]}"]').focus()
    assert strongest[0][0] in one.tab.locator(".says").inner_text()
    assert "4" in one.tab.locator(".says").inner_text()
