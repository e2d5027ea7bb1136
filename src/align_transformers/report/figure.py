"""Pictures by matplotlib, without pyplot and its global state. All sizes are in inches."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import write_atomically
from .._optional import optional
from .colours import LIGHT, UNKNOWN, css, ink, shade
from .figure_charts import draw_bars, draw_curve
from .kinds import picture
from .panels import Bars, Curve, HeatMap, Panel, Picture
from .tabular import Tabular
from .words import cut, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 160
_INK, _FAINT, _OUTLINE = "#1c1c1c", "#5a5a5a", "#111111"
_TITLE, _CAPTION = 0.26, 0.17  # heights of lines
_WORDS, _TITLE_LETTERS = 8.5, 12.5  # characters of tokens and of panels' titles in an inch, nearly
_SCALE = 1.1, 3.0  # heights of a colour scale: at least, so that its ticks are told apart, and at most
_LEVEL = 0.13  # height of the name of a level above bars


def save_figure(
    table: Tabular, path: str | os.PathLike[str], *, value: str | None = None, component: str | None = None
) -> Path:
    """Draw a study's table as a PNG or, if the path ends in `.svg`, as an SVG, written in one step.

    Args:
        table: of a study.
        path: the file to write.
        value: which number, as for `picture`.
        component: which component, likewise.

    Returns:
        The path written.

    Raises:
        SpecError, UnknownNameError: as for `picture`.
        MissingExtraError: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    kind = "svg" if os.fspath(path).endswith(".svg") else "png"
    return write_atomically(path, image_of(figure_of(picture(table, value, component=component)), kind))


def image_of(figure: Figure, kind: str = "png", dpi: int = _DPI) -> bytes:
    """Return a figure as the content of a PNG or SVG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # drawn as a box
        figure.savefig(buffer, format=kind, dpi=dpi)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Box:
    """The room that a panel takes: of the axes, and on the four sides of them."""

    wide: float
    tall: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def width(self) -> float:
        return self.left + self.wide + self.right

    @property
    def height(self) -> float:
        return self.top + self.tall + self.bottom


def figure_of(drawn: Picture) -> Figure:
    """Return the figure of a picture: title, prompts, panels row by row, caption.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    boxes = [_level([_box(panel, row, number) for number, panel in enumerate(row)]) for row in drawn.panels]
    width = max([6.6, *(sum(box.width for box in row) for row in boxes)])
    letters = int((width - 0.5) / 0.064)
    caption = textwrap.wrap(drawn.caption, letters)
    title = textwrap.wrap(drawn.title, int(letters / 1.6))
    subtitle = [line for prompt in drawn.prompts for line in _prompt(*prompt, letters)]
    head = 0.2 + _TITLE * len(title)
    foot = 0.2 + _CAPTION * len(caption) + 0.12
    tops = [max(box.height for box in row) for row in boxes]
    height = head + _CAPTION * len(subtitle) + 0.12 + sum(tops) + foot
    figure: Figure = optional("matplotlib.figure", extra="report").Figure(figsize=(width, height), facecolor="white")
    below = foot + sum(tops)
    for row, panels, tall in zip(boxes, drawn.panels, tops, strict=True):
        left = max(0.0, width - sum(box.width for box in row)) / 2
        for box, panel in zip(row, panels, strict=True):
            bottom = below - box.top - box.tall
            place = ((left + box.left) / width, bottom / height, box.wide / width, box.tall / height)
            axes = figure.add_axes(place)
            _draw_panel(axes, panel, box)
            if isinstance(panel, HeatMap) and _has_scale(panel, panels):
                at = (left + box.left + box.wide + 0.25) / width, bottom / height
                _scale(figure.add_axes((*at, 0.15 / width, min(max(box.tall, _SCALE[0]), _SCALE[1]) / height)), panel)
            left += box.width
        below -= tall
    for i, text in enumerate(title):
        _line(figure, 0.25 / width, 1 - (0.2 + _TITLE * i) / height, text, size=12.5, weight="bold")
    for i, text in enumerate(subtitle):
        _line(figure, 0.25 / width, 1 - (head + _CAPTION * i) / height, text, size=8.5, color=_FAINT)
    for i, text in enumerate(caption):
        _line(figure, 0.25 / width, (0.12 + _CAPTION * (len(caption) - i)) / height, text, size=8, color=_FAINT)
    return figure


