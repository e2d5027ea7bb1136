"""Swaps in several pairs, at heads or neurons, or of another number: maps of means, with their intervals over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import Row, averaged, interval_of, largest, layer_map, units
from .panels import Bar, Bars, ColourScale, HeatMap, Labels, Panel, Picture, signed_scale
from .tabular import Tabular
from .words import visible

_ACROSS = ("head", "neuron", "place", "position")
_MAIN = ("recovered", "effect", "indirect_effect", "contribution", "metric")
_BARS = 10


def picture_of_averages(table: Tabular, value: str | None) -> Picture:
    """Return maps by layer and head, neuron, place or position, of the means over pairs or prompts.

    Raises:
        SpecError: the table has no layers or no such number, or several rows of a pair stand at one place.
    """
    asked = value or next((name for name in _MAIN if name in table.columns), None)
    layers = [layer for layer in table.columns.get("layer", ()) if layer is not None]
    if asked is None or not layers:
        study = table.meta.get("study", "this table")
        raise SpecError(
            f"there is no picture of {study} with the columns {list(table.columns)}: use to_frame(), pivot()"
        )
    column = _across(table)
    unit = next((name for name in ("pair", "prompt") if name in table.columns), None)
    shown = [name for name in ("direction", "component") if name in table.columns]
    by = [*shown, "layer", *([column] if column else [])]
    _check_told_apart(table, [*by, *([unit] if unit else [])], asked)
    rows = [row for row in averaged(table, by, asked, unit) if row["layer"] is not None]
    scale = _scale(asked, rows)
    labels = _labels(table, column, rows)
    several = [name for name in shown if len({row[name] for row in rows}) > 1]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in several), []).append(row)
    maps: tuple[HeatMap, ...] = tuple(
        layer_map(
            group,
            asked,
            labels,
            lambda row: row[column] if column else None,
            scale,
            title=", ".join(map(str, named)),
        )
        for named, group in groups.items()
    )
    count = units(table, unit) if unit else 1
    panels: list[tuple[Panel, ...]] = [maps]
    if count > 1:
        panels.append((_bars(asked, rows, several, column),))
    return Picture(
        f"{asked.replace('_', ' ').capitalize()} by layer and {labels[0].name}",
        tuple(panels),
        prompts=_prompts(table, count),
        about=f"{', '.join(table.components()) or table.meta.get('study', '')} of {table.meta.get('model', '?')}",
        caption=_caption(table, asked, count, unit or "row"),
        notes=(f"means over {count} {unit}s",) if count > 1 else (),
        findings=tuple(
            f"largest: {_name(row, shown, column)}: {interval_of(row, asked, asked)}" for row in largest(rows, asked, 3)
        ),
        facts={"metric": str(table.meta.get("metric", asked))},
    )


def _across(table: Tabular) -> str | None:
    """Return the column whose values stand side by side: one with several values, if there is one."""
    known = {name: set(table.columns.get(name, ())) - {None} for name in _ACROSS}
    if known["place"]:
        known["position"] = set()
    several = [name for name in _ACROSS if len(known[name]) > 1]
    if len(several) > 1:
        raise SpecError(
            f"the table has several of {' and '.join(several)}: choose one of them, "
            f"table.select(where={{{several[-1]!r}: ...}})"
        )
    return next(iter(several), next((name for name in _ACROSS if known[name]), None))


def _check_told_apart(table: Tabular, by: Sequence[str], value: str) -> None:
    seen: set[tuple[Any, ...]] = set()
    for row in table.rows():
        key = tuple(row[name] for name in by)
        if key in seen:
            raise SpecError(f"several rows of {value} stand at {dict(zip(by, key, strict=True))}: choose with select()")
        seen.add(key)


def _scale(value: str, rows: Sequence[Row]) -> ColourScale:
    if value.endswith("recovered"):
        least = min((row[value] for row in rows if row[value] is not None), default=0.0)
        return ColourScale(value, begin=next((low for low in (0.0, -0.25, -0.5) if least >= low - 0.1), -1.0))
    return signed_scale(value, (row[value] for row in rows))


def _labels(table: Tabular, column: str | None, rows: Sequence[Row]) -> tuple[Labels, list[Any]]:
    """Return the labels of the columns and their keys; tokens where all rows at a position have the same."""
    if column is None:
        return Labels("all tokens", (("all",),)), [None]
    keys = sorted({row[column] for row in rows if row[column] is not None}, key=lambda one: (isinstance(one, str), one))
    if column == "place" and any(isinstance(one, str) for one in keys):
        keys = list(dict.fromkeys(table.columns["place"]))
    names: dict[Any, set[str]] = {key: set() for key in keys}
    if column == "position" and "token" in table.columns:
        for key, token in zip(table.columns[column], table.columns["token"], strict=True):
            names[key].add(visible(token))
    if names and all(len(found) == 1 for found in names.values()):
        return Labels("token", tuple((found.pop(),) for found in names.values()), tuple(keys)), keys
    return Labels(column, tuple((str(key),) for key in keys)), keys


def _bars(value: str, rows: Sequence[Row], several: Sequence[str], column: str | None) -> Bars:
    chosen = largest(rows, value, _BARS)
    bars = tuple(Bar(_name(row, several, column), row[value], row["low"], row["high"]) for row in chosen)
    return Bars("the largest, with 95 % intervals", value, bars)


def _name(row: Row, several: Sequence[str], column: str | None) -> str:
    words = [str(row[name]) for name in several] + [f"layer {row['layer']}"]
    return ", ".join([*words, f"{column} {row[column]}"] if column else words)


def _prompts(table: Tabular, count: int) -> tuple[tuple[str, str, str], ...]:
    if count != 1 or not isinstance(table.meta.get("base"), str):
        return ()
    return tuple((side, str(table.meta[side]), "") for side in ("base", "source") if side in table.meta)


def _caption(table: Tabular, value: str, count: int, unit: str) -> str:
    of = f"Means over {count} {unit}s, with 95 % intervals (bootstrap over {unit}s). " if count > 1 else ""
    zero = "0 = as without the edit, 1 = as the other prompt. " if value.endswith("recovered") else ""
    return f"{table.meta.get('model', '?')}: {value}. {zero}{of}Deepest layer on top."
