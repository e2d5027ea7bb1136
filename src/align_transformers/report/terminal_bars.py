"""Curves and bars as lines of a terminal: a label, the number with its interval, and a bar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from .colours import DARK, UNKNOWN, shade
from .panels import Bar, Bars, Curve
from .terminal_map import readable, rich_colour
from .words import precise, with_interval

_LABEL, _LEAST, _DIM = 32, 8, Style(dim=True)


@dataclass(frozen=True)
class BarCanvas:
    """Bars for one console; of a curve, a bar for each point of each line."""

    panel: Bars | Curve
    width: int
    coloured: bool
    ascii_only: bool

    def lines(self) -> Iterator[Text]:
        """Yield the chart; bars of one block are drawn to one scale."""
        if isinstance(self.panel, Bars):
            yield Text(readable(self.panel.x, self.ascii_only), style=_DIM)
            level = self.panel.level
            further = () if level is None else (Bar(self.panel.level_name, level, control=True),)
            yield from self.block((*self.panel.bars, *further), 1.0 if self.panel.share else None)
            return
        blocks = [
            tuple(Bar(precise(point.x), point.y, point.low, point.high, line.control) for point in line.points)
            for line in self.panel.lines
        ]
        most = max((abs(bar.value or 0.0) for block in blocks for bar in block), default=0.0)
        for line, block in zip(self.panel.lines, blocks, strict=True):
            name = ": ".join(word for word in (self.panel.y, line.name) if word) + f", by {self.panel.x}"
            yield Text(readable(name, self.ascii_only), style=_DIM)
            yield from self.block(block, most)

    def block(self, bars: tuple[Bar, ...], most: float | None = None) -> Iterator[Text]:
        """Yield a line a bar; `most` is the largest value, which has the longest bar.

        Numbers are never cut: a label gives way, and where even a short one has no room it has a line of its own.
        """
        numbers = [with_interval(bar.value, bar.low, bar.high) for bar in bars]
        middle = max(map(len, numbers), default=0)
        beside = self.width - middle - 2
        apart = beside < _LEAST
        room = min(_LABEL, self.width if apart else beside)
        labels = [self.fitting(readable(bar.label, self.ascii_only), room) for bar in bars]
        left = 0 if apart else max(map(cell_len, labels), default=0)
        longest = max(0, min(40, self.width - left - middle - 4))
        largest = max((abs(bar.value or 0.0) for bar in bars), default=0.0) if most is None else most
        for bar, label, number in zip(bars, labels, numbers, strict=True):
            line = Text(overflow="fold")
            if apart:
                yield Text(label, style=Style(dim=False))
            else:
                line.append(" " * (left - cell_len(label)) + label + "  ", style=Style(dim=False))
            line.append(number, style=Style(bold=True))
            length = round(min(abs(bar.value or 0.0) / largest, 1.0) * longest) if largest else 0
            if length:
                line.append(" " * (middle - len(number) + 2))
                line.append(self.bar(bar, length), style=self.paint(bar))
            yield line

    def fitting(self, label: str, room: int) -> str:
        """Return a label of at most so many columns; an ellipsis says that it is cut."""
        if cell_len(label) <= room:
            return label
        dots = readable("…", self.ascii_only)
        return set_cell_size(label, room - cell_len(dots)).rstrip() + dots

    def bar(self, bar: Bar, length: int) -> str:
        """Return a bar of that length: blanks where there are colours to paint them with."""
        if self.coloured:
            return " " * length
        return ("-" if (bar.value or 0.0) < 0 else readable("░" if bar.control else "■", self.ascii_only)) * length

    def paint(self, bar: Bar) -> Style:
        """Return the colours of a bar."""
        if not self.coloured:
            return Style(dim=False)
        ground = UNKNOWN if bar.control else shade(0.8 if (bar.value or 0.0) > 0 else -0.5, DARK)
        return Style(bgcolor=rich_colour(ground))
