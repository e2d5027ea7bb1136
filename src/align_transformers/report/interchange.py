"""Interchange at every layer and token of one pair of prompts: the map that `trace` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._errors import SpecError
from .panels import ColourScale, HeatMap, Labels, Picture, Square, layer_labels
from .tabular import Tabular
from .words import cut, number, spoken, visible

_META = ("model", "base", "source", "metric", "base_value", "source_value")
_COLUMNS = ("component", "layer", "position", "token", "source_token", "effect", "recovered")
_OF_A_PAIR = tuple(
    f"{side}{fact}" for side in ("base", "source") for fact in ("", "_tokens", "_says", "_answer", "_value")
)


@dataclass(frozen=True)
class SwapCell:
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
    cells: Mapping[tuple[int, int], SwapCell]
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
        return self._says("base")

    @property
    def source_says(self) -> str:
        """What the model itself says after the source."""
        return self._says("source")

    def _says(self, side: str) -> str:
        return spoken(str(self.meta.get(f"{side}_says", self.meta.get(f"{side}_answer", "?"))))

    @property
    def tells_flips(self) -> bool:
        """Whether it is known of which cells the most probable token is the source's answer."""
        return "source_answer" in self.meta and any(cell.top for cell in self.cells.values())

    def label(self, position: int, arrow: str = "→") -> str:
        """The label of a column on one line: the base's token, and the source's where it differs."""
        return arrow.join(dict.fromkeys(self.tokens[position]))

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

    def heat_map(self, title: str = "") -> HeatMap:
        """Return the map: layers as rows, the deepest on top, and tokens as columns."""
        words = {0.0: f"0  {self.base_answer}", 1.0: f"1  {self.source_answer}"}
        ticks = tuple((tick, cut(words.get(tick, f"{tick:g}"), 14)) for tick in (-1.0, -0.5, 0.0, 0.5, 1.0))
        scale = ColourScale("recovered", ticks, begin=self.low)
        row, column = (
            {n: i for i, n in enumerate(known)} for known in (sorted(self.layers, reverse=True), self.positions)
        )
        squares = {
            (row[layer], column[position]): Square(
                cell.recovered, scale.at(cell.recovered), number(cell.recovered), self._details(cell), cell.flips
            )
            for (layer, position), cell in self.cells.items()
        }
        names = tuple(tuple(dict.fromkeys(self.tokens[position])) for position in self.positions)
        return HeatMap(title, layer_labels(self.layers), Labels("token", names, self.positions), squares, scale)

    def _details(self, cell: SwapCell) -> tuple[str, ...]:
        lines = [
            self.label(cell.position, " → "),
            f"layer {cell.layer}, position {cell.position}",
            f"recovered {number(cell.recovered)}, effect {_signed(cell.effect)}",
        ]
        if cell.top:
            lines += ["", "next token after the swap", *(f"{p:6.1%}  {visible(token)}" for token, p in cell.top)]
        return tuple(lines)


def arrange(table: Tabular, component: str | None = None) -> Drawing:
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
    cells: dict[tuple[int, int], SwapCell] = {}
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
        cells[layer, position] = SwapCell(layer, position, row["effect"], row["recovered"], flips, top)
        raw[position] = row["token"]
        tokens[position] = (visible(row["token"]), visible(row["source_token"]))
    layers, positions = ({key[i] for key in cells} for i in (0, 1))
    return Drawing(chosen.components()[0], tuple(sorted(layers)), tuple(sorted(positions)), tokens, raw, cells, meta)


def drawings_of(table: Tabular) -> list[Drawing]:
    """Return each component of a table of one pair, arranged for drawing.

    Raises:
        SpecError: as `arrange` does.
    """
    names = table.components()
    return [arrange(table, name) for name in names] if len(names) > 1 else [arrange(table)]


def picture_of_pair(drawings: Sequence[Drawing]) -> Picture:
    """Return the picture of one pair of prompts: a map of each component."""
    first = drawings[0]
    flips = any(drawing.tells_flips for drawing in drawings)
    swapped = " or ".join(drawing.component for drawing in drawings)
    enclosed = f"the most probable next token is now “{first.source_answer}”"
    rise = first.rise()
    caption = (
        f"{first.meta['model']}: in each cell the {swapped} of one layer at one token is replaced by that of the source"
        f" prompt, and the model runs on from there. {rise}. {f'Outlined: {enclosed}. ' * flips}Deepest layer on top."
    )
    clean = [f"{_signed(first.meta[f'{side}_value'])} on the {side}" for side in ("base", "source")]
    return Picture(
        first.question,
        (tuple(drawing.heat_map(drawing.component if len(drawings) > 1 else "") for drawing in drawings),),
        prompts=(("base", first.base, first.base_says), ("source", first.source, first.source_says)),
        about=f"{swapped} of {first.meta['model']}, swapped at one layer and one token at a time",
        caption=caption,
        intro=_intro(first, swapped, flips),
        notes=(rise, *([f"* = the model's answer is now “{first.source_answer}”"] if flips else [])),
        facts={
            "model": str(first.meta["model"]),
            "component": ", ".join(drawing.component for drawing in drawings),
            "metric": str(first.meta["metric"]),
            "clean values": ", ".join(clean),
        },
    )


def _intro(drawing: Drawing, swapped: str, flips: bool) -> str:
    outline = (
        f" A line encloses the swaps after which the most probable next token is “{drawing.source_answer}”." * flips
    )
    return (
        f"While the model read the base prompt, one of its inner states, the {swapped} of one layer at one token, was "
        "replaced by the state that the source prompt produces there. Each cell is one such swap. Where a cell is blue,"
        f" that state carries what makes the answer “{drawing.source_answer}” rather than “{drawing.base_answer}”. "
        f"{drawing.rise()}.{outline} The deepest layer is on top."
    )


def _meta_of_pair(table: Tabular) -> dict[str, object]:
    """Return a table's meta; of a table of several pairs, with the facts about the only pair that has rows."""
    meta: dict[str, object] = dict(table.meta)
    pairs = set(table.columns.get("pair", (0,)))
    if meta.get("pairs", 1) == 1 or len(pairs) != 1:
        return meta
    number = next(iter(pairs))
    return meta | {fact: meta[fact][number] for fact in _OF_A_PAIR if isinstance(meta.get(fact), list)}  # type: ignore[index]


def _signed(value: object) -> str:
    return f"{value:+.2f}" if isinstance(value, (int, float)) else "-"
