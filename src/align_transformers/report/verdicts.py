"""What an alignment search has shown and what not: a sentence for each set of variables, by rules from its numbers.

A sentence is about the hypothesis that was chosen on validation pairs and says what was measured on test pairs. Where
no control of that one was measured, as of a swap of the whole vector, it is about the best that has controls, and says
so. It says "carries" only where

1. the IIA has an interval, and at least one control was measured;
2. the interval lies above chance, the random subspaces (above the upper end of theirs, where it is known), and the same
   fit on a network with new random weights: of each that was measured;
3. the p-value against random subspaces, corrected over the grid where that is known, is at most .05;
4. the interval lies above what a fit to labels permuted by entity scores on these: the fit learns nothing by heart;
5. no flag was raised.

It says "carries ... in part" unless the whole interval lies at `MOST` or above. Where 1 to 3 hold, but not 4 or 5, it
says what it stands out from, and the reservation. Else it says "not shown" and why. Controls that were not measured are
named, and so is how many other places are not told apart from the chosen one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .layer_map import Row

ALPHA, MOST = 0.05, 0.9
"""The largest p-value of what counts as shown, and where the interval of what is carried wholly begins."""

CONTROLS: Mapping[str, str] = {
    "random": "random subspaces",
    "permuted": "permuted labels",
    "reinitialised": "new weights",
}
"""Columns of controls, in words."""


def verdict(rows: Iterable[Row], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each set of variables: what was shown, and what was not.

    Args:
        rows: of a table of `align`.
        meta: its facts; used are `data.chance` and whether `data` has test pairs by entity.
    """
    return tuple(_sentence(name, own, meta) for name, own in by_variables(rows).items())


