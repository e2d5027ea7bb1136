"""A circuit's drawing as a web page: one self-contained file with a threshold to move and a table behind it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from string import Template

from .._version import library_version
from .circuit_drawing import CircuitDrawing, CircuitNode, DrawnEdge
from .circuit_figure import DASHES, sign_colour
from .circuit_layout import HIGH, port_of, width_of_name
from .colours import css
from .page_sections import facts_of, list_of
from .whole_page import whole_page
from .words import cut, precise

_STYLE = Template("""
.circuit { --ink: #1c1c1c; --faint: #5a5a5a; --ground: #ffffff; --line: #dddddd; --box: #f2f4f8; --up: $up;
  --down: $down; --plain: #6e6e6e; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
@media screen and (prefers-color-scheme: dark) {
  .circuit { --ink: #e8e8e8; --faint: #a0a4ab; --ground: #16181d; --line: #34373e; --box: #262a33;
    --up: $up_dark; --down: $down_dark; --plain: #9a9a9a; }
}
.circuit h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .75rem; }
.circuit p, .circuit ul { max-width: 46rem; margin: .5rem 0; }
.circuit .faint, .circuit dl { color: var(--faint); font-size: .875rem; }
.circuit dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; padding-top: .75rem; }
.circuit dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.circuit .wide { overflow-x: auto; }
.circuit input[type=range] { width: min(28rem, 90%); vertical-align: middle; }
.circuit svg { display: block; max-width: none; }
.circuit .e path { fill: none; opacity: .8; }
.circuit .e .hit { stroke: transparent; stroke-width: 9; opacity: 1; }
.circuit .p { stroke: var(--up); } .circuit .n { stroke: var(--down); } .circuit .z { stroke: var(--plain); }
.circuit .q { stroke-dasharray: 7 4; } .circuit .k { stroke-dasharray: 2 3; }
.circuit .node rect { fill: var(--box); stroke: var(--faint); }
.circuit text { fill: var(--ink); font-size: 11px; text-anchor: middle; }
.circuit text.port { fill: var(--faint); font-size: 8px; }
.circuit text.layer { fill: var(--faint); text-anchor: start; }
.circuit .node { cursor: pointer; }
.circuit .node:focus-visible { outline: none; }
.circuit .node:focus-visible rect, .circuit .node.on rect { stroke: var(--ink); stroke-width: 2.5; }
.circuit .away { opacity: .12; } .circuit .off { display: none; }
.circuit table { border-collapse: collapse; font-size: .875rem; }
.circuit th, .circuit td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
.circuit .says { min-height: 1.5rem; white-space: pre-line; }
.circuit a { color: inherit; }
""")

_SCRIPT = """
(function () {
  const root = document.getElementById(NAME), says = root.querySelector(".says");
  const edges = [...root.querySelectorAll(".e")], nodes = [...root.querySelectorAll(".node")];
  const slider = root.querySelector("input"), told = root.querySelector("output");
  const rank = e => Number(e.dataset.r), at = n => n.dataset.n;
  let held = null;
  function filter() {
    const most = slider ? Number(slider.value) : Infinity, live = new Set(["input", "logits"]);
    for (const e of edges) {
      const on = rank(e) <= most;
      e.classList.toggle("off", !on);
      if (on) { live.add(e.dataset.a); live.add(e.dataset.b); }
    }
    for (const n of nodes) { n.classList.toggle("away", !live.has(at(n))); }
    if (slider) {
      const last = edges.filter(e => rank(e) === most)[0];
      told.textContent = most + " of " + slider.max + " edges" + (last ? ": scores from " + last.dataset.s : "");
      slider.setAttribute("aria-valuetext", told.textContent);
    }
  }
  function show(name) {
    for (const e of edges) {
      e.classList.toggle("away", name !== null && e.dataset.a !== name && e.dataset.b !== name);
    }
    for (const n of nodes) { n.classList.toggle("on", at(n) === name); }
    if (name === null) { says.textContent = ""; return; }
    const seen = edges.filter(e => !e.classList.contains("off") && (e.dataset.a === name || e.dataset.b === name));
    const lines = [...new Set(seen.map(e => e.querySelector("title").textContent))].reverse();
    const note = nodes.find(n => at(n) === name).dataset.t;
    says.textContent = name + (note ? " (" + note + ")" : "") + ": " + lines.slice(0, 12).join("; ") +
      (lines.length > 12 ? "; and " + (lines.length - 12) + " more" : "");
  }
  for (const n of nodes) {
    n.addEventListener("mouseenter", () => show(at(n)));
    n.addEventListener("mouseleave", () => show(held));
    n.addEventListener("focus", () => show(at(n)));
    n.addEventListener("blur", () => show(held));
    n.addEventListener("click", () => { held = held === at(n) ? null : at(n); show(held); });
    n.addEventListener("keydown", k => {
      if (k.key === "Enter" || k.key === " ") { k.preventDefault(); held = held === at(n) ? null : at(n); show(held); }
      if (k.key === "Escape") { held = null; show(null); }
    });
  }
  for (const e of edges) {
    e.addEventListener("mouseenter", () => { says.textContent = e.querySelector("title").textContent; });
    e.addEventListener("mouseleave", () => show(held));
  }
  if (slider) { slider.addEventListener("input", () => { filter(); show(held); }); }
  filter();
})();
"""

_PAGE_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; background: #ffffff; }
@media screen and (prefers-color-scheme: dark) { body { background: #16181d; } }
main { padding: 2rem 1rem; max-width: 80rem; margin: 0 auto; }
"""


