"""The heat map as a web page: one self-contained file that asks no network for anything."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .._files import write_atomically
from .._optional import optional
from ..table import Table
from .colours import DARK, LIGHT, Colour, css, shade
from .drawing import Drawing, Square, arrange, number, visible

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c1c1c; --faint: #5a5a5a; --ground: #ffffff; --line: #dddddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a0a4ab; --ground: #16181d; --line: #34373e; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 76rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
p { max-width: 46rem; margin: .5rem 0; }
.prompts { margin: .75rem 0; }
.prompts span { display: inline-block; min-width: 4.5rem; color: var(--faint); }
.faint, dl { color: var(--faint); font-size: .875rem; }
#frame { max-width: ${width}px; margin: 1rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; border-top: 1px solid var(--line);
  padding-top: .75rem; }
dd { margin: 0; }
</style>
</head>
<body>
<h1>$title</h1>
<div class="prompts">
<div><span>base</span> $base <b>→ $base_says</b></div>
<div><span>source</span> $source <b>→ $source_says</b></div>
</div>
<p>While the model read the base prompt, <i>one</i> of its inner states, the <code>$component</code> of one layer at
one token, was replaced by the state that the source prompt produces there. Each cell is one such swap.
Where a cell is <b>blue</b>, that state carries what makes the answer “$source_answer” rather than
“$base_answer”.</p>
<p class="faint">$rise.$outline
Point at a cell for details; the deepest layer is on top.</p>
<div id="frame">$figure</div>
<dl>$facts</dl>
<script>
(function () {
  const map = document.getElementById("map"), dark = matchMedia("(prefers-color-scheme: dark)");
  const light_scale = $light, dark_scale = $dark;
  function paint() {
    const ink = dark.matches ? "#e8e8e8" : "#1c1c1c";
    Plotly.restyle(map, {colorscale: [dark.matches ? dark_scale : light_scale]}, [0]);
    if (map.data.length > 1) { Plotly.restyle(map, {"line.color": dark.matches ? "#ffffff" : "#111111"}, [1]); }
    Plotly.relayout(map, {"font.color": ink});
  }
  dark.addEventListener("change", paint);
  if (dark.matches) { paint(); }
})();
</script>
</body>
</html>
""")


def save_page(table: Table, path: str | os.PathLike[str], *, component: str | None = None) -> Path:
    """Write a layer x position table as an interactive HTML page, in one step.

    The page holds all that it needs (plotly's script too, about 5 MB). Pointing at a cell shows its layer, token,
    position, effect and recovered share, and the most probable next tokens after the swap.

    Args:
        table: a table with the columns and the meta of a trace.
        path: the HTML file to write.
        component: which component to draw; may be left out where the table has one.

    Returns:
        The path written.

    Raises:
        SpecError: the table is not a layer x position table of one pair, or has several components.
        UnknownNameError: the table has no such component.
        MissingExtraError: plotly is not installed.
        OSError: the folder cannot be written to.
    """
    return write_atomically(path, _html(arrange(table, component)).encode())


def _encloses(drawing: Drawing) -> str:
    if not drawing.tells_flips:
        return ""
    return f" A line encloses the swaps after which the most probable next token is “{drawing.source_answer}”."


def _html(drawing: Drawing) -> str:
    base_value, source_value = (_signed(drawing.meta[name]) for name in ("base_value", "source_value"))
    facts = {
        "model": drawing.meta["model"],
        "component": drawing.component,
        "metric": drawing.meta["metric"],
        "clean values": f"{base_value} on the base, {source_value} on the source",
        "made with": f"align-transformers {drawing.meta.get('version', '')}",
    }
    return _PAGE.substitute(
        title=escape(drawing.question),
        base=escape(drawing.base),
        source=escape(drawing.source),
        base_answer=escape(drawing.base_answer),
        source_answer=escape(drawing.source_answer),
        base_says=escape(drawing.base_says),
        source_says=escape(drawing.source_says),
        component=escape(drawing.component),
        outline=escape(_encloses(drawing)),
        rise=escape(drawing.rise()[0].upper() + drawing.rise()[1:]),
        width=_width(drawing),
        figure=_figure(drawing),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd>" for name, fact in facts.items()),
        light=json.dumps(_colour_scale(drawing, LIGHT)),
        dark=json.dumps(_colour_scale(drawing, DARK)),
    )


