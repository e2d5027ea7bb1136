"""kinds: every study's table becomes the picture that its planted values ask for, in every renderer."""

from __future__ import annotations

import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import studies
from tests.report.test_page import read

from align_transformers._errors import SpecError, UnknownNameError
from align_transformers.report import Shown, facts, figure_of, page_of, picture, save_figure
from align_transformers.report.panels import Bars, ColourScale, Curve
from align_transformers.report.views import views_of
from align_transformers.table import Table

STUDIES = studies.STUDIES


def square(panel, row, column):
    """The cell at labels of a row and a column."""
    rows, columns = ([labels.line(n) for n in range(len(labels))] for labels in (panel.rows, panel.columns))
    return panel.squares[rows.index(row), columns.index(column)]


def panels(drawn, kind):
    return [panel for row in drawn.panels for panel in row if isinstance(panel, kind)]


def tops(panel):
    return [panel.rows.line(n) for n in range(len(panel.rows))]


@pytest.mark.parametrize("name", STUDIES)
def test_all_renderers_draw_every_study_with_all_words_inside(name):
    drawn = picture(STUDIES[name]())
    figure = figure_of(drawn)
    figure.draw_without_rendering()
    drawn_in = figure.get_tightbbox()
    assert (drawn_in.x0 >= 0, drawn_in.y0 >= 0) == (True, True)
    assert drawn_in.x1 <= figure.get_figwidth()
    assert drawn_in.y1 <= figure.get_figheight()
    for width in (50, 100):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(Shown(drawn))
        lines = console.file.getvalue().splitlines()
        assert max(cell_len(line.rstrip()) for line in lines) <= width
    page_of(drawn)


@pytest.mark.parametrize("name", STUDIES)
def test_pages_load_nothing_and_close_what_they_open(name, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page_of(picture(STUDIES[name]())), encoding="utf-8")
    reader = read(path)
    assert reader.loads == []
    assert len(path.read_bytes()) < 100_000
    panel_count = sum(len(row) for row in picture(STUDIES[name]()).panels)
    assert reader.tags.count("figure") == panel_count
    assert sum(script.startswith('{"head"') for script in reader.scripts) == panel_count


@pytest.mark.parametrize("name", STUDIES)
def test_a_choice_is_what_its_name_says(name):
    views = views_of(STUDIES[name]())
    assert views.first == picture(STUDIES[name]())
    numbers, pairs = views.choices.get("number", ("",)), views.choices.get("pairs", ("",))
    assert set(views.others) == {(n, k) for n in range(len(numbers)) for k in range(len(pairs))} - {(0, 0)}
    assert len(views.others) >= {"lens": 1, "swaps": 1, "paths": 3}.get(name, 0)
    for (n, _), drawn in {**views.others, (0, 0): views.first}.items():
        assert all(numbers[n] in one.scale.name.replace("_", " ") for one in drawn.maps), numbers[n]


@pytest.mark.parametrize("name", STUDIES)
def test_findings_are_json(name):
    found = facts(STUDIES[name]())["findings"]
    assert found == json.loads(json.dumps(found))
    assert found


def test_restorations_have_layers_from_below_and_tokens_from_the_left():
    first, second = picture(studies.tracing()).maps
    assert (first.title, second.title) == ("block_output", "mlp_output")
    assert tops(first) == ["2", "1", "0"]
    assert [first.columns.line(n) for n in range(4)] == ["The*", "·Space*", "·Needle*", "·is"]
    assert square(first, "1", "·Needle*").value == 0.75
    assert square(first, "2", "·is").value == -0.25
    assert "indirect effect 0.75 [0.65, 0.95], n = 4" in square(first, "1", "·Needle*").details


def test_a_scale_with_a_sign_is_centred_at_zero():
    scale = picture(studies.tracing()).maps[0].scale
    assert (scale.begin, scale.whole, scale.at(0.0)) == (-1.0, 0.8, 0.0)
    assert scale.at(0.4) == -scale.at(-0.4) == 0.5


def test_one_draw_of_noise_is_not_drawn():
    with pytest.raises(SpecError, match="one draw of the noise has no interval"):
        picture(studies.tracing(draws=1))
    assert picture(studies.tracing(draws=1, noise=None)).maps  # a counterfactual prompt: nothing was drawn


def test_several_prompts_are_averaged_by_role_with_the_interval_over_prompts():
    drawn = picture(studies.tracing(prompts=3))
    panel = drawn.maps[0]
    assert [panel.columns.line(n) for n in range(4)] == studies.ROLES
    found = square(panel, "1", "last subject token")
    assert found.value == pytest.approx(0.75 + 0.125)
    assert "[0.75, 1]" in found.details[1]
    assert "n = 3" in found.details[1]
    line = panels(drawn, Curve)[0].lines[0]
    assert (line.name, [point.y for point in line.points]) == ("last subject token", [0.125, 0.875, 0.125])
    assert (line.points[1].low, line.points[1].high) == (0.75, 1.0)


