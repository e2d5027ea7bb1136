"""What pictures of a page are drawn with: SVG elements as text, widths of words, round ticks. All texts are escaped."""

from __future__ import annotations

import math
import unicodedata
from html import escape
from textwrap import wrap

Number = float | int

LETTER = 6.9
"""Pixels of a letter of 12 pixels height, nearly; those of East Asian scripts take two."""


def width_of(words: str) -> Number:
    """Return how wide words are drawn, in pixels.

    >>> width_of("ab") == 2 * LETTER == width_of("中")
    True
    """
    return LETTER * sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words)


def text(x: Number, y: Number, words: str, kind: str = "", turned: bool = False) -> str:
    """Return words at a point; `kind` is their class: `m` is centred, `e` ends there. `turned`: they read upwards.

    >>> text(1, 2.25, "a<b", "m")
    '<text x="1" y="2.2" class="m">a&lt;b</text>'
    """
    name = f' class="{kind}"' if kind else ""
    turn = f' transform="rotate(-90 {short(x)} {short(y)})"' if turned else ""
    return f'<text x="{short(x)}" y="{short(y)}"{name}{turn}>{escape(words)}</text>'


def words_below(words: str, left: Number, right: Number, y: Number) -> tuple[list[str], Number]:
    """Return words between two points, centred, in as many lines as they take, and how much lower the last one is.

    >>> words_below("as many as fit", 0, 60, 34)[1]
    15
    """
    lines = wrap(words, max(1, int((right - left) / LETTER))) or [""]
    middle = (left + right) / 2
    return [text(middle, y + 15 * number, line, "m f") for number, line in enumerate(lines)], 15 * (len(lines) - 1)


def box(x: Number, y: Number, wide: Number, tall: Number, kind: str) -> str:
    """Return a rectangle of a class."""
    return f'<rect x="{short(x)}" y="{short(y)}" width="{short(wide)}" height="{short(tall)}" class="{kind}"/>'


def way(points: list[tuple[Number, Number]], kind: str, *, closed: bool = False) -> str:
    """Return a line through points, of a class."""
    dots = "L".join(f"{short(x)} {short(y)}" for x, y in points)
    return f'<path d="M{dots}{"Z" * closed}" class="{kind}"/>' if points else ""


def short(value: Number) -> str:
    """Return a coordinate with at most one decimal.

    >>> short(2.0), short(2.26)
    ('2', '2.3')
    """
    return f"{value:.1f}".removesuffix(".0")


def drawing(wide: Number, tall: Number, words: str, parts: list[str]) -> str:
    """Return an SVG; `words` says what is seen to those who do not see it."""
    size = f'width="{short(wide)}" height="{short(tall)}" viewBox="0 0 {short(wide)} {short(tall)}"'
    return f'<svg role="img" aria-label="{escape(words)}" {size}>{"".join(parts)}</svg>'


def round_ticks(low: Number, high: Number, most: int = 6, *, whole: bool = False) -> list[Number]:
    """Return round numbers between two, ends included, at most `most`.

    Args:
        low: from where.
        high: until where, above `low`.
        most: how many, 2 at least.
        whole: only whole numbers.

    >>> round_ticks(0, 1), round_ticks(0, 3, whole=True), round_ticks(-1.3, 0.9, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 1.0, 2.0, 3.0], [-1.0, 0.0])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (m * power * p for p in (1, 10, 100) for m in (1, 2, 5))
    step = next(s for s in steps if (high - low) / s <= most - 1 + 1e-9 and (s >= 1 or not whole))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]