def page_of_circuit(drawing: CircuitDrawing, findings: Sequence[str] = ()) -> str:
    """Return a circuit's drawing as a page.

    Args:
        drawing: of the circuit.
        findings: what was measured of it, a line each.
    """
    return whole_page(drawing.title, _PAGE_STYLE, part_of_page(drawing, findings))


def part_of_page(drawing: CircuitDrawing, findings: Sequence[str] = (), name: str = "circuit") -> str:
    """Return a circuit's drawing as a part of a page.

    Args:
        drawing: of the circuit.
        findings: likewise.
        name: an id that nothing else on the page has.
    """
    facts = facts_of({**drawing.facts, "made with": f"align-transformers {library_version()}"})
    code = base64.b64encode(drawing.csv().encode()).decode()
    link = f'<a download="circuit.csv" href="data:text/csv;base64,{code}">all {len(drawing.every)} edges as CSV</a>'
    hint = "Point at a node or an edge, or step through the nodes with the tab key; Enter holds a node, Escape lets go."
    return "\n".join(
        [
            f"<style>{_style()}</style>",
            f'<div class="circuit" id="{escape(name)}">',
            f"<h1>{escape(drawing.title)}</h1>",
            list_of([*findings, *drawing.summary]),
            f"<p>{escape(drawing.caption)}</p>",
            _slider(drawing, name),
            f'<p class="faint">{hint}</p>',
            '<p class="says" aria-live="polite"></p>',
            f'<div class="wide">{svg_of(drawing)}</div>',
            f"<p>{link}</p><details><summary>Table of the edges</summary>{_table(drawing)}</details>",
            facts,
            f"<script>{_SCRIPT.replace('NAME', json.dumps(name))}</script>",
            "</div>",
        ]
    )


def svg_of(drawing: CircuitDrawing) -> str:
    """Return the drawing alone, coloured by the classes of the page."""
    lines = "".join(_edge(edge, number) for number, edge in zip(_ranks(drawing), drawing.edges, strict=True))
    boxes = "".join(_node(drawing, node) for node in drawing.nodes)
    rows = "".join(f'<text class="layer" x="14" y="{y + 4:.0f}">{escape(text)}</text>' for text, y in drawing.rows)
    if drawing.rows:
        rows += f'<text class="layer" x="14" y="{drawing.rows[-1][1] - 16:.0f}">layer</text>'
    size = f'width="{drawing.wide:.0f}" height="{drawing.tall:.0f}" viewBox="0 0 {drawing.wide:.0f} {drawing.tall:.0f}"'
    words = escape(" ".join(drawing.summary), quote=True)
    return f'<svg role="group" aria-label="{words}" {size}>{rows}{lines}{boxes}</svg>'


