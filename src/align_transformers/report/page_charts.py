"""Curves and bars as SVG, coloured by classes of the page. What can be pointed at has the class `m`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .figure_charts import COLOURS
from .panels import Bars, Curve, CurveLine, CurvePoint
from .svg import Number, box, drawing, round_ticks, short, text, way, width_of, words_below
from .words import cut, precise

_WIDE, _TALL = 420, 230
_ROW, _NAME = 26, 36  # pixels of a bar with the room around it; letters of its name
_DARK = ("#56a6e8", "#f0954a", "#3fc79a", "#b99fe0", "#cbab63")
_GREY = "#6e6e6e", "#a8a8a8"
_MARKS = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "M-3.5-3.5h7v7h-7Z", "M0-4.5L4.5 3.5h-9Z", "M0-5L5 0L0 5L-5 0Z",
          "M0 4.5L4.5-3.5h-9Z")  # fmt: skip
_CROSS = "M-3.5-3.5L3.5 3.5M3.5-3.5L-3.5 3.5"


def line_classes(*, dark: bool) -> str:
    """Return the rules of the colours of lines and bars: `l0`, `l1`, ...; `lc` is a control's."""
    named = [*enumerate(_DARK if dark else COLOURS), ("c", _GREY[dark])]
    return "".join(f".l{name}{{--l:{colour}}}" for name, colour in named)


def known_points(panel: Curve) -> list[tuple[CurveLine, CurvePoint]]:
    """Return what can be pointed at, in the order in which it is drawn."""
    return [(line, point) for line in panel.lines for point in line.points if point.y is not None]


def svg_of_curve(panel: Curve, words: str) -> str:
    """Return lines with the bands of their intervals."""
    known = known_points(panel)
    xs = [point.x for _, point in known] or [0.0, 1.0]
    ends = [end for _, p in known for end in (p.y, p.low, p.high) if end is not None] or [0.0, 1.0]
    low, high = (0.0, 1.0) if panel.share else _stretched(min(ends), max(ends), 0.0 if panel.zero else None)
    first, last = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, min(xs) + 1)
    ticks = round_ticks(low, high)
    left = 32 + max(width_of(precise(tick)) for tick in ticks)
    legend, top = _legend(panel)

    def x_at(x: Number) -> Number:
        return left + 8 + (x - first) / (last - first) * (_WIDE - left - 24)

    def y_at(y: Number) -> Number:
        return top + _TALL - (min(max(y, low), high) - low) / (high - low) * (_TALL - 8)

    bottom = top + _TALL + 6.0
    parts = [*legend, way([(left, top), (left, bottom), (_WIDE - 8, bottom)], "axis")]
    parts += [way([(left, y_at(tick)), (_WIDE - 8, y_at(tick))], "zero" if tick == 0 else "grid") for tick in ticks]
    parts += [text(left - 6, y_at(tick) + 4, precise(tick), "e") for tick in ticks]
    whole = all(float(x).is_integer() for x in xs)
    parts += [text(x_at(x), bottom + 16, precise(x), "m") for x in round_ticks(first, last, 8, whole=whole)]
    below, more = words_below(panel.x, left, _WIDE, bottom + 34)
    parts += [*below, text(11, top + _TALL / 2, panel.y, "m f", True), *_lines(panel, x_at, y_at)]
    return drawing(_WIDE, bottom + 42 + more, words, parts)


def _stretched(low: Number, high: Number, also: Number | None) -> tuple[Number, Number]:
    """Return the ends of an axis."""
    if also is not None:
        low, high = min(low, also), max(high, also)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _lines(panel: Curve, x_at: Callable[[Number], Number], y_at: Callable[[Number], Number]) -> list[str]:
    """Return the bands, then the lines, then the points."""
    bands, lines, points = [], [], []
    for number, line in enumerate(panel.lines):
        kind = _kind(line, number)
        known = [(point, point.y) for point in line.points if point.y is not None]
        ends = [(p.x, p.low, p.high) for p, _ in known if p.low is not None and p.high is not None]
        around = [(x_at(x), y_at(high)) for x, _, high in ends] + [(x_at(x), y_at(low)) for x, low, _ in ends[::-1]]
        bands.append(way(around, f"band {kind}", closed=True))
        lines.append(way([(x_at(point.x), y_at(y)) for point, y in known], f"line {kind}"))
        points += [_mark(line, number, x_at(point.x), y_at(y), "m ") for point, y in known]
    return [*bands, *lines, *points]


