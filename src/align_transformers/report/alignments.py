"""Alignments: IIA by layer and place for each set of variables, and what the chosen one is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .alignment_words import sections_of
from .layer_map import Row, layer_map
from .panels import Bar, Bars, ColourScale, HeatMap, Labels, Panel, Picture
from .tabular import Tabular
from .verdicts import (
    by_variables,
    chance_of,
    chosen_of,
    controlled_of,
    flags_of,
    has_controls,
    method_of,
    place_key,
    place_of,
    rank_of,
    site_of,
    verdict,
)
from .words import precise, with_interval

NUMBERS: Mapping[str, str] = {
    "train": "pairs of the fit",
    "validation": "validation",
    "iia": "test",
    "full": "full vector",
    "random": "random subspaces",
    "permuted": "permuted labels",
    "reinitialised": "new weights",
}
"""Columns of shares, as bars and details name them."""
_CONTROLS = ("random", "permuted", "reinitialised")
_IIA, _BESIDE = "interchange intervention accuracy", 3


def picture_of_alignment(table: Tabular, value: str | None) -> Picture:
    """Return maps by layer and place of each set of variables and method, and bars of the chosen ones with controls.

    A cell is the hypothesis at its place that is best on validation pairs, of all ranks and seeds; its number is that
    of test pairs.

    Raises:
        SpecError: the value has no numbers.
    """
    asked = value or "iia"
    chance = chance_of(table.meta)
    named = by_variables(table.rows())
    if all(not isinstance(row.get(asked), float | int) for row in table.rows()):
        raise SpecError(f"the table has no number in {asked!r}: value is one of {', '.join(NUMBERS)}")
    panels: list[tuple[Panel, ...]] = []
    single: list[HeatMap] = []
    for name, rows in named.items():
        cells = _cells(rows)
        maps = _maps(name, rows, cells, asked, chance)
        panels += _side_by_side(maps) if len(maps) > 1 else ()
        single += maps if len(maps) == 1 else ()
        alone = [row for best in cells.values() if not _is_map(best) for row in best.values()]
        if len(alone) > 1:
            panels.append((_bars_of_cells(name, alone, asked, chance),))
    panels = [*_side_by_side(single), *panels]
    told = [row for rows in named.values() for row in _told(rows)]
    judged = [row for row in told if has_controls(row) or not _is_beside(row, told)]
    panels += _side_by_side([_bars(row, chance) for row in judged])
    said = tuple(table.meta.get("verdict") or verdict(table.rows(), table.meta))
    share = "" if chance is None else f" Chance, the share of the most frequent label: {precise(chance)}."
    what = _IIA if asked == "iia" else NUMBERS.get(asked, asked)
    maps_said = (
        f" Maps: {what} of the best of all ranks and seeds on validation pairs; outlined: the chosen one. Deepest "
        "layer on top."
    )
    return Picture(
        "Where the causal model's variables are found",
        tuple(panels),
        about=f"{_IIA} of {table.meta.get('model', '?')}, on pairs of the test part",
        caption=(
            f"{table.meta.get('model', '?')}: {_IIA} on the test part, with 95 % intervals."
            f"{maps_said * _has_map(panels)} Grey: controls.{share}"
        ),
        notes=(*(["* = the chosen one"] if _has_map(panels) else []), *([share.strip()] if share else [])),
        findings=said,
        facts={"metric": _IIA},
        sections=tuple(sections_of(table.meta, told)),
    )


def _told(rows: Sequence[Row]) -> list[Row]:
    """Return the chosen hypothesis, and the one that is judged in its stead, if it has no controls."""
    chosen, judged = chosen_of(rows), controlled_of(rows)
    return [row for row in ([chosen] if chosen is judged else [chosen, judged]) if row is not None]


def _is_beside(row: Row, others: Sequence[Row]) -> bool:
    """Whether another hypothesis about the same variables at the same place is told of."""
    return any(
        other is not row and other["variables"] == row["variables"] and site_of(other) == site_of(row)
        for other in others
    )


def _has_map(panels: Sequence[Sequence[Panel]]) -> bool:
    return any(isinstance(panel, HeatMap) for row in panels for panel in row)


def _side_by_side(panels: Sequence[Panel]) -> list[tuple[Panel, ...]]:
    return [tuple(panels[n : n + _BESIDE]) for n in range(0, len(panels), _BESIDE)]


def _cells(rows: Sequence[Row]) -> dict[tuple[str, str], dict[tuple[Any, ...], Row]]:
    """Return by method and component the row of each cell: the chosen one, else the best on validation pairs."""
    groups: dict[tuple[str, str], dict[tuple[Any, ...], Row]] = {}
    for row in rows:
        best = groups.setdefault((str(row["method"]), str(row.get("component"))), {})
        key = row.get("layer"), _column_key(row)
        if key not in best or _order(row) > _order(best[key]):
            best[key] = row
    return groups


def _is_map(best: Mapping[tuple[Any, ...], Row]) -> bool:
    return len(best) > 1 and all(layer is not None for layer, _ in best)


def _maps(
    name: str, rows: Sequence[Row], cells: Mapping[tuple[str, str], Mapping[tuple[Any, ...], Row]], value: str,
    chance: float | None,
) -> list[HeatMap]:  # fmt: skip
    """Return a map of each method and component that has more than one cell."""
    several = [len({key[n] for key in cells}) > 1 for n in (0, 1)]
    scale = _scale(value, rows, chance)
    return [
        layer_map(
            [_with_ends(row, value) for row in best.values()],
            value,
            _columns(list(best.values())),
            _column_key,
            scale,
            title=", ".join([name, *(word for word, told in zip(key, several, strict=True) if told)]),
            details=lambda row: _details(row, rows),
            mark=lambda row: bool(row.get("chosen")),
        )
        for key, best in cells.items()
        if _is_map(best)
    ]


def _order(row: Row) -> tuple[bool, bool, float]:
    return bool(row.get("chosen")), row.get("iia") is not None, rank_of(row)


def _column_key(row: Row) -> tuple[Any, Any]:
    return place_key(row), row.get("head")


def _columns(rows: Sequence[Row]) -> tuple[Labels, list[tuple[Any, Any]]]:
    """Return the columns: places in their order, and heads within them."""
    found = list(dict.fromkeys(_column_key(row) for row in rows))
    places = list(dict.fromkeys(place for place, _ in found))
    if all(isinstance(place, int) for place in places):
        places.sort(key=lambda place: (place < 0, place))  # those from the end come last
    order = {place: n for n, place in enumerate(places)}
    keys = sorted(found, key=lambda key: (order[key[0]], -1 if key[1] is None else key[1]))
    heads = any(head is not None for _, head in keys)
    name = "head" if heads else "place" if any(isinstance(place, str) for place in places) else "position"
    if heads and len(places) > 1:
        return Labels("place and head", tuple((f"{place}, {head}",) for place, head in keys)), keys
    texts = [head if heads else "all" if place is None else place for place, head in keys]
    return Labels(name, tuple((str(text),) for text in texts)), keys


def _with_ends(row: Row, value: str) -> Row:
    """Return a row whose `low` and `high` are those of the value, where it has any; `count` is that of the pairs."""
    low, high = ("low", "high") if value == "iia" else (f"{value}_low", f"{value}_high")
    return {**row, "low": row.get(low), "high": row.get(high), "count": row.get("n") if value == "iia" else None}


def _scale(value: str, rows: Sequence[Row], chance: float | None) -> ColourScale:
    """Return the scale from 0 to 1, with chance marked; of dimensions, that up to the most."""
    known = [row[value] for row in rows if isinstance(row.get(value), float | int)]
    most = max(known, default=1)
    if most > 1:
        return ColourScale(value, tuple((p, precise(p * most)) for p in (0.0, 0.5, 1.0)), whole=most)
    steps = [step for step in (0.0, 0.25, 0.5, 0.75, 1.0) if chance is None or abs(step - chance) > 0.1]
    ticks = [(step, f"{step:g}") for step in steps]
    if chance is not None:
        ticks = sorted([*ticks, (chance, f"{precise(chance)} chance")])
    return ColourScale("IIA" if value == "iia" else NUMBERS.get(value, value), tuple(ticks))


def _details(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return what pointing at a cell shows below its number."""
    lines = [method_of(row) + (f", seed {row['seed']}" if row.get("seed") is not None else "")]
    alike = [one for one in rows if _hypotheses_at(one) == _hypotheses_at(row)]
    if len(alike) > 1:
        lines.append(f"the best of {len(alike)} on validation pairs")
    lines += [f"{words} {precise(row[name])}" for name, words in NUMBERS.items() if row.get(name) is not None]
    if row.get("p_corrected") is not None:
        lines.append(f"p {precise(row['p_corrected'])}, corrected over the grid")
    elif row.get("p") is not None:
        lines.append(f"p {precise(row['p'])}")
    if flags_of(row):
        lines.append(f"flags: {', '.join(flags_of(row))}")
    if row.get("status") not in (None, "fitted"):
        lines.append(str(row["status"]))
    return lines


