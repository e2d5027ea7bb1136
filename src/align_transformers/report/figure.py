"""The heat map as a picture (matplotlib, without pyplot and its global state)."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically
from .._optional import optional
from ..table import Table
from .colours import FAINT, LIGHT, UNKNOWN, css, ink, shade
from .drawing import Drawing, Square, arrange, number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
_INK, _FAINT, _OUTLINE = "#1c1c1c", "#5a5a5a", "#111111"
_LEFT, _RIGHT, _TITLE, _CAPTION = 0.75, 1.3, 0.26, 0.17  # inches; the last two are line heights


def save_heat_map(table: Table, path: str | os.PathLike[str], *, component: str | None = None) -> Path:
    """Draw a layer x position table as a PNG, written in one step.

    Rows are layers, the deepest on top; columns are tokens; colours show `recovered` on the fixed scale of
    `report.colours`; a line encloses the cells after which the model's answer is the source's.

    Args:
        table: a table with the columns and the meta of a trace.
        path: the PNG file to write.
        component: which component to draw; may be left out where the table has one.

    Returns:
        The path written.

    Raises:
        SpecError: the table is not a layer x position table of one pair, or has several components.
        UnknownNameError: the table has no such component.
        MissingExtraError: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    drawing = arrange(table, component)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # drawn as a box
        _draw(drawing).savefig(buffer, format="png", dpi=_DPI)
    return write_atomically(path, buffer.getvalue())


def _draw(drawing: Drawing) -> Figure:
    """Lay the figure out in inches: title, map with its scale, token labels, caption."""
    columns, rows = len(drawing.positions), len(drawing.layers)
    cell = min(0.9, max(0.16, 11.0 / columns)), min(0.26, max(0.1, 9.0 / rows))
    wide, tall = columns * cell[0], rows * cell[1]
    width = max(_LEFT + wide + _RIGHT, 6.6)
    letters = int((width - 0.5) / 0.064)
    caption = textwrap.wrap(_caption(drawing), letters)
    title = textwrap.wrap(drawing.question, int(letters / 1.6))
    subtitle = _prompt("base", drawing.base, drawing.base_says, letters)
    subtitle += _prompt("source", drawing.source, drawing.source_says, letters)
    labels = 0.3 + (0.0 if cell[0] > 0.6 else 0.065 * max(len(drawing.label(p)) for p in drawing.positions))
    head = 0.2 + _TITLE * len(title)
    top = head + _CAPTION * len(subtitle) + 0.12
    bottom = labels + 0.3 + _CAPTION * len(caption) + 0.12
    height = top + tall + bottom
    figure = optional("matplotlib.figure", extra="report").Figure(figsize=(width, height), facecolor="white")
    left = _LEFT + max(0.0, width - _LEFT - wide - _RIGHT) / 2
    axes = figure.add_axes((left / width, bottom / height, wide / width, tall / height))
    _map(axes, drawing, cell)
    scale = figure.add_axes(((left + wide + 0.25) / width, bottom / height, 0.15 / width, min(tall, 3.0) / height))
    _scale(scale, drawing)
    for i, text in enumerate(title):
        _line(figure, 0.25 / width, 1 - (0.2 + _TITLE * i) / height, text, size=12.5, weight="bold")
    for i, text in enumerate(subtitle):
        _line(figure, 0.25 / width, 1 - (head + _CAPTION * i) / height, text, size=8.5, color=_FAINT)
    for i, text in enumerate(caption):
        _line(figure, 0.25 / width, (0.12 + _CAPTION * (len(caption) - i)) / height, text, size=8, color=_FAINT)
    return figure


