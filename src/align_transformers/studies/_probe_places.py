"""Where probes read: at one token of every prompt, by component and layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._errors import PositionError, SpecError
from ..anchors import Spot, Spots, spots_of_each
from ..positions import Positions
from ..sites import Site
from ._layers import sites_of
from ._places import WhichPlaces, named_spots
from ._prompts import Prompts, Which


@dataclass(frozen=True)
class ProbedPlace:
    """Where states are read and edited.

    Args:
        site: in the network.
        name: of the place; `None` where it has none.
        position: the number that was asked for; `None` where it was something else.
        columns: of each prompt.
    """

    site: Site
    name: str | None
    position: int | None
    columns: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.site} at {self.position if self.name is None else self.name}"

    @property
    def cell(self) -> dict[str, Any]:
        """The columns that say which place it is."""
        named = {} if self.name is None else {"place": self.name}
        return {"component": self.site.component, "layer": self.site.layer, **named, "position": self.position}

    def at(self, prompts: Sequence[int]) -> Positions:
        """Return the places of some prompts."""
        return Positions(tuple((self.columns[prompt],) for prompt in prompts))


def places_probed(
    model: nn.Module, prompts: Prompts, components: Sequence[str], layers: Which, positions: WhichPlaces
) -> list[ProbedPlace]:
    """Return the places, by component and layer.

    Args:
        model: the user's.
        prompts: each has all places.
        components: by name.
        layers: of those that have one.
        positions: as the caller wrote them.

    Raises:
        SpecError: no component is named, a place is of several tokens, or two places would be called alike.
        PositionError: a prompt lacks a place.
        SiteError: the model has no such component.
    """
    if not components:
        raise SpecError("components names nothing: give a list of names, such as ['block_output']")
    places = []
    for site in (site for name in dict.fromkeys(components) for site in sites_of(model, name, layers)):
        for name, spots in named_spots(positions).items():
            for each in _spots(prompts, site.sequence, spots):
                asked = each[0] if all(spot == each[0] for spot in each) else None
                position = -1 if asked == "last" else asked if isinstance(asked, int) else None
                columns = tuple(_token(prompts, site.sequence, number, spot) for number, spot in enumerate(each))
                places.append(ProbedPlace(site, name, position, columns))
    twice = [cell for cell, count in Counter(str(place) for place in places).items() if count > 1]
    if twice:
        raise SpecError(
            f"several places are called {twice[0]!r}: name each, positions={{'subject': at(...), 'last': -1}}"
        )
    return places


def _spots(prompts: Prompts, stack: str, spots: Spots) -> list[list[Spot]]:
    """Return places, each as the spot that is meant in every prompt."""
    rows = spots_of_each(spots, len(prompts))
    lengths = {len(ids) for ids in prompts.tokens(stack).ids}
    if rows[0] == "all":
        if len(lengths) > 1:
            raise PositionError(
                f"prompts have {min(lengths)} to {max(lengths)} tokens, so that 'all' positions do not answer to each "
                "other: give positions from one of the ends, or anchors"
            )
        rows = [list(range(max(lengths)))] * len(prompts)
    if len({len(row) for row in rows}) > 1:
        raise SpecError(f"positions has lists of unequal lengths for the prompts: {spots!r:.80}")
    return [list(each) for each in dict.fromkeys(zip(*rows, strict=True))]


def _token(prompts: Prompts, stack: str, number: int, spot: Spot) -> int:
    """Return the column of the one token at a spot of a prompt."""
    found = prompts.at(stack, number, spot)
    if len(found) > 1:
        raise SpecError(
            f"prompt {number}: {spot} is {len(found)} tokens, {prompts.said(stack, number, found)!r}, and one is "
            "probed: write first_token(...) or last_token(...)"
        )
    return prompts.tokens(stack).starts[number] + found[0]
