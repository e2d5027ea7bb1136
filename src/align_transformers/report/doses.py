"""Steering: the dose-response curve with its band and its control, and what the text pays for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import prompts_of
from .panels import Curve, CurveLine, CurvePoint, Panel, Picture
from .tabular import Tabular
from .words import cut, precise, visible, with_interval

_COSTS = {"wrong_way": "share that moved the wrong way", "perplexity": "perplexity", "distinct_2": "distinct bigrams"}


def picture_of_doses(table: Tabular, value: str | None) -> Picture:
    """Return effect by dose with its band, and perplexity, repetition and the share of wrong moves by dose.

    Raises:
        SpecError: the table does not tell the means by dose.
    """
    curve: Sequence[Mapping[str, Any]] = table.meta.get("curve", ())
    if not curve:
        raise SpecError("the table's meta has no 'curve', the means by dose with their intervals, so none is drawn")
    asked = "effect" if value in (None, "curve") else str(value)
    layers = list(dict.fromkeys(one.get("layer") for one in curve))
    names = {layer: f"layer {layer}" if len(layers) > 1 else "steered" for layer in layers}
    points = {layer: [one for one in curve if one.get("layer") == layer] for layer in layers}
    lines = [_line(names[layer], points[layer], asked) for layer in layers]
    if "control_effect" in curve[0] and asked == "effect":
        for layer in layers:
            name = f"{names[layer]}, " * (len(layers) > 1) + "random direction"
            lines.append(_line(name, points[layer], "control_effect", control=True))
    costs = [(name, words) for name, words in _COSTS.items() if curve[-1].get(name) is not None and name != asked]
    short = {layer: name * (len(layers) > 1) for layer, name in names.items()}
    below: tuple[Panel, ...] = tuple(
        Curve("", "dose", words, tuple(_line(short[n], points[n], name) for n in layers), False, name == "wrong_way")
        for name, words in costs
    )
    metric = str(table.meta.get("metric", "the metric"))
    main = Curve("", "dose (mean norms of the stream)", f"{asked} on {metric}", tuple(lines))
    where = f" at {table.meta['component']}" if "component" in table.meta else ""
    return Picture(
        f"What each dose does to {metric}",
        ((main,), below) if below else ((main,),),
        prompts=prompts_of(table.meta),
        about=f"steering {table.meta['model']}{where}",
        caption=(
            f"{table.meta['model']}: {asked} on {metric} by dose, minus that without steering. Bands: 95 % intervals "
            f"over {curve[0].get('n', '?')} prompts. Below: what the text pays for it; perplexity is that of the model "
            "without steering."
        ),
        findings=(*(_finding(points[n], names[n], asked) for n in layers), *_samples(table)),
    )


def _finding(curve: Sequence[Mapping[str, Any]], name: str, value: str) -> str:
    best = max(curve, key=lambda one: abs(one[value] or 0.0))
    sure = with_interval(best[value], *(best.get(end) for end in _ends(value)))
    wrong = f"; {precise(best['wrong_way'])} of the prompts moved the wrong way" if "wrong_way" in best else ""
    return f"{name}: the most at dose {precise(best['dose'])}: {value} {sure}{wrong}"


def _ends(value: str) -> tuple[str, str]:
    """Return the names of a number's interval."""
    return ("low", "high") if value == "effect" else (f"{value}_low", f"{value}_high")


def _line(name: str, curve: Sequence[Mapping[str, Any]], value: str, *, control: bool = False) -> CurveLine:
    low, high = _ends(value)
    points = tuple(
        CurvePoint(one["dose"], one[value], one.get(low), one.get(high), (f"n = {one['n']}",) if "n" in one else ())
        for one in sorted(curve, key=lambda one: float(one["dose"]))
    )
    return CurveLine(name, points, control)


def _samples(table: Tabular) -> list[str]:
    """Return what the first prompt goes on with at the lowest dose, the middle one and the highest."""
    if "text" not in table.columns:
        return []
    first = [row for row in table.rows() if row["prompt"] == table.columns["prompt"][0]]
    first = sorted((row for row in first if row.get("layer") == first[0].get("layer")), key=lambda row: row["dose"])
    shown = [first[0], *first[len(first) // 2 : len(first) // 2 + 1], first[-1]]
    return [
        f"sample at dose {precise(row['dose'])}: {cut(visible(row['text']).replace(visible(' '), ' '), 160)}"
        for row in shown
    ]
