"""A circuit's drawing as a figure of matplotlib."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from .._optional import optional
from .circuit_drawing import CircuitDrawing, CircuitNode, DrawnEdge
from .circuit_layout import HIGH, port_of, width_of_name
from .colours import DARK, LIGHT, Colour, css, shade
from .words import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS = 96.0  # in an inch
_INK, _FAINT = "#1c1c1c", "#5a5a5a"
PLAIN: Colour = (110, 110, 110)
DASHES = {"q": (4.0, 2.0), "k": (1.0, 1.6), "v": ()}
"""How lines are broken, in units of their width: on, off."""
FILLS = {"head": "#eef2f8", "mlp": "#f4f1e8", "input": "#ececec", "logits": "#ececec"}


def sign_colour(score: float | int | None, *, dark: bool = False) -> Colour:
    """Return the colour of an edge by its score's sign, which the colour-blind tell apart.

    >>> sign_colour(None), sign_colour(2.0) != sign_colour(-2.0)
    ((110, 110, 110), True)
    """
    if not score:
        return PLAIN
    return shade(0.8 if score > 0 else -0.7, DARK if dark else LIGHT)


def figure_of_circuit(drawing: CircuitDrawing) -> Figure:
    """Return a circuit's drawing as a figure; pyplot is not touched.

    Args:
        drawing: of the circuit.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = optional("matplotlib.figure", extra="report")
    letters = int(max(drawing.wide, 420.0) / 6.6)
    title, caption = (textwrap.wrap(text, letters) for text in (drawing.title, drawing.caption))
    above, below = 24.0 + 20 * len(title), 16.0 + 15 * len(caption)
    wide, tall = max(drawing.wide, 420.0), drawing.tall + above + below
    figure: Figure = figures.Figure(figsize=(wide / _PIXELS, tall / _PIXELS), dpi=_PIXELS, facecolor="white")
    axes: Axes = figure.add_axes((0.0, below / tall, drawing.wide / wide, drawing.tall / tall))
    axes.set(xlim=(0, drawing.wide), ylim=(drawing.tall, 0))
    axes.axis("off")
    for text, y in drawing.rows:
        axes.text(14, y, text, size=8, color=_FAINT, va="center", ha="left", parse_math=False)
    if drawing.rows:
        axes.text(14, drawing.rows[-1][1] - 20, "layer", size=8, color=_FAINT, va="center", ha="left")
    for edge in drawing.edges:
        _line(axes, edge)
    for node in drawing.nodes:
        _box(axes, drawing, node)
    style: dict[str, Any] = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(14 / wide, 1 - 12 / tall, "\n".join(title), size=11, color=_INK, **style)
    figure.text(14 / wide, (below - 6) / tall, "\n".join(caption), size=8, color=_FAINT, **style)
    return figure


def _line(axes: Axes, edge: DrawnEdge) -> None:
    patches, paths = optional("matplotlib.patches", extra="report"), optional("matplotlib.path", extra="report")
    codes = [paths.Path.MOVETO] + [paths.Path.CURVE4] * (len(edge.dots) - 1)
    wide = edge.width * 72 / _PIXELS
    dashes = DASHES.get(edge.edge.letter, ())
    style = (0, tuple(one * max(1.0, 1.6 / wide) for one in dashes)) if dashes else "-"
    way = paths.Path(edge.dots, codes)
    look: dict[str, Any] = {"edgecolor": css(sign_colour(edge.edge.score)), "linewidth": wide, "linestyle": style}
    axes.add_patch(patches.PathPatch(way, facecolor="none", alpha=0.8, capstyle="butt", **look))


def _box(axes: Axes, drawing: CircuitDrawing, node: CircuitNode) -> None:
    patches = optional("matplotlib.patches", extra="report")
    x, y = drawing.spots[node.name]
    ports = node.kind == "head"
    wide = width_of_name(node.name, ports=ports)
    shape = patches.BoxStyle("round", pad=0, rounding_size=5)
    look: dict[str, Any] = {"facecolor": FILLS.get(node.kind, "#f2eef6"), "edgecolor": _FAINT, "linewidth": 0.8}
    axes.add_patch(patches.FancyBboxPatch((x - wide / 2, y - HIGH / 2), wide, HIGH, boxstyle=shape, zorder=3, **look))
    middle = y - 4 if ports else y
    axes.text(x, middle, cut(node.name, 24), size=8, color=_INK, ha="center", va="center", zorder=4, parse_math=False)
    for letter in "qkv" if ports else "":
        place, end = port_of((x, y), wide, letter)
        axes.text(place, end - 5, letter, size=6, color=_FAINT, ha="center", va="center", zorder=4)
