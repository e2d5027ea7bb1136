"""The heat map in the terminal (rich): colours where there are colours, numbers where there is room.

Layers are rows, the deepest on top; tokens are columns. A `*` marks cells after which the model's answer is the
source's. With few tokens each cell carries its number; with many, cells are narrow and the tokens are listed below;
more tokens than a line holds are drawn in panels. Without colours, narrow cells are shade characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from ..table import Table
from .colours import DARK, FAINT, Colour, ink, shade
from .drawing import Drawing, Square, arrange, number, visible

_NUMBERED, _WIDEST, _NARROWEST = 7, 11, 2
_SHADES, _ASCII_SHADES = " ░▒▓█", " .:+#"
_ASCII = {"·": "_", "→": ">", "↵": "\\n", "⇥": "\\t", "∅": "''", "“": '"', "”": '"', "…": "~"}
_TICKS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
_BOLD, _DIM = Style(bold=True), Style(dim=True)


def heat_map(table: Table, *, component: str | None = None) -> HeatMap:
    """Return the heat map of a layer x position table, for `rich.print` or `Console.print`.

    Args:
        table: a table with the columns and the meta of a trace.
        component: which component to draw; may be left out where the table has one.

    Raises:
        SpecError: the table is not a layer x position table of one pair, or has several components.
        UnknownNameError: the table has no such component.

    Example:
        >>> row = dict(component="block_output", layer=0, position=0, token="Spain", source_token="Italy", metric=1.0,
        ...     effect=3.0, recovered=0.75, change=1.0, fired=1, top_tokens=["Rome"], top_probabilities=[0.5])
        >>> meta = dict(model="toy", base="Spain", source="Italy", base_answer="Madrid", source_answer="Rome",
        ...     metric="logit difference", base_value=-2.0, source_value=2.0)
        >>> console = Console(width=60, color_system=None)
        >>> with console.capture() as capture:
        ...     console.print(heat_map(Table.from_rows([row], meta=meta)))
        >>> print([line for line in capture.get().splitlines() if "0.75" in line][0].split())
        ['0', '0.75*']
    """
    return HeatMap(arrange(table, component))


@dataclass(frozen=True)
class HeatMap:
    """A rich renderable; it adapts to the width, the colours and the character set of the console it is printed on."""

    drawing: Drawing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        coloured = console.color_system is not None and not console.no_color
        canvas = _Canvas(self.drawing, options.max_width, coloured, options.ascii_only)
        yield from canvas.lines()


@dataclass(frozen=True)
class _Canvas:
    """The heat map for one console: `width` columns, with or without colours, all of unicode or ASCII alone."""

    drawing: Drawing
    width: int
    coloured: bool
    ascii_only: bool

    @property
    def gutter(self) -> int:
        """Width of the layers' numbers at the left, with the space after them."""
        return max(len("layer"), len(str(self.drawing.layers[-1]))) + 1

    @property
    def cell(self) -> int:
        """Width of a cell."""
        room = max(1, self.width - self.gutter) // len(self.drawing.positions)
        if room < _NUMBERED:
            return max(_NARROWEST, room)
        labels = [max(cell_len(base), cell_len(source) + 1) for base, source in self.drawing.tokens.values()]
        return min(room, max(_NUMBERED, min(_WIDEST, max(labels) + 1)))

    def lines(self) -> Iterator[RenderableType]:
        yield from self.title()
        for positions in self.panels():
            yield Text()
            yield from self.header(positions)
            for layer in reversed(self.drawing.layers):
                yield self.row(layer, positions)
        yield Text()
        if self.cell < _NUMBERED:
            yield from self.key()
            yield Text()
        yield from self.legend()

    def panels(self) -> Iterator[tuple[int, ...]]:
        """Yield the positions of each panel: as few panels as the width allows, of nearly equal size."""
        positions = self.drawing.positions
        most = max(1, (self.width - self.gutter) // self.cell)
        count = -(-len(positions) // most)
        size = -(-len(positions) // count)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]

    def title(self) -> Iterator[RenderableType]:
        drawing = self.drawing
        yield Text(self.readable(drawing.question), style=_BOLD)
        prompts = Grid.grid(padding=(0, 2, 0, 0))
        prompts.add_column(style=_DIM, no_wrap=True)
        prompts.add_column(overflow="fold")
        for name, prompt, answer in (
            ("base", drawing.base, drawing.base_says),
            ("source", drawing.source, drawing.source_says),
        ):
            shown = self.readable(prompt.replace("\n", visible("\n")))
            prompts.add_row(name, Text.assemble(shown, (self.readable(" → "), _DIM), (self.readable(answer), _BOLD)))
        yield prompts
        yield self.prose(
            f"{drawing.component} of {drawing.meta['model']}, swapped at one layer and one token at a time"
        )

    def prose(self, text: str) -> Text:
        return Text(self.readable(text))

    def header(self, positions: tuple[int, ...]) -> Iterator[Text]:
        if self.cell < _NUMBERED:
            yield self.ruler(positions)
            return
        names = [self.drawing.tokens[p] for p in positions]
        if any(base != source for base, source in names):
            yield self.labels("", [base for base, _ in names], Style())
            yield self.labels("layer", ["" if b == s else "→" + s for b, s in names], _BOLD)
        else:
            yield self.labels("layer", [base for base, _ in names], Style())

    def labels(self, left: str, names: list[str], style: Style) -> Text:
        line = Text(left.rjust(self.gutter - 1) + " ", style=_DIM, no_wrap=True)
        for name in map(self.readable, names):
            fitting = name if cell_len(name) < self.cell else set_cell_size(name, self.cell - 2) + "…"
            line.append(" " * (self.cell - cell_len(fitting) - 1) + fitting + " ", style=Style(dim=False) + style)
        return line

    def ruler(self, positions: tuple[int, ...]) -> Text:
        """The numbers of the positions above narrow cells; where they have no room, every other, third, ..."""
        step = -(-(len(str(positions[-1])) + 1) // self.cell)
        line = Text("layer".rjust(self.gutter - 1) + " ", style=_DIM, no_wrap=True)
        line.append("".join(str(p).ljust(self.cell * step) for p in positions[::step]).rstrip(), style=Style(dim=False))
        return line

    def row(self, layer: int, positions: tuple[int, ...]) -> Text:
        line = Text(str(layer).rjust(self.gutter - 1) + " ", style=_DIM, no_wrap=True, overflow="crop")
        for position in positions:
            cell = self.drawing.cells.get((layer, position))
            if cell is None:
                line.append(" " * self.cell, style=Style(dim=False))
            else:
                line.append(self.face(cell), style=self.paint(cell.recovered, bold=cell.flips))
        return line

    def face(self, cell: Square) -> str:
        """The characters of a cell."""
        if self.cell >= _NUMBERED:
            return (number(cell.recovered) + ("*" if cell.flips else " ")).rjust(self.cell - 1) + " "
        mark = "*" if cell.flips else ""
        if self.coloured:
            return mark.center(self.cell)
        return self.shaded(cell.recovered) * (self.cell - 1) + (mark or self.shaded(cell.recovered))

    def shaded(self, value: float | None) -> str:
        """A value as one character: blank at 0, full at 1, a minus for a clearly negative one."""
        if value is None:
            return "?"
        if value < -0.125:
            return "-"
        shades = _ASCII_SHADES if self.ascii_only else _SHADES
        return shades[min(max(round(value * 4), 0), 4)]

    def paint(self, value: float | None, *, bold: bool = False) -> Style:
        if not self.coloured:
            return Style(bold=bold, dim=False)
        ground = shade(value, DARK)
        return Style(
            color=_rich(ink(ground, faint=value is not None and abs(value) < FAINT)),
            bgcolor=_rich(ground),
            bold=bold,
            dim=False,
        )

    def key(self) -> Iterator[Text]:
        """The tokens by position, for narrow cells, as many on a line as there is room for."""
        line = Text(no_wrap=True)
        for position in self.drawing.positions:
            base, source = self.drawing.tokens[position]
            entry = Text.assemble((f"{position} ", _DIM), self.readable(self.drawing.label(position)))
            if base != source:
                entry.stylize(_BOLD)
            if line and line.cell_len + entry.cell_len > self.width:
                yield line
                line = Text(no_wrap=True)
            line.append_text(entry).append("  ")
        yield line

    def legend(self) -> Iterator[Text]:
        line = Text("scale ", style=_DIM)
        for tick in (tick for tick in _TICKS if tick >= self.drawing.low):
            if self.coloured:
                line.append(f" {tick:g} ", style=self.paint(tick))
            elif self.cell < _NUMBERED:
                line.append(f" {self.shaded(tick) * 2} {tick:g} ", style=Style(dim=False))
        if self.coloured or self.cell < _NUMBERED:
            yield line
        yield self.prose(self.drawing.rise())
        if self.drawing.tells_flips:
            yield self.prose(f"* = the model's answer is now “{self.drawing.source_answer}”")

    def readable(self, text: str) -> str:
        """Return `text` in the characters that the terminal knows."""
        if not self.ascii_only:
            return text
        for character, replacement in _ASCII.items():
            text = text.replace(character, replacement)
        return text.encode("ascii", "replace").decode()


def _rich(colour: Colour) -> Color:
    return Color.from_rgb(*colour)