def _hypotheses_at(row: Row) -> tuple[Any, ...]:
    return row["method"], row.get("component"), row.get("layer"), _column_key(row)


def _bars_of_cells(name: str, rows: Sequence[Row], value: str, chance: float | None) -> Bars:
    """Return bars of hypotheses that are in no map: of one place each, or without layers."""
    bars = []
    for row in (_with_ends(row, value) for row in rows):
        label = f"{place_of(row)} ({method_of(row)})"
        bars.append(Bar(label, row.get(value), row["low"], row["high"], details=tuple(_details(row, rows))))
    scale = _scale(value, rows, chance)
    return Bars(name, scale.name, tuple(bars), scale.whole == 1, chance if scale.whole == 1 else None, "chance")


def _bars(row: Row, chance: float | None) -> Bars:
    """Return bars of the chosen hypothesis, and beside them of all that it is to be compared with."""
    bars: list[Bar] = []
    for column, words in NUMBERS.items():
        if row.get(column) is None:
            continue
        ends = ("low", "high") if column == "iia" else (f"{column}_low", f"{column}_high")
        low, high = row.get(ends[0]), row.get(ends[1])
        low, high = (None, None) if low is None or high is None else (low, high)
        known = with_interval(row[column], low, high)
        details = [known + (f", n = {row['n']}" if column == "iia" and row.get("n") is not None else "")]
        if column == "random" and row.get("random_high") is not None and low is None:
            details = [f"{known}, up to {precise(row['random_high'])}"]
        bars.append(Bar(words, row[column], low, high, column in _CONTROLS, tuple(details)))
    title = f"{row['variables']}: {place_of(row)} ({method_of(row)})"
    return Bars(title, "IIA; test: 95 % interval", tuple(bars), True, chance, "chance")
