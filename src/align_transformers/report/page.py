"""Pictures as a web page: one self-contained file that asks no network for anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .._files import write_atomically
from .._optional import optional
from .._version import library_version
from .colours import DARK, LIGHT
from .kinds import picture
from .page_panels import INK, colour_steps, graph_of, width_of
from .page_sections import facts_of, html_of, list_of
from .panels import HeatMap, Panel, Picture, Section
from .tabular import Tabular

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
body { margin: 2rem auto; padding: 0 1rem; max-width: 80rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1rem; margin: 0; }
p, ul { max-width: 46rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
.prompts { margin: .75rem 0; }
.prompts span { display: inline-block; min-width: 4.5rem; color: var(--faint); }
.faint, dl { color: var(--faint); font-size: .875rem; }
.row { display: grid; grid-template-columns: repeat(var(--panels), minmax(0, 1fr)); gap: 1rem; margin: 1rem 0; }
@media (max-width: 60rem) { .row { grid-template-columns: minmax(0, 1fr); } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; border-top: 1px solid var(--line);
  padding-top: .75rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
section { margin: 1.5rem 0; }
section h2 { font-size: 1.125rem; margin-bottom: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
.short { white-space: nowrap; }
th { color: var(--faint); font-weight: 600; }
.graph line { stroke: var(--faint); stroke-width: 1.4; }
.graph path { fill: var(--faint); }
.graph rect { fill: var(--ground); stroke: var(--faint); }
.graph text { fill: var(--ink); font-size: 14px; text-anchor: middle; }
</style>
</head>
<body>
<h1>$title</h1>
$opening
<div class="prompts">$prompts</div>
<p>$caption</p>
<p class="faint">Point at a cell, a point or a bar for details.</p>
$panels
$closing
$facts
<script>
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const maps = $maps, charts = $charts;
  function paint() {
    const ink = dark.matches ? "#e8e8e8" : "#1c1c1c";
    for (const [name, light_scale, dark_scale] of maps) {
      const map = document.getElementById(name);
      Plotly.restyle(map, {colorscale: [dark.matches ? dark_scale : light_scale]}, [0]);
    }
    for (const name of charts) {
      const chart = document.getElementById(name);
      Plotly.relayout(chart, {"font.color": ink});
      chart.data.forEach((trace, n) => {
        if (trace.meta === "$ink") { Plotly.restyle(chart, {"line.color": ink, "marker.color": ink}, [n]); }
      });
    }
  }
  dark.addEventListener("change", paint);
  if (dark.matches) { paint(); }
})();
</script>
</body>
</html>
""")


def save_page(
    table: Tabular, path: str | os.PathLike[str], *, value: str | None = None, component: str | None = None
) -> Path:
    """Write a study's table as an interactive HTML page, in one step.

    The page holds all that it needs (plotly's script too, about 5 MB). Pointing at a cell shows its numbers with their
    intervals, and whatever else the table tells of it. The page of `align` is a report: the verdict, the causal model
    as a graph, the data, the chosen hypotheses with their controls, flags, what the choice cost, and where it fails.

    Args:
        table: of a study.
        path: the HTML file to write.
        value: which number, as for `picture`.
        component: which component, likewise.

    Returns:
        The path written.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
        MissingExtraError: plotly is not installed.
        OSError: the folder cannot be written to.
    """
    return write_atomically(path, page_of(picture(table, value, component=component)).encode())


def page_of(drawn: Picture) -> str:
    """Return a picture as a page.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    names = {id(panel): f"panel-{n}" for n, panel in enumerate(panel for row in drawn.panels for panel in row)}
    prompts = [
        f"<div><span>{escape(name)}</span> {escape(text)}{f' <b>→ {escape(answer)}</b>' * bool(answer)}</div>"
        for name, text, answer in drawn.prompts
    ]
    scales: list[Any] = [
        [names[id(panel)], colour_steps(panel.scale, LIGHT), colour_steps(panel.scale, DARK)] for panel in drawn.maps
    ]
    facts = {**drawn.facts, "made with": f"align-transformers {library_version()}"}
    findings, sections = list_of(drawn.findings), drawn.sections
    if sections and drawn.findings:
        findings = html_of(Section("Verdict", drawn.findings))
    first = drawn.panels[0][0]
    return _PAGE.substitute(
        title=escape(drawn.title),
        prompts="\n".join(prompts),
        caption=escape(drawn.intro or drawn.caption),
        panels="\n".join(
            f'<div class="row" style="--panels: {len(row)}">{_row(row, names, first)}</div>' for row in drawn.panels
        ),
        opening="\n".join([findings * bool(sections), *(html_of(one) for one in sections if one.opens)]),
        closing="\n".join([findings * (not sections), *(html_of(one) for one in sections if not one.opens)]),
        facts=facts_of(facts),
        maps=_script_safe(scales),
        ink=INK,
        charts=_script_safe(list(names.values())),
    )


def _script_safe(data: Any) -> str:
    return json.dumps(data).replace("<", "\\u003c")


def _row(row: Sequence[Panel], names: Mapping[int, str], first: Panel) -> str:
    return "".join(_panel(panel, names[id(panel)], panel is first) for panel in row)


def _panel(panel: Panel, name: str, first: bool) -> str:
    """Return one panel as a `<div>` with its data; the first one brings plotly's script."""
    title = f"<h2>{escape(panel.title)}</h2>" if panel.title else ""
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True, "plotlyServerURL": ""}
    figure = graph_of(panel, optional("plotly.graph_objects", extra="report"))
    html = figure.to_html(full_html=False, include_plotlyjs=first, include_mathjax=False, div_id=name, config=config)
    limit = f' style="max-width: {width_of(panel)}px"' if isinstance(panel, HeatMap) else ""
    return f"<div{limit}>{title}{html}</div>"
