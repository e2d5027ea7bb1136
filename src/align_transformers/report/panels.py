"""What a picture is: plain data that says what is drawn. The terminal, the figure and the page say how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .colours import FAINT
from .words import number, precise

Edge = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Labels:
    """The labels along one side of a map.

    Args:
        name: what they are: `layer`, `token`, `head`.
        texts: each is one text, or two of which the second takes the place of the first (`Spain`, `Italy`).
        numbers: what stands for them where there is no room, the texts being listed below; none: texts are short.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def line(self, number: int, arrow: str = "→") -> str:
        """Return one label on one line."""
        return arrow.join(self.texts[number])


@dataclass(frozen=True)
class Square:
    """What a map shows at one row and column.

    Args:
        value: the number; `None` if it is not known.
        place: where it is on the colour scale, from -1 to 1.
        text: what is written into it, where there is room.
        details: what pointing at it shows, line by line.
        marked: it is inside the outline.
    """

    value: float | int | None
    place: float | int | None
    text: str
    details: tuple[str, ...] = ()
    marked: bool = False

    @property
    def faint(self) -> bool:
        """Whether it is a number close to 0, which is written faintly."""
        return self.place is not None and abs(self.place) < FAINT and self.text == number(self.value)


@dataclass(frozen=True)
class ColourScale:
    """How values become colours: places from -1 (orange) through 0 (neutral) to 1 (blue).

    Args:
        name: what the values are.
        ticks: the value that a tick stands for, its place, and its words.
        whole: the value at place 1. -whole is at place -1.
        worst: of ranks, the value at place 0; places are those of logarithms then, rank 0 at place 1.
        begin: the place that the scale is shown from: 0, or below it where there are values below 0.
    """

    name: str
    ticks: tuple[tuple[float, str], ...] = ((-1.0, "-1"), (-0.5, "-0.5"), (0.0, "0"), (0.5, "0.5"), (1.0, "1"))
    whole: float | int = 1.0
    worst: float | int | None = None
    begin: float | int = 0.0

    def at(self, value: float | int | None) -> float | int | None:
        """Return the place of a value, within -1 and 1.

        >>> ColourScale("", whole=4.0).at(-2), ColourScale("", worst=99).at(9), ColourScale("").at(7)
        (-0.5, 0.5, 1.0)
        """
        if value is None:
            return None
        if self.worst is not None:
            return 1 - math.log1p(min(value, self.worst)) / math.log1p(max(self.worst, 1))
        return min(max(value / self.whole, -1.0), 1.0)


@dataclass(frozen=True)
class HeatMap:
    """A matrix in colours.

    Args:
        title: "" for none.
        rows: from top to bottom.
        columns: from left to right.
        squares: by number of row and column, both from 0; those that are not known may be missing.
        scale: the colours.
    """

    title: str
    rows: Labels
    columns: Labels
    squares: Mapping[tuple[int, int], Square]
    scale: ColourScale

    def outline(self) -> list[Edge]:
        """Return the outline of the marked squares.

        Returns:
            Segments ((x0, y0), (x1, y1)) in units of columns and rows: the square of column i, j rows from the
            *bottom*, covers i - 0.5 .. i + 0.5 and j - 0.5 .. j + 0.5.
        """
        last = len(self.rows) - 1
        inside = {(column, last - row) for (row, column), square in self.squares.items() if square.marked}
        edges = []
        for i, j in sorted(inside):
            for side, step in (((-1, 0), (0, 1)), ((1, 0), (0, 1)), ((0, -1), (1, 0)), ((0, 1), (1, 0))):
                if (i + side[0], j + side[1]) not in inside:
                    x, y = i + side[0] / 2, j + side[1] / 2
                    dx, dy = step[0] / 2, step[1] / 2
                    edges.append(((x - dx, y - dy), (x + dx, y + dy)))
        return edges


@dataclass(frozen=True)
class CurvePoint:
    """A value with its 95 % interval, where it has one; `details` is what pointing at it shows."""

    x: float | int
    y: float | int | None
    low: float | int | None = None
    high: float | int | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class CurveLine:
    """A line of a curve, with the band of its intervals; a `control` is grey and dashed."""

    name: str
    points: tuple[CurvePoint, ...]
    control: bool = False


