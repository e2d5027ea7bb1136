"""The cells of `grid`, and the runs that they are: all cells of a direction, component and layer are copies in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from ._layers import depth_of, sites_of
from ._pairs import PairPlace, Pairs
from ._prompts import Which, indices

SwapDirection = Literal["denoise", "noise"]
DirectionName = Literal["denoise", "noise", "denoising", "noising"]
DIRECTIONS: Mapping[DirectionName, SwapDirection] = {
    "denoise": "denoise",
    "noise": "noise",
    "denoising": "denoise",
    "noising": "noise",
}
"""The direction of a swap by each of its names."""


@dataclass(frozen=True)
class Selection:
    """Which cells a grid is to have.

    Args:
        components: names from `COMPONENTS`, or dotted paths of modules.
        layers: of the named components that have one.
        heads: numbers, `"all"`, or `None` for the whole vector.
        neurons: how many neighbouring coordinates are swapped at a time; `None` for all at once.
        directions: of the swaps.
        window: how many neighbouring layers are swapped at once, as `width_of` takes it.
    """

    components: Sequence[str]
    layers: Which
    heads: Which | None
    neurons: int | None
    directions: Sequence[DirectionName]
    window: int | Mapping[str, int] = 1

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
        sites = self._sites(model, pairs)
        places = {stack: pairs.places(stack) for stack in dict.fromkeys(site.sequence for site in sites)}
        swaps = [
            (
                {near: self._width(model, near) for near in self._near(model, site)},
                site,
                tuple(self._swaps(model, site, places[site.sequence])),
            )
            for site in sites
        ]
        return tuple(
            self._run(near, site, cells, direction, pairs)
            for direction in dict.fromkeys(DIRECTIONS[name] for name in self.directions)
            for near, site, cells in swaps
        )

    def _run(
        self,
        near: Mapping[Site, int | None],
        site: Site,
        swaps: Sequence[SwapPlaces],
        direction: SwapDirection,
        pairs: Pairs,
    ) -> CellRun:
        """Return the run that swaps at some sites, around one, at once; these are given with their widths."""
        into, out_of = ("base", "source") if direction == "denoise" else ("source", "base")
        columns = dict(zip(("base", "source"), _columns(pairs, site, swaps), strict=True))
        heads = None if self.heads is None else tuple((swap.head,) for swap in swaps if swap.head is not None)
        blocks = None if self.neurons is None else tuple((swap.block,) for swap in swaps if swap.block is not None)
        examples, name = tuple(swap.pair for swap in swaps), f"{direction} {site}"
        edits = []
        for one, width in near.items():
            read = Read(out_of, one, Positions(columns[out_of], heads), examples)
            named = name if one == site else f"{name}: {one}"
            edits.append(Edit(named, one, _intervention(width), Positions(columns[into], heads), blocks, read))
        told: dict[Any, dict[str, Any]] = {}
        for swap in swaps:  # many cells have their place in common
            if (swap.pair, swap.place) not in told:
                told[swap.pair, swap.place] = pairs.cell(site.sequence, swap.pair, swap.place)
        cells = tuple(self._cell(site, swap, direction, told[swap.pair, swap.place]) for swap in swaps)
        return CellRun(Run(name, into, tuple(edits), examples), cells)

    def _near(self, model: nn.Module, site: Site) -> list[Site]:
        """Return the sites that are swapped together with one, in order of layers, itself among them."""
        width = width_of(self.window, site.component)
        if site.layer is None or width == 1:
            return [site]
        layers = layers_near(site.layer, width, depth_of(model, site.component))
        near = [Site(site.component, layer) for layer in layers]
        return [one for one in near if one == site or resolve(model).find(one) is not None]

    def _cell(self, site: Site, swap: SwapPlaces, direction: SwapDirection, place: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that say which cell it is; those of its place are given."""
        cell: dict[str, Any] = {"component": site.component, "layer": site.layer}
        if self.heads is not None:
            cell["head"] = swap.head
        if self.neurons is not None:
            cell["neuron"] = None if swap.block is None else swap.block * self.neurons
        return {**cell, **place, "pair": swap.pair, "direction": direction}

    def _sites(self, model: nn.Module, pairs: Pairs) -> list[Site]:
        """Return the sites, by component and layer; of `"all"` layers those that have the component."""
        sites = [site for name in dict.fromkeys(self.components) for site in sites_of(model, name, self.layers)]
        for site in sites:
            if site.path is not None and len(pairs.base.sequences) > 1:
                raise SiteError(
                    f"{type(model).__name__} is an encoder-decoder, and a path does not tell whether the positions of "
                    f"{site} count in the encoder's or the decoder's sequence: name a component, such as "
                    "'encoder.block_output'"
                )
        return sites

    def _swaps(self, model: nn.Module, site: Site, places: Sequence[Sequence[PairPlace]]) -> Iterator[SwapPlaces]:
        heads: Sequence[int | None] = [None] if self.heads is None else self._heads(model, site)
        width = self._width(model, site)
        blocks: Sequence[int | None] = [None]
        if width is not None and self.neurons is not None:
            blocks = range(-(-width // self.neurons))
        for pair, own in enumerate(places):
            yield from (SwapPlaces(pair, place, head, block) for head in heads for block in blocks for place in own)

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
        sites = (near for site in self._sites(model, pairs) for near in self._near(model, site))
        for width in dict.fromkeys(self._width(model, site) for site in sites):
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
        place: what is swapped at once.
        head: which head; `None` for the whole vector.
        block: which block of neurons; `None` for all.
    """

    pair: int
    place: PairPlace
    head: int | None
    block: int | None


def _columns(pairs: Pairs, site: Site, swaps: Sequence[SwapPlaces]) -> list[tuple[tuple[int, ...], ...]]:
    """Return the columns of every swap in the base's batch, and those in the source's."""
    found: list[list[tuple[int, ...]]] = [[], []]
    sides, known = pairs.sides(site.sequence), {}
    for swap in swaps:
        if (swap.pair, swap.place) not in known:
            places = zip(*swap.place.places, strict=True)
            starts = (side.starts[swap.pair] for side in sides)
            known[swap.pair, swap.place] = [
                tuple(start + place for place in each) for start, each in zip(starts, places, strict=True)
            ]
        for rows, row in zip(found, known[swap.pair, swap.place], strict=True):
            rows.append(row)
    return [tuple(rows) for rows in found]


def _intervention(width: int | None) -> str:
    """Return the name of the swap of whole vectors, or of blocks of those of some width."""
    return "swap" if width is None else f"swap {width}"


def width_of(window: int | Mapping[str, int], component: str) -> int:
    """Return how many layers of a component are swapped at once.

    Args:
        window: their number, for all components but `block_output`, of which it is one; or by component.
        component: its name.

    Raises:
        SpecError: it is no number from 1.

    >>> width_of(10, "mlp_output"), width_of(10, "block_output"), width_of({"mlp_output": 3}, "mlp_output")
    (10, 1, 3)
    """
    one = component.rpartition(".")[2] == "block_output"
    width = window.get(component, 1) if isinstance(window, Mapping) else 1 if one else window
    if width < 1:
        raise SpecError(f"window is a number of layers from 1; found {width} for {component}")
    return width


def layers_near(layer: int, width: int, depth: int) -> range:
    """Return the layers of a window, cut at the ends.

    >>> layers_near(5, 4, 12), layers_near(0, 3, 12)
    (range(3, 7), range(0, 2))
    """
    return range(max(0, layer - width // 2), min(depth, layer - (-width // 2)))
