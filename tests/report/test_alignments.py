"""alignments: test numbers in their cells, chosen on validation; the page says all that the table knows."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from tests.report import studies
from tests.report.test_page import read

from align_transformers._errors import SpecError
from align_transformers.report import figure_of, picture, save_page
from align_transformers.report.page_sections import graph_of_variables
from align_transformers.report.panels import Bars, HeatMap
from align_transformers.table import Table


def panels(drawn, kind):
    return [panel for row in drawn.panels for panel in row if isinstance(panel, kind)]


def square(panel, row, column):
    rows, columns = ([labels.line(n) for n in range(len(labels))] for labels in (panel.rows, panel.columns))
    return panel.squares[rows.index(row), columns.index(column)]


def drawn_of(*rows, value=None, **meta):
    return picture(Table.from_rows(rows, meta={"study": "align", "model": "toy", **meta}), value)


def test_cells_are_the_best_on_validation_with_their_test_numbers():
    first, second = panels(picture(studies.alignment()), HeatMap)
    assert (first.title, second.title) == ("var_x", "var_y")
    assert [first.columns.line(n) for n in range(2)] == ["last of {a}", "last"]
    best = square(first, "1", "last")
    assert (best.value, best.marked) == (0.97, True)  # the other seed has 1.0 on test, and less on validation
    assert best.details[:4] == (
        "layer 1, place last", "IIA 0.97 [0.95, 0.99], n = 400", "das, rank 4, seed 1",
        "the best of 2 on validation pairs",
    )  # fmt: skip
    for said in (
        "pairs of the fit 0.99",
        "random subspaces 0.125",
        "new weights 0.25",
        "p 0.02, corrected over the grid",
    ):
        assert said in best.details
    assert sum(one.marked for one in first.squares.values()) == 1
    dropped = square(first, "0", "last")
    assert (dropped.value, dropped.place, dropped.details[-1]) == (None, None, "dropped")
    assert "flags: memorised" in square(second, "1", "last").details


def test_the_scale_goes_from_zero_to_one_and_marks_chance():
    scale = panels(picture(studies.alignment()), HeatMap)[0].scale
    assert (scale.at(0.0), scale.at(0.5), scale.at(1.0), scale.begin) == (0.0, 0.5, 1.0, 0.0)
    assert (0.125, "0.125 chance") in scale.ticks
    assert [place for place, _ in scale.ticks] == sorted(place for place, _ in scale.ticks)
    near = drawn_of(*studies.alignment().rows(), data={"chance": 0.04}).maps[0].scale
    assert (0.0, "0") not in near.ticks  # it would stand on the mark of chance


def test_bars_of_the_chosen_stand_beside_their_controls():
    bars = panels(picture(studies.alignment()), Bars)
    assert [panel.title for panel in bars] == [
        "var_x: block_output of layer 1 at 'last' (das, rank 4)",
        "var_y: block_output of layer 1 at 'last' (das, rank 4)",
        "var_x, c: block_output of layer 1 at 'last' (swap)",
    ]
    found = {bar.label: bar for bar in bars[0].bars}
    assert [*found] == [
        "pairs of the fit", "validation", "test", "full vector", "random subspaces", "permuted labels", "new weights",
    ]  # fmt: skip
    assert (found["test"].value, found["test"].low, found["test"].high) == (0.97, 0.95, 0.99)
    assert [bar.label for bar in bars[0].bars if bar.control] == ["random subspaces", "permuted labels", "new weights"]
    assert found["random subspaces"].details == ("0.125, up to 0.2",)
    assert (bars[0].level, bars[0].level_name, bars[0].share) == (0.125, "chance", True)


def test_beside_a_chosen_swap_stands_the_best_that_has_controls():
    none = dict.fromkeys(("random", "random_high", "p", "p_corrected", "permuted", "reinitialised"))
    swap = studies.hypothesis("v", 1, method="swap", rank=None, validation=1.0, iia=1.0, chosen=True, **none)
    fitted = studies.hypothesis("v", 1)
    drawn = drawn_of(swap, fitted)
    assert [panel.title for panel in panels(drawn, Bars)][1:] == ["v: block_output of layer 1 at 'last' (das, rank 4)"]
    [table] = [section for section in drawn.sections if section.title.startswith("The chosen")]
    assert [line[2] for line in table.rows] == ["swap, 4 dimensions", "das, rank 4"]
    elsewhere = panels(drawn_of({**swap, "layer": 2}, fitted), Bars)
    assert len(elsewhere) == 3  # both, and the bars of all cells


def test_heads_are_columns_within_places():
    rows = [studies.hypothesis("v", 2, "last", component="head_output", head=head) for head in (1, 0)]
    assert [drawn_of(*rows).maps[0].columns.line(n) for n in range(2)] == ["0", "1"]
    further = [studies.hypothesis("v", 2, "first", component="head_output", head=0)]
    columns = drawn_of(*rows, *further).maps[0].columns
    assert [columns.line(n) for n in range(3)] == ["last, 0", "last, 1", "first, 0"]


def test_positions_go_from_the_left_those_from_the_end_last():
    rows = [studies.hypothesis("v", 1, None, position=place) for place in (-1, 3, 0)]
    columns = drawn_of(*rows).maps[0].columns
    assert (columns.name, [columns.line(n) for n in range(3)]) == ("position", ["0", "3", "-1"])


def test_methods_and_components_have_maps_of_their_own():
    rows = [
        studies.hypothesis("v", layer, method=method, component=component)
        for layer in (0, 1) for method in ("das", "swap") for component in ("block_output", "mlp_output")
    ]  # fmt: skip
    titles = [panel.title for panel in drawn_of(*rows).maps]
    assert titles == ["v, das, block_output", "v, das, mlp_output", "v, swap, block_output", "v, swap, mlp_output"]


def test_hypotheses_without_a_map_are_bars_all_of_them():
    rows = [studies.hypothesis("v", None, None, component=name, iia=0.5) for name in ("hidden.0", "hidden.1")]
    cells, chosen = panels(drawn_of(*rows, data={"chance": 0.1}), Bars)
    assert [bar.label for bar in cells.bars] == ["hidden.0 (das, rank 4)", "hidden.1 (das, rank 4)"]
    assert [(bar.value, bar.low) for bar in cells.bars] == [(0.5, 0.15)] * 2
    assert chosen.title == "v: hidden.0 (das, rank 4)"
    assert not drawn_of(*rows[:1]).maps


def test_another_number_can_be_drawn():
    table = studies.alignment()
    assert square(picture(table, "full").maps[0], "1", "last").value == 0.98
    assert square(picture(table, "full").maps[0], "1", "last").details[1] == "full vector 0.98"  # it has no interval
    assert picture(table, "dimensions").maps[0].scale.whole == 4
    with pytest.raises(SpecError, match="no number in 'flags': value is one of train"):
        picture(table, "flags")


def test_the_verdict_is_what_is_found_that_of_the_search_if_it_has_one():
    assert picture(studies.alignment()).findings[0].startswith("var_x: block_output of layer 1 at 'last'")
    assert picture(studies.alignment()).findings[1].startswith("var_y: not shown")
    assert drawn_of(studies.hypothesis("v", 0), verdict=["as it was said"]).findings == ("as it was said",)


def test_controls_are_grey_and_chance_a_line_in_the_figure():
    table = studies.alignment()
    figure = figure_of(picture(table))
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("var_x: "))
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == ["#2171b5"] * 4 + ["#8a8a8a"] * 3
    assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"] == [[0.125, 0.125]]
    assert axes.get_xlim() == (0, 1.03)


def test_low_maps_stand_side_by_side_below_a_scale_that_can_be_read():
    rows = [studies.hypothesis("v", layer, method=method) for layer in (0, 1) for method in ("das", "swap")]
    figure = figure_of(drawn_of(*rows, data={"chance": 0.11}))
    maps = [axes for axes in figure.axes if axes.get_title(loc="left") in ("v, das", "v, swap")]
    assert len({(axes.get_position().y0, axes.get_position().y1) for axes in maps}) == 1
    [scale] = [axes for axes in figure.axes if "0.11 chance" in [tick.get_text() for tick in axes.get_yticklabels()]]
    figure.draw_without_rendering()
    words = sorted((tick.get_window_extent() for tick in scale.get_yticklabels()), key=lambda box: box.y0)
    assert all(low.y1 < high.y0 + 2 for low, high in pairwise(words))
    assert scale.get_position().y1 < 0.93  # below the heading


def test_the_table_draws_itself():
    table = studies.alignment()
    assert table.plot().axes[0].get_title(loc="left") == "var_x"
    assert "No picture" not in table._repr_html_()
    assert len(table.plot("train").axes) == len(table.plot().axes)


def test_the_page_says_it_all_in_its_order(tmp_path):
    reader = read(save_page(studies.alignment(), tmp_path / "a.html"))
    assert reader.loads == []
    text = " ".join(reader.text.split())
    order = (
        "Verdict", "var_x: block_output of layer 1", "Hypothesis", "sum = a + b + c <b>",
        "var_x is made of a, b (4 values).", "Inputs: a (4 values), b (4 values), c (4 values).", "Output: sum.",
        "Data", ".99 of the prompts", ".98 of the pairs are kept", ".07 of the test pairs are trivial",
        "31 trivial pairs are left out", "var_x: 1.00 of the test pairs keep", "1200 pairs, 60 entities",
        "Examples", "1+2+3=", "var_x: 2+2+0=", "The chosen hypotheses", ".97 [.95, .99]", ".12 (up to .20)",
        ".25 (fit: .60)", "Point at a cell", "Flags", "var_y: ...", "yes", "memorised", "yes",
        "far above unseen ones", "train: 1", "off manifold", "no", "as far out", "Selection", "12", ".01",
        "Where it fails", "var_x: where it does not, 4 of 5 bases have a = 3; elsewhere 1 of 20 (p 0.01).",
        "IIA .99, 350 pairs, 12 bases, 20 sources", "IIA .40, 50 pairs", "3.5", "1.1", "Search", "25", "Settings",
        "das, swap", "Identity", "abc", "Versions", "Cost", "full: 3", "made with",
    )  # fmt: skip
    at = 0
    for said in order:
        assert said in text[at:], said
        at = text.index(said, at)
    assert reader.tags.count("svg") == 1 + reader.tags.count("figure")  # the graph of the causal model, and the panels
    assert "prefers-color-scheme: dark" in reader.styles


def test_a_page_of_a_bare_table_has_what_there_is(tmp_path):
    table = Table.from_rows([studies.hypothesis("v", 0)], meta={"study": "align", "model": "toy"})
    text = read(save_page(table, tmp_path / "a.html")).text
    assert "The chosen hypotheses" in text
    assert "No flag was raised." in text
    assert not {"Hypothesis", "Data", "Selection", "Where it fails"} & set(text.split("\n"))


def test_texts_of_the_user_are_not_html(tmp_path):
    evil = '<script>alert("1")</script><i>'
    meta = dict(studies.alignment().meta)
    meta["causal_model"] = {"variables": {evil: {"parents": []}, "b": {"parents": [evil]}}, "text": evil}
    meta |= {"examples": [{evil: evil}], "settings": {evil: evil}, "verdict": [evil], "identity": evil}
    meta["flags"] = [{"variables": evil, "flag": evil, "explanation": evil}]
    rows = [studies.hypothesis(evil, layer, evil, flags=evil, chosen=True, method=evil) for layer in (0, 1)]
    reader = read(save_page(Table.from_rows(rows, meta=meta), tmp_path / "a.html"))
    assert "i" not in reader.tags
    assert not any(script.startswith("alert") for script in reader.scripts)
    assert reader.text.count("<script>alert") > 10


def test_the_graph_has_inputs_below_and_an_arrow_a_parent():
    drawn = graph_of_variables({"x": ["a", "b"], "a": [], "b": [], "out": ["x", "b"]})
    heights = {}
    for part in drawn.split("<text ")[1:]:
        attributes, _, name = part.split("</text>")[0].partition(">")
        heights[name] = float(attributes.split('y="')[1].split('"')[0])
    assert heights["out"] < heights["x"] < heights["a"] == heights["b"]
    assert drawn.count("<line ") == 4
    assert 'aria-label="x of a, b; out of x, b"' in drawn
