"""page: one file that asks the network for nothing and holds what hovering should show."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser

import pytest

from align_transformers.report import Picture, page_of, save_page
from align_transformers.report.colours import LIGHT, css, shade
from align_transformers.report.figure_charts import COLOURS, style_of
from align_transformers.report.panels import Bar, Bars, CurveLine

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


def traces(reader: Reader) -> list[dict]:
    """The data that plotly is called with."""
    [script] = [s for s in reader.scripts if "Plotly.newPlot(" in s and len(s) < 1_000_000]
    start = script.index("[", script.index("Plotly.newPlot("))
    return json.JSONDecoder().raw_decode(script[start:])[0]


def test_the_page_loads_nothing(make_table, tmp_path):
    reader = read(save_page(make_table(), tmp_path / "trace.html"))
    assert reader.loads == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(reader.tags)
    assert not re.search(r"@import|url\(", reader.styles)
    ours = [script for script in reader.scripts if len(script) < 1_000_000]
    assert len(ours) == len(reader.scripts) - 1  # plotly itself, once
    assert not any(re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?://", script) for script in ours)


def test_hovering_shows_layer_token_position_effect_and_predictions(make_table, tmp_path):
    heat = traces(read(save_page(make_table(), tmp_path / "trace.html")))[0]
    hover = heat["customdata"][10][3]
    for shown in ("·Spain → ·Italy", "layer 10, position 3", "recovered 0.99", "effect +11.88", "50.0%  ·Rome", "↵"):
        assert shown in hover
    assert "50.0%  ·Madrid" in heat["customdata"][10][4]
    assert heat["hovertemplate"] == "%{customdata}<extra></extra>"


def test_the_values_and_colours_are_the_tables(make_table, tmp_path):
    table = make_table(lambda layer, position: layer / 100 + position / 10 if layer else None)
    heat, unknown = traces(read(save_page(table, tmp_path / "trace.html")))
    assert heat["z"][29] == [0.29 + p / 10 for p in range(5)]
    assert heat["z"][0] == [None] * 5
    assert heat["text"][29][4] == "0.69"
    assert heat["text"][0][0] == ""
    assert (unknown["mode"], unknown["text"], unknown["x"], unknown["y"]) == ("text", ["-"] * 5, [*range(5)], [0] * 5)
    assert "textfont" not in unknown  # it has the colour of the page's text, in both themes
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    assert heat["colorscale"][0] == [0, css(shade(0.0, LIGHT))]
    assert heat["colorscale"][-1] == [1, css(shade(1.0, LIGHT))]


def test_the_scale_keeps_its_anchors_with_negative_values(make_table, tmp_path):
    heat = traces(read(save_page(make_table(lambda *_: -0.9), tmp_path / "trace.html")))[0]
    assert heat["zmin"] == -1
    assert heat["colorscale"][20] == [0.5, css(shade(0.0, LIGHT))]


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
    heat, outline = traces(read(save_page(make_table(), tmp_path / "a.html")))
    assert heat["type"] == "heatmap"
    assert outline["type"] == "scatter"
    assert len(traces(read(save_page(make_table(lambda *_: 0.2), tmp_path / "b.html")))) == 1


def test_texts_of_the_model_are_not_html(make_table, tmp_path):
    evil = "</script><script>alert(1)</script><b>&"
    table = make_table(tokens=[evil, "$title", " ok"], base_answer=evil, source_answer=" <i>", model=evil, metric=evil)
    reader = read(save_page(table, tmp_path / "evil.html"))
    assert "i" not in reader.tags[reader.tags.index("h1") : reader.tags.index("p")]
    assert "alert" in reader.text  # shown as text
    assert not any(script.startswith("alert") for script in reader.scripts)
    assert "$title" in reader.text
    heat = traces(reader)[0]
    assert "<script>" not in heat["customdata"][0][0]
    assert "&lt;script&gt;" in heat["customdata"][0][0]


def test_bars_have_a_line_from_end_to_end_of_each_interval(tmp_path):
    drawn = Picture("t", ((Bars("", "x", (Bar("a", 2.0, 1.0, 4.0), Bar("b", -1.0), Bar("c", 1.0, control=True))),),))
    path = tmp_path / "bars.html"
    path.write_text(page_of(drawn), encoding="utf-8")
    bars, ends = traces(read(path))
    assert (bars["x"], bars["y"]) == ([1.0, -1.0, 2.0], [0, 1, 2])  # the first on top
    assert bars["marker"]["color"] == [style_of(CurveLine("", (), True), 0)[0], COLOURS[1], COLOURS[0]]
    assert (ends["x"], ends["y"]) == ([1.0, 4.0, None], [2, 2, None])
    assert "a" in bars["customdata"][2]
    assert "2 [1, 4]" in bars["customdata"][2]


def test_both_themes_are_served(make_table, tmp_path):
    reader = read(save_page(make_table(), tmp_path / "trace.html"))
    assert "prefers-color-scheme: dark" in reader.styles
    assert "prefers-color-scheme: dark" in reader.scripts[-1]
    outline = traces(reader)[1]
    assert f'trace.meta === "{outline["meta"]}"' in reader.scripts[-1]  # so it goes with the theme


def test_a_failed_write_leaves_the_old_page(make_table, tmp_path, monkeypatch):
    path = tmp_path / "trace.html"
    path.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_page(make_table(layers=2), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["trace.html"]
