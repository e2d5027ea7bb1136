"""`grid(..., screen=k)`: estimate all cells, measure the strongest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .._errors import SpecError
from ..engine import Planner
from ..table import Table
from ._agreement import CellSample, agreement, check_seed, draw, missed
from ._estimates import Estimate, Estimates, How, cells_of
from ._swaps import Swaps

_SAMPLE = 32
"""Cells drawn from those that are not among the strongest."""


def screened(
    model: nn.Module,
    swaps: Swaps,
    count: int,
    seed: int,
    *,
    store: str | os.PathLike[str] | None,
    progress: Callable[[int, int], None] | bool | None,
    planner: Planner | None,
) -> Table:
    """Return the exact values of the strongest cells.

    Args:
        model: the user's.
        swaps: all cells.
        count: so many of the strongest are measured.
        seed: of the sample of the others.
        store: as for `grid`.
        progress: likewise.
        planner: likewise.

    Raises:
        SpecError: `count` is not a number from 1, or the metric has no gradient.
    """
    check_seed(seed)
    if count < 1:
        raise SpecError(f"screen={count} is how many of the strongest cells are measured, from 1")
    if swaps.scoring.metrics is not None and "" not in swaps.scoring.metrics:
        raise SpecError("screen= needs one metric=, by which cells are strong; found several in metrics=")
    estimates = Estimates(model, swaps, How())
    found, _ = estimates.of_each()
    flat = flattened(found)
    drawn = draw([abs(one) for one in flat], count, min(count, _SAMPLE), seed)
    exact = measured(model, swaps, drawn, store=store, progress=progress, planner=planner)
    rows = dict(zip(drawn.each, exact.rows(), strict=True))
    errors = [rows[cell]["effect"] - flat[cell] for cell in drawn.sample]
    strengths = sorted((abs(rows[cell]["effect"]) for cell in drawn.strongest), reverse=True)
    told = agreement(drawn, [flat[c] for c in drawn.each], [rows[c]["effect"] for c in drawn.each], seed)
    chance = missed(drawn, flat, errors, strengths[-1])
    top = max(1, len(strengths) // 3)
    meta = {
        **exact.meta,
        "study": "grid",
        "passes": {**estimates.passes, **{f"exact {way}": n for way, n in exact.meta["passes"].items()}},
        "seed": seed,
        "screen": {
            **told,
            "missed": chance,
            "missed_top": {"k": top, "probability": missed(drawn, flat, errors, strengths[top - 1])},
        },
    }
    return Table.from_rows(({**rows[cell], "estimate": flat[cell]} for cell in sorted(drawn.strongest)), meta=meta)


def flattened(found: Sequence[Estimate]) -> list[float]:
    """Return the estimates of all cells, in the order of the runs."""
    return [number for one in found for number in one.effects.tolist()]


def measured(model: nn.Module, swaps: Swaps, drawn: CellSample, **options: Any) -> Table:
    """Return the exact values of the cells that were drawn, a row each, in the order of their numbers.

    Args:
        model: the user's.
        swaps: all cells.
        drawn: some of these.
        options: as for `Sweep.table`.
    """
    chosen: dict[int, list[int]] = {}
    wanted = set(drawn.each)
    for number, (run, cell) in enumerate(cells_of(swaps.runs)):
        if number in wanted:
            chosen.setdefault(run, []).append(cell)
    runs = [swaps.runs[run].take(cells) for run, cells in chosen.items()]
    exact = replace(swaps, runs=tuple(runs))
    return exact.sweep("grid").table(model, **options)