def _map(axes: Axes, drawing: Drawing, size: tuple[float, float]) -> None:
    """Draw the cells, their numbers where there is room, the outline and the labels."""
    columns, rows = len(drawing.positions), len(drawing.layers)
    grid = [[drawing.cells.get((layer, position)) for position in drawing.positions] for layer in drawing.layers]
    grounds = [[shade(cell.recovered, LIGHT) if cell else (255, 255, 255) for cell in row] for row in grid]
    axes.imshow(grounds, origin="lower", aspect="auto", interpolation="nearest")
    for border in range(1, columns):
        axes.axvline(border - 0.5, color="white", linewidth=0.5)
    for border in range(1, rows):
        axes.axhline(border - 0.5, color="white", linewidth=0.5)
    if size[0] >= 0.4 and size[1] >= 0.16:
        _numbers(axes, grid)
    for (x0, y0), (x1, y1) in drawing.flip_edges():
        axes.plot((x0, x1), (y0, y1), color=_OUTLINE, linewidth=1.4, solid_capstyle="projecting", clip_on=False)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    flat = size[0] > 0.6
    names = [drawing.label(p, "\n→ " if flat else " → ") for p in drawing.positions]
    turned: dict[str, Any] = {} if flat else {"rotation": 90}
    for text in axes.set_xticks(range(columns), names, size=8.5 if size[0] > 0.25 else 7, color=_INK, **turned):
        text.label1.set_parse_math(False)
    step = max(1, -(-rows // 40))
    axes.set_yticks(range(0, rows, step), [str(layer) for layer in drawing.layers[::step]], size=7.5, color=_INK)
    axes.set_ylabel("layer", size=9, color=_INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _numbers(axes: Axes, grid: list[list[Square | None]]) -> None:
    for j, row in enumerate(grid):
        for i, cell in enumerate(row):
            if cell is None:
                continue
            faint = cell.recovered is not None and abs(cell.recovered) < FAINT
            colour = css(ink(shade(cell.recovered, LIGHT), faint=faint))
            axes.text(i, j, number(cell.recovered), size=7, color=colour, ha="center", va="center_baseline")


def _scale(axes: Axes, drawing: Drawing) -> None:
    """Draw the colour scale from `drawing.low` to 1."""
    steps = 128
    span = (1 - drawing.low) / steps
    for i in range(steps):
        start = drawing.low + i * span
        axes.axhspan(start, start + span * 1.02, color=css(shade(start + span / 2, LIGHT)), linewidth=0)
    if any(cell.recovered is None for cell in drawing.cells.values()):
        axes.set_xlabel("grey:\nunknown", size=7, color=css(UNKNOWN))
    ticks = [tick for tick in (-1.0, -0.5, 0.0, 0.5, 1.0) if tick >= drawing.low]
    words = {0.0: f"0  {drawing.base_answer}", 1.0: f"1  {drawing.source_answer}"}
    axes.set(xlim=(0, 1), ylim=(drawing.low, 1), xticks=[])
    for tick in axes.set_yticks(ticks, [_short(words.get(t, f"{t:g}")) for t in ticks], size=8, color=_INK):
        tick.label2.set_parse_math(False)
    axes.yaxis.tick_right()
    axes.tick_params(length=2, color=_FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _caption(drawing: Drawing) -> str:
    outline = (
        f"Outlined: the most probable next token is now “{drawing.source_answer}”. " if drawing.tells_flips else ""
    )
    return (
        f"{drawing.meta['model']}: in each cell the {drawing.component} of one layer at one token is replaced by that "
        f"of the source prompt, and the model runs on from there. {drawing.rise()[0].upper()}{drawing.rise()[1:]}. "
        f"{outline}Deepest layer on top."
    )


def _prompt(name: str, prompt: str, answer: str, letters: int) -> list[str]:
    """A prompt and its answer on at most four lines; the middle of a longer prompt is left out."""
    text = visible(prompt).replace(visible(" "), " ")
    room = 4 * letters - len(answer) - 40
    if len(text) > room:
        text = f"{text[: room // 2]} … {text[-room // 2 :]}"
    return textwrap.wrap(f"{name}: {text} → {answer}", int(letters * 0.94), subsequent_indent=" " * 4)


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:13] + "…"


def _line(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, text, ha="left", va="top", parse_math=False, **{"color": _INK, **style})
