"""Base and source prompts side by side, and which place of the one answers to which of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._errors import PositionError, SpecError
from ..anchors import Spot, Spots
from ._data import read_data
from ._places import WhichPlaces, named_spots, spots_in
from ._prompts import Prompts, Tokens, encoded

Place = tuple[int, int]
"""A position in the base and one in the source, both from 0 over the real tokens."""
Align = Literal["first", "last"] | None
"""From which token on those of base and source answer to each other, where a piece of text has more in one of them."""


class PairPlace(NamedTuple):
    """Places of one pair that are one cell.

    Args:
        name: `None` where it has none.
        places: of base and source.
    """

    name: str | None
    places: tuple[Place, ...]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompts and the places to compare.

    Args:
        base: the prompts whose runs are edited, or read by those of the sources.
        source: as many.
        positions: as the caller wrote them; `None` for all of them at once.
        last: compare the last so many tokens, aligned from the end; `None`: the prompts of a pair are of equal length.
        align: where a piece of text has another number of tokens in the source: aligned at its first or last token.
    """

    base: Prompts
    source: Prompts
    positions: WhichPlaces | None
    last: int | None
    align: Align = None

    def __len__(self) -> int:
        return len(self.base)

    def sides(self, stack: str) -> tuple[Tokens, Tokens]:
        """Return the base's tokens and the source's in the sequence of a stack."""
        return self.base.tokens(stack), self.source.tokens(stack)

    @property
    def answers(self) -> list[tuple[int | str, int | str]] | None:
        """The answers that stand beside the prompts, the base's and the source's; `None` where both do not."""
        sides = self.base.answers, self.source.answers
        return None if sides[0] is None or sides[1] is None else list(zip(sides[0], sides[1], strict=True))

    def places(self, stack: str) -> list[list[PairPlace]]:
        """Return of each pair the places that are compared in the sequence of a stack, those that it has.

        Raises:
            PositionError: places do not answer to each other, or no base has one.
        """
        for number in range(len(self)):
            self._check_last(stack, number)
        found: list[list[PairPlace]] = [[] for _ in range(len(self))]
        named: Mapping[str | None, Spots] = {"": "all"}
        if self.positions is not None:
            named = named_spots(self.positions)
        for name, spots in named.items():
            for number, row in enumerate(spots_in(self.base, stack, spots, together=name is not None)):
                wanted: Sequence[Spot] = range(len(self.base.tokens(stack).ids[number])) if row == "all" else row
                places = dict.fromkeys(
                    place for spot in wanted for place in self._answering(stack, number, spot, row == "all")
                )
                if name is not None and places:
                    found[number].append(PairPlace(name or None, tuple(sorted(places))))
                else:
                    found[number] += [PairPlace(None, (place,)) for place in places]
        if not any(found):
            raise PositionError(f"positions {self.positions!r} are not among the last {self.last} tokens of any base")
        return found

    def cell(self, stack: str, number: int, place: PairPlace) -> dict[str, Any]:
        """Return the columns that say which place of a pair it is; of several tokens they have no position."""
        one: tuple[int | None, int | None] = (None, None)
        texts: tuple[str | None, str | None] = (None, None)
        if self.positions is not None:
            one = place.places[0] if len(place.places) == 1 else one
            told = zip((self.base, self.source), zip(*place.places, strict=True), strict=True)
            texts = tuple(side.said(stack, number, dict.fromkeys(at)) for side, at in told)  # type: ignore[assignment]
        named = {} if place.name is None else {"place": place.name}
        return {**named, "position": one[0], "source_position": one[1], "token": texts[0], "source_token": texts[1]}

    def _answering(self, stack: str, number: int, spot: Spot, every: bool) -> list[Place]:
        """Return the places of base and source at one spot of a pair."""
        base, source = self.sides(stack)
        length, other = len(base.ids[number]), len(source.ids[number])
        if not isinstance(spot, int):
            return self._spans(stack, number, spot)
        at = spot if every else self.base.at(stack, number, spot)[0]
        if spot >= 0:
            self._check_lengths(base, source, number)
        first = 0 if self.last is None else length - self.last
        if at < first and not every and len(self) == 1:
            raise PositionError(
                f"position {at} is not among the last {self.last} tokens of the base, {first} to {length - 1}"
            )
        answer = at + other - length
        if answer < 0 and at >= first:
            raise PositionError(f"pair {number}: position {spot} does not exist in the source, of {other} tokens")
        return [(at, answer)] if at >= first else []

    def _spans(self, stack: str, number: int, spot: Spot) -> list[Place]:
        """Return the places of a piece of text, or of the last token, in base and source."""
        spans = self.base.at(stack, number, spot), self.source.at(stack, number, spot)
        counts = len(spans[0]), len(spans[1])
        if counts[0] != counts[1] and self.align is None:
            texts = [side.said(stack, number, span) for side, span in zip((self.base, self.source), spans, strict=True)]
            raise PositionError(
                f"pair {number}: {spot} is {counts[0]} tokens in the base ({texts[0]!r}) and {counts[1]} in the source "
                f"({texts[1]!r}): align='first' or align='last' pairs them from there, or name one token of them with "
                "first_token or last_token"
            )
        common = min(counts)
        kept = [span[-common:] if self.align == "last" else span[:common] for span in spans]
        return list(zip(kept[0], kept[1], strict=True))

    def _check_lengths(self, base: Tokens, source: Tokens, number: int) -> None:
        """Refuse a pair whose numbers do not answer to each other."""
        lengths = len(base.ids[number]), len(source.ids[number])
        which = f"pair {number}: " if len(base) > 1 else ""
        if self.last is None and lengths[0] != lengths[1]:
            raise PositionError(
                f"{which}the base has {lengths[0]} tokens, the source {lengths[1]}, so positions do not answer to each "
                "other: reword one of the prompts, name places by their text, or compare the last N tokens, aligned "
                f"from the end: last=N, at most {min(lengths)} (base {list(base.texts[number])}, source "
                f"{list(source.texts[number])})"
            )

    def _check_last(self, stack: str, number: int) -> None:
        lengths = [len(side.ids[number]) for side in self.sides(stack)]
        which = f"pair {number}: " if len(self) > 1 else ""
        if self.last is not None and self.last > min(lengths):
            raise PositionError(f"{which}last={self.last}, but the prompts have {lengths[0]} and {lengths[1]} tokens")


def pair_up(
    base: Any,
    source: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    model: nn.Module,
    columns: Mapping[str, str] | None,
    positions: WhichPlaces | None,
    last: int | None,
    align: Align,
) -> Pairs:
    """Encode prompts and put them side by side.

    Args:
        base: the prompts on the one side, or data that has both.
        source: those on the other, as many.
        tokenizer: as for `encode`.
        model: that will get them.
        columns: what columns are called.
        positions: as `Pairs` has them.
        last: likewise.
        align: likewise.

    Raises:
        SpecError: there is no source, there are not as many bases as sources, or `last` is not a number from 1.
    """
    given = read_data(base, source, columns, "base")
    if given.source is None:
        raise SpecError("there is no source: give source=..., pairs, or data with columns 'base' and 'source'")
    sides = [encoded(given, side, tokenizer, model, side) for side in ("base", "source")]
    if len(sides[0]) != len(sides[1]):
        raise SpecError(f"there are {len(sides[0])} bases, but {len(sides[1])} sources: give a source for each base")
    if last is not None and last < 1:
        raise SpecError(f"last={last}: compare at least the last token, last=1")
    return Pairs(sides[0], sides[1], positions, last, align)
