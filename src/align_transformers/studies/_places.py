"""At which places of prompts a study does something: each token by itself, or those of a named place together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from .._errors import PositionError, SpecError
from ..anchors import Spot, Spots, spots_of_each
from ._prompts import Prompts

WhichPlaces = Annotated[
    Spots | Mapping[str, Spots], "Of a piece of text write at('Spain'); a named place is {'subject': at('Spain')}"
]
"""Places as callers write them; `None` is all of them at once, where that may be."""


class Placed(NamedTuple):
    """Tokens of one prompt that are one cell.

    Args:
        name: of the place; `None` where it has none.
        tokens: numbers from 0 over the real tokens, ascending.
    """

    name: str | None
    tokens: tuple[int, ...]


def places_of(prompts: Prompts, stack: str, positions: WhichPlaces) -> list[list[Placed]]:
    """Return the places of each prompt: each token is one, all tokens of a named place are one.

    Of several prompts, those have no place at a number for all that do not have it; the longest has to.

    Args:
        prompts: some.
        stack: in whose sequence positions count.
        positions: as the caller wrote them.

    Raises:
        PositionError: a prompt, which is named, lacks a place.
        SpecError: no place is named, or not one for each prompt.
    """
    found: list[list[Placed]] = [[] for _ in range(len(prompts))]
    for name, spots in named_spots(positions).items():
        for number, row in enumerate(spots_in(prompts, stack, spots, together=name is not None)):
            each = (prompts.at(stack, number, spot) for spot in row)
            everywhere = range(len(prompts.tokens(stack).ids[number]))
            tokens = everywhere if row == "all" else dict.fromkeys(token for several in each for token in several)
            found[number] += placed(name, tokens)
    return found


def tokens_of_each(prompts: Prompts, stack: str, positions: WhichPlaces) -> tuple[tuple[int, ...], ...]:
    """Return for each prompt the numbers of its tokens at some places, each once, from 0 over the real ones.

    Args:
        prompts: some.
        stack: in whose sequence positions count.
        positions: as for `places_of`.

    Raises:
        PositionError, SpecError: as for `places_of`.
    """
    return tuple(
        tuple(dict.fromkeys(token for place in own for token in place.tokens))
        for own in places_of(prompts, stack, positions)
    )


def columns_of(prompts: Prompts, stack: str, positions: WhichPlaces, *, but_first: bool) -> tuple[tuple[int, ...], ...]:
    """Return for each prompt the columns of its tokens at some places, at least one.

    Args:
        prompts: some.
        stack: in whose sequence positions count.
        positions: as for `places_of`.
        but_first: `"all"` leaves the first token of a prompt of several out.

    Raises:
        PositionError: a prompt has none of the places; as for `places_of`.
        SpecError: as for `places_of`.
    """
    each = tokens_of_each(prompts, stack, positions)
    lacking = [number for number, own in enumerate(each) if not own]
    if lacking:
        raise PositionError(f"{prompts.called} {lacking[0]} has none of the positions {positions!r:.80}")
    left_out = 1 if isinstance(positions, str) and positions == "all" and but_first else 0
    return tuple(
        tuple(start + place for place in own[left_out if len(own) > 1 else 0 :])
        for start, own in zip(prompts.tokens(stack).starts, each, strict=True)
    )


def placed(name: str | None, tokens: Any) -> list[Placed]:
    """Return the places of some tokens: one of all where it is named, else one of each."""
    return [Placed(None, (token,)) for token in tokens] if name is None else [Placed(name, tuple(sorted(tokens)))]


def named_spots(positions: WhichPlaces) -> Mapping[str | None, Spots]:
    """Return spots by name; `None` where they have none.

    Raises:
        SpecError: a mapping is empty.
    """
    if not isinstance(positions, Mapping):
        return {None: positions}
    if not positions or not all(positions):
        raise SpecError(f"positions names places, such as {{'subject': at('Spain'), 'last': -1}}; found {positions!r}")
    return dict(positions.items())


def spots_in(prompts: Prompts, stack: str, spots: Spots, *, together: bool) -> list[Any]:
    """Return which spots are meant in each prompt, `"all"` or a list, without numbers for all that it does not have.

    Args:
        prompts: some.
        stack: in whose sequence positions count.
        spots: as the caller wrote them.
        together: of a named place nothing may be missing.
    """
    rows = spots_of_each(spots, len(prompts))
    lengths = [len(ids) for ids in prompts.tokens(stack).ids]
    if together or not all(row is rows[0] for row in rows) or rows[0] == "all":
        return rows
    return [
        [spot for spot in row if length == max(lengths) or not _lacks(length, spot)]
        for row, length in zip(rows, lengths, strict=True)
    ]


def _lacks(length: int, spot: Spot) -> bool:
    return isinstance(spot, int) and not -length <= spot < length
