"""The parts of a page that are words: lists, facts, tables, and a graph of variables. All texts are escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .panels import Section

_LETTER, _HIGH, _GAP, _PAD = 8.5, 30, 34, 22  # pixels: of a letter, of a node, between rows, around a name

_UNBROKEN = 20  # letters of a cell that stands on one line


def html_of(section: Section) -> str:
    """Return a section as HTML."""
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    if section.parents:
        parts.append(f'<div class="wide">{graph_of_variables(section.parents)}</div>')
    if len(section.lines) == 1:
        parts.append(f"<p>{escape(section.lines[0])}</p>")
    elif section.lines:
        parts.append(list_of(section.lines))
    if section.facts:
        parts.append(facts_of(section.facts))
    if section.head:
        parts.append(_table(section.head, section.rows))
    return "\n".join([*parts, "</section>"])


def prompts_of(prompts: Sequence[tuple[str, str, str]]) -> str:
    """Return what was read, as (name, text, what the model says after it, or ""); nothing where there is nothing."""
    lines = [
        f"<div><span>{escape(name)}</span> {escape(text)}{f' <b>→ {escape(answer)}</b>' * bool(answer)}</div>"
        for name, text, answer in prompts
    ]
    return f'<div class="prompts">{"".join(lines)}</div>' if lines else ""


def list_of(lines: Sequence[str]) -> str:
    """Return lines as an HTML list; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def facts_of(facts: Mapping[str, str]) -> str:
    """Return facts by name as an HTML list."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>' for name, fact in facts.items())}</dl>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(text: str) -> str:
    short = ' class="short"' if len(text) <= _UNBROKEN else ""
    return f"<td{short}>{escape(text)}</td>"


def graph_of_variables(parents: Mapping[str, Sequence[str]]) -> str:
    """Return variables as an SVG drawing: each above those that it is made of, so inputs are at the bottom.

    Args:
        parents: by name of a variable; a name that is not in it is drawn as an input. Without circles.
    """
    rows: dict[int, list[str]] = {}
    for name, depth in _depths(parents).items():
        rows.setdefault(depth, []).append(name)
    top = max(rows)
    widths = {name: _PAD + _LETTER * len(name) for row in rows.values() for name in row}
    lengths = {depth: sum(widths[name] + _PAD for name in row) for depth, row in rows.items()}
    wide, tall = max(lengths.values()), (top + 1) * (_HIGH + _GAP) - _GAP + 2
    middles: dict[str, tuple[float, float]] = {}
    for depth, row in rows.items():
        left = (wide - lengths[depth]) / 2
        for name in row:
            middles[name] = left + (widths[name] + _PAD) / 2, (top - depth) * (_HIGH + _GAP) + _HIGH / 2 + 1
            left += widths[name] + _PAD
    lines = [_line(middles[parent], middles[name], widths[name]) for name, of in parents.items() for parent in of]
    nodes = [_node(name, middles[name], widths[name]) for name in middles]
    words = "; ".join(f"{name} of {', '.join(of)}" for name, of in parents.items() if of)
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    return (
        f'<svg class="graph" role="img" aria-label="{escape(words)}" width="{wide:.0f}" height="{tall:.0f}">'
        f'<defs>{tip}<path d="M0,0 L8,4 L0,8 z"/></marker></defs>{"".join(lines)}{"".join(nodes)}</svg>'
    )


def _line(parent: tuple[float, float], child: tuple[float, float], wide: float) -> str:
    (x1, y1), (x2, y2) = parent, child
    reach = wide / 2 - 8  # arrows that come from several sides end side by side
    x2 += min(max((x1 - x2) / 3, -reach), reach)
    start, end = f'x1="{x1:.0f}" y1="{y1 - _HIGH / 2:.0f}"', f'x2="{x2:.0f}" y2="{y2 + _HIGH / 2:.0f}"'
    return f'<line {start} {end} marker-end="url(#tip)"/>'


def _node(name: str, middle: tuple[float, float], wide: float) -> str:
    x, y = middle
    corner = f'x="{x - wide / 2:.0f}" y="{y - _HIGH / 2:.0f}"'
    box = f'<rect {corner} width="{wide:.0f}" height="{_HIGH}" rx="6"/>'
    return f'{box}<text x="{x:.0f}" y="{y + 5:.0f}">{escape(name)}</text>'


def _depths(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many steps each variable is above the inputs."""
    names = list(dict.fromkeys([*parents, *(one for of in parents.values() for one in of)]))
    depths = dict.fromkeys(names, 0)
    for _ in names:  # a step a round: enough for the longest path
        for name in names:
            depths[name] = max((depths[one] + 1 for one in parents.get(name, ())), default=0)
    return depths