def _box(panel: Panel, row: Sequence[Panel], number: int) -> _Box:
    """Return the room for one panel of a row."""
    if isinstance(panel, Curve):
        return _titled(panel, _Box(max(3.1, 6.4 / len(row)), 2.3, 0.75, 0.3, 0.0, 0.6))
    if isinstance(panel, Bars):
        left = 0.35 + max((len(cut(bar.label, 30)) for bar in panel.bars), default=0) / _WORDS
        tall, top = max(0.6, 0.27 * len(panel.bars)), 0.0 if panel.level is None else _LEVEL
        return _titled(panel, _Box(max(2.6, 6.4 / len(row)), tall, left, 0.5, top, 0.55))
    wide, tall = _cell(panel, len(row))
    texts = [panel.rows.line(n) for n in range(len(panel.rows))]
    left = 0.5 + max(map(len, texts)) / (_WORDS * 1.1) if number == 0 or not _same_rows(panel, row[0]) else 0.2
    longest = max(len(_short(panel.columns.line(n, " → "))) for n in range(len(panel.columns)))
    labels = 0.3 if _flat(panel, wide) else 0.3 + 0.065 * longest
    right = 1.3 if _has_scale(panel, row) else 0.15
    box = _titled(panel, _Box(wide * len(panel.columns), tall * len(panel.rows), left, right, 0.0, labels + 0.12))
    return replace(box, top=max(box.top, _SCALE[0] - box.tall)) if _has_scale(panel, row) else box


def _level(boxes: Sequence[_Box]) -> list[_Box]:
    """Return the boxes of a row with their axes beginning at one height."""
    top = max(box.top for box in boxes)
    return [replace(box, top=top) for box in boxes]


def _titled(panel: Panel, box: _Box) -> _Box:
    """Return the box with room for the lines of the panel's title."""
    lines = _title_lines(panel, box)
    return replace(box, top=box.top + 0.12 + 0.18 * len(lines)) if lines else box


def _title_lines(panel: Panel, box: _Box) -> list[str]:
    return textwrap.wrap(panel.title, max(12, int((box.wide + box.right) * _TITLE_LETTERS)))


def _cell(panel: HeatMap, beside: int) -> tuple[float, float]:
    """Return width and height of a cell; where tokens stand in cells, these are wide enough for most."""
    columns, rows = len(panel.columns), len(panel.rows)
    longest = max((len(square.text) for square in panel.squares.values()), default=0)
    most = 0.9 if longest <= 6 else 1.0
    wide = min(most, max(0.16, 11.0 / columns / beside))
    if panel.columns.name == panel.rows.name or not panel.columns.numbers:  # square, as for heads and attention
        wide = min(wide, 0.42)
    return wide, min(0.26, max(0.1, 9.0 / rows))


def _flat(panel: HeatMap, wide: float) -> bool:
    """Whether labels below the columns are written horizontally."""
    lines = [line for texts in panel.columns.texts for line in (texts[0], *(f"→ {text}" for text in texts[1:]))]
    return max(map(len, lines)) <= wide * 13 and wide > 0.2


def _same_rows(panel: HeatMap, other: Panel) -> bool:
    return isinstance(other, HeatMap) and other.rows == panel.rows


def _has_scale(panel: HeatMap, row: Sequence[Panel]) -> bool:
    """Whether a map gets a colour scale at its side: the last of those that share it."""
    after = row[next(n for n, other in enumerate(row) if other is panel) + 1 :]
    return not (after and isinstance(after[0], HeatMap) and after[0].scale == panel.scale)


def _draw_panel(axes: Axes, panel: Panel, box: _Box) -> None:
    if panel.title:
        pad = 6.0 + (72 * _LEVEL if isinstance(panel, Bars) and panel.level is not None else 0.0)
        title = "\n".join(_title_lines(panel, box))
        axes.set_title(title, size=9.5, color=_INK, loc="left", pad=pad, parse_math=False)
    if isinstance(panel, HeatMap):
        _map(axes, panel, (box.wide / len(panel.columns), box.tall / len(panel.rows)), named=box.left > 0.3)
    elif isinstance(panel, Curve):
        draw_curve(axes, panel)
    else:
        draw_bars(axes, panel)


