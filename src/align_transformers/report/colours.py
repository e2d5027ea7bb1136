"""One colour scale for all reports: orange (away from the source), neutral at 0, blue up to 1.

Values are anchored, never stretched to the data: -1, 0 and 1 have the same colours in every figure, so that figures
can be compared; values beyond are shown as -1 and 1. Blue and orange stay apart for colour-blind readers, and on both
sides the strength grows with the distance from 0. On a light ground 0 is pale, on a dark ground 0 is dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Colour = tuple[int, int, int]

LIGHT: Sequence[tuple[float, Colour]] = (
    (-1.0, (150, 56, 4)), (-0.5, (241, 137, 57)), (-0.2, (253, 208, 162)), (0.0, (246, 246, 244)),
    (0.2, (198, 219, 239)), (0.5, (107, 174, 214)), (0.8, (33, 113, 181)), (1.0, (8, 60, 125)),
)  # fmt: skip
DARK: Sequence[tuple[float, Colour]] = (
    (-1.0, (255, 190, 120)), (-0.5, (217, 108, 30)), (-0.2, (110, 58, 28)), (0.0, (35, 38, 46)),
    (0.2, (28, 58, 96)), (0.5, (36, 104, 172)), (0.8, (86, 166, 232)), (1.0, (158, 214, 255)),
)  # fmt: skip
UNKNOWN: Colour = (128, 128, 128)
FAINT = 0.05  # numbers closer to 0 than this are written faintly


def shade(value: float | int | None, scale: Sequence[tuple[float, Colour]]) -> Colour:
    """Return the colour of a value, `(red, green, blue)` from 0 to 255; unknown values are grey.

    >>> shade(0.0, LIGHT), shade(1.0, LIGHT) == shade(7.5, LIGHT), shade(None, LIGHT)
    ((246, 246, 244), True, (128, 128, 128))
    """
    if value is None:
        return UNKNOWN
    at = min(max(value, scale[0][0]), scale[-1][0])
    for (low, dark), (high, light) in pairwise(scale):
        if at <= high:
            part = (at - low) / (high - low)
            red, green, blue = (round(a + part * (b - a)) for a, b in zip(dark, light, strict=True))
            return red, green, blue
    return scale[-1][1]


def ink(ground: Colour, *, faint: bool = False) -> Colour:
    """Return the text colour to use on `ground`: nearly black or white, whichever has more contrast; a grey if `faint`.

    >>> ink((246, 246, 244)), ink((8, 60, 125))
    ((20, 20, 20), (255, 255, 255))
    """
    red, green, blue = ((c / 255) ** 2.2 for c in ground)
    bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2
    if faint:
        return (138, 138, 138)
    return (20, 20, 20) if bright else (255, 255, 255)


def css(colour: Colour) -> str:
    """Return the colour as `#rrggbb`.

    >>> css((8, 60, 125))
    '#083c7d'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)