def _figure(drawing: Drawing) -> str:
    """Return the interactive map as a `<div>` with its data and plotly's script."""
    graph = optional("plotly.graph_objects", extra="report")
    grid = [[drawing.cells.get((layer, p)) for p in drawing.positions] for layer in drawing.layers]
    numbered = len(drawing.positions) <= 14
    heat = graph.Heatmap(
        z=[[cell.recovered if cell else None for cell in row] for row in grid],
        text=[[number(cell.recovered) if cell else "" for cell in row] for row in grid],
        texttemplate="%{text}" if numbered else None,
        textfont={"size": 11},
        customdata=[[_hover(drawing, cell) if cell else "" for cell in row] for row in grid],
        hovertemplate="%{customdata}<extra></extra>",
        zmin=drawing.low,
        zmax=1,
        colorscale=_colour_scale(drawing, LIGHT),
        xgap=1,
        ygap=1,
        colorbar=_colour_bar(drawing),
    )
    figure = graph.Figure([heat, *_outline(drawing, graph)])
    figure.update_layout(
        template="none",
        height=80 + max(240, 21 * len(drawing.layers)),
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        font={"size": 13, "color": "#1c1c1c", "family": "system-ui, 'DejaVu Sans', sans-serif"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hoverlabel={"align": "left", "bgcolor": "#22262e", "font": {"color": "#f4f4f4", "size": 13}},
    )
    arrow = "<br>→ " if _roomy(drawing) else " → "
    names = [arrow.join(map(escape, dict.fromkeys(drawing.tokens[p]))) for p in drawing.positions]
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "tickmode": "array", "ticks": "", "automargin": True}
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5], **plain)
    step = -(-len(drawing.layers) // 40)
    ticks = list(range(0, len(drawing.layers), step))
    depths = {"tickvals": ticks, "ticktext": [str(drawing.layers[i]) for i in ticks]}
    figure.update_yaxes(title={"text": "layer"}, range=[-0.5, len(drawing.layers) - 0.5], **depths, **plain)
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True, "plotlyServerURL": ""}
    return str(
        figure.to_html(full_html=False, include_plotlyjs=True, include_mathjax=False, div_id="map", config=config)
    )


def _colour_bar(drawing: Drawing) -> dict[str, Any]:
    words = {0.0: f"0 {escape(drawing.base_answer)}", 1.0: f"1 {escape(drawing.source_answer)}"}
    ticks = [tick for tick in (-1.0, -0.5, 0.0, 0.5, 1.0) if tick >= drawing.low]
    place = {"y": 0, "yanchor": "bottom", "lenmode": "pixels", "len": 240, "thickness": 14, "outlinewidth": 0}
    return {"tickvals": ticks, "ticktext": [words.get(tick, f"{tick:g}") for tick in ticks], **place}


def _outline(drawing: Drawing, graph: Any) -> list[Any]:
    """Return the line around the cells after which the answer is the source's; none where there are no such cells."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for (x0, y0), (x1, y1) in drawing.flip_edges():
        xs += [x0, x1, None]
        ys += [y0, y1, None]
    style = {"color": "#111111", "width": 2}
    return [graph.Scatter(x=xs, y=ys, mode="lines", line=style, hoverinfo="skip")] if xs else []


def _hover(drawing: Drawing, cell: Square) -> str:
    """Return what pointing at a cell shows (plotly's small HTML; texts of the model are escaped)."""
    lines = [
        f"<b>{escape(drawing.label(cell.position, ' → '))}</b>",
        f"layer {cell.layer}, position {cell.position}",
        f"recovered {number(cell.recovered)}, effect {_signed(cell.effect)}",
        "<br><b>next token after the swap</b>",
    ]
    lines += [f"{share:6.1%}  {escape(visible(token))}" for token, share in cell.top]
    return "<br>".join(lines)


def _colour_scale(drawing: Drawing, scale: Sequence[tuple[float, Colour]]) -> list[tuple[float, str]]:
    """Return the fixed colours between `drawing.low` and 1 as plotly wants them."""
    steps = 40
    return [(i / steps, css(shade(drawing.low + i / steps * (1 - drawing.low), scale))) for i in range(steps + 1)]


def _width(drawing: Drawing) -> int:
    """Pixels: cells of few tokens are wide enough for their names, those of many still easy to point at."""
    count = len(drawing.positions)
    return 180 + count * (100 if _roomy(drawing) else 44 if count > 14 else 64)


def _roomy(drawing: Drawing) -> bool:
    return len(drawing.positions) <= 8


def _signed(value: object) -> str:
    return f"{value:+.2f}" if isinstance(value, (int, float)) else "-"
