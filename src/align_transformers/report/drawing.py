"""What all reports draw: the cells of one component by layer and position, with readable tokens and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .._errors import SpecError
from ..table import Table

_META = ("model", "base", "source", "metric", "base_value", "source_value")
_COLUMNS = ("component", "layer", "position", "token", "source_token", "effect", "recovered")
_OF_A_PAIR = tuple(
    f"{side}{fact}" for side in ("base", "source") for fact in ("", "_tokens", "_says", "_answer", "_value")
)
_MARKS = {" ": "\N{MIDDLE DOT}", "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}


@dataclass(frozen=True)
class Square:
    """One swap: where it was made and what came of it (fields as the table's columns; None = not known)."""

    layer: int
    position: int
    effect: float | None
    recovered: float | None
    flips: bool
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Drawing:
    """A table arranged for drawing.

    Args:
        component: the component that was swapped.
        layers: ascending.
        positions: ascending.
        tokens: position -> label of the column, marks for white space, `base→source` where the tokens differ.
        raw_tokens: position -> the base's token as it is.
        cells: (layer, position) -> what to draw there; cells that were not swept are missing.
        meta: the table's meta.
    """

    component: str
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: Mapping[int, tuple[str, str]]
    raw_tokens: Mapping[int, str]
    cells: Mapping[tuple[int, int], Square]
    meta: Mapping[str, object]

    @property
    def base(self) -> str:
        """The base prompt."""
        return str(self.meta["base"])

    @property
    def source(self) -> str:
        """The source prompt."""
        return str(self.meta["source"])

    @property
    def base_answer(self) -> str:
        """The base's answer, for prose: without white space around it; "base" where none is known."""
        return spoken(str(self.meta.get("base_answer", "base")))

    @property
    def source_answer(self) -> str:
        """The source's answer, for prose; "source" where none is known."""
        return spoken(str(self.meta.get("source_answer", "source")))

    @property
    def base_says(self) -> str:
        """What the model itself says after the base, as far as it is known: the base's answer, unless others are."""
        return spoken(str(self.meta["base_says"])) if "base_says" in self.meta else self._answer("base")

    @property
    def source_says(self) -> str:
        """What the model itself says after the source."""
        return spoken(str(self.meta["source_says"])) if "source_says" in self.meta else self._answer("source")

    def _answer(self, side: str) -> str:
        return spoken(str(self.meta.get(f"{side}_answer", "?")))

    @property
    def tells_flips(self) -> bool:
        """Whether it is known of which cells the most probable token is the source's answer."""
        return "source_answer" in self.meta and any(cell.top for cell in self.cells.values())

    def label(self, position: int, arrow: str = "→") -> str:
        """The label of a column on one line: the base's token, and the source's where it differs."""
        base, source = self.tokens[position]
        return base if base == source else f"{base}{arrow}{source}"

    @property
    def low(self) -> float:
        """Where the colour scale begins: 0, or below it where cells lead clearly away from the source."""
        least = min((cell.recovered for cell in self.cells.values() if cell.recovered is not None), default=0.0)
        return next((low for low in (0.0, -0.25, -0.5) if least >= low - 0.1), -1.0)

    @property
    def question(self) -> str:
        """The heading of figures."""
        return f"Where one swapped activation turns “{self.base_answer}” into “{self.source_answer}”"

    def rise(self) -> str:
        """What 0 and 1 mean, in words."""
        return (
            f"0 = still “{self.base_answer}”, 1 = as much “{self.source_answer}” as on the source prompt itself "
            f"(share of the change in {self.meta['metric']})"
        )

    def flip_edges(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """The outline of the cells whose most probable token is the source's answer.

        Returns:
            Segments ((x0, y0), (x1, y1)) in units of columns and rows: the cell of column i and row j (both counted
            from 0, rows from the shallowest layer) covers i - 0.5 .. i + 0.5 and j - 0.5 .. j + 0.5.
        """
        inside = {
            (i, j)
            for i, position in enumerate(self.positions)
            for j, layer in enumerate(self.layers)
            if (layer, position) in self.cells and self.cells[layer, position].flips
        }
        edges = []
        for i, j in sorted(inside):
            for side, step in (((-1, 0), (0, 1)), ((1, 0), (0, 1)), ((0, -1), (1, 0)), ((0, 1), (1, 0))):
                if (i + side[0], j + side[1]) not in inside:
                    x, y = i + side[0] / 2, j + side[1] / 2
                    dx, dy = step[0] / 2, step[1] / 2
                    edges.append(((x - dx, y - dy), (x + dx, y + dy)))
        return edges


def arrange(table: Table, component: str | None = None) -> Drawing:
    """Arrange a layer x position table for drawing.

    Args:
        table: a table with the columns and the meta of a trace.
        component: which component to draw; may be left out where the table has one.

    Raises:
        SpecError: the table is empty, lacks a column or a fact, has several components and none was chosen, or has
            several rows in one cell.
        UnknownNameError: the table has no such component.
    """
    missing = [name for name in _COLUMNS if name not in table.columns] + [f for f in _META if f not in table.meta]
    if missing:
        raise SpecError(f"not a layer x position table with two prompts: it lacks {', '.join(missing)}")
    if not len(table):
        raise SpecError("the table has no rows, so there is nothing to draw")
    chosen = table.select(component)
    if len(chosen.components()) != 1:
        raise SpecError(f"choose one component to draw, component=...; the table has {chosen.components()}")
    meta = _meta_of_pair(chosen)
    cells: dict[tuple[int, int], Square] = {}
    tokens: dict[int, tuple[str, str]] = {}
    raw: dict[int, str] = {}
    for row in chosen.rows():
        layer, position = row["layer"], row["position"]
        if layer is None or position is None or row.get("direction") == "noise":
            raise SpecError(
                "reports draw swaps of the source into the base at one layer and position; a row has no layer, no "
                "position, or another direction: table.pivot(...) gives any two columns as a matrix"
            )
        if (layer, position) in cells:
            raise SpecError(
                f"several rows stand at layer {layer}, position {position}; draw one pair, direction and head at a "
                'time, such as table.select(where={"pair": 0, "direction": "denoise"})'
            )
        best: tuple[str, ...] = row.get("top_tokens", ())
        probabilities: tuple[float, ...] = row.get("top_probabilities", ())
        flips = len(best) > 0 and best[0] == meta.get("source_answer")
        top = tuple(zip(best, probabilities, strict=True))
        cells[layer, position] = Square(layer, position, row["effect"], row["recovered"], flips, top)
        raw[position] = row["token"]
        tokens[position] = (visible(row["token"]), visible(row["source_token"]))
    layers, positions = ({key[i] for key in cells} for i in (0, 1))
    return Drawing(chosen.components()[0], tuple(sorted(layers)), tuple(sorted(positions)), tokens, raw, cells, meta)


def _meta_of_pair(table: Table) -> dict[str, object]:
    """Return a table's meta; of a table of several pairs, with the facts about the only pair that has rows."""
    meta: dict[str, object] = dict(table.meta)
    pairs = set(table.columns.get("pair", (0,)))
    if meta.get("pairs", 1) == 1 or len(pairs) != 1:
        return meta
    number = next(iter(pairs))
    return meta | {fact: meta[fact][number] for fact in _OF_A_PAIR if isinstance(meta.get(fact), list)}  # type: ignore[index]


def visible(token: str) -> str:
    r"""Return a token as readable text: spaces, line breaks and tabs as marks, other unprintable characters escaped.

    >>> visible(" Spain"), visible("\n"), visible("\x00"), visible("")
    ('·Spain', '↵', '\\x00', '∅')
    """
    if not token:
        return "\N{EMPTY SET}"
    return "".join(_MARKS.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in token)


def spoken(answer: str) -> str:
    r"""Return an answer for prose: without white space around it, unless it is nothing else.

    >>> spoken(" Madrid"), spoken("\n")
    ('Madrid', '↵')
    """
    return visible(answer.strip()).replace(_MARKS[" "], " ") if answer.strip() else visible(answer)


def number(value: float | None, width: int = 5) -> str:
    """Return a number in at most `width` characters, two decimals where they fit; unknown is a dash.

    >>> number(0.984), number(-0.004), number(123.456), number(-1e9), number(None)
    ('0.98', '0.00', '123.5', '<-999', '-')
    """
    if value is None:
        return "-"
    for decimals in (2, 1, 0):
        text = f"{value + 0.0:.{decimals}f}"
        if float(text) == 0:
            text = text.lstrip("-")
        if len(text) <= width:
            return text
    return ">9999" if value > 0 else "<-999"
