"""Maps with layers as rows, and what studies share when they arrange rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .panels import ColourScale, CurveLine, CurvePoint, HeatMap, Labels, Square, layer_labels
from .tabular import Tabular
from .words import number, spoken, visible, with_interval

Row = Mapping[str, Any]


def layer_map(
    rows: Sequence[Row],
    value: str,
    columns: tuple[Labels, Sequence[Any]],
    key: Callable[[Row], Any],
    scale: ColourScale,
    *,
    title: str = "",
    details: Callable[[Row], Sequence[str]] | None = None,
    text: Callable[[Row], str] | None = None,
    mark: Callable[[Row], bool] = lambda row: False,
) -> HeatMap:
    """Return a map of some rows: layers from the bottom up, and one column for each key.

    Args:
        rows: with `layer`, the value, and `low`, `high` and `count`, where they have an interval.
        value: the column whose numbers give the colours.
        columns: their labels, and the key of each.
        key: of a row.
        scale: of the colours.
        title: of the panel.
        details: further lines for those who point at a cell.
        text: of a cell; default: the number.
        mark: whether a cell is inside the outline.

    Raises:
        SpecError: two rows stand at one place.
    """
    labels, keys = columns
    layers = layer_labels(sorted({row["layer"] for row in rows}))
    up = {int(texts[0]): n for n, texts in enumerate(layers.texts)}
    across = {one: n for n, one in enumerate(keys)}
    squares: dict[tuple[int, int], Square] = {}
    for row in rows:
        at = up[row["layer"]], across[key(row)]
        if at in squares:
            raise SpecError(
                f"several rows stand at layer {row['layer']}, {labels.name} {key(row)}: choose with "
                "table.select(where={...}), or take the mean"
            )
        lines = [
            f"layer {row['layer']}, {labels.name} {labels.line(at[1], ' → ')}",
            interval_of(row, value, scale.name),
        ]
        lines += details(row) if details else ()
        shown = number(row[value]) if text is None else text(row)
        squares[at] = Square(row[value], scale.at(row[value]), shown, tuple(lines), mark(row))
    return HeatMap(title, layers, labels, squares, scale)


def interval_of(row: Row, value: str, name: str) -> str:
    """Return a row's number with its interval, and of how many, in words."""
    count = row.get("count")
    ends = with_interval(row[value], row.get("low"), row.get("high"))
    return f"{name} {ends}" + (f", n = {count}" if count is not None and count > 1 else "")


def token_labels(tokens: Sequence[str], places: Sequence[int], marked: Iterable[int] = ()) -> Labels:
    """Return labels for tokens, those at `marked` with a star, as causal tracing draws its subject."""
    stars = set(marked)
    texts = tuple((visible(tokens[place]) + "*" * (place in stars),) for place in places)
    return Labels("token", texts, tuple(places))


def averaged(table: Tabular, by: Sequence[str], value: str, unit: str | None) -> list[dict[str, Any]]:
    """Return the mean of a column in each group with its 95 % interval over the independent unit.

    Args:
        table: the rows.
        by: what tells groups apart.
        value: the column.
        unit: the column that tells units apart; rows of a unit in a group are one number, their mean. `None`, or one
            that the table lacks: each row is one.

    Returns:
        Rows with the columns of `by`, the value, `low`, `high` (`None` for one unit) and `count`.
    """
    if unit is not None and unit in table.columns:
        table = table.mean([*by, unit], value=value, draws=1)
        return list(table.select().mean(list(by), value=value).rows())
    return list(table.mean(list(by), value=value).rows())


def units(table: Tabular, unit: str) -> int:
    """Return how many prompts, pairs or draws a table has rows of."""
    return len(set(table.columns.get(unit, (0,))))


def line_of(name: str, rows: Iterable[Row], value: str, x: str = "layer", *, control: bool = False) -> CurveLine:
    """Return a line of a curve over the layers; the band is `low` to `high`."""
    points = [
        CurvePoint(
            row[x], row[value], row.get("low"), row.get("high"), (f"n = {row['count']}",) if "count" in row else ()
        )
        for row in sorted(rows, key=lambda row: row[x])
        if row[x] is not None
    ]
    return CurveLine(name, tuple(points), control)


def largest(rows: Iterable[Row], value: str, most: int = 5) -> list[Row]:
    """Return the rows of the largest numbers, whatever their sign."""
    known = [row for row in rows if row[value] is not None]
    return sorted(known, key=lambda row: -abs(row[value]))[:most]


def prompts_of(meta: Mapping[str, Any], most: int = 3) -> tuple[tuple[str, str, str], ...]:
    """Return the first prompts of a table as a picture names them."""
    prompts, answers = list(meta.get("prompts", ())), list(meta.get("answers") or ())
    shown = [
        ("prompt" if len(prompts) == 1 else f"prompt {n}", str(text), spoken(answers[n]) if n < len(answers) else "")
        for n, text in enumerate(prompts[:most])
    ]
    more = [("", f"and {len(prompts) - most} more", "")] if len(prompts) > most else []
    return (*shown, *more)
