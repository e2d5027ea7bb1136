"""Curves and bars by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .panels import Bar, Bars, Curve, CurveLine
from .words import cut, precise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _CONTROL = "#1c1c1c", "#5a5a5a", "#8a8a8a"
COLOURS = ("#2171b5", "#d96c1e", "#1b9e77", "#7b5ea7", "#8c6d31")
"""Of lines, in their order; told apart by the colour-blind, too, and by their marks."""
_MARKS = ("o", "s", "^", "D", "v")


def style_of(line: CurveLine, number: int) -> tuple[str, str]:
    """Return colour and mark of a line; a control is grey."""
    return (_CONTROL, "x") if line.control else (COLOURS[number % len(COLOURS)], _MARKS[number % len(_MARKS)])


def bar_colour(bar: Bar) -> str:
    """Return the colour of a bar: by its sign, grey for a control."""
    return _CONTROL if bar.control else COLOURS[1 if (bar.value or 0.0) < 0 else 0]


def draw_curve(axes: Axes, curve: Curve) -> None:
    """Draw lines with the bands of their intervals."""
    for number, line in enumerate(curve.lines):
        colour, mark = style_of(line, number)
        known = [(point.x, point.y) for point in line.points if point.y is not None]
        dashes = "--" if line.control else "-"
        xs, ys = [x for x, _ in known], [y for _, y in known]
        axes.plot(xs, ys, dashes, color=colour, marker=mark, markersize=3, linewidth=1.4, label=line.name)
        band = [(p.x, p.low, p.high) for p in line.points if p.low is not None and p.high is not None]
        if band:
            xs, lows, highs = ([point[n] for point in band] for n in range(3))
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
    _frame(axes, curve.x, curve.y)
    if curve.share:
        axes.set_ylim(-0.03, 1.03)
    if curve.zero:
        axes.axhline(0, color=_FAINT, linewidth=0.6)
    if len(curve.lines) > 1:
        many = len(curve.lines) > 2 and not curve.share
        if many:  # no corner is free as a rule: room for the legend above all lines
            bottom, top = axes.get_ylim()
            axes.set_ylim(bottom, top + 0.3 * (top - bottom))
        place: dict[str, Any] = {"loc": "upper right", "ncols": 2} if many else {}
        legend = axes.legend(**place, fontsize=7.5, framealpha=0.8, edgecolor="none")
        for text in legend.get_texts():
            text.set_parse_math(False)
            text.set_color(_INK)


def draw_bars(axes: Axes, bars: Bars) -> None:
    """Draw bars, the first on top, with their intervals."""
    last = len(bars.bars) - 1
    for number, bar in enumerate(bars.bars):
        y, value = last - number, bar.value or 0.0
        axes.barh(y, value, height=0.66, color=bar_colour(bar))
        if bar.low is not None and bar.high is not None:
            axes.plot((bar.low, bar.high), (y, y), color=_INK, linewidth=1.2)
            axes.plot((bar.low, bar.high), (y, y), "|", color=_INK, markersize=5)
    _frame(axes, bars.x, "")
    axes.axvline(0, color=_FAINT, linewidth=0.6)
    axes.set_ylim(-0.6, last + 0.6)
    if bars.share:
        axes.set_xlim(0, 1.03)
    if bars.level is not None:
        axes.axvline(bars.level, color=_INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"{bars.level_name} {precise(bars.level)}", (bars.level, 1), (3, 1), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", size=7, color=_INK, parse_math=False,
        )  # fmt: skip
    names = [cut(bar.label, 30) for bar in reversed(bars.bars)]
    for tick in axes.set_yticks(range(len(names)), names, size=8, color=_INK):
        tick.label1.set_parse_math(False)
    axes.tick_params(axis="y", length=0)


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, size=8.5, color=_INK, parse_math=False)
    axes.set_ylabel(y, size=8.5, color=_INK, parse_math=False)
    axes.tick_params(labelsize=7.5, colors=_INK, length=2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
