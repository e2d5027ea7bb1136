"""The panels of a page, by plotly."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .colours import LIGHT, Colour, css, shade
from .figure_charts import bar_colour, style_of
from .panels import Bar, Bars, ColourScale, Curve, CurveLine, HeatMap, Panel
from .words import cut, precise, with_interval

_FONT = {"size": 13, "color": "#1c1c1c", "family": "system-ui, 'DejaVu Sans', sans-serif"}
_HOVER = {"align": "left", "bgcolor": "#22262e", "font": {"color": "#f4f4f4", "size": 13}}
INK = "ink"
"""The mark of what is drawn in the colour of the page's text, which goes with the theme."""
_WRITTEN = 14
"""Up to so many columns the cells of a map have room for what is written into them."""
_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "x": "x"}


def graph_of(panel: Panel, graph: Any) -> Any:
    """Return plotly's figure of a panel.

    Args:
        panel: any.
        graph: the module `plotly.graph_objects`.
    """
    if isinstance(panel, HeatMap):
        figure, height = _map(panel, graph), 80 + max(240, 21 * len(panel.rows))
    elif isinstance(panel, Curve):
        figure, height = _curve(panel, graph), 320
    else:
        figure, height = _bars(panel, graph), 90 + 28 * len(panel.bars)
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 24 if isinstance(panel, Bars) and panel.level is not None else 10, "b": 50},
        font=_FONT,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel=_HOVER,
    )
    return figure


def widths_of(panel: HeatMap) -> tuple[int, int]:
    """Return in pixels how wide a map has to be for what is written into it to be read, and how wide it becomes.

    Cells of few tokens are wide enough for their names, those of many still easy to point at.
    """
    count = len(panel.columns)
    narrow = 30 if not panel.columns.numbers else 44
    letters = max((len(cut(square.text, 12)) for square in panel.squares.values()), default=0)
    least = 160 + count * 7 * max(4, letters) if count <= _WRITTEN else 0
    most = 180 + count * (100 if _roomy(panel) else narrow if count > _WRITTEN else 64)
    return min(least, most), most


def colour_steps(scale: ColourScale, colours: Sequence[tuple[float, Colour]]) -> list[tuple[float, str]]:
    """Return the fixed colours between the beginning of a scale and 1 as plotly wants them."""
    steps = 40
    return [(i / steps, css(shade(scale.begin + i / steps * (1 - scale.begin), colours))) for i in range(steps + 1)]


def _roomy(panel: HeatMap) -> bool:
    return len(panel.columns) <= 8 and bool(panel.columns.numbers)


