"""terminal: every study at every width; no line is too long, and what gives way says so with an ellipsis."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.report import studies

from align_transformers.report import in_terminal, picture
from align_transformers.report.panels import Bar, Bars, Curve
from align_transformers.report.terminal import Shown
from align_transformers.report.terminal_bars import BarCanvas
from align_transformers.report.terminal_map import MapCanvas
from align_transformers.report.words import with_interval
from align_transformers.table import Table

LONG = "the last token of the antidisestablishmentarian subject number"


def renamed(table: Table, column: str) -> Table:
    """The table with long words in a column."""
    rows = [{**row, column: row[column] and f"{LONG} {row[column]}"} for row in table.rows()]
    return Table.from_rows(rows, meta=table.meta)


def many_places() -> Table:
    rows = [studies.hypothesis("v", layer, f"{LONG} {n}") for n in range(20) for layer in (0, 1)]
    return Table.from_rows(rows, meta={"study": "align", "model": "toy"})


TABLES = {
    **studies.STUDIES,
    "tracing of roles": lambda: studies.tracing(prompts=2),
    "paths of one pair": lambda: studies.paths(pairs=1),
    "lens of prompts": lambda: studies.lens(prompts=2),
    "many layers": lambda: studies.alignment(layers=40),
    "long places": lambda: renamed(studies.alignment(), "place"),
    "long variables": lambda: renamed(studies.alignment(), "variables"),
    "many places": many_places,
    "many prompts": lambda: studies.score(prompts=30),
    "long prompts": lambda: renamed(studies.score(), "text"),
    "attention of heads": lambda: studies.attention(heads=6),
    "steering of layers": lambda: studies.steer(layers=(3, 4)),
    "wide numbers": lambda: Table.from_rows(
        [{**row, "margin": -0.000123456 * (row["prompt"] + 1)} for row in studies.score().rows()],
        meta=studies.score().meta,
    ),
}


def printed(drawn, width: int, *, colours: str | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=colours, force_terminal=colours is not None)
    console.print(drawn)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


def squeezed(text: str) -> str:
    return "".join(text.split())


def is_told(words: str, text: str) -> bool:
    """Whether words stand in the text, or their beginning with an ellipsis."""
    return squeezed(words) in squeezed(text) or any(f"{words[:n].rstrip()}…" in text for n in range(2, len(words)))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_every_study_at_every_width(name, width):
    drawn = picture(TABLES[name]())
    text = printed(Shown(drawn), width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    painted = printed(Shown(drawn), width, colours="truecolor")
    assert max(cell_len(line.rstrip()) for line in painted.splitlines()) <= width
    for line in (drawn.title, drawn.about, *drawn.notes, *(prompt for _, prompt, _ in drawn.prompts)):
        assert squeezed(line.replace("\n", "↵")) in squeezed(text)
    for panel in (panel for row in drawn.panels for panel in row):
        if isinstance(panel, Curve) and drawn.maps:
            assert squeezed(panel.title or f"{panel.y} by {panel.x}") in squeezed(text)  # it is said to be elsewhere
            continue
        assert squeezed(panel.title) in squeezed(text)
        if isinstance(panel, Bars | Curve):
            points = panel.bars if isinstance(panel, Bars) else [one for line in panel.lines for one in line.points]
            for one in points:
                shown = with_interval(one.value if isinstance(one, Bar) else one.y, one.low, one.high)
                assert re.search(rf"(^| ){re.escape(shown)}( |$)", text, re.MULTILINE), shown
            for bar in panel.bars if isinstance(panel, Bars) else ():
                assert is_told(bar.label, text), bar.label
            continue
        canvas = MapCanvas(panel, width, False, False)
        for n in range(len(panel.columns)):
            label = panel.columns.line(n)
            assert is_told(label, text) or (canvas.cell < 7 and label.isdigit()), label  # every other of many numbers
        for n in range(len(panel.rows)):
            assert is_told(panel.rows.line(n), text)
        if canvas.cell >= 7:
            for square in panel.squares.values():
                assert is_told(square.text, text)


def test_long_labels_of_narrow_columns_are_numbered_and_listed():
    text = printed(in_terminal(many_places()), 60)
    ruler = next(line for line in text.splitlines() if line.startswith("layer "))
    assert ruler.split()[1:4] == ["0", "2", "4"]
    for n in range(20):
        assert squeezed(f"{n} {LONG} {n}") in squeezed(text)


def test_labels_that_are_cut_to_the_same_words_are_numbered_and_listed():
    text = printed(in_terminal(TABLES["long places"]()), 80)
    header = next(line for line in text.splitlines() if line.startswith("layer "))
    assert header.split() == ["layer", "0", "1"]
    assert squeezed(f"0 {LONG} last of {{a}} 1 {LONG} last") in squeezed(text)


def test_the_mark_of_a_cell_outlives_its_word():
    rows = [{**row, "top_tokens": [LONG if row["layer"] == 2 else "b", "c"]} for row in studies.lens().rows()]
    table = Table.from_rows(rows, meta={**studies.lens().meta, "answers": [LONG]})
    top = next(line for line in printed(in_terminal(table), 80).splitlines() if line.strip().startswith("2 "))
    assert re.findall(r"\S+…\S*", top) == ["the·last…*"] * 4


@pytest.mark.parametrize("width", [12, 24, 40])
def test_numbers_outlive_labels(width):
    bars = Bars("", "", (Bar("a label of some length", 0.123456, -0.0123456, 0.23456), Bar("日本" * 20, -1.0)))
    lines = [line.plain for line in BarCanvas(bars, width, False, False).lines()]
    text = "\n".join(lines)
    assert "0.123 [-0.0123, 0.235]" in text
    assert "…" in text
    assert "a label" in text or width == 24
    if width > 22:
        assert max(map(cell_len, lines)) <= width


def test_controls_have_another_mark_and_the_level_a_line():
    text = printed(in_terminal(studies.alignment()), 80)
    [chance, *_] = [line for line in text.splitlines() if line.strip().startswith("chance ")]
    [new, *_] = [line for line in text.splitlines() if line.strip().startswith("new weights ")]
    [test, *_] = [line for line in text.splitlines() if line.strip().startswith("test ")]
    assert "0.125" in chance
    assert "░" in new
    assert "■" not in new
    assert "■" in test
    assert test.count("■") == round(0.97 * len("■" * 40))  # a share: 1 has the whole length