def by_variables(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each set of variables, in the order in which they first appear."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["variables"]), []).append(row)
    return found


def chosen_of(rows: Iterable[Row]) -> Row | None:
    """Return the row that was chosen; where none is said to be, the one with the best IIA on validation pairs."""
    measured = [row for row in rows if row.get("iia") is not None]
    return next((row for row in measured if row.get("chosen")), max(measured, key=rank_of, default=None))


def controlled_of(rows: Sequence[Row]) -> Row | None:
    """Return the hypothesis that can be judged: the chosen one, or the best on validation pairs that has controls."""
    chosen = chosen_of(rows)
    if chosen is None or has_controls(chosen):
        return chosen
    measured = [row for row in rows if row.get("iia") is not None and has_controls(row)]
    return max(measured, key=rank_of, default=chosen)


def has_controls(row: Row) -> bool:
    """Whether any control of a hypothesis was measured."""
    return any(row.get(name) is not None for name in CONTROLS)


def rank_of(row: Row) -> float:
    """Return what hypotheses are chosen by: IIA on validation pairs, never on test pairs."""
    validation = row.get("validation")
    return -1.0 if validation is None else float(validation)


def place_of(row: Row) -> str:
    """Return where a hypothesis is, in words.

    >>> place_of({"component": "block_output", "layer": 3, "head": None, "position": "last"})
    "block_output of layer 3 at 'last'"
    """
    words = [str(row.get("component") or "the state")]
    if row.get("head") is not None:
        words.append(f"(head {row['head']})")
    if row.get("layer") is not None:
        words.append(f"of layer {row['layer']}")
    place = place_key(row)
    if place is not None:
        words.append(f"at {place!r}" if isinstance(place, str) else f"at position {place}")
    return " ".join(words)


def place_key(row: Row) -> Any:
    """Return the place in the sequence, as a name or a number; `None` where there is none."""
    place = row.get("place")
    return row.get("position") if place is None else place


def method_of(row: Row) -> str:
    """Return the method and how many dimensions it takes.

    >>> method_of({"method": "das", "rank": 4}), method_of({"method": "mask", "rank": None, "dimensions": 37})
    ('das, rank 4', 'mask, 37 dimensions')
    """
    if row.get("dimensions") is not None and row["dimensions"] != row.get("rank"):
        return f"{row['method']}, {row['dimensions']} dimensions"
    return str(row["method"]) if row.get("rank") is None else f"{row['method']}, rank {row['rank']}"


def rate(value: float | int | None) -> str:
    """Return a share from 0 to 1 with two decimals; one that is not quite 0 or 1 is not rounded to it.

    >>> rate(0.974), rate(1.0), rate(0.9996), rate(0.0), rate(0.001), rate(None)
    ('.97', '1.00', '> .99', '.00', '< .01', '-')
    """
    if value is None:
        return "-"
    if 0.995 <= value < 1:
        return "> .99"
    if 0 < value < 0.005:
        return "< .01"
    return f"{value:.2f}".removeprefix("0")


def rate_with_interval(row: Row) -> str:
    """Return an IIA with its interval."""
    ends = "" if not _has_interval(row) else f" [{rate(row['low'])}, {rate(row['high'])}]"
    return f"{rate(row['iia'])}{ends}"


def flags_of(row: Row) -> list[str]:
    """Return the names of the flags of a row."""
    flags = row.get("flags") or ()
    return [one.strip() for one in (flags.split(",") if isinstance(flags, str) else flags) if one.strip()]


def chance_of(meta: Mapping[str, Any]) -> float | None:
    """Return the share of the most frequent label."""
    chance = (meta.get("data") or {}).get("chance")
    return None if chance is None else float(chance)


def why_not(row: Row, chance: float | None) -> list[str]:
    """Return why a measured hypothesis is not shown to carry its variables; none: it is told apart from everything.

    Args:
        row: of the hypothesis.
        chance: the share of the most frequent label, where it is known.
    """
    if not _has_interval(row):
        return ["the IIA has no interval"]
    return list(_reasons(row, chance))


def _reasons(row: Row, chance: float | None) -> Iterator[str]:
    low, p = row["low"], row.get("p") if row.get("p_corrected") is None else row["p_corrected"]
    if not has_controls(row):
        yield "no control was measured"
    if chance is not None and low <= chance:
        yield f"the interval reaches chance ({rate(chance)})"
    if row.get("random") is not None:
        top = row["random"] if row.get("random_high") is None else row["random_high"]
        if low <= top:
            upto = "" if top == row["random"] else f", up to {rate(top)}"
            yield f"the interval overlaps the random control's ({rate(row['random'])}{upto})"
        elif p is not None and p > ALPHA:
            corrected = ", corrected over the grid" if row.get("p_corrected") is not None else ""
            yield f"p = {rate(p)} against random subspaces{corrected}"
    if row.get("reinitialised") is not None and low <= row["reinitialised"]:
        yield f"it is not separable from what a network with new weights gives ({rate(row['reinitialised'])})"


def _sentence(name: str, rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    row, chosen = controlled_of(rows), chosen_of(rows)
    if row is None or chosen is None:
        return f"{name}: nothing was measured, so nothing is shown (hypotheses: {_statuses(rows)})."
    reasons, flags = why_not(row, chance_of(meta)), flags_of(row)
    if reasons and _is_memorised(row, chance_of(meta)):
        reasons.append(f"it is not separable from memorising (on the entities of the fit {rate(row['train'])})")
    where = f"{place_of(row)} ({method_of(row)})"
    it = "them" if "," in name else "it"
    if reasons:
        claim = f"not shown that {where} carries {it}: {'; '.join(reasons)}"
    elif flags or _is_by_heart(row):
        but = "with a flag" if flags else f"but labels permuted by entity are learned as well ({rate(row['permuted'])})"
        claim = f"{where} stands out from {_stands_out(row, chance_of(meta))}, {but}"
    else:
        claim = f"{where} carries {it}" + " in part" * (row["low"] < MOST)
    parts = [f"IIA {rate_with_interval(row)}{_of(row, meta)}", ", ".join(_numbers(row, chance_of(meta)))]
    parts += [] if reasons else _others(row, rows)
    if chosen is not row:
        there = f"{method_of(chosen)} there" if site_of(chosen) == site_of(row) else place_of(chosen)
        there += "" if site_of(chosen) == site_of(row) else f" ({method_of(chosen)})"
        parts.append(f"chosen was {there}, IIA {rate_with_interval(chosen)}, without controls")
    parts.append(f"flagged: {', '.join(flags)}" if flags else "no flag")
    return f"{name}: {claim}{'; ' if reasons else ': '}{'; '.join(part for part in parts if part)}."


def _stands_out(row: Row, chance: float | None) -> str:
    """Return what the interval of a hypothesis lies above, in words."""
    above = [CONTROLS[name] for name in ("random", "reinitialised") if row.get(name) is not None]
    above += ["chance"] * (chance is not None)
    return " and ".join(
        [", ".join(above[:-1]), above[-1]] if len(above) > 1 else above or ["nothing that was measured"]
    )


def _is_by_heart(row: Row) -> bool:
    return row.get("permuted") is not None and bool(row["low"] <= row["permuted"])


def _is_memorised(row: Row, chance: float | None) -> bool:
    """Whether the fit is above the interval of unseen entities, and above what needs no fit."""
    needs_no_fit = max(known for known in (chance, row.get("random"), row.get("random_high"), 0.0) if known is not None)
    train = row.get("train")
    return train is not None and _has_interval(row) and train > max(row["high"], needs_no_fit)


def _has_interval(row: Row) -> bool:
    return row.get("low") is not None and row.get("high") is not None


def _of(row: Row, meta: Mapping[str, Any]) -> str:
    """Return of what the IIA is."""
    if row.get("n") is None:
        return ""
    test = (meta.get("data") or {}).get("test") or {}
    return f" on {row['n']} pairs{' of unseen entities' * (test.get('entities') is not None)}"


def _numbers(row: Row, chance: float | None) -> Iterator[str]:
    """Yield what the IIA is to be compared with, and what is missing of it."""
    whole = row.get("rank") is None and row.get("dimensions") is None  # a swap of the full vector
    if row.get("full") is not None and not whole:
        yield f"the full vector {rate(row['full'])}"
    for column, words in CONTROLS.items():
        if row.get(column) is not None:
            yield f"{words} {rate(row[column])}"
    if chance is not None:
        yield f"chance {rate(chance)}"
    missing = [
        words for column, words in CONTROLS.items()
        if row.get(column) is None and not (column == "random" and whole)
    ]  # fmt: skip
    if missing:
        yield f"not measured: {', '.join(missing)}"


def _others(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return how many other places are not told apart from the chosen one, where there are others."""
    best: dict[tuple[Any, ...], float] = {}
    for other in rows:
        top = other.get("high") if other.get("high") is not None else other.get("iia")
        if top is not None:
            best[site_of(other)] = max(float(top), best.get(site_of(other), 0.0))
    others = [top for site, top in best.items() if site != site_of(row)]
    level = row["low"] if _has_interval(row) else row["iia"]
    alike = sum(top >= level for top in others)
    return [f"{alike} of {len(others)} other places are not told apart from it"] if alike else []


def site_of(row: Row) -> tuple[Any, ...]:
    """Return what tells places apart."""
    return row.get("component"), row.get("layer"), row.get("head"), place_key(row)


def _statuses(rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        status = str(row.get("status") or "not measured")
        counts[status] = counts.get(status, 0) + 1
    return ", ".join(f"{count} {status}" for status, count in counts.items())