def _map(panel: HeatMap, graph: Any) -> Any:
    columns, rows = range(len(panel.columns)), list(reversed(range(len(panel.rows))))
    grid = [[panel.squares.get((row, column)) for column in columns] for row in rows]
    numbered = len(columns) <= _WRITTEN
    heat = graph.Heatmap(
        z=[[square.place if square else None for square in row] for row in grid],
        text=[
            [escape(cut(square.text, 12)) if square and square.place is not None else "" for square in row]
            for row in grid
        ],
        texttemplate="%{text}" if numbered else None,
        textfont={"size": 11},
        customdata=[[_hover(square.details) if square else "" for square in row] for row in grid],
        hovertemplate="%{customdata}<extra></extra>",
        zmin=panel.scale.begin,
        zmax=1,
        colorscale=colour_steps(panel.scale, LIGHT),
        xgap=1,
        ygap=1,
        colorbar=_colour_bar(panel.scale),
    )
    unknown = [
        (x, y, square.text)
        for y, row in enumerate(grid)
        for x, square in enumerate(row)
        if square and square.place is None
    ]
    figure = graph.Figure([heat, *_outline(panel, graph), *(_words(unknown, graph) if numbered else ())])
    arrow = "<br>→ " if _roomy(panel) else " → "
    names = [arrow.join(map(escape, texts)) for texts in panel.columns.texts]
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "tickmode": "array", "ticks": "", "automargin": True}
    across = {"title": {"text": escape(panel.columns.name)}} if panel.columns.name != "token" else {}
    figure.update_xaxes(tickvals=list(columns), ticktext=names, range=[-0.5, len(names) - 0.5], **across, **plain)
    ticks = list(range(0, len(rows), -(-len(rows) // 40)))
    labels = {"tickvals": ticks, "ticktext": [escape(panel.rows.line(rows[i])) for i in ticks]}
    figure.update_yaxes(title={"text": escape(panel.rows.name)}, range=[-0.5, len(rows) - 0.5], **labels, **plain)
    figure.update_layout(showlegend=False)
    return figure


def _words(placed: Sequence[tuple[int, int, str]], graph: Any) -> list[Any]:
    """Return the texts of cells without a colour: in the colour of the page's text, which goes with the theme."""
    if not placed:
        return []
    xs, ys, texts = zip(*placed, strict=True)
    return [graph.Scatter(x=xs, y=ys, text=[escape(text) for text in texts], mode="text", hoverinfo="skip")]


def _hover(details: Sequence[str]) -> str:
    """Return what pointing shows (plotly's small HTML; texts of the model are escaped), the first line bold."""
    return "<br>".join([*(f"<b>{escape(line)}</b>" for line in details[:1]), *map(escape, details[1:])])


def _colour_bar(scale: ColourScale) -> dict[str, Any]:
    ticks = [(place, escape(words)) for place, words in scale.ticks if place >= scale.begin]
    place = {"y": 0, "yanchor": "bottom", "lenmode": "pixels", "len": 240, "thickness": 14, "outlinewidth": 0}
    return {"tickvals": [at for at, _ in ticks], "ticktext": [words for _, words in ticks], **place}


def _outline(panel: HeatMap, graph: Any) -> list[Any]:
    """Return the line around the marked cells; none where there are no such cells."""
    xs: list[float | int | None] = []
    ys: list[float | int | None] = []
    for (x0, y0), (x1, y1) in panel.outline():
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    style = {"color": _FONT["color"], "width": 3}
    return [graph.Scatter(x=xs, y=ys, mode="lines", line=style, hoverinfo="skip", meta=INK)] if xs else []


def _curve(panel: Curve, graph: Any) -> Any:
    figure = graph.Figure()
    for number, line in enumerate(panel.lines):
        for trace in _line_traces(panel, line, number, graph):
            figure.add_trace(trace)
    grid = {"showgrid": False, "showline": True, "linecolor": "#888888", "automargin": True}
    figure.update_xaxes(title={"text": escape(panel.x)}, zeroline=False, **grid)
    figure.update_yaxes(title={"text": escape(panel.y)}, zeroline=panel.zero, zerolinecolor="#999999", **grid)
    if panel.share:
        figure.update_yaxes(range=[-0.03, 1.03])
    figure.update_layout(showlegend=len(panel.lines) > 1, legend={"orientation": "h", "y": 1.15})
    return figure


def _line_traces(panel: Curve, line: CurveLine, number: int, graph: Any) -> list[Any]:
    """Return the band of a line, if it has one, and the line."""
    colour, mark = style_of(line, number)
    known = [point for point in line.points if point.y is not None]
    banded = [point for point in known if point.low is not None and point.high is not None]
    traces = []
    if banded:
        xs = [point.x for point in banded]
        around = [point.high for point in banded] + [point.low for point in reversed(banded)]
        fill = "rgba({},{},{},0.18)".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))
        style = {"fill": "toself", "fillcolor": fill, "line": {"width": 0}, "mode": "lines"}
        traces.append(graph.Scatter(x=xs + xs[::-1], y=around, hoverinfo="skip", showlegend=False, **style))
    first = line.name or panel.y
    says = [_hover((first, f"{panel.x} {p.x:g}", with_interval(p.y, p.low, p.high), *p.details)) for p in known]
    traces.append(
        graph.Scatter(
            x=[point.x for point in known],
            y=[point.y for point in known],
            mode="lines+markers",
            name=escape(line.name),
            line={"color": colour, "dash": "dash" if line.control else "solid"},
            marker={"symbol": _SYMBOLS[mark]},
            customdata=says,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    return traces


def _intervals(bars: Sequence[Bar], graph: Any) -> list[Any]:
    """Return lines over the bars from the low to the high end of each interval; none where there are no intervals."""
    xs: list[float | int | None] = []
    ys: list[float | int | None] = []
    for number, bar in enumerate(bars):
        if bar.low is not None and bar.high is not None:
            xs += [bar.low, bar.high, None]
            ys += [number, number, None]
    look: dict[str, Any] = {"line": {"color": _FONT["color"], "width": 1.5}, "meta": INK}
    look |= {"mode": "lines+markers", "marker": {"symbol": "line-ns-open", "size": 7, "color": _FONT["color"]}}
    return [graph.Scatter(x=xs, y=ys, hoverinfo="skip", **look)] if xs else []


def _number(bar: Bar) -> str:
    return with_interval(bar.value, bar.low, bar.high)


def _bars(panel: Bars, graph: Any) -> Any:
    bars = list(reversed(panel.bars))
    chart = graph.Bar(
        x=[bar.value or 0.0 for bar in bars],
        y=list(range(len(bars))),
        orientation="h",
        marker={"color": [bar_colour(bar) for bar in bars]},
        customdata=[_hover((bar.label, *(bar.details or (_number(bar),)))) for bar in bars],
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure = graph.Figure([chart, *_intervals(bars, graph)])
    reach_of_axis = {"range": [0, 1.03]} if panel.share else {}
    across = {"zeroline": True, "zerolinecolor": "#999999", "showgrid": False}
    figure.update_xaxes(title={"text": escape(panel.x)}, **across, **reach_of_axis)
    if panel.level is not None:
        said = f"{escape(panel.level_name)} {precise(panel.level)}"
        label = {"annotation_text": said, "annotation_font_size": 11}
        label |= {"annotation_yanchor": "bottom", "annotation_xanchor": "left"}
        figure.add_vline(panel.level, line={"color": "#888888", "dash": "dash", "width": 1.5}, **label)
    names = [escape(cut(bar.label, 36)) for bar in bars]
    figure.update_yaxes(tickvals=list(range(len(bars))), ticktext=names, showgrid=False, automargin=True)
    figure.update_layout(showlegend=False)
    return figure
