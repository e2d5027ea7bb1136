"""Scores of prompts: the mean of each metric with its interval, and the number of each prompt where they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import averaged, interval_of, prompts_of
from .panels import Bar, Bars, Panel, Picture
from .tabular import Tabular
from .words import precise, visible

_PROMPTS = 20


def picture_of_scores(table: Tabular, value: str | None) -> Picture:
    """Return bars of the means over prompts, and of the prompts, as many as there is room for, the lowest on top.

    Raises:
        SpecError: the column has no numbers.
    """
    asked = [value] if value is not None else [name for name in table.columns if _is_score(table, name)]
    if not asked:
        raise SpecError(f"the table has no column of numbers: {', '.join(table.columns)}")
    count = len(table)
    means = {name: next(iter(averaged(table, [], name, "prompt"))) for name in asked}
    names = table.meta.get("metrics") or {"metric": table.meta.get("metric", "metric")}
    words = {name: str(names.get(name, name)) if name == "metric" else name for name in asked}
    panels: list[tuple[Panel, ...]] = []
    if count > 1:
        bars = tuple(Bar(words[name], row[name], row["low"], row["high"]) for name, row in means.items())
        panels.append((Bars(f"means over {count} prompts", "mean, 95 % intervals", bars),))
    panels.append(tuple(_prompts(table, name, words[name]) for name in asked))
    return Picture(
        f"What {table.meta.get('model', 'the model')} makes of the prompts by itself",
        tuple(panels),
        prompts=prompts_of(table.meta) if count <= 3 else (),
        about=f"{', '.join(words.values())} of {table.meta.get('model', '?')}, not edited",
        caption=(
            f"{table.meta.get('model', '?')}, not edited: {', '.join(words.values())}."
            + " Intervals: 95 % (bootstrap over prompts)." * (count > 1)
        ),
        findings=tuple(interval_of(row, name, words[name]) for name, row in means.items()),
    )


def _is_score(table: Tabular, name: str) -> bool:
    known = [one for one in table.columns[name] if one is not None]
    return name != "prompt" and bool(known) and all(isinstance(one, float | int) for one in known)


def _prompts(table: Tabular, name: str, words: str) -> Bars:
    """Return bars of the prompts; of many, of those with the lowest numbers."""
    rows: Sequence[Mapping[str, Any]] = list(table.rows())
    title = "of each prompt"
    if len(rows) > _PROMPTS:
        rows = sorted(rows, key=lambda row: (row[name] is None, row[name] or 0.0))[:_PROMPTS]
        title = f"the {_PROMPTS} lowest of {len(table)} prompts"
    bars = tuple(
        Bar(f"{row['prompt']}: {_readable(row.get('text') or '')}", row[name], details=(_said(row, words, name),))
        for row in rows
    )
    return Bars(title, words, bars)


def _said(row: Mapping[str, Any], words: str, name: str) -> str:
    return f"{_readable(row.get('text') or '')}: {words} {precise(row[name])}"


def _readable(text: str) -> str:
    return visible(text).replace(visible(" "), " ")
