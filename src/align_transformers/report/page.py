"""Pictures as a web page: one self-contained file that asks no network for anything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from .._files import write_atomically
from .._optional import optional
from .._version import library_version
from .chapters import Chapters
from .colours import DARK, LIGHT
from .kinds import picture
from .page_panels import INK, colour_steps, graph_of, widths_of
from .page_sections import facts_of, html_of, list_of, prompts_of
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
nav { margin: 1rem 0; }
nav ol, nav p { margin: 0; padding: 0; list-style: none; }
nav a { color: inherit; }
section.chapter { border-top: 1px solid var(--line); margin: 2rem 0; padding-top: 1rem; }
section.chapter > h2 { font-size: 1.25rem; }
pre { overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .875rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
section.chapter .found { border-left: 3px solid #2171b5; padding-left: .5rem; max-width: 46rem; }
.label { margin: .75rem 0 -.5rem; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
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
    facts = {**drawn.facts, "made with": f"align-transformers {library_version()}"}
    findings, sections = list_of(drawn.findings), drawn.sections
    if sections and drawn.findings:
        findings = html_of(Section("Verdict", drawn.findings))
    panels = _Panels(drawn.panels)
    body = [
        findings * bool(sections),
        *(html_of(one) for one in sections if one.opens),
        prompts_of(drawn.prompts),
        f"<p>{escape(drawn.intro or drawn.caption)}</p>",
        _HINT,
        panels.html(drawn.panels),
        findings * (not sections),
        *(html_of(one) for one in sections if not one.opens),
        facts_of(facts),
    ]
    return _filled(drawn.title, body, panels)


def page_of_chapters(report: Chapters) -> str:
    """Return a report of several chapters as a page.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    rows = [row for chapter in report.chapters if chapter.picture for row in chapter.picture.panels]
    panels = _Panels(rows)
    links = [f'<li><a href="#{escape(one.name)}">{escape(one.title)}</a></li>' for one in report.chapters]
    body = [prompts_of(report.prompts), *(f"<p>{escape(line)}</p>" for line in report.words)]
    body += [_HINT, f'<nav aria-label="Contents"><ol>{"".join(links)}</ol></nav>']
    if report.before:
        body += ['<p class="faint label">The lines of Python below go on from:</p>', _code(report.before)]
    for one in report.chapters:
        words = "".join(f"<p>{escape(line)}</p>" for line in one.words)
        drawn = panels.html(one.picture.panels) if one.picture else ""
        body.append(
            f'<section class="chapter" id="{escape(one.name)}"><h2>{escape(one.title)}</h2>{words}'
            f'<div class="found">{list_of(one.findings)}</div>{drawn}'
            f'<p class="faint label">The same in Python:</p>{_code([one.code])}</section>'
        )
    body.append(facts_of({**report.facts, "made with": f"align-transformers {library_version()}"}))
    return _filled(report.title, body, panels)


_HINT = '<p class="faint">Point at a cell, a point or a bar for details.</p>'


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def _filled(title: str, body: Iterable[str], panels: _Panels) -> str:
    return _PAGE.substitute(
        title=escape(title),
        body="\n".join(part for part in body if part),
        maps=_script_safe(panels.scales),
        ink=INK,
        charts=_script_safe(list(panels.names.values())),
    )


class _Panels:
    """The panels of a page, each with a name; the first one brings plotly's script.

    Args:
        rows: all of them.
    """

    def __init__(self, rows: Iterable[Sequence[Panel]]) -> None:
        self._all = [panel for row in rows for panel in row]
        self.names = {id(panel): f"panel-{number}" for number, panel in enumerate(self._all)}
        self.scales = [
            [self.names[id(panel)], colour_steps(panel.scale, LIGHT), colour_steps(panel.scale, DARK)]
            for panel in self._all
            if isinstance(panel, HeatMap)
        ]

    def html(self, rows: Iterable[Sequence[Panel]]) -> str:
        """Return some rows of the panels."""
        return "\n".join(
            f'<div class="row" style="--panels: {len(row)}">{"".join(map(self._panel, row))}</div>' for row in rows
        )

    def _panel(self, panel: Panel) -> str:
        return _panel(panel, self.names[id(panel)], panel is self._all[0])


def _script_safe(data: Any) -> str:
    return json.dumps(data).replace("<", "\\u003c")


def _panel(panel: Panel, name: str, first: bool) -> str:
    """Return one panel as a `<div>` with its data; the first one brings plotly's script."""
    title = f"<h2>{escape(panel.title)}</h2>" if panel.title else ""
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True, "plotlyServerURL": ""}
    figure = graph_of(panel, optional("plotly.graph_objects", extra="report"))
    html = figure.to_html(full_html=False, include_plotlyjs=first, include_mathjax=False, div_id=name, config=config)
    if not isinstance(panel, HeatMap):
        return f"<div>{title}{html}</div>"
    least, most = widths_of(panel)
    size, named = f"min-width: {least}px; max-width: {most}px", escape(panel.title or "map")
    wide = f'<div class="wide" role="group" tabindex="0" aria-label="{named}">'
    return f'<div>{title}{wide}<div style="{size}">{html}</div></div></div>'
