"""Attention patterns: queries from top to bottom, keys from left to right, tokens on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._errors import SpecError
from .layer_map import Row, averaged, interval_of, largest
from .panels import ColourScale, HeatMap, Labels, Picture, Square
from .tabular import Tabular
from .words import number, visible

_TICKS = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1"))
_MOST, _BESIDE, _MARGIN = 12, 3, 40


def picture_of_attention(table: Tabular, value: str | None) -> Picture:
    """Return a map of each head; of more than twelve the mean of each layer, and of more layers the mean of all.

    Raises:
        SpecError: the table has several prompts.
    """
    asked = value or "attention"
    prompts = sorted(set(table.columns["prompt"]))
    if len(prompts) > 1:
        raise SpecError("patterns of several prompts have no axis in common: table.select(where={'prompt': 0})")
    tokens: Sequence[str] = table.meta["tokens"][prompts[0]]
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
        _map(group, asked, tokens, scale, title.format(**dict(zip(by, named, strict=True))))
        for named, group in groups.items()
    ]
    return Picture(
        "Where heads look" if len(maps) > 1 else f"Where {maps[0].title} looks",
        tuple(tuple(maps[n : n + _BESIDE]) for n in range(0, len(maps), _BESIDE)),
        prompts=(("prompt", "".join(tokens), ""),),
        about=f"attention of {table.meta['model']}: a row is a query, a column the key that it looks at",
        caption=(
            f"{table.meta['model']}: a row is a query (the first token on top), a column the key that it looks at. "
            "Each row sums up to 1."
        ),
        findings=tuple(_findings(rows, asked, tokens, by)),
    )


def _pale(top: float) -> ColourScale:
    return ColourScale("attention", tuple((place, number(place * top)) for place in (0.0, 0.5, 1.0)), whole=top)


def _map(rows: Sequence[Row], value: str, tokens: Sequence[str], scale: ColourScale, title: str) -> HeatMap:
    queries, keys = (sorted({row[side] for row in rows}) for side in ("query", "key"))
    down, across = ({n: i for i, n in enumerate(known)} for known in (queries, keys))
    texts: Mapping[int, str] = {n: visible(tokens[n]) for n in {*queries, *keys}}
    squares = {
        (down[row["query"]], across[row["key"]]): Square(
            row[value],
            scale.at(row[value]),
            number(row[value]),
            (
                f"{texts[row['query']]} looks at {texts[row['key']]}",
                interval_of({value: row[value]}, value, scale.name),
            ),
        )
        for row in rows
    }
    sides = [Labels("token", tuple((texts[n],) for n in known), tuple(known)) for known in (queries, keys)]
    return HeatMap(title, sides[0], sides[1], squares, scale)


def _findings(rows: Sequence[Row], value: str, tokens: Sequence[str], by: Sequence[str]) -> list[str]:
    """Name what is looked at most, the first token left out, which heads look at where nothing is to be had."""
    others = [row for row in rows if row["key"] not in (0, row["query"])]
    said = []
    for row in largest(others, value, 3):
        ends = [f"token {row[side]} ({visible(tokens[row[side]])})" for side in ("query", "key")]
        named = ", ".join(f"{name} {row[name]}" for name in by) or "mean"
        said.append(f"{named}: {ends[0]} looks at {ends[1]} with {number(row[value])}")
    return said
