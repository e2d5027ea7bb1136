"""Attention patterns: queries from top to bottom, keys from left to right, tokens on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from .._errors import SpecError
from .layer_map import Row, averaged, largest
from .panels import ColourScale, HeatMap, Labels, Picture, Square
from .tabular import Tabular
from .words import number, precise, visible

_TICKS = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1"))
Sides = tuple[Sequence[str], Sequence[str]]
"""The tokens of queries and of keys."""
_MOST = 12


def picture_of_attention(table: Tabular, value: str | None) -> Picture:
    """Return a map of each head; of more than twelve the mean of each layer, and of more layers the mean of all.

    Raises:
        SpecError: the table has several prompts.
    """
    asked = value or "attention"
    prompts = sorted(set(table.columns["prompt"]))
    if len(prompts) > 1:
        raise SpecError("patterns of several prompts have no axis in common: table.select(where={'prompt': 0})")
    tokens, keys = (table.meta.get(name, table.meta["tokens"])[prompts[0]] for name in ("tokens", "key_tokens"))
    heads = list(dict.fromkeys(zip(table.columns["layer"], table.columns["head"], strict=True)))
    layers = list(dict.fromkeys(table.columns["layer"]))
    by, title = ["layer", "head"], "layer {layer}, head {head}"
    if len(heads) > _MOST:
        by, title = (
            (["layer"], "layer {layer}, mean of its heads")
            if len(layers) <= _MOST
            else ([], f"mean of {len(heads)} heads")
        )
    rows = list(table.rows()) if len(by) == 2 else averaged(table, [*by, "query", "key"], asked, None)
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    top = max((row[asked] for row in rows if row[asked] is not None), default=1.0)
    scale = ColourScale("attention", _TICKS) if top > 0.3 or asked != "attention" else _pale(top)
    maps = [
        _map(group, asked, (tokens, keys), scale, title.format(**dict(zip(by, named, strict=True))))
        for named, group in groups.items()
    ]
    beside = 2 if len(maps) in (2, 4) else 3
    return Picture(
        "Where heads look" if len(maps) > 1 else f"Where {maps[0].title} looks",
        tuple(tuple(maps[n : n + beside]) for n in range(0, len(maps), beside)),
        prompts=(("prompt", "".join(tokens), ""),),
        about=f"attention of {table.meta['model']}: a row is a query, a column the key that it looks at",
        caption=(
            f"{table.meta['model']}: a row is a query (the first token on top), a column the key that it looks at. "
            "Each row sums up to 1."
        ),
        findings=tuple(_findings(rows, asked, (tokens, keys), by)),
    )


def _pale(top: float) -> ColourScale:
    return ColourScale("attention", tuple((place, number(place * top)) for place in (0.0, 0.5, 1.0)), whole=top)


def _map(rows: Sequence[Row], value: str, sides: Sides, scale: ColourScale, title: str) -> HeatMap:
    later = [row for row in rows if row["key"] > row["query"]]
    if not any(row[value] for row in later) and len(sides[0]) == len(sides[1]):  # causal: nothing can be there
        rows = [row for row in rows if row["key"] <= row["query"]]
    queries, keys = (sorted({row[side] for row in rows}) for side in ("query", "key"))
    down, across = ({n: i for i, n in enumerate(known)} for known in (queries, keys))
    names = [{n: visible(tokens[n]) for n in known} for tokens, known in zip(sides, (queries, keys), strict=True)]
    squares = {
        (down[row["query"]], across[row["key"]]): Square(
            row[value],
            scale.at(row[value]),
            number(row[value]),
            (f"{names[0][row['query']]} looks at {names[1][row['key']]}", f"{scale.name} {precise(row[value])}"),
        )
        for row in rows
    }
    labels = [Labels("token", tuple((text,) for text in of.values()), tuple(of)) for of in names]
    return HeatMap(title, labels[0], labels[1], squares, scale)


def _findings(rows: Sequence[Row], value: str, sides: Sides, by: Sequence[str]) -> list[str]:
    """Name what is looked at most, the first token left out, which heads look at where nothing is to be had."""
    others = [row for row in rows if row["key"] not in (0, row["query"])]
    said = []
    for row in largest(others, value, 3):
        ends = [
            f"token {row[side]} ({visible(tokens[row[side]])})"
            for side, tokens in zip(("query", "key"), sides, strict=True)
        ]
        named = ", ".join(f"{name} {row[name]}" for name in by) or "mean"
        said.append(f"{named}: {ends[0]} looks at {ends[1]} with {number(row[value])}")
    return said
