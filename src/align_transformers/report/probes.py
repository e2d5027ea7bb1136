"""Probes: what can be read off a state, and next to it what the model makes of it; never the one without the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .layer_map import Row, layer_map, line_of, prompts_of
from .panels import ColourScale, Curve, CurveLine, HeatMap, Labels, Panel, Picture, signed_scale
from .tabular import Tabular
from .words import visible, with_interval

_CAUSAL = ("swap_effect", "erase_effect")
_EFFECTS = (*_CAUSAL, "whole_swap_effect", "random_swap_effect")
_SHARES = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1"))


def picture_of_probes(table: Tabular, value: str | None) -> Picture:
    """Return accuracies and causal effects, by layer and place as maps, and at the best place as curves."""
    column = next((name for name in ("place", "position") if name in table.columns), None)
    places: list[Any] = list(dict.fromkeys(table.columns[column])) if column else [None]
    if all(isinstance(place, int) for place in places):
        places.sort(key=lambda place: (place < 0, place))  # those from the end come last
    panels: list[tuple[Panel, ...]] = []
    findings = []
    components: list[str | None] = [*table.components()]
    for name in components or [None]:
        rows = list(table.select(name).rows())
        title = f"{name}: " if len(table.components()) > 1 else ""
        best = max(rows, key=lambda row: (row["accuracy"] or 0.0, row["layer"]))
        chosen = [row for row in rows if column is None or row[column] == best[column]]
        at = f" at {column} {best[column]}" if column and len(places) > 1 else ""
        if len(places) > 1:
            labels = _labels(table, str(column), places), places
            panels.append(tuple(_maps(rows, column, labels, title)))
        panels.append((_accuracies(chosen, title, at), _effects(chosen, title, at)))
        findings += _findings(best, name, at)
    return Picture(
        "What a probe reads, and what the model makes of it",
        tuple(panels),
        prompts=prompts_of({"prompts": table.meta.get("prompts", ())}, most=2),
        about=f"probes of {', '.join(table.components())} of {table.meta['model']}",
        caption=(
            f"{table.meta['model']}. Accuracy: cross-validated; control: on labels drawn at random for each type "
            "(selectivity: by how much labels are read better than these, of types that were seen). Causal effect: of "
            "swapping and of erasing the probe's direction; of swapping the whole state; of as large a move anywhere. "
            "Bands: 95 % intervals. A state that can be read is not one that is used."
        ),
        findings=tuple(findings),
    )


def _labels(table: Tabular, column: str, places: Sequence[Any]) -> Labels:
    """Return the labels of places: tokens, where the table tells one for each."""
    if column == "position" and "token" in table.columns:
        names: dict[Any, set[str]] = {}
        for place, token in zip(table.columns[column], table.columns["token"], strict=True):
            names.setdefault(place, set()).add(visible(token))
        if all(len(found) == 1 for found in names.values()):
            return Labels("token", tuple((next(iter(names[place])),) for place in places), tuple(places))
    return Labels(column, tuple((str(place),) for place in places))


def _maps(rows: Sequence[Row], column: Any, labels: tuple[Labels, Sequence[Any]], title: str) -> list[HeatMap]:
    """Return a map of accuracies and one of each causal effect."""
    scales = {"accuracy": ColourScale("accuracy", _SHARES)}
    effects = [name for name in _CAUSAL if rows and name in rows[0]]
    shared = signed_scale("effect", [row[name] for row in rows for name in effects])
    scales |= dict.fromkeys(effects, shared)
    return [
        layer_map(
            _with_interval(rows, value),
            value,
            labels,
            lambda row: row[column],
            scale,
            title=title + value.replace("_", " "),
            details=_details,
        )
        for value, scale in scales.items()
    ]


def _with_interval(rows: Sequence[Row], value: str) -> list[Row]:
    return [
        {**row, "low": row.get(f"{value}_low"), "high": row.get(f"{value}_high"), "count": row.get("n")} for row in rows
    ]


def _details(row: Row) -> list[str]:
    names = ("accuracy", "control_accuracy", "selectivity", *_EFFECTS)
    ends = {name: (row.get(f"{name}_low"), row.get(f"{name}_high")) for name in names}
    return [f"{name.replace('_', ' ')} {with_interval(row[name], *ends[name])}" for name in names if name in row]


def _accuracies(rows: Sequence[Row], title: str, at: str) -> Curve:
    lines = [line_of("accuracy", _with_interval(rows, "accuracy"), "accuracy")]
    for name, control in (("control_accuracy", True), ("selectivity", False)):
        if rows and name in rows[0]:
            lines.append(line_of(name.split("_")[0], _with_interval(rows, name), name, control=control))
    return Curve(f"{title}what can be read{at}", "layer", "accuracy", tuple(lines))


def _effects(rows: Sequence[Row], title: str, at: str) -> Curve:
    known = {name: name.removesuffix("_effect").replace("_", " ") for name in _EFFECTS if rows and name in rows[0]}
    lines: list[CurveLine] = [
        line_of(words, _with_interval(rows, name), name, control=name.startswith("random"))
        for name, words in known.items()
    ]
    return Curve(f"{title}what the model makes of it{at}", "layer", "effect of the direction", tuple(lines))


def _findings(best: Row, name: str | None, at: str) -> list[str]:
    said = "; ".join(_details(best))
    return [f"{f'{name}: ' if name else ''}most is read at layer {best['layer']}{at}: {said}"]
