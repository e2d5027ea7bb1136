"""Curves and bars as lines of a terminal: a label, the number with its interval, and a bar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from .colours import DARK, shade
from .panels import Bar, Bars, Curve
from .terminal_map import readable, rich_colour
from .words import cut, precise, with_interval

_LABEL, _DIM = 32, Style(dim=True)


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
            yield from self.block(self.panel.bars)
            return
        blocks = [
            tuple(Bar(precise(point.x), point.y, point.low, point.high) for point in line.points)
            for line in self.panel.lines
        ]
        most = max((abs(bar.value or 0.0) for block in blocks for bar in block), default=0.0)
        for line, block in zip(self.panel.lines, blocks, strict=True):
            name = ": ".join(word for word in (self.panel.y, line.name) if word) + f", by {self.panel.x}"
            yield Text(readable(name, self.ascii_only), style=_DIM)
            yield from self.block(block, most)

    def block(self, bars: tuple[Bar, ...], most: float | None = None) -> Iterator[Text]:
        """Yield a line a bar; `most` is the largest value, which has the longest bar."""
        labels = [readable(cut(bar.label, _LABEL), self.ascii_only) for bar in bars]
        numbers = [with_interval(bar.value, bar.low, bar.high) for bar in bars]
        left, middle = max(map(cell_len, labels), default=0), max(map(len, numbers), default=0)
        room = max(0, min(40, self.width - left - middle - 4))
        largest = max((abs(bar.value or 0.0) for bar in bars), default=0.0) if most is None else most
        for bar, label, number in zip(bars, labels, numbers, strict=True):
            line = Text(no_wrap=True, overflow="crop")
            line.append(" " * (left - cell_len(label)) + label + "  ", style=Style(dim=False))
            line.append(number.ljust(middle) + "  ", style=Style(bold=True))
            value = bar.value or 0.0
            length = round(abs(value) / largest * room) if largest else 0
            if self.coloured:
                line.append(" " * length, style=Style(bgcolor=rich_colour(shade(0.8 if value > 0 else -0.5, DARK))))
            else:
                line.append(("-" if value < 0 else readable("■", self.ascii_only)) * length, style=Style(dim=False))
            yield line
