"""Causal scrubbing: how much of the loss a hypothesis recovers, as bars with intervals over resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import averaged
from .panels import Bar, Bars, Picture
from .tabular import Tabular
from .words import precise, with_interval


def picture_of_scrubbing(table: Tabular, value: str | None) -> Picture:
    """Return a bar for each hypothesis, and the losses that it was made of.

    Raises:
        SpecError: a hypothesis was resampled once, so that nothing is known of its interval.
    """
    hypotheses = _hypotheses(table)
    for name, facts in hypotheses.items():
        if facts.get("low") is None:
            raise SpecError(f"{name}: one resample has no interval: scrub with draws=10")
    recovered = tuple(Bar(name, one["recovered"], one["low"], one["high"]) for name, one in hypotheses.items())
    columns = [column for column in ("model", "scrubbed", "random") if value in (None, column)] or ["scrubbed"]
    by = next((name for name in table.columns if name in _names_of_tables(table)), None)
    losses: list[Bar] = []
    for column in columns:
        for row in averaged(table, [by] if by else [], column, "draw"):
            named = column if by is None else f"{column}: {row[by]}"
            losses.append(Bar(named, row[column], row["low"], row["high"]))
    first = next(iter(hypotheses.values()))
    return Picture(
        "How much of the loss the hypothesis recovers" if len(recovered) == 1 else "How much of the loss is recovered",
        ((Bars("loss recovered", "share (1 = as the model, 0 = as with prompts drawn at random)", recovered),),
         (Bars("losses", "mean loss (nats)", tuple(losses)),)),
        about=f"{first.get('model', '?')}, {first.get('draws')} resamples of each prompt",
        caption=(
            f"{first.get('model', '?')}: all that the hypothesis says does not matter is exchanged for other prompts' "
            "values. Recovered: (scrubbed - random) / (model - random). Intervals: 95 %, bootstrap over "
            f"{first.get('draws')} resamples."
        ),
        findings=tuple(
            f"{name}: recovered {with_interval(one['recovered'], one['low'], one['high'])}; a claim drew the prompt "
            f"itself in a share of {', '.join(map(precise, one.get('itself', ())))} of the draws."
            for name, one in hypotheses.items()
        ),
    )  # fmt: skip


def _hypotheses(table: Tabular) -> Mapping[str, Mapping[str, Any]]:
    """Return the facts of each hypothesis by its name; of tables that were joined there are several."""
    joined: Sequence[Mapping[str, Any]] = table.meta.get("tables", ())
    if not joined:
        return {"the hypothesis": table.meta}
    named = _names_of_tables(table)
    names = next((values for column, values in named.items() if len(values) == len(joined)), None)
    return dict(zip(names or [f"hypothesis {n}" for n in range(len(joined))], joined, strict=True))


def _names_of_tables(table: Tabular) -> Mapping[str, list[str]]:
    """Return the columns of text, such as the one that `concat` adds, with their values."""
    return {
        name: list(dict.fromkeys(values))
        for name, values in table.columns.items()
        if values and all(isinstance(one, str) for one in values)
    }
