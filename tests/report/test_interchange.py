"""drawing and colours: what all reports share."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align_transformers._errors import SpecError
from align_transformers.report import facts, in_terminal, save_figure, save_page, summary
from align_transformers.report.colours import DARK, LIGHT, ink, shade
from align_transformers.report.interchange import arrange
from align_transformers.report.words import visible
from align_transformers.table import Table


@given(st.text())
def test_visible_tokens_have_no_white_space_and_nothing_unprintable(token):
    shown = visible(token)
    assert shown
    assert shown.isprintable()
    assert " " not in shown


@pytest.mark.parametrize("scale", [LIGHT, DARK], ids=["light", "dark"])
def test_the_scale_is_anchored(scale):
    anchors = dict(scale)
    assert shade(0.0, scale) == anchors[0.0]
    assert shade(1.0, scale) == shade(1.7, scale) == anchors[1.0]
    assert shade(-1.0, scale) == shade(-9.0, scale) == anchors[-1.0]


@given(st.floats(-2, 2))
def test_numbers_are_readable_on_their_ground(value):
    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
        return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True))

    for scale in (LIGHT, DARK):
        ground = shade(value, scale)
        dark, light = sorted((luminance(ground), luminance(ink(ground))))
        assert (light + 0.05) / (dark + 0.05) >= 4  # WCAG's contrast ratio; 3 is asked of large text, 4.5 of small


def test_the_outline_encloses_the_flips_and_nothing_else(make_table):
    flips = {(0, 1), (0, 2), (1, 1)}
    panel = arrange(make_table(lambda layer, p: float((layer, p) in flips), layers=4)).heat_map()
    edges = panel.outline()
    assert len(edges) == 8  # three cells in an L: 12 sides, two pairs touch
    assert ((0.5, -0.5), (0.5, 0.5)) in edges  # left of layer 0, position 1
    assert ((1.5, -0.5), (1.5, 0.5)) not in edges  # between two cells that both flip


def test_another_answer_than_both_is_no_flip(make_table):
    rows = [{**row, "top_tokens": [" Lisbon", " Rome"], "top_probabilities": [0.6, 0.2]} for row in make_table().rows()]
    drawing = arrange(Table.from_rows(rows, meta=make_table().meta))
    assert not any(cell.flips for cell in drawing.cells.values())


@pytest.mark.parametrize(
    ("least", "low"), [(0.3, 0.0), (-0.05, 0.0), (-0.2, -0.25), (-0.5, -0.5), (-0.9, -1.0), (-7.0, -1.0)]
)
def test_the_scale_begins_where_the_values_ask_for_it(make_table, least, low):
    assert arrange(make_table(lambda *_: least, layers=2)).low == low


def without_answers(table):
    """The same table as a sweep gives it whose metric needs two tokens only."""
    rows = [{name: value for name, value in row.items() if not name.startswith("top")} for row in table.rows()]
    meta = {name: value for name, value in table.meta.items() if not name.endswith(("_answer", "_says"))}
    return Table.from_rows(rows, meta=meta)


def test_a_table_that_does_not_know_the_answers_is_drawn(make_table, tmp_path):
    from rich.console import Console

    table = without_answers(make_table(layers=3))
    assert not arrange(table).tells_flips
    found = facts(table)
    assert json.dumps(found)
    assert (found["flips"], found["base_answer"]) == (None, None)
    assert found["largest"]["layer"] == facts(make_table(layers=3))["largest"]["layer"]
    assert summary(table).startswith("The largest effect is at layer 0, token 3")
    console = Console(record=True, width=100, color_system=None)
    console.print(in_terminal(table))
    assert "model's answer" not in console.export_text()
    assert save_figure(table, tmp_path / "a.png").exists()
    assert "encloses" not in save_page(table, tmp_path / "a.html").read_text()


def test_one_pair_of_several_is_drawn_with_its_own_prompts(make_table):
    first, second = make_table(layers=2), make_table(layers=2, base_answer=" Lima", base="Peru is", base_value=-1.0)
    rows = [{**row, "pair": n, "direction": "denoise"} for n, one in enumerate((first, second)) for row in one.rows()]
    lists = {
        name: [one.meta[name] for one in (first, second)] for name in first.meta if name.startswith(("base", "source"))
    }
    table = Table.from_rows(rows, meta={**first.meta, **lists, "pairs": 2})
    with pytest.raises(SpecError, match=r"draw one pair, direction and head at a time"):
        arrange(table)
    drawing = arrange(table.select(where={"pair": 1}))
    assert (drawing.base, drawing.base_answer, drawing.meta["base_value"]) == ("Peru is", "Lima", -1.0)
    assert arrange(table.select(where={"pair": 0})).base_answer == "Madrid"


@pytest.mark.parametrize("change", [{"direction": "noise"}, {"layer": None}, {"position": None}])
def test_what_the_figures_do_not_show_is_refused(make_table, change):
    rows = [{**row, **change} for row in make_table(layers=1).rows()]
    with pytest.raises(SpecError, match=r"reports draw swaps of the source.*table.pivot"):
        arrange(Table.from_rows(rows, meta=make_table().meta))


def test_a_selection_without_rows_is_not_drawn(make_table):
    with pytest.raises(SpecError, match="no rows, so there is nothing to draw"):
        arrange(make_table().select(where={"layer": 99}))
