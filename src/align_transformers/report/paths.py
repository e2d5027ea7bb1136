"""Path patching: what each head sends to the receivers, by layer and head; senders with other names as bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._errors import SpecError
from .layer_map import Row, averaged, interval_of, largest, layer_map, units
from .panels import Bar, Bars, Labels, Panel, Picture, signed_scale
from .tabular import Tabular

_BARS = 12


def picture_of_paths(table: Tabular, value: str | None) -> Picture:
    """Return a map of the heads that send, with a column for MLPs, and the largest as bars with their intervals.

    Raises:
        SpecError: senders send at several positions.
    """
    asked = value or "effect"
    if len(set(table.columns.get("position", ()))) > 1:
        raise SpecError(
            "senders send at several positions: choose one, table.select(where={'position': ...}), or send at all at "
            "once, positions=None"
        )
    by = ["sender", "component", "layer", "head"]
    rows = averaged(table, by, asked, "pair")
    pairs = units(table, "pair")
    scale = signed_scale(asked, (row[asked] for row in rows))
    single = [row for row in rows if row["layer"] is not None and "+" not in row["sender"]]
    panels: list[tuple[Panel, ...]] = []
    if single and len({row["layer"] for row in single}) > 1:
        labels = _labels(single)
        panels.append((layer_map(single, asked, labels, _column, scale, details=lambda row: [row["sender"]]),))
    if pairs > 1 or not panels or len(single) < len(rows):
        best = largest(rows, asked, _BARS)
        sure = ", with 95 % intervals" if pairs > 1 else ""
        bars = tuple(Bar(row["sender"], row[asked], row["low"], row["high"]) for row in best)
        panels.append((Bars(f"the largest{sure}", asked, bars),))
    said = table.meta
    ends = " and ".join("the logits" if one == "logits" else one for one in said.get("receivers", ["the receivers"]))
    on = " -> ".join([*(" and ".join(hop) for hop in said.get("through", ())), ends])
    return Picture(
        f"What each sender tells {on}",
        tuple(panels),
        prompts=_prompts(table, pairs),
        about=f"{asked} on {said.get('metric', 'the metric')} in {said['model']}; frozen: {said.get('freeze', '-')}",
        caption=_caption(table, asked, pairs),
        findings=tuple(f"{row['sender']}: {interval_of(row, asked, asked)}" for row in largest(rows, asked, 5)),
        facts={"metric": str(said.get("metric", "")), "frozen": str(said.get("freeze", ""))},
    )


def _labels(rows: Sequence[Row]) -> tuple[Labels, Sequence[Any]]:
    heads = sorted({row["head"] for row in rows if row["head"] is not None})
    keys: list[Any] = [*heads, *sorted({str(_column(row)) for row in rows if row["head"] is None})]
    return Labels("head", tuple((str(key),) for key in keys)), keys


def _column(row: Row) -> Any:
    """Return the column of a sender: its head, or `MLP` and the like."""
    if row["head"] is not None:
        return row["head"]
    component = str(row["component"])
    return "MLP" if component.startswith("mlp") else component


def _prompts(table: Tabular, pairs: int) -> tuple[tuple[str, str, str], ...]:
    meta = table.meta
    if pairs > 1 or not isinstance(meta.get("base"), str):
        return ()
    return tuple((side, str(meta[side]), str(meta.get(f"{side}_says", "")).strip()) for side in ("base", "source"))


def _caption(table: Tabular, value: str, pairs: int) -> str:
    frozen = {
        "attention": "all other heads are held at their base values, MLPs are computed anew",
        "all": "all other heads and MLPs are held at their base values",
        "none": "nothing is held",
    }.get(str(table.meta.get("freeze")), "")
    over = f"Means over {pairs} pairs; intervals: bootstrap over pairs. " if pairs > 1 else ""
    what = f"{value.capitalize()} on {table.meta.get('metric', 'the metric')}, 0 = as in the base's run. "
    return (
        f"{table.meta['model']}: the sender's output is that of the source's run, {frozen}, and only the receivers get "
        f"what comes of it. {what}{over}Deepest layer on top."
    )