@dataclass(frozen=True)
class Curve:
    """Lines over one axis; `x` and `y` say what is along the axes. `zero`: a line at 0. `share`: from 0 to 1."""

    title: str
    x: str
    y: str
    lines: tuple[CurveLine, ...]
    zero: bool = True
    share: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, with its 95 % interval, where it has one; a `control` is grey."""

    label: str
    value: float | int | None
    low: float | int | None = None
    high: float | int | None = None
    control: bool = False
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bars:
    """Bars from 0 on, the first on top; `x` says what they measure.

    Args:
        title: "" for none.
        x: what they measure.
        bars: from top to bottom.
        share: the axis goes from 0 to 1.
        level: a number that bars are compared with, such as chance: a dashed line across all of them.
        level_name: what it is.
    """

    title: str
    x: str
    bars: tuple[Bar, ...]
    share: bool = False
    level: float | int | None = None
    level_name: str = ""


Panel = HeatMap | Curve | Bars


@dataclass(frozen=True)
class Section:
    """A part of a page that is words: what a picture does not show.

    Args:
        title: its heading.
        lines: sentences, one below the other.
        facts: by name, in words.
        head: the names of the columns of a table; none: no table.
        rows: of the table, each as long as `head`.
        parents: by name of a variable those that it is made of; drawn as a graph, inputs at the bottom.
        opens: it stands above the panels, not below them.
    """

    title: str
    lines: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    opens: bool = False


@dataclass(frozen=True)
class Picture:
    """A study's result as it is drawn.

    Args:
        title: a sentence.
        panels: rows of panels.
        prompts: what was read, as (name, text, what the model says after it, or "").
        about: what was done, in a line.
        caption: what is seen and how it is read, below the figure.
        intro: the same above the page's, for newcomers; default: the caption.
        notes: lines below the panels in the terminal, where there is no caption.
        findings: the main results in words, a line each; a page with sections has them on top.
        facts: name -> fact.
        sections: what the page says beside it.
    """

    title: str
    panels: tuple[tuple[Panel, ...], ...]
    prompts: tuple[tuple[str, str, str], ...] = ()
    about: str = ""
    caption: str = ""
    intro: str = ""
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    @property
    def maps(self) -> tuple[HeatMap, ...]:
        """The heat maps."""
        return tuple(panel for row in self.panels for panel in row if isinstance(panel, HeatMap))


def signed_scale(name: str, values: Iterable[float | int | None]) -> ColourScale:
    """Return a scale that is centred at 0 and reaches as far as the values, in a round number.

    >>> signed_scale("effect", [0.3, -1.7, None]).ticks
    ((-1.0, '-2'), (-0.5, '-1'), (0.0, '0'), (0.5, '1'), (1.0, '2'))
    """
    known = [value for value in values if value is not None]
    whole = rounded_up(max((abs(value) for value in known), default=1.0))
    begin = -1.0 if any(value < -0.02 * whole for value in known) else 0.0
    return ColourScale(name, tuple((p, precise(p * whole)) for p in (-1.0, -0.5, 0.0, 0.5, 1.0)), whole, begin=begin)


def rank_scale(name: str, worst: int) -> ColourScale:
    """Return a scale for ranks: rank 0 is the darkest, and colours go with the logarithm.

    >>> [words for _, words in rank_scale("rank", 50).ticks]
    ['0', '10', '50']
    """
    empty = ColourScale(name, (), worst=worst)
    steps = [0, *(10**n for n in range(1, 7) if 3 * 10**n < worst), worst]
    return ColourScale(name, tuple((empty.at(step) or 0.0, str(step)) for step in steps), worst=worst)


def rounded_up(value: float | int) -> float:
    """Return the next of 1, 1.5, 2, 3, 4, 6, 8, 10, 15, ... (and 0.8, 0.6, ...) that is not below `value`; 1 for 0.

    >>> [rounded_up(value) for value in (0.0, 0.05, 1.7, 20, 21)]
    [1.0, 0.06, 2.0, 20.0, 30.0]
    """
    if not value > 0 or math.isinf(value):
        return 1.0
    power = math.floor(math.log10(value))
    return next(n for n in (float(f"{m}e{power}") for m in (1, 1.5, 2, 3, 4, 6, 8, 10)) if n >= value * (1 - 1e-9))


def layer_labels(layers: Sequence[int]) -> Labels:
    """Return the labels of layers from top to bottom, the deepest on top."""
    return Labels("layer", tuple((str(layer),) for layer in sorted(layers, reverse=True)))
