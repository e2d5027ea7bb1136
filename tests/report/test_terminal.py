"""terminal: the right number in the right cell, on every kind of terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from align_transformers._errors import SpecError, UnknownNameError
from align_transformers.report import in_terminal
from align_transformers.report.colours import DARK, shade
from align_transformers.report.words import number
from align_transformers.table import Table

TWENTY = [f" w{i}" for i in range(20)]


def printed(table: Table, *, width: int = 80, encoding: str = "utf-8", **options: object) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, height=50, **options)  # type: ignore[arg-type]
    console.print(in_terminal(table))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def plain(table: Table, **options: object) -> str:
    return printed(table, color_system=None, **options)


def map_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r" *\d+ ", line[:6]) and line[:5].strip().isdigit()]


def test_each_number_stands_in_its_row_and_column_the_deepest_layer_on_top(make_table):
    table = make_table(lambda layer, position: layer / 100 + position / 10, base_answer=" x", source_answer=" y")
    rows = map_rows(plain(table))
    assert [int(line.split()[0]) for line in rows] == list(range(29, -1, -1))
    for line in rows:
        layer = int(line.split()[0])
        assert line.split()[1:] == [f"{layer / 100 + p / 10:.2f}" for p in range(5)]


def test_the_answers_the_prompts_the_tokens_and_the_scale_are_stated(make_table):
    text = plain(make_table())
    for stated in (
        "The capital of Spain is → Madrid",
        "The capital of Italy is → Rome",
        "smollm2-135m",
        "block_output",
    ):
        assert stated in text
    header, below = text.splitlines()[5:7]
    assert header.split() == ["The", "·capital", "·of", "·Spain", "·is"]
    assert below.split() == ["layer", "→·Italy"]
    assert header.index("·Spain") + len("·Spain") == below.index("→·Italy") + len("→·Italy")
    assert "0 = still “Madrid”" in text
    assert "1 = as much “Rome”" in text


def test_cells_that_flip_the_answer_are_starred(make_table):
    rows = {int(line.split()[0]): line.split()[1:] for line in map_rows(plain(make_table()))}
    assert rows[10] == ["0.00", "0.00", "0.00", "0.99*", "-0.03"]
    assert rows[26] == ["0.00", "0.00", "0.00", "0.01", "0.93*"]
    assert sum(value.endswith("*") for row in rows.values() for value in row) == 30


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("tokens", [None, TWENTY, TWENTY * 5], ids=["5", "20", "100"])
@pytest.mark.parametrize("colours", [None, "truecolor", "standard"])
def test_no_line_is_wider_than_the_terminal(make_table, width, tokens, colours):
    count = 30 if tokens is None else 4
    table = make_table(tokens=tokens, layers=count)
    text = printed(table, width=width, color_system=colours, force_terminal=colours is not None)
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(cell_len(line.rstrip()) for line in stripped.splitlines()) <= width
    layers = [int(line.split()[0]) for line in map_rows(stripped)]
    assert layers[:count] == list(range(count - 1, -1, -1))
    assert len(layers) % count == 0


def test_many_tokens_get_narrow_shades_and_a_key(make_table):
    def recovered(layer, position):
        return 0.85 if position == layer else -0.5 if position == 19 else 0.0

    text = plain(make_table(recovered, tokens=TWENTY))
    rows = map_rows(text)
    for line in rows[10:]:
        layer = int(line.split()[0])
        cells = [line[6 + 3 * p : 9 + 3 * p].strip() for p in range(20)]
        expected = ["---" if p == 19 else "▓▓▓" if p == layer else "" for p in range(20)]
        expected[layer] = "▓▓▓"
        assert cells == expected
    [ruler] = [line for line in text.splitlines() if line.startswith("layer ")]
    assert [ruler[6 + 3 * p : 9 + 3 * p].strip() for p in range(20)] == [str(p) for p in range(20)]
    assert re.findall(r"(\d+) ·w(\d+)", text) == [(str(p), str(p)) for p in range(20)]


def test_narrow_cells_star_the_flips_without_colours(make_table):
    text = plain(make_table(lambda layer, position: float(position == 2), tokens=TWENTY))
    assert all(line[12:15] == "██*" and line[6:12].strip() == "" for line in map_rows(text))


def test_narrow_cells_star_the_flips_on_colours(make_table):
    text = printed(make_table(lambda _, p: float(p == 2), tokens=TWENTY), color_system="truecolor", force_terminal=True)
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(line[12:15] == " * " and line.count("*") == 1 for line in map_rows(stripped))


def test_more_tokens_than_a_line_holds_are_drawn_in_panels(make_table):
    text = plain(make_table(lambda layer, position: 0.5 if position == 70 else 0.0, tokens=TWENTY * 5))
    rows = map_rows(text)
    assert len(rows) == 90
    assert sum("▒▒" in line for line in rows) == 30
    assert all(line.index("▒▒") == 6 + 2 * (70 - 68) for line in rows[60:])


def test_colours_are_those_of_the_scale(make_table):
    # Styles, not escape codes: rich remembers a style's codes, whatever the colour system of the next console is.
    console = Console(file=io.StringIO(), width=80, color_system="truecolor", force_terminal=True)
    styled = [(part.text.strip(), part.style) for part in console.render(in_terminal(make_table())) if part.style]
    for text, value in (("0.00", 0.0), ("0.99*", 0.99), ("-0.03", -0.03), ("0.93*", 0.926)):
        grounds = {tuple(style.bgcolor.triplet) for shown, style in styled if shown == text and style.bgcolor}
        assert shade(value, DARK) in grounds


def test_no_color_prints_numbers_and_no_colours(make_table, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(make_table(), color_system="truecolor", force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*(38|48);", text)
    assert "0.99*" in text
    narrow = printed(make_table(tokens=TWENTY), color_system="truecolor", force_terminal=True)
    assert "██" in narrow


def test_an_ascii_terminal_gets_ascii(make_table):
    for tokens in (None, [" Zürich", "\n", "日本", "—"] * 6):
        plain(make_table(tokens=tokens), encoding="ascii").encode("ascii")
    assert "0.99*" in plain(make_table(), encoding="ascii")


def test_texts_of_the_model_are_not_markup(make_table):
    text = plain(make_table(tokens=["[bold]", "[/]", "\n", "", "[red]x"], base_answer=" [b]", source_answer="[/i]"))
    for literal in ("[bold]", "[/]", "↵", "∅", "[red]x", "“[b]”", "“[/i]”"):
        assert literal in text


def test_unknown_and_missing_cells_are_shown(make_table):
    table = make_table(lambda layer, position: None if position == 0 else 0.5, layers=3)
    holes = Table.from_rows((r for r in table.rows() if (r["layer"], r["position"]) != (1, 4)), meta=table.meta)
    rows = {int(line.split()[0]): line.split()[1:] for line in map_rows(plain(holes))}
    assert rows[0] == ["-", "0.50", "0.50", "0.50", "0.50"]
    assert rows[1] == ["-", "0.50", "0.50", "0.50"]


def test_tables_that_are_no_map_are_refused(make_table):
    table = make_table(layers=2)
    with pytest.raises(SpecError, match=r"lacks component, layer, .*model"):
        in_terminal(Table.from_rows([], meta={}))
    with pytest.raises(SpecError, match="several rows stand at layer 0, position 0"):
        in_terminal(Table.from_rows([*table.rows(), *table.rows()], meta=table.meta))
    both = [*table.rows(), *({**row, "component": "mlp_output"} for row in table.rows())]
    two = in_terminal(Table.from_rows(both, meta=table.meta)).picture
    assert [panel.title for panel in two.maps] == ["block_output", "mlp_output"]
    one = in_terminal(Table.from_rows(both, meta=table.meta), component="mlp_output").picture
    assert [panel.title for panel in one.maps] == [""]
    assert one.about.startswith("mlp_output of")
    with pytest.raises(UnknownNameError, match="did you mean 'mlp_output'"):
        in_terminal(Table.from_rows(both, meta=table.meta), component="mlp_outpt")


@pytest.mark.parametrize("value", [0.0, -0.0, 0.994, -1.239, 12.345, -123.4, 99999.9, -1e12, 1e300])
def test_numbers_fit_their_cells(value):
    assert len(number(value)) <= 5
