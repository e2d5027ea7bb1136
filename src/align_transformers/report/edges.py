"""Scores of edges, as bars: the strongest of them, whichever way they point."""

from __future__ import annotations

from collections.abc import Mapping

from .panels import Bar, Bars, Picture
from .tabular import Tabular

_SHOWN = 20


def picture_of_edges(table: Tabular, value: str | None) -> Picture:
    """Return bars of the strongest edges.

    Args:
        table: of `edge_attribution`.
        value: which number; default: the score.
    """
    asked = value or "score"
    rows = [row for row in table.rows() if row[asked] is not None]
    best = sorted(rows, key=lambda row: -abs(row[asked]))[:_SHOWN]
    named = [f"{row['sender']} → {row['receiver']}" for row in best]
    pairs = max((int(row["n"]) for row in best), default=0)
    ends = [(row["low"], row["high"]) if asked == "score" else (None, None) for row in best]
    bars = tuple(Bar(name, row[asked], *end) for name, row, end in zip(named, best, ends, strict=True))
    sure = f"Means over {pairs} pairs with 95 % intervals (bootstrap over pairs). " if pairs > 1 else ""
    check = table.meta.get("check")
    notes = table.meta.get("notes")
    coarse = (
        f" {len(notes)} nodes are coarse or tied: see meta['notes']." if isinstance(notes, Mapping) and notes else ""
    )
    return Picture(
        f"The {len(bars)} strongest of {len(table)} edges (estimated from gradients)",
        ((Bars("edges", asked, bars),),),
        about=f"edges of {table.meta['model']}, {table.meta['method']}, rule {table.meta['rule']}",
        caption=(
            f"{table.meta['model']}: what the source's value of a sender would do to {table.meta['metric']} through "
            f"one receiver alone. {sure}Positive moves the metric up.{coarse}"
        ),
        findings=(
            f"{check or 'not checked'}.".capitalize(),
            *(f"{name}: {row[asked]:.3g}" for name, row in zip(named[:5], best[:5], strict=True)),
        ),
    )
