"""The panels of a page: a drawing, its summary in words, and the table behind it. All texts are escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .page_charts import known_points, svg_of_bars, svg_of_curve
from .page_map import svg_of_map
from .panel_words import words_of
from .panels import Bar, Curve, HeatMap, Panel, Picture
from .words import with_interval


def rows_of_panels(rows: Iterable[Sequence[Panel]], name: str) -> str:
    """Return rows of panels as HTML.

    Args:
        rows: of them.
        name: what their names begin with, which nothing else on the page has.
    """
    return "\n".join(
        f'<div class="row{" choice" * (len(_parts(row)) > 1)}">'
        f"{''.join(html_of_panel(panel, f'{name}-{n}-{k}') for k, panel in enumerate(row))}</div>"
        for n, row in enumerate(rows)
    )


def choices_of(choices: Mapping[str, Sequence[str]], drawn: Picture) -> str:
    """Return the selectors of a page: of its views, and of maps that stand side by side; nothing where all is shown."""
    parts = list(dict.fromkeys(title for row in drawn.panels for title in _parts(row)))
    selects = [_select(name, words, range(len(words))) for name, words in choices.items()]
    if len(parts) > 1:
        selects.append(_select("maps", ["all", *parts], ["", *parts]))
    shown = any(len(words) > 1 for words in choices.values()) or len(parts) > 1
    return f'<div class="choose">{"".join(selects)}</div>' if shown else ""


def _parts(row: Sequence[Panel]) -> list[str]:
    """Return the titles of maps that stand side by side, of which one may be chosen."""
    titles = [panel.title for panel in row if isinstance(panel, HeatMap) and panel.title]
    return titles if len(set(titles)) == len(row) > 1 else []


def _select(name: str, words: Sequence[str], values: Iterable[int | str]) -> str:
    options = "".join(
        f'<option value="{escape(str(value))}">{escape(word)}</option>'
        for word, value in zip(words, values, strict=True)
    )
    hidden = " hidden" * (len(words) < 2)
    label = f'<label for="choose-{name}">{name}</label>'
    return f'<span{hidden}>{label} <select id="choose-{name}">{options}</select></span>'


def html_of_panel(panel: Panel, name: str) -> str:
    """Return a panel as HTML; `name` is its own.

    The data stand in it once, as JSON, one row for each mark of the drawing (class `m`) in the same order: pointing at
    a mark shows the end of its row, and the table and the CSV are made of them by the page's script.
    """
    said, seen = escape(panel.title or "figure"), words_of(panel)
    alt = f"{panel.title}: {seen}" if panel.title else seen
    if isinstance(panel, HeatMap):
        svg = svg_of_map(panel, alt)
    else:
        svg = svg_of_curve(panel, alt) if isinstance(panel, Curve) else svg_of_bars(panel, alt)
    title = f"<h3>{escape(panel.title)}</h3>" if panel.title else ""
    kind = "map" if isinstance(panel, HeatMap) else "chart"
    # the drawing is looked at by pointing, or by the arrow keys once it has the focus
    drawn = f'<div class="wide {kind}" role="group" tabindex="0" aria-label="{said}: arrow keys">{svg}</div>'
    words = f'<figcaption class="faint">{escape(seen)}</figcaption>'
    table = (
        '<details class="data"><summary>Table</summary><p><button type="button" class="copy">Copy</button> '
        '<button type="button" class="save">Download CSV</button></p>'
        f'<div class="wide" role="group" tabindex="0" aria-label="{said}: table"></div></details>'
    )
    data = f'<script type="application/json">{script_safe(data_of(panel))}</script>'
    named = f'id="{escape(name)}" data-title="{escape(panel.title)}"'
    return f'<figure class="panel" {named}>{title}{drawn}{words}{table}{data}</figure>'


def data_of(panel: Panel) -> dict[str, Any]:
    """Return the names of columns and the rows of the table behind a panel; the last column is what pointing shows."""
    if isinstance(panel, HeatMap):
        head = [panel.rows.name or "row", panel.columns.name or "column", panel.scale.name or "value", "details"]
        if head[0] == head[1]:
            head[:2] = f"{head[0]} (row)", f"{head[1]} (column)"
        rows: list[list[Any]] = [
            [
                panel.rows.line(row, " → "),
                panel.columns.line(column, " → "),
                _number(square.value),
                list(square.details),
            ]
            for (row, column), square in sorted(panel.squares.items())
        ]
    elif isinstance(panel, Curve):
        head = ["line", panel.x, panel.y, "low", "high", "details"]
        rows = []
        for line, p in known_points(panel):
            says = [line.name or panel.y, f"{panel.x} {p.x:g}", with_interval(p.y, p.low, p.high), *p.details]
            rows.append([line.name, *map(_number, (p.x, p.y, p.low, p.high)), says])
    else:
        head = ["bar", panel.x, "low", "high", "details"]
        rows = [
            [bar.label, *map(_number, (bar.value, bar.low, bar.high)), [bar.label, *(bar.details or _said(bar))]]
            for bar in panel.bars
        ]
    return {"head": head, "rows": rows}


def _said(bar: Bar) -> tuple[str]:
    return (with_interval(bar.value, bar.low, bar.high),)


def _number(value: float | int | None) -> float | int | str | None:
    """Return a number as the table has it: seven digits; what JSON cannot hold, as words."""
    if value is None or isinstance(value, int):
        return value
    rounded = float(f"{value:.7g}")
    return rounded if abs(rounded) < float("inf") else str(rounded)


def script_safe(data: Any) -> str:
    """Return data as JSON that ends no script."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