def _map(axes: Axes, panel: HeatMap, size: tuple[float, float], named: bool) -> None:
    """Draw the cells, their texts where there is room, the outline and the labels."""
    columns, rows = len(panel.columns), len(panel.rows)
    grid = [[panel.squares.get((row, column)) for column in range(columns)] for row in reversed(range(rows))]
    grounds = [[shade(square.place, LIGHT) if square else (255, 255, 255) for square in row] for row in grid]
    axes.imshow(grounds, origin="lower", aspect="auto", interpolation="nearest")
    for border in range(1, columns):
        axes.axvline(border - 0.5, color="white", linewidth=0.5)
    for border in range(1, rows):
        axes.axhline(border - 0.5, color="white", linewidth=0.5)
    if size[0] >= 0.4 and size[1] >= 0.16:
        _texts(axes, panel, size[0])
    for (x0, y0), (x1, y1) in panel.outline():
        for colour, wide in (("white", 2.8), (_OUTLINE, 1.4)):  # white around it: it is seen on dark cells, too
            style: dict[str, Any] = {"color": colour, "linewidth": wide, "zorder": 3 - wide / 10}
            axes.plot((x0, x1), (y0, y1), solid_capstyle="projecting", clip_on=False, **style)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))
    flat = _flat(panel, size[0])
    names = [_short(panel.columns.line(n, "\n→ " if flat else " → ")) for n in range(columns)]
    turned: dict[str, Any] = {} if flat else {"rotation": 90}
    for text in axes.set_xticks(range(columns), names, size=8.5 if size[0] > 0.25 else 7, color=_INK, **turned):
        text.label1.set_parse_math(False)
    if panel.columns.name != "token":
        axes.set_xlabel(panel.columns.name, size=9, color=_INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not named:
        axes.set_yticks([])
        return
    step = max(1, -(-rows // 40))
    shown = range(0, rows, step)
    labels = [_short(panel.rows.line(rows - 1 - n)) for n in shown]
    for text in axes.set_yticks(shown, labels, size=7.5, color=_INK):
        text.label1.set_parse_math(False)
    if panel.rows.name != "token":
        axes.set_ylabel(panel.rows.name, size=9, color=_INK)


def _texts(axes: Axes, panel: HeatMap, wide: float) -> None:
    last, room = len(panel.rows) - 1, int(wide * 13)
    for (row, column), square in panel.squares.items():
        colour = css(ink(shade(square.place, LIGHT), faint=square.faint))
        style: dict[str, Any] = {"size": 7, "color": colour, "ha": "center", "va": "center_baseline"}
        axes.text(column, last - row, cut(square.text, room), parse_math=False, **style)


def _scale(axes: Axes, panel: HeatMap) -> None:
    """Draw the colour scale from where it begins to 1."""
    steps, scale = 128, panel.scale
    span = (1 - scale.begin) / steps
    for i in range(steps):
        start = scale.begin + i * span
        axes.axhspan(start, start + span * 1.02, color=css(shade(start + span / 2, LIGHT)), linewidth=0)
    if any(square.place is None for square in panel.squares.values()):
        axes.set_xlabel("grey:\nunknown", size=7, color=css(UNKNOWN))
    ticks = [(place, words) for place, words in scale.ticks if place >= scale.begin]
    axes.set(xlim=(0, 1), ylim=(scale.begin, 1), xticks=[])
    for tick in axes.set_yticks([place for place, _ in ticks], [words for _, words in ticks], size=8, color=_INK):
        tick.label2.set_parse_math(False)
    axes.yaxis.tick_right()
    axes.tick_params(length=2, color=_FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _prompt(name: str, prompt: str, answer: str, letters: int) -> list[str]:
    """A prompt and its answer on at most four lines; the middle of a longer prompt is left out."""
    text = visible(prompt).replace(visible(" "), " ")
    room = 4 * letters - len(answer) - 40
    if len(text) > room:
        text = f"{text[: room // 2]} … {text[-room // 2 :]}"
    said = f" → {answer}" if answer else ""
    named = f"{name}: " if name else ""
    return textwrap.wrap(f"{named}{text}{said}", int(letters * 0.94), subsequent_indent=" " * 4)


def _short(label: str) -> str:
    return "\n".join(cut(line, 40) for line in label.split("\n"))


def _line(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, text, ha="left", va="top", parse_math=False, **{"color": _INK, **style})


save_heat_map = save_figure  # the older name