def _style() -> str:
    up, down, up_dark, down_dark = (css(sign_colour(sign, dark=dark)) for dark in (False, True) for sign in (1, -1))
    return _STYLE.substitute(up=up, down=down, up_dark=up_dark, down_dark=down_dark)


def _ranks(drawing: CircuitDrawing) -> list[int]:
    """Return which place each drawn line's edge has, the strongest 1."""
    places = {(one.sender, one.receiver): n for n, one in enumerate(drawing.every, 1)}
    return [places[line.edge.sender, line.edge.receiver] for line in drawing.edges]


def _edge(line: DrawnEdge, rank: int) -> str:
    (x, y), *rest = line.dots
    way = f"M{x:.0f} {y:.0f}C" + " ".join(f"{a:.0f} {b:.0f}" for a, b in rest)
    score = line.edge.score
    sign = "z" if not score else "p" if score > 0 else "n"
    letter = line.edge.letter if DASHES.get(line.edge.letter) else ""
    said = "" if score is None else precise(abs(score))
    data = f'data-a="{escape(line.edge.sender)}" data-b="{escape(line.owner)}" data-r="{rank}" data-s="{said}"'
    look = f'class="{sign} {letter}"'.replace(' "', '"')
    return (
        f'<g class="e" {data}><title>{escape(line.says)}</title><path d="{way}" {look} '
        f'stroke-width="{line.width:.1f}"/><path class="hit" d="{way}"/></g>'
    )


def _node(drawing: CircuitDrawing, node: CircuitNode) -> str:
    x, y = drawing.spots[node.name]
    ports = node.kind == "head"
    wide = width_of_name(node.name, ports=ports)
    box = f'<rect x="{x - wide / 2:.0f}" y="{y - HIGH / 2:.0f}" width="{wide:.0f}" height="{HIGH:.0f}" rx="5"/>'
    label = f'<text x="{x:.0f}" y="{y + (0 if ports else 4):.0f}">{escape(cut(node.name, 24))}</text>'
    for letter in "qkv" if ports else "":
        place, end = port_of((x, y), wide, letter)
        label += f'<text class="port" x="{place:.0f}" y="{end - 3:.0f}">{letter}</text>'
    inside = sum(one.owner == node.name for one in drawing.edges)
    out = sum(one.edge.sender == node.name for one in drawing.edges)
    said = f"{node.name}: {inside} edges in, {out} out"
    data = f'data-n="{escape(node.name)}" data-t="{escape(node.note, quote=True)}"'
    return f'<g class="node" tabindex="0" role="button" aria-label="{escape(said)}" {data}>{box}{label}</g>'


def _slider(drawing: CircuitDrawing, name: str) -> str:
    if not drawing.scored or drawing.shown < 2:
        return ""
    return (
        f'<p><label for="{escape(name)}-most">The strongest edges:</label> <input id="{escape(name)}-most" '
        f'type="range" min="1" max="{drawing.shown}" value="{drawing.shown}"> <output></output></p>'
    )


def _table(drawing: CircuitDrawing) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.sender)}<td>{escape(one.receiver)}<td>{'' if one.score is None else precise(one.score)}"
        for one in drawing.every[: drawing.shown]
    )
    more = len(drawing.every) - drawing.shown
    rest = f"<p>and {more} weaker ones, which the CSV has</p>" if more else ""
    head = '<tr><th scope="col">sender<th scope="col">receiver<th scope="col">score'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{rest}"
