"""Steering: the dose-response curve with its band and its control, and what the text pays for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import prompts_of
from .panels import Curve, Line, Panel, Picture, Point
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
    control: Sequence[Mapping[str, Any]] = table.meta.get("control") or ()
    asked = "effect" if value in (None, "curve") else str(value)
    lines = [_line("steered", curve, asked)]
    if control and isinstance(control, Sequence) and asked in control[0]:
        lines.append(
            _line(str(table.meta.get("control_name", "control: random direction")), control, asked, control=True)
        )
    costs = [(name, words) for name, words in _COSTS.items() if name in curve[0] and name != asked]
    below: tuple[Panel, ...] = tuple(
        Curve(words, "dose", words, (_line("", curve, name),), zero=name == "wrong_way") for name, words in costs
    )
    metric = str(table.meta.get("metric", "the metric"))
    panels = (
        (Curve("", f"dose ({table.meta.get('unit', 'mean residual norms')})", f"{asked} on {metric}", tuple(lines)),),
    )
    return Picture(
        f"What each dose does to {metric}",
        (*panels, below) if below else panels,
        prompts=prompts_of(table.meta),
        about=f"steering {table.meta['model']}"
        + f" at {table.meta.get('component', '')}" * ("component" in table.meta),
        caption=(
            f"{table.meta['model']}: {asked} on {metric} by dose, minus that without steering. Band: 95 % interval "
            f"over {curve[0].get('n', '?')} prompts. Below: what the text pays for it; perplexity is that of the model "
            "without steering."
        ),
        findings=(
            *(
                f"dose {precise(one['dose'])}: {asked} {with_interval(one[asked], one.get('low'), one.get('high'))}, "
                + ", ".join(f"{words} {precise(one[name])}" for name, words in costs)
                for one in curve
            ),
            *_samples(table),
        ),
    )


def _line(name: str, curve: Sequence[Mapping[str, Any]], value: str, *, control: bool = False) -> Line:
    main = value == "effect"
    points = tuple(
        Point(
            one["dose"],
            one[value],
            one.get("low" if main else f"{value}_low"),
            one.get("high" if main else f"{value}_high"),
            (f"n = {one['n']}",) if "n" in one else (),
        )
        for one in sorted(curve, key=lambda one: float(one["dose"]))
    )
    return Line(name, points, control)


def _samples(table: Tabular) -> list[str]:
    """Return what the first prompt goes on with at the lowest dose, the middle one and the highest."""
    if "text" not in table.columns:
        return []
    first = [row for row in table.rows() if row["prompt"] == table.columns["prompt"][0]]
    first.sort(key=lambda row: row["dose"])
    shown = [first[0], *first[len(first) // 2 : len(first) // 2 + 1], first[-1]]
    return [
        f"sample at dose {precise(row['dose'])}: {cut(visible(row['text']).replace(visible(' '), ' '), 160)}"
        for row in shown
    ]
