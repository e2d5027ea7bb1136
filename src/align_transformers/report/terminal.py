"""Pictures in the terminal (rich): colours where there are colours, numbers where there is room.

Rows of a map are as in figures: layers with the deepest on top; tokens are columns. A `*` marks what figures outline,
such as cells after which the model's answer is the source's. With few tokens each cell carries its number; with many,
cells are narrow and the tokens are listed below; more tokens than a line holds are drawn in panels. Without colours,
narrow cells are shade characters. Curves and bars are lines of text: a number, its interval, and a bar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.style import Style
from rich.table import Table as Grid
from rich.text import Text

from .chapters import Chapters
from .kinds import picture
from .panels import Curve, HeatMap, Panel, Picture
from .tabular import Tabular
from .terminal_bars import BarCanvas
from .terminal_map import MapCanvas, readable
from .words import visible

_BOLD, _DIM = Style(bold=True), Style(dim=True)


def in_terminal(table: Tabular, *, value: str | None = None, component: str | None = None) -> Shown:
    """Return the picture of a study's table, for `rich.print` or `Console.print`.

    Args:
        table: of a study.
        value: which number, as for `picture`.
        component: which component, likewise.

    Raises:
        SpecError, UnknownNameError: as for `picture`.

    Example:
        >>> from align_transformers import Table
        >>> row = dict(component="block_output", layer=0, position=0, token="Spain", source_token="Italy", metric=1.0,
        ...     effect=3.0, recovered=0.75, change=1.0, fired=1, top_tokens=["Rome"], top_probabilities=[0.5])
        >>> meta = dict(model="toy", base="Spain", source="Italy", base_answer="Madrid", source_answer="Rome",
        ...     metric="logit difference", base_value=-2.0, source_value=2.0)
        >>> console = Console(width=60, color_system=None)
        >>> with console.capture() as capture:
        ...     console.print(in_terminal(Table.from_rows([row], meta=meta)))
        >>> print([line for line in capture.get().splitlines() if "0.75" in line][0].split())
        ['0', '0.75*']
    """
    return Shown(picture(table, value, component=component))


@dataclass(frozen=True)
class Shown:
    """A rich renderable; it adapts to the width, the colours and the character set of the console it is printed on."""

    picture: Picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        coloured = console.color_system is not None and not console.no_color
        width, ascii_only = options.max_width, options.ascii_only
        yield from self._head(ascii_only)
        panels = [panel for row in self.picture.panels for panel in row]
        left_out: list[Curve] = []
        if self.picture.maps:  # curves over all layers beside maps would fill the screen: the files have them
            left_out = [panel for panel in panels if isinstance(panel, Curve)]
            panels = [panel for panel in panels if not isinstance(panel, Curve)]
        yield from _drawn(panels, width, coloured, ascii_only)
        if left_out:
            yield Text()
            named = ", ".join(dict.fromkeys(panel.title or f"{panel.y} by {panel.x}" for panel in left_out))
            yield Text(readable(f"figure and page alone: {named}", ascii_only), style=_DIM)
        for line in self.picture.notes:
            yield Text(readable(line, ascii_only))

    def _head(self, ascii_only: bool) -> Iterator[RenderableType]:
        yield Text(readable(self.picture.title, ascii_only), style=_BOLD)
        yield from _prompts(self.picture.prompts, ascii_only)
        if self.picture.about:
            yield Text(readable(self.picture.about, ascii_only))


@dataclass(frozen=True)
class ChaptersShown:
    """A report of several chapters as a rich renderable; of each the bars or the map, the findings, and its line."""

    report: Chapters

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        coloured = console.color_system is not None and not console.no_color
        width, ascii_only = options.max_width, options.ascii_only
        yield Text(readable(self.report.title, ascii_only), style=_BOLD)
        yield from _prompts(self.report.prompts, ascii_only)
        for number, one in enumerate(self.report.chapters, 1):
            yield Text()
            yield Text(readable(f"{number}. {one.title}", ascii_only), style=Style(bold=True, underline=True))
            for line in one.words:
                yield Text(readable(line, ascii_only))
            panels = [panel for row in one.brief for panel in row if not isinstance(panel, Curve)]
            yield from _drawn(panels, width, coloured, ascii_only)
            if panels:
                yield Text()
            for line in one.findings:
                yield Text(readable(line, ascii_only), style=_BOLD)
            yield Text(readable(f">>> {one.code}", ascii_only), style=_DIM, overflow="fold", no_wrap=False)


def _prompts(named: Sequence[tuple[str, str, str]], ascii_only: bool) -> Iterator[RenderableType]:
    """Yield what was read, and what the model says after it."""
    if not named:
        return
    prompts = Grid.grid(padding=(0, 2, 0, 0))
    prompts.add_column(style=_DIM, no_wrap=True)
    prompts.add_column(overflow="fold")
    for name, prompt, answer in named:
        shown = readable(prompt.replace("\n", visible("\n")), ascii_only)
        said = [(readable(" → ", ascii_only), _DIM), (readable(answer, ascii_only), _BOLD)] if answer else []
        prompts.add_row(name, Text.assemble(shown, *said))
    yield prompts


def _drawn(panels: Sequence[Panel], width: int, coloured: bool, ascii_only: bool) -> Iterator[RenderableType]:
    """Yield panels one below the other."""
    for number, panel in enumerate(panels):
        yield Text()
        if panel.title:
            yield Text(readable(panel.title, ascii_only), style=_BOLD)
        if isinstance(panel, HeatMap):
            later = next((other for other in panels[number + 1 :] if isinstance(other, HeatMap)), None)
            legend = later is None or later.scale != panel.scale
            yield from MapCanvas(panel, width, coloured, ascii_only).lines(legend=legend)
        else:
            yield from BarCanvas(panel, width, coloured, ascii_only).lines()


heat_map = in_terminal  # the older name
