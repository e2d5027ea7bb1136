"""What a panel shows, in a sentence or two: for those who do not see it, and for those who look first at words."""

from __future__ import annotations

from .panels import Bars, Curve, CurveLine, HeatMap, Panel
from .words import precise, with_interval


def words_of(panel: Panel) -> str:
    """Return the summary of a panel, without its title.

    >>> from align_transformers.report.panels import Bar
    >>> words_of(Bars("Heads", "effect", (Bar("0.1", 2.0, 1.0, 4.0), Bar("1.0", -3.0))))
    '2 bars of effect. Largest: 0.1, 2 [1, 4]. Smallest: 1.0, -3.'
    """
    if isinstance(panel, HeatMap):
        return _map(panel)
    return _curve(panel) if isinstance(panel, Curve) else _bars(panel)


def _map(panel: HeatMap) -> str:
    known = [(square.value, at) for at, square in panel.squares.items() if square.value is not None]
    sides = f"{_count(len(panel.rows), panel.rows.name)} by {_count(len(panel.columns), panel.columns.name)}"
    said = [f"Map of {panel.scale.name or 'values'}, {sides}."]
    if known:
        ends = [("Largest", max(known, key=lambda one: one[0])), ("Smallest", min(known, key=lambda one: one[0]))]
        said += [f"{name}: {precise(value)} at {_place(panel, at)}." for name, (value, at) in ends]
    return " ".join(said)


def _place(panel: HeatMap, at: tuple[int, int]) -> str:
    sides = zip((panel.rows, panel.columns), at, strict=True)
    return ", ".join(f"{labels.name} {labels.line(n, ' → ')}".strip() for labels, n in sides)


def _count(number: int, name: str) -> str:
    return f"{number} {name or 'row'}{'s' * (number != 1 and not name.endswith('s'))}"


def _curve(panel: Curve) -> str:
    lines = [_line(panel, line) for line in panel.lines if any(point.y is not None for point in line.points)]
    return " ".join([f"Curve of {panel.y} over {panel.x}.", *lines])


def _line(panel: Curve, line: CurveLine) -> str:
    known = [(point.y, point) for point in line.points if point.y is not None]
    (top, best), (first, start), (last, end) = max(known, key=lambda one: one[0]), known[0], known[-1]
    name = f"{line.name}: " if line.name else ""
    peak = f"{with_interval(top, best.low, best.high)} at {panel.x} {precise(best.x)}"
    return f"{name}from {precise(first)} at {precise(start.x)} to {precise(last)} at {precise(end.x)}, largest {peak}."


def _bars(panel: Bars) -> str:
    known = [(bar.value, bar) for bar in panel.bars if bar.value is not None]
    said = [f"{_count(len(panel.bars), 'bar')} of {panel.x}."]
    if known:
        ends = [("Largest", max(known, key=lambda one: one[0])), ("Smallest", min(known, key=lambda one: one[0]))]
        said += [f"{name}: {bar.label}, {with_interval(value, bar.low, bar.high)}." for name, (value, bar) in ends]
    if panel.level is not None:
        said.append(f"Dashed: {panel.level_name} {precise(panel.level)}.")
    return " ".join(said)
