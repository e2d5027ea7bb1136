"""A heat map as lines of a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.style import Style
from rich.text import Text

from .colours import DARK, Colour, ink, shade
from .panels import HeatMap, Square

_NUMBERED, _WIDEST, _NARROWEST, _MARGIN, _SHORT = 7, 11, 2, 14, 4
_SHADES, _ASCII_SHADES = " ░▒▓█", " .:+#"
_ASCII = {
    "·": "_",
    "→": ">",
    "↵": "\\n",
    "⇥": "\\t",
    "∅": "''",
    "“": '"',
    "”": '"',
    "…": "~",
    "▇": "#",
    "■": "#",
    "░": ".",
}
_BOLD, _DIM = Style(bold=True), Style(dim=True)


@dataclass(frozen=True)
class MapCanvas:
    """The heat map for one console: `width` columns, with or without colours, all of unicode or ASCII alone."""

    panel: HeatMap
    width: int
    coloured: bool
    ascii_only: bool

    @cached_property
    def gutter(self) -> int:
        """Width of the rows' labels at the left, with the space after them."""
        texts = [cell_len(self.panel.rows.line(n)) for n in range(len(self.panel.rows))]
        return min(_MARGIN, max(len(self.panel.rows.name), *texts)) + 1

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """What stands above cells whose labels are listed below; none: the labels are short."""
        columns = self.panel.columns
        long = any(cell_len(columns.line(n)) > _SHORT for n in range(len(columns)))
        return columns.numbers or (tuple(range(len(columns))) if long else ())

    @cached_property
    def alike(self) -> bool:
        """Whether different labels look the same once they are cut to fit into wide cells."""
        labels = {self.panel.columns.texts[n] for n in range(len(self.panel.columns))}
        return len({tuple(map(self.fitting, texts)) for texts in labels}) < len(labels)

    @cached_property
    def cell(self) -> int:
        """Width of a cell."""
        room = max(1, self.width - self.gutter) // len(self.panel.columns)
        if room < _NUMBERED:
            return max(_NARROWEST, room)
        labels = [
            max(cell_len(texts[0]), *(cell_len(text) + 1 for text in texts[1:]), 0)
            for texts in self.panel.columns.texts
        ]
        labels += [cell_len(square.text) + 1 for square in self.panel.squares.values()]
        return min(room, max(_NUMBERED, min(_WIDEST, max(labels) + 1)))

    def lines(self, *, legend: bool = True) -> Iterator[Text]:
        """Yield the map; with the legend of its colours, where no map below shares it."""
        for number, columns in enumerate(self.panels()):
            if number:
                yield Text()
            yield from self.header(columns)
            for row in range(len(self.panel.rows)):
                yield self.row(row, columns)
        if self.numbers and (self.cell < _NUMBERED or self.alike):
            yield Text()
            yield from self.key()
        if legend:
            yield Text()
            yield from self.legend()

    def panels(self) -> Iterator[range]:
        """Yield the columns of each panel: as few panels as the width allows, of nearly equal size."""
        columns = len(self.panel.columns)
        most = max(1, (self.width - self.gutter) // self.cell)
        size = -(-columns // -(-columns // most))
        for start in range(0, columns, size):
            yield range(start, min(start + size, columns))

    def header(self, columns: range) -> Iterator[Text]:
        """Yield the labels of the columns."""
        if self.cell < _NUMBERED:
            yield self.ruler(columns)
            return
        names, rows = [self.panel.columns.texts[n] for n in columns], self.panel.rows.name
        if self.alike:
            names = [(str(self.numbers[n]),) for n in columns]
        if any(len(name) > 1 for name in names):
            yield self.labels("", [name[0] for name in names], Style())
            yield self.labels(rows, ["".join("→" + text for text in name[1:]) for name in names], _BOLD)
        else:
            yield self.labels(rows, [name[0] for name in names], Style())

    def labels(self, left: str, names: list[str], style: Style) -> Text:
        """Return a line of labels above wide cells."""
        line = self.margin(left)
        for name in (readable(name, self.ascii_only) for name in names):
            line.append(
                " " * (self.cell - cell_len(self.fitting(name)) - 1) + self.fitting(name) + " ", style=_plain(style)
            )
        return line

    def fitting(self, text: str, beside: int = 1) -> str:
        """Return a text that fits into a wide cell, so many columns being taken by what stands beside it."""
        if cell_len(text) <= self.cell - beside:
            return text
        return set_cell_size(text, self.cell - beside - 1).rstrip() + readable("…", self.ascii_only)

    def margin(self, text: str) -> Text:
        """Return the beginning of a line: the label of a row."""
        shown = readable(text, self.ascii_only)
        if cell_len(shown) >= self.gutter:
            shown = set_cell_size(shown, self.gutter - 2) + readable("…", self.ascii_only)
        blank = " " * (self.gutter - 1 - cell_len(shown))
        return Text(f"{blank}{shown} ", style=_DIM, no_wrap=True, overflow="crop")

    def ruler(self, columns: range) -> Text:
        """The numbers of the columns above narrow cells; where they have no room, every other, third, ..."""
        names = [str(n) for n in self.numbers] or [text for text, *_ in self.panel.columns.texts]
        names = [readable(names[n], self.ascii_only) for n in columns]
        step = -(-(max(map(cell_len, names)) + 1) // self.cell)
        line = self.margin(self.panel.rows.name)
        width = self.cell * step
        line.append("".join(name + " " * (width - cell_len(name)) for name in names[::step]).rstrip(), style=_plain())
        return line

    def row(self, row: int, columns: range) -> Text:
        """Return the cells of a row."""
        line = self.margin(self.panel.rows.line(row))
        for column in columns:
            square = self.panel.squares.get((row, column))
            if square is None:
                line.append(" " * self.cell, style=_plain())
            else:
                line.append(self.face(square), style=self.paint(square.place, bold=square.marked, faint=square.faint))
        return line

    def face(self, square: Square) -> str:
        """The characters of a cell."""
        if self.cell >= _NUMBERED:
            text = self.fitting(readable(square.text, self.ascii_only), beside=2) + ("*" if square.marked else " ")
            return " " * (self.cell - 1 - cell_len(text)) + text + " "
        mark = "*" if square.marked else ""
        if self.coloured:
            return mark.center(self.cell)
        return self.shaded(square.place) * (self.cell - 1) + (mark or self.shaded(square.place))

    def shaded(self, place: float | None) -> str:
        """A place on the scale as one character: blank at 0, full at 1, a minus for a clearly negative one."""
        if place is None:
            return "?"
        if place < -0.125:
            return "-"
        shades = _ASCII_SHADES if self.ascii_only else _SHADES
        return shades[min(max(round(place * 4), 0), 4)]

    def paint(self, place: float | None, *, bold: bool = False, faint: bool = False) -> Style:
        """Return the colours of a cell."""
        if not self.coloured:
            return Style(bold=bold, dim=False)
        ground = shade(place, DARK)
        return Style(color=rich_colour(ink(ground, faint=faint)), bgcolor=rich_colour(ground), bold=bold, dim=False)

    def key(self) -> Iterator[Text]:
        """The labels by number, for narrow cells, as many on a line as there is room for; longer ones are folded."""
        line = Text(overflow="fold")
        for column, number in enumerate(self.numbers):
            entry = Text.assemble((f"{number} ", _DIM), readable(self.panel.columns.line(column), self.ascii_only))
            if len(self.panel.columns.texts[column]) > 1:
                entry.stylize(_BOLD)
            if line and line.cell_len + entry.cell_len > self.width:
                yield line
                line = Text(overflow="fold")
            line.append_text(entry).append("  ")
        yield line

    def legend(self) -> Iterator[Text]:
        """The colours and what they stand for."""
        scale = self.panel.scale
        line = Text("scale ", style=_DIM)
        for place, words in scale.ticks:
            if place < scale.begin:
                continue
            if self.coloured:
                line.append(f" {readable(words, self.ascii_only)} ", style=self.paint(place))
            elif self.cell < _NUMBERED:
                line.append(f" {self.shaded(place) * 2} {readable(words, self.ascii_only)} ", style=_plain())
        if self.coloured or self.cell < _NUMBERED:
            yield line


def readable(text: str, ascii_only: bool) -> str:
    """Return `text` in the characters that the terminal knows."""
    if not ascii_only:
        return text
    for character, replacement in _ASCII.items():
        text = text.replace(character, replacement)
    return text.encode("ascii", "replace").decode()


def rich_colour(colour: Colour) -> Color:
    """Return a colour as rich has it."""
    return Color.from_rgb(*colour)


def _plain(style: Style | None = None) -> Style:
    return Style(dim=False) + (style or Style())
