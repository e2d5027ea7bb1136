"""page: one file that asks the network for nothing and holds what hovering should show."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import pytest

from align_transformers.report import Picture, page_of, save_page
from align_transformers.report.colours import DARK, LIGHT, css, shade
from align_transformers.report.panels import Bar, Bars, Curve, CurveLine, CurvePoint

LOADS = {"src", "href", "data", "action", "poster", "srcset", "background", "manifest"}


class Reader(HTMLParser):
    """Collects the text outside scripts, the scripts, the styles and every attribute that loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.loads, self.tags = [], [], []
        self.text, self.scripts, self.styles = "", [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [(tag, name, value) for name, value in attrs if name in LOADS or (value or "").startswith("http")]
        if tag not in {"meta", "br", "link", "img"}:
            self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.inside[-1:] == ["style"]:
            self.styles += data
        else:
            self.text += data


def read(path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.inside == []  # every element is closed
    return reader


def panels(reader: Reader) -> list[dict]:
    """The data behind each panel: names of columns, and a row for each mark of its drawing."""
    return [json.loads(script) for script in reader.scripts if script.startswith('{"head"')]


def cells(path) -> list[tuple[str, float, float]]:
    """The class, x and y of each cell that is drawn in what is shown first, in order."""
    shown = path.read_text().split('<div class="view"')[1]
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="21" class="m (\w+)"/>', shown)
    return [(kind, float(x), float(y)) for x, y, kind in found]


def colour_of(kind: str, reader: Reader, *, dark: bool = False) -> str:
    """The colour that a class of cells has in a theme."""
    light, night = reader.styles.split("@media screen and (prefers-color-scheme: dark)")[:2]
    return re.search(rf"\.{kind}{{--g:(#\w+)", night if dark else light)[1]


def test_the_page_loads_nothing(make_table, tmp_path):
    reader = read(save_page(make_table(), tmp_path / "trace.html"))
    assert reader.loads == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(reader.tags)
    assert not re.search(r"@import|url\(", reader.styles)
    assert not any(re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?://", script) for script in reader.scripts)


def test_a_page_of_a_whole_map_is_small(make_table, tmp_path):
    table = make_table(tokens=[f" word{n}" for n in range(12)])
    assert os.path.getsize(save_page(table, tmp_path / "a.html")) < 300_000


def test_hovering_shows_layer_token_position_effect_and_predictions(make_table, tmp_path):
    data, other = panels(read(save_page(make_table(), tmp_path / "trace.html")))
    assert data["head"] == ["layer", "token", "recovered", "details"]
    assert other["head"] == ["layer", "token", "effect", "details"]  # which may be chosen instead
    told = {tuple(row[:2]): row[2:] for row in data["rows"]}
    value, says = told["10", "·Spain → ·Italy"]
    assert value == 0.99
    for shown in ("·Spain → ·Italy", "layer 10, position 3", "recovered 0.99", "effect +11.88", "50.0%  ·Rome", "↵"):
        assert shown in "\n".join(says)
    assert "50.0%  ·Madrid" in "\n".join(told["10", "·is"][1])


def test_the_values_places_and_colours_are_the_tables(make_table, tmp_path):
    table = make_table(lambda layer, position: layer / 100 + position / 10 if layer else None)
    path = save_page(table, tmp_path / "trace.html")
    reader = read(path)
    data = panels(reader)[0]
    drawn = cells(path)
    assert len(drawn) == len(data["rows"]) == 150
    deepest, first = (
        [(row, cell) for row, cell in zip(data["rows"], drawn, strict=True) if row[0] == layer] for layer in ("29", "0")
    )
    assert [row[2] for row, _ in deepest] == [0.29, 0.39, 0.49, 0.59, 0.69]
    assert {y for _, (_, _, y) in deepest} == {min(y for _, _, y in drawn)}  # on top
    assert [x for _, (_, x, _) in deepest] == sorted({x for _, x, _ in drawn})  # from the left
    for row, (kind, _, _) in deepest:
        for dark, scale in ((False, LIGHT), (True, DARK)):
            assert colour_of(kind, reader, dark=dark) == css(shade(round(row[2] * 40) / 40, scale))
    assert [(row[2], kind) for row, (kind, _, _) in first] == [(None, "u")] * 5
    assert path.read_text().split('<div class="view"')[1].count('class="c u">-</text>') == 5  # of what is shown first


def test_zero_has_the_same_colour_with_negative_values(make_table, tmp_path):
    path = save_page(make_table(lambda layer, _: -0.9 if layer else 0.0), tmp_path / "trace.html")
    reader = read(path)
    assert {kind for kind, _, _ in cells(path)} == {"n36", "p0"}
    assert colour_of("p0", reader) == css(shade(0.0, LIGHT))
    assert colour_of("n36", reader) == css(shade(-0.9, LIGHT))
    assert [tick for tick in ("-1", "-0.5", "0.5") if f">{tick}</text>" in path.read_text()] == ["-1", "-0.5", "0.5"]


def test_a_newcomer_is_told_what_it_is(make_table, tmp_path):
    text = " ".join(read(save_page(make_table(), tmp_path / "trace.html")).text.split())
    for stated in (
        "Where one swapped activation turns “Madrid” into “Rome”",
        "base The capital of Spain is → Madrid",
        "source The capital of Italy is → Rome",
        "was replaced by the state that the source prompt produces there",
        "clean values-5.00 on the base, +7.00 on the source",
        "smollm2-135m",
        "align-transformers 0.1.0",
    ):
        assert stated in text


def test_the_flips_are_outlined_only_where_there_are_any(make_table, tmp_path):
    table = make_table()
    flips = sum(value >= 0.9 for value in table.columns["recovered"])
    path = re.search(r'class="outline" d="([^"]*)"', save_page(table, tmp_path / "a.html").read_text())[1]
    assert path.count("M") == 2 * flips + 4  # two columns of cells, one above the other: their sides and four ends
    assert 'class="outline"' not in save_page(make_table(lambda *_: 0.2), tmp_path / "b.html").read_text()


def test_texts_of_the_model_are_not_html(make_table, tmp_path):
    evil = "</script><script>alert(1)</script><b>&"
    table = make_table(tokens=[evil, "$title", " ok"], base_answer=evil, source_answer=" <i>", model=evil, metric=evil)
    reader = read(save_page(table, tmp_path / "evil.html"))
    assert "i" not in reader.tags[reader.tags.index("h1") : reader.tags.index("p")]
    assert "alert" in reader.text  # shown as text
    assert not any(script.startswith("alert") for script in reader.scripts)
    assert "$title" in reader.text
    assert any(evil in "".join(row[-1]) for row in panels(reader)[0]["rows"])  # the script of the page shows it as text
    assert not any("innerHTML" in script for script in reader.scripts)


def test_bars_have_a_line_from_end_to_end_of_each_interval(tmp_path):
    drawn = Picture("t", ((Bars("", "x", (Bar("a", 2.0, 1.0, 4.0), Bar("b", -1.0), Bar("c", 1.0, control=True))),),))
    path = tmp_path / "bars.html"
    path.write_text(page_of(drawn), encoding="utf-8")
    reader, text = read(path), path.read_text()
    assert [row[:4] for row in panels(reader)[0]["rows"]] == [
        ["a", 2.0, 1.0, 4.0], ["b", -1.0, None, None], ["c", 1.0, None, None]
    ]  # fmt: skip
    assert panels(reader)[0]["rows"][0][-1] == ["a", "2 [1, 4]"]
    drawn = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="18" class="bar (\w+)"/>', text)
    assert [kind for *_, kind in drawn] == ["l0", "l1", "lc"]
    (a, b, c) = [(float(x), float(wide), float(y)) for x, y, wide, _ in drawn]
    assert a[2] < b[2] < c[2]  # the first on top
    assert (a[1], b[0] + b[1]) == pytest.approx((2 * c[1], a[0]), abs=0.15)  # b ends where a begins, at 0
    middle, left, right = re.findall(r'<path d="M([\d.]+) [\d.]+L([\d.]+) [\d.]+" class="end"/>', text)
    assert float(left[0]) == float(middle[0]) == pytest.approx(a[0] + a[1] / 2, abs=0.15)
    assert float(right[0]) == float(middle[1]) == pytest.approx(a[0] + 2 * a[1], abs=0.15)


def test_a_curve_has_its_points_and_the_band_of_its_intervals_at_their_places(tmp_path):
    points = (CurvePoint(0, 0.5, 0.25, 1.0), CurvePoint(2, 1.0, 0.5, 1.0), CurvePoint(4, None))
    path = tmp_path / "curve.html"
    drawn = Curve("", "layer", "IIA", (CurveLine("a", points), CurveLine("b", points[:2], control=True)), share=True)
    path.write_text(page_of(Picture("t", ((drawn,),))), encoding="utf-8")
    text = path.read_text()
    [data] = panels(read(path))
    assert [row[:5] for row in data["rows"]] == [
        [name, *own] for name in "ab" for own in ([0, 0.5, 0.25, 1.0], [2, 1.0, 0.5, 1.0])
    ]
    assert data["rows"][0][-1] == ["a", "layer 0", "0.5 [0.25, 1]"]
    marks = re.findall(r'translate\(([\d.]+) ([\d.]+)\)" d="[^"]*" class="m mark (\w+)"', text)
    assert [kind for *_, kind in marks] == ["l0", "l0", "lc", "lc"]
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y, _ in marks[:2])
    band = re.search(r'd="M([^"Z]*)Z" class="band l0"', text)[1]
    assert x0 < x1
    ends = [tuple(map(float, point.split())) for point in band.split("L")]
    step = (y0 - y1) / 0.5  # of 1
    wanted = [(x0, y1), (x1, y1), (x1, y1 + 0.5 * step), (x0, y1 + 0.75 * step)]
    assert [one for end in ends for one in end] == pytest.approx([one for end in wanted for one in end], abs=0.15)


def test_every_drawing_says_what_it_shows(make_table, tmp_path):
    text = save_page(make_table(), tmp_path / "trace.html").read_text()
    alt = re.search(r'<svg role="img" aria-label="([^"]*)"', text)[1]
    assert alt == (
        "Map of recovered, 30 layers by 5 tokens. Largest: 1 at layer 0, token ·Spain → ·Italy. Smallest: -0.03 at "
        "layer 0, token ·is."
    )
    assert f"{alt}</figcaption>" in text


def test_both_themes_are_served(make_table, tmp_path):
    reader = read(save_page(make_table(), tmp_path / "trace.html"))
    assert colour_of("p40", reader) != colour_of("p40", reader, dark=True)
    assert "@media print" in reader.styles


def test_a_failed_write_leaves_the_old_page(make_table, tmp_path, monkeypatch):
    path = tmp_path / "trace.html"
    path.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_page(make_table(layers=2), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["trace.html"]