def _kind(line: CurveLine, number: int) -> str:
    return "lc" if line.control else f"l{number % len(COLOURS)}"


def _mark(line: CurveLine, number: int, x: Number, y: Number, also: str = "") -> str:
    shape = _CROSS if line.control else _MARKS[number % len(_MARKS)]
    kind = f"{also}mark {_kind(line, number)}"
    return f'<path transform="translate({short(x)} {short(y)})" d="{shape}" class="{kind}"/>'


def _legend(panel: Curve) -> tuple[list[str], Number]:
    """Return names of lines, where there are several, and how much room they take."""
    if len(panel.lines) < 2:
        return [], 8.0
    parts, x, y = [], 12.0, 14.0
    for number, line in enumerate(panel.lines):
        name = cut(line.name, 48)
        if x > 12 and x + 14 + width_of(name) > _WIDE:
            x, y = 12.0, y + 18
        parts += [_mark(line, number, x, y - 4), text(x + 12, y, name)]
        x += 30 + width_of(name)
    return parts, y + 14


def svg_of_bars(panel: Bars, words: str) -> str:
    """Return bars from 0 on, the first on top, with their intervals."""
    names = [cut(bar.label, _NAME) for bar in panel.bars]
    left = max(map(width_of, names), default=0) + 12.0
    wide = max(_WIDE, left + 230)
    ends = [end for bar in panel.bars for end in (bar.value, bar.low, bar.high, 0.0) if end is not None]
    level = [] if panel.level is None else [panel.level]
    low, high = (0.0, 1.0) if panel.share else _stretched(min([*ends, *level]), max([*ends, *level]), 0.0)

    def at(value: Number) -> Number:
        return left + (min(max(value, low), high) - low) / (high - low) * (wide - left - 20)

    top = 20.0 if level else 4.0
    bottom = top + _ROW * len(panel.bars)
    ticks = round_ticks(low, high, 5)
    parts = [way([(at(tick), top), (at(tick), bottom)], "zero" if tick == 0 else "grid") for tick in ticks]
    marks, over = _bars(panel, at, top, names, left)
    parts += [*marks, *over, *(text(at(tick), bottom + 16, precise(tick), "m") for tick in ticks)]
    below, more = words_below(panel.x, left, wide, bottom + 34)
    parts += below
    for value in level:
        said = f"{panel.level_name} {precise(value)}"
        x = min(at(value), wide - width_of(said) - 2)
        parts += [way([(at(value), top - 2), (at(value), bottom)], "level"), text(x, 12, said, "f")]
    return drawing(wide, bottom + 42 + more, words, parts)


def _bars(
    panel: Bars, at: Callable[[Number], Number], top: Number, names: Sequence[str], left: float
) -> tuple[list[str], list[str]]:
    """Return the bars, each as wide to point at as its row, and what is drawn over them."""
    marks, over = [], []
    for number, (bar, name) in enumerate(zip(panel.bars, names, strict=True)):
        y, value = top + _ROW * number + 4, bar.value or 0.0
        kind = "lc" if bar.control else f"l{int(value < 0)}"
        start, end = sorted((at(0.0), at(value)))
        over += [box(start, y, end - start, _ROW - 8, f"bar {kind}"), text(left - 8, y + 13, name, "e")]
        marks.append(box(0, y - 4, at(1e300) + 20, _ROW, "m row-of"))
        if bar.low is not None and bar.high is not None:
            a, b, middle = at(bar.low), at(bar.high), y + _ROW / 2 - 4
            over.append(way([(a, middle), (b, middle)], "end"))
            over += [way([(x, middle - 4), (x, middle + 4)], "end") for x in (a, b)]
    return marks, over