def test_several_tokens_of_a_role_are_one_number_of_a_prompt():
    rows = [
        {**row, "role": row["role"].replace("first subject token", studies.ROLES[1])}
        for row in studies.tracing(3).rows()
    ]
    panel = picture(Table.from_rows(rows, meta=studies.tracing(3).meta)).maps[0]
    assert "n = 3" in square(panel, "0", "middle subject tokens").details[1]


def test_named_places_are_columns():
    rows = [{**row, "place": f"p{row['position']}", "role": None} for row in studies.tracing().rows()]
    panel = picture(Table.from_rows(rows, meta=studies.tracing().meta)).maps[0]
    assert [panel.columns.line(n) for n in range(4)] == ["p0", "p1", "p2", "p3"]


def test_paths_are_by_head_with_mlps_beside_them():
    drawn = picture(studies.paths())
    [panel] = drawn.maps
    assert [panel.columns.line(n) for n in range(3)] == ["0", "1", "MLP"]
    assert square(panel, "2", "1").value == 3.125
    assert square(panel, "0", "MLP").value == -1.875
    assert panel.scale.begin == -1
    [bars] = panels(drawn, Bars)
    assert [(bar.label, bar.low, bar.high) for bar in bars.bars[:2]] == [("a2.h1", 3.0, 3.25), ("m0", -2.0, -1.75)]


def test_senders_together_are_bars():
    rows = [{**row, "sender": f"{row['sender']}+x", "layer": None, "head": None} for row in studies.paths().rows()]
    drawn = picture(Table.from_rows(rows, meta=studies.paths().meta))
    assert drawn.maps == ()
    assert panels(drawn, Bars)[0].bars[0].label == "a2.h1+x"


def test_hypotheses_are_bars_with_intervals_and_without_one_are_not_drawn():
    both = Table.concat({"naive": studies.scrubbing(0.25), "refined": studies.scrubbing()}, name="hypothesis")
    recovered, losses = panels(picture(both), Bars)
    found = [(bar.label, bar.value, bar.low, bar.high) for bar in recovered.bars]
    assert found == [("naive", 0.25, 0.25, 0.75), ("refined", 0.5, 0.25, 0.75)]
    assert {bar.label: bar.value for bar in losses.bars}["scrubbed: refined"] == 2.25
    with pytest.raises(SpecError, match="one resample has no interval"):
        picture(studies.scrubbing(low=None))


def test_a_lens_shows_tokens_coloured_by_the_answer():
    drawn = picture(studies.lens())
    [panel] = drawn.maps
    last = square(panel, "2", "·is")
    assert (last.text, last.value, last.place, last.marked) == ("·Seattle", 0.5, 0.5, True)
    assert (square(panel, "0", "The").text, square(panel, "0", "The").marked) == ("↵", False)
    assert (panel.scale.begin, panel.scale.at(1.0)) == (0.0, 1.0)
    assert drawn.findings == (
        "block_output: at the last token read, “Seattle” is the most probable token from layer 2 on.",
    )


def test_ranks_are_darkest_at_the_top():
    panel = picture(studies.lens(), "rank").maps[0]
    assert square(panel, "2", "·is").place == 1.0
    assert square(panel, "0", "The").place == 0.0
    assert panel.scale.ticks[0] == (1.0, "0")


def test_a_lens_of_several_prompts_is_a_curve_at_their_last_tokens():
    [curve] = panels(picture(studies.lens(3)), Curve)
    [line] = curve.lines
    assert [(point.x, point.y) for point in line.points] == [(0, 0.25), (1, 0.25), (2, 0.625)]
    assert (line.points[2].low, line.points[2].high) == (0.5, 0.75)


def test_attributions_are_a_map_and_sums():
    drawn = picture(studies.attribution())
    [panel] = drawn.maps
    assert square(panel, "1", "0").value == 4.0
    assert square(panel, "0", "MLP").value == -1.0
    [bars] = panels(drawn, Bars)
    assert {bar.label: bar.value for bar in bars.bars} == {
        "embeddings": 0.5, "attention heads": 4.0, "MLPs": -1.0, "constant": 0.25, "in all": 3.75,
    }  # fmt: skip
    [curve] = panels(drawn, Curve)
    assert {line.name: [point.y for point in line.points] for line in curve.lines} == {
        "attention": [0.0, 4.0], "MLP": [-1.0, 0.0],
    }  # fmt: skip


