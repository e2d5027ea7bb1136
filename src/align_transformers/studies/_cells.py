"""The cells of `grid`, and the runs that they are: all cells of a direction, component and layer are copies in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .._errors import SiteError, SpecError
from ..interventions import Intervention, VanillaIntervention
from ..models import find_slot, resolve
from ..plan import Edit, Read, Run
from ..positions import Positions
from ..sites import COMPONENTS, Site, in_block
from ._cell_run import CellRun
from ._prompts import Pairs, Place, Which, indices

SwapDirection = Literal["denoise", "noise"]
DIRECTIONS: tuple[SwapDirection, ...] = ("denoise", "noise")


@dataclass(frozen=True)
class Selection:
    """Which cells a grid is to have.

    Args:
        components: names from `COMPONENTS`, or dotted paths of modules.
        layers: of the named components that have one.
        heads: numbers, `"all"`, or `None` for the whole vector.
        neurons: how many neighbouring coordinates are swapped at a time; `None` for all at once.
        together: all places of a pair are swapped at once.
        directions: of the swaps.
    """

    components: Sequence[str]
    layers: Which
    heads: Which | None
    neurons: int | None
    together: bool
    directions: Sequence[SwapDirection]

    def check(self) -> None:
        """Refuse what makes no sense in any model.

        Raises:
            SpecError: no components, no or unknown directions, or both heads and neurons.
            UnknownNameError: no such component.
        """
        if isinstance(self.components, str) or not self.components:
            raise SpecError(f"components is a list of names, such as ['block_output']; found {self.components!r}")
        if isinstance(self.directions, str) or not self.directions or set(self.directions) - set(DIRECTIONS):
            raise SpecError(f"directions is a list of 'denoise' and 'noise'; found {self.directions!r}")
        if self.neurons is not None and (self.heads is not None or self.neurons < 1):
            raise SpecError(
                f"neurons={self.neurons} is how many neurons are swapped at a time, from 1, and goes without heads; "
                f"heads={self.heads!r}"
            )
        for name in self.components:
            Site(name, 0 if in_block(name) else None)

    def runs(self, model: nn.Module, pairs: Pairs) -> tuple[CellRun, ...]:
        """Return the runs: each swaps at one site in one direction.

        Raises:
            SiteError: the model has no such component, it has no heads or no known width, or it is not known in which
                of two sequences its positions count.
            PositionError: there is no such layer or head.
        """
        swaps = [
            (site, tuple(self._swaps(model, site, pairs)), self._width(model, site))
            for site in self._sites(model, pairs)
        ]
        return tuple(
            self._run(site, cells, width, direction, pairs)
            for direction in dict.fromkeys(self.directions)
            for site, cells, width in swaps
        )

    def _run(
        self, site: Site, swaps: Sequence[SwapPlaces], width: int | None, direction: SwapDirection, pairs: Pairs
    ) -> CellRun:
        into, out_of = ("base", "source") if direction == "denoise" else ("source", "base")
        columns = dict(zip(("base", "source"), _columns(pairs, site, swaps), strict=True))
        heads = None if self.heads is None else tuple((swap.head,) for swap in swaps if swap.head is not None)
        blocks = None if width is None else tuple((swap.block,) for swap in swaps if swap.block is not None)
        examples, name = tuple(swap.pair for swap in swaps), f"{direction} {site}"
        read = Read(out_of, site, Positions(columns[out_of], heads), examples)
        edit = Edit(name, site, _intervention(width), Positions(columns[into], heads), blocks, read)
        cells = tuple(self._cell(site, swap, direction, pairs) for swap in swaps)
        return CellRun(Run(name, into, (edit,), examples), cells)

    def _cell(self, site: Site, swap: SwapPlaces, direction: SwapDirection, pairs: Pairs) -> dict[str, Any]:
        """Return the columns that say which cell it is."""
        here: Sequence[int | None] = (None, None) if self.together else swap.places[0]
        sides = (side.texts[swap.pair] for side in pairs.sides(site))
        texts = [None if at is None else tokens[at] for at, tokens in zip(here, sides, strict=True)]
        cell: dict[str, Any] = {"component": site.component, "layer": site.layer}
        if self.heads is not None:
            cell["head"] = swap.head
        if self.neurons is not None:
            cell["neuron"] = None if swap.block is None else swap.block * self.neurons
        cell |= {"position": here[0], "source_position": here[1], "token": texts[0], "source_token": texts[1]}
        return {**cell, "pair": swap.pair, "direction": direction}

    def _sites(self, model: nn.Module, pairs: Pairs) -> list[Site]:
        """Return the sites, by component and layer; of `"all"` layers those that have the component."""
        names = list(dict.fromkeys(self.components))
        counts = [_layers(model, name) for name in names if in_block(name)]
        deep = f"{type(model).__name__} has {max(counts, default=0)} layers"
        chosen = indices(self.layers, max(counts), "layer", deep) if counts else []
        sites = []
        for name in names:
            here = [Site(name, layer) for layer in chosen] if in_block(name) else [Site(name)]
            if self.layers == "all" and in_block(name):
                found = resolve(model)
                here = [site for site in here if found.find(site) is not None] or here[:1]
            sites += here
        for site in sites:
            find_slot(model, site)
            if site.path is not None and len(pairs.base.sequences) > 1:
                raise SiteError(
                    f"{type(model).__name__} is an encoder-decoder, and a path does not tell whether the positions of "
                    f"{site} count in the encoder's or the decoder's sequence: name a component, such as "
                    "'encoder.block_output'"
                )
        return sites

    def _swaps(self, model: nn.Module, site: Site, pairs: Pairs) -> Iterator[SwapPlaces]:
        heads: Sequence[int | None] = [None] if self.heads is None else self._heads(model, site)
        width = self._width(model, site)
        blocks: Sequence[int | None] = [None]
        if width is not None and self.neurons is not None:
            blocks = range(-(-width // self.neurons))
        for pair, places in enumerate(pairs.places(site)):
            groups = [places] if self.together and places else [(place,) for place in places]
            yield from (SwapPlaces(pair, group, head, block) for head in heads for block in blocks for group in groups)

    def _heads(self, model: nn.Module, site: Site) -> list[int]:
        slot = find_slot(model, site)
        count = slot.n_heads if slot.heads is None else len(slot.heads)
        if not count:
            per_head = ", ".join(name for name, component in COMPONENTS.items() if component.per_head)
            raise SiteError(f"{site} has no heads; these components have some: {per_head}")
        return indices(self.heads or [], count, "head", f"{site} has {count} heads")

    def _width(self, model: nn.Module, site: Site) -> int | None:
        if self.neurons is None:
            return None
        width = find_slot(model, site).width
        if width is None:
            raise SiteError(
                f"how many neurons {site} has cannot be told from its module, so there are no blocks of them"
            )
        return width

    def interventions(self, model: nn.Module, pairs: Pairs) -> dict[str, Intervention]:
        """Return the interventions that the runs name."""
        found: dict[str, Intervention] = {}
        for width in dict.fromkeys(self._width(model, site) for site in self._sites(model, pairs)):
            blocks = None
            if width is not None and self.neurons is not None:
                blocks = [range(low, min(low + self.neurons, width)) for low in range(0, width, self.neurons)]
            found[_intervention(width)] = VanillaIntervention(subspace_partition=blocks)
        return found


@dataclass(frozen=True)
class SwapPlaces:
    """One swap.

    Args:
        pair: number of the pair.
        places: what is swapped at once: one place, or all of them.
        head: which head; `None` for the whole vector.
        block: which block of neurons; `None` for all.
    """

    pair: int
    places: tuple[Place, ...]
    head: int | None
    block: int | None


def _columns(pairs: Pairs, site: Site, swaps: Sequence[SwapPlaces]) -> list[tuple[tuple[int, ...], ...]]:
    """Return the columns of every swap in the base's batch, and those in the source's."""
    return [
        tuple(tuple(side.starts[swap.pair] + place[number] for place in swap.places) for swap in swaps)
        for number, side in enumerate(pairs.sides(site))
    ]


def _intervention(width: int | None) -> str:
    """Return the name of the swap of whole vectors, or of blocks of those of some width."""
    return "swap" if width is None else f"swap {width}"


def _layers(model: nn.Module, name: str) -> int:
    """Return how many layers there are where a component is."""
    found, site = resolve(model), Site(name, 0)
    if site.stack not in found.stacks:
        found.slot(site)  # which says why
    return len(found.stacks[site.stack])
