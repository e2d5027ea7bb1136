"""A heat map as SVG. Its colours are classes of the page, one a step of the scale, and so go with the theme."""

from __future__ import annotations

from .colours import DARK, LIGHT, Colour, css, shade
from .panels import ColourScale, HeatMap
from .svg import Number, box, drawing, short, text, width_of
from .words import cut

_STEPS = 40  # on each side of 0
_WRITTEN = 14
"""Up to so many columns the cells have room for what is written into them."""
_HIGH, _NAME, _PAD = 22, 24, 8  # pixels of a row; letters of a label; pixels around words
_BAR, _TALLEST = 118, 240  # pixels of a colour scale: at least, so that its ticks are told apart, and at most


def colour_classes(*, dark: bool) -> str:
    """Return the rules of all steps of the scale: the ground, and the ink that is read on it."""
    scale, lines = (DARK if dark else LIGHT), []
    for step in range(-_STEPS, _STEPS + 1):
        ground = shade(step / _STEPS, scale)
        lines.append(f".{_name(step)}{{--g:{css(ground)};--i:{_ink(ground)}}}")
    return "".join(lines)


def _ink(ground: Colour) -> str:
    """Return black or white, whichever has more contrast: 4.5 at least, on any ground."""
    parts = [c / 255 for c in ground]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def _name(step: int) -> str:
    return f"{'n' if step < 0 else 'p'}{abs(step)}"


def colour_class(place: float | int | None) -> str:
    """Return the class of a place on the scale; `u`: unknown.

    >>> colour_class(0.5), colour_class(-1), colour_class(7), colour_class(None)
    ('p20', 'n40', 'p40', 'u')
    """
    return "u" if place is None else _name(round(min(max(place, -1), 1) * _STEPS))


def svg_of_map(panel: HeatMap, words: str) -> str:
    """Return the map; its cells are the elements of class `m`, in the order of `squares`, sorted."""
    columns, rows = len(panel.columns), len(panel.rows)
    wide = _cell(panel)
    labels = [cut(panel.rows.line(n), _NAME) for n in range(rows)]
    left = max(map(width_of, labels)) + _PAD + 22 * bool(panel.rows.name)
    tall = rows * _HIGH
    top, long = 6, min(max(tall, _BAR), _TALLEST)
    across, below = _across(panel, wide, left, top + tall)
    scale, beside = _scale(panel.scale, left + columns * wide + 16, max(tall, long) + top, long)
    parts = [*_cells(panel, wide, left, top), _outline(panel, wide, left, top), *across, *scale]
    step = -(-rows // 40)
    parts += [
        text(left - _PAD, top + n * _HIGH + 15, labels[n], "e") for n in range(rows) if (rows - 1 - n) % step == 0
    ]
    if panel.rows.name:
        parts.append(text(12, top + tall / 2, panel.rows.name, "m f", turned=True))
    return drawing(left + columns * wide + 16 + beside, top + max(tall + below, long + 6), words, parts)


def _cell(panel: HeatMap) -> Number:
    """Return how wide a cell is: for what is written into it, or for being pointed at."""
    if len(panel.columns) > _WRITTEN:
        return 22
    letters = max((width_of(cut(square.text, 12)) for square in panel.squares.values()), default=0)
    room = max((width_of(line) for texts in panel.columns.texts for line in _lines(texts)), default=0)
    return max(40, letters + _PAD, min(room + _PAD, 92) if len(panel.columns) <= 8 else 0)


def _lines(texts: tuple[str, ...]) -> list[str]:
    return [texts[0], *(f"→ {one}" for one in texts[1:])]


def _cells(panel: HeatMap, wide: Number, left: Number, top: Number) -> list[str]:
    """Return the cells, and then what is written into them."""
    written = len(panel.columns) <= _WRITTEN
    cells, words = [], []
    for (row, column), square in sorted(panel.squares.items()):
        x, y, colour = left + column * wide, top + row * _HIGH, colour_class(square.place)
        cells.append(box(x, y, wide - 1, _HIGH - 1, f"m {colour}"))
        if written:
            faint = " z" if square.faint else ""
            words.append(text(x + (wide - 1) / 2, y + 15, cut(square.text, 12), f"c {colour}{faint}"))
    return [*cells, *words]


def _outline(panel: HeatMap, wide: Number, left: Number, top: Number) -> str:
    """Return the line around the marked cells; nothing where there are none."""
    bottom = top + len(panel.rows) * _HIGH

    def at(x: Number, y: Number) -> str:
        return f"{short(left + (x + 0.5) * wide - 0.5)} {short(bottom - (y + 0.5) * _HIGH - 0.5)}"

    path = "".join(f"M{at(*start)}L{at(*end)}" for start, end in panel.outline())
    return f'<path class="halo" d="{path}"/><path class="outline" d="{path}"/>' if path else ""


def _across(panel: HeatMap, wide: Number, left: Number, bottom: Number) -> tuple[list[str], Number]:
    """Return the labels below the columns, upright where they do not fit, and how much room they take."""
    texts = panel.columns.texts
    lines = [_lines(one) for one in texts]
    flat = all(width_of(line) <= wide for several in lines for line in several)
    if flat:
        parts = [
            text(left + (n + 0.5) * wide, bottom + 16 + 15 * k, line, "m")
            for n, several in enumerate(lines)
            for k, line in enumerate(several)
        ]
        below = 12.0 + 15 * max(map(len, lines))
    else:
        names = [cut(" → ".join(one), _NAME) for one in texts]
        parts = [text(left + (n + 0.5) * wide + 4, bottom + 6, name, "e", turned=True) for n, name in enumerate(names)]
        below = 12.0 + max(map(width_of, names))
    if panel.columns.name not in ("", "token"):
        parts.append(text(left + len(texts) * wide / 2, bottom + below + 12, panel.columns.name, "m f"))
        below += 18
    return parts, below


def _scale(scale: ColourScale, left: Number, bottom: Number, tall: Number) -> tuple[list[str], Number]:
    """Return the colours with their ticks, and how wide they are."""
    steps = round((1 - scale.begin) * _STEPS)
    first, high = round(scale.begin * _STEPS), tall / steps
    parts = [
        box(left, bottom - (n + 1) * high, 12, high + (n > 0), _name(first + n + (first + n >= 0)))
        for n in reversed(range(steps))
    ]
    ticks = [(place, words) for place, words in scale.ticks if place >= scale.begin]
    taken: list[Number] = []
    for place, words in sorted(ticks, key=lambda tick: -len(tick[1])):  # of two that overlap, the longer
        y = min(max(bottom - (place - scale.begin) / (1 - scale.begin) * tall + 4, bottom - tall + 9), bottom)
        if all(abs(y - other) >= 12 for other in taken):
            taken.append(y)
            parts.append(text(left + 18, y, words, "f"))
    return parts, 24 + max((width_of(words) for _, words in ticks), default=0)