def test_attention_has_queries_from_above_and_keys_from_the_left():
    [panel] = picture(studies.attention()).maps
    assert tops(panel) == ["The", "·Space", "·Needle", "·is"]
    assert square(panel, "·Needle", "·Space").value == 1.0
    assert square(panel, "·Space", "·Space").value == 0.0
    assert (0, 3) not in panel.squares  # no later key


def test_attention_to_later_tokens_is_shown():
    rows = [{**row, "attention": 0.25} for row in studies.attention().rows()]
    [panel] = picture(Table.from_rows(rows, meta=studies.attention().meta)).maps
    assert panel.squares[0, 3].value == 0.25


def test_many_heads_are_averaged():
    assert [panel.title for panel in picture(studies.attention(2, 2)).maps][-1] == "layer 1, head 1"
    assert [panel.title for panel in picture(studies.attention(7, 2)).maps] == [
        f"layer {n}, mean of its heads" for n in (0, 1)
    ]
    [panel] = picture(studies.attention(1, 13)).maps
    assert panel.title == "mean of 13 heads"
    assert square(panel, "·Needle", "·Space").value == 1.0


def test_a_probe_is_never_drawn_without_what_the_model_makes_of_it():
    for positions in (1, 2):
        drawn = picture(studies.probe(positions), "accuracy")
        read, made = panels(drawn, Curve)
        assert [line.name for line in read.lines] == ["accuracy", "control", "selectivity"]
        assert [line.name for line in made.lines] == ["swap", "erase", "whole swap", "random swap"]
        assert [line.control for line in made.lines] == [False, False, False, True]
        assert [point.y for point in made.lines[0].points] == [0.0, 2.0, 0.0]
        assert (made.lines[0].points[1].low, made.lines[0].points[1].high) == (1.9, 2.1)
    assert [panel.title for panel in drawn.maps] == ["accuracy", "swap effect", "erase effect"]


def test_doses_have_a_band_and_a_control():
    main, *costs = panels(picture(studies.steer()), Curve)
    steered, control = main.lines
    assert [(p.x, p.y, p.low, p.high) for p in steered.points] == [
        (-1, -2, -2.5, -1.5),
        (0, 0, -0.5, 0.5),
        (1, 2, 1.5, 2.5),
    ]
    assert control.control
    assert [(point.low, point.high) for point in control.points] == [(-0.1, 0.1)] * 3
    assert [curve.y for curve in costs] == ["share that moved the wrong way", "perplexity", "distinct bigrams"]
    assert any("text at 1.0" in line for line in picture(studies.steer()).findings)
    several = panels(picture(studies.steer((3, 5))), Curve)[0]
    assert [line.name for line in several.lines][:2] == ["layer 3", "layer 5"]


def test_heads_of_a_grid_in_several_pairs_are_means_with_intervals(make_table):
    rows = [
        {**row, "head": head, "position": None, "pair": pair, "direction": "denoise", "recovered": head / 2 + pair / 4}
        for row in make_table(layers=2, tokens=["a"]).rows() for head in range(2) for pair in range(2)
    ]  # fmt: skip
    drawn = picture(Table.from_rows(rows, meta={**make_table().meta, "pairs": 2}))
    found = square(drawn.maps[0], "1", "1")
    assert (found.value, found.details[1]) == (0.625, "recovered 0.625 [0.5, 0.75], n = 2")
    assert panels(drawn, Bars)[0].bars[0].low == 0.5


def test_another_number_of_a_grid_is_drawn(make_table):
    panel = picture(make_table(layers=2), "effect").maps[0]
    assert square(panel, "1", "·capital").value == 0.0
    assert panel.scale.whole == 15


def test_what_cannot_be_drawn_says_why():
    with pytest.raises(SpecError, match="there is no picture of mine with the columns"):
        picture(Table.from_rows([{"a": 1}], meta={"study": "mine"}))
    with pytest.raises(UnknownNameError, match="no column 'rnk'; did you mean 'rank'"):
        picture(studies.lens(), "rnk")
    with pytest.raises(SpecError, match="no rows"):
        picture(studies.lens().select(where={"layer": 9}))
    rows = [row | {"prompt": n} for n in (0, 1) for row in studies.attention().rows()]
    with pytest.raises(SpecError, match="patterns of several prompts"):
        picture(Table.from_rows(rows, meta=studies.attention().meta))


def test_svg_is_written_by_its_ending(tmp_path):
    assert "<svg" in save_figure(studies.attention(), tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(("value", "place"), [(0, 1.0), (9, 0.5), (99, 0.0), (10**6, 0.0), (None, None)])
def test_ranks_go_with_the_logarithm(value, place):
    assert ColourScale("rank", worst=99).at(value) == (None if place is None else pytest.approx(place))
