"""The cells of a sweep, and the runs that they are: all cells of a layer are copies in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

from torch import Tensor, nn

from .._errors import SiteError, SpecError
from ..interventions import Intervention, VanillaIntervention
from ..models import find_slot, resolve
from ..plan import Edit, Read, Run
from ..positions import Positions
from ..sites import COMPONENT_NAMES, COMPONENTS, HEAD_PREFIX, Site
from ..subspaces import Choice
from .pair import Pairs, Place, Which, indices

Direction = Literal["denoise", "noise"]
DIRECTIONS: tuple[Direction, ...] = ("denoise", "noise")


@dataclass(frozen=True)
class Cell:
    """One swap.

    Args:
        pair: number of the pair.
        places: what is swapped at once: one place, or all of them.
        head: which head; `None` for the whole vector.
        block: which block of neurons; `None` for all.
    """

    pair: int
    places: tuple[Place, ...]
    head: int | None = None
    block: int | None = None


@dataclass(frozen=True)
class Swaps:
    """Cells that are copies in one run.

    Args:
        name: of the run.
        direction: `denoise`: the source's value into the base; `noise`: the base's value into the source.
        site: where.
        cells: the copies.
        width: coordinates of the vectors, where blocks of them are swapped.
        together: all places of a pair are swapped at once.
    """

    name: str
    direction: Direction
    site: Site
    cells: tuple[Cell, ...]
    width: int | None = None
    together: bool = False

    @property
    def edited(self) -> str:
        """The name of the input, and of its clean run, that is edited."""
        return "base" if self.direction == "denoise" else "source"

    @property
    def read(self) -> str:
        """The name of the run that is read."""
        return "source" if self.direction == "denoise" else "base"

    @property
    def pairs(self) -> tuple[int, ...]:
        """For each cell its pair."""
        return tuple(cell.pair for cell in self.cells)

    def run(self, pairs: Pairs) -> Run:
        """Return these swaps as a run: each is measured, then made."""
        cells = self.cells
        heads = None if cells[0].head is None else tuple((cell.head,) for cell in cells if cell.head is not None)
        blocks: Choice | None = None
        if cells[0].block is not None:
            blocks = tuple((cell.block,) for cell in cells if cell.block is not None)
        written = Positions(self._columns(pairs, self.edited), heads)
        there = Positions(self._columns(pairs, self.read), heads)
        source = Read(self.read, self.site, there, self.pairs)
        suffix = "" if self.width is None else f" {self.width}"
        edits = tuple(
            Edit(f"{what} {self.name}", self.site, f"{what}{suffix}", written, blocks, source)
            for what in ("distance", "swap")
        )
        return Run(self.name, self.edited, edits, self.pairs)

    def _columns(self, pairs: Pairs, side: str) -> tuple[tuple[int, ...], ...]:
        """Return the columns of every cell in the base's or the source's batch."""
        number = 0 if side == "base" else 1
        starts = pairs.sides(self.site)[number].starts
        return tuple(tuple(starts[cell.pair] + place[number] for place in cell.places) for cell in self.cells)

    def tokens(self, pairs: Pairs) -> int:
        """Return how many tokens follow the first places of the cells, these included: what a causal model computes."""
        return sum(self._tails(pairs))

    def _tails(self, pairs: Pairs) -> list[int]:
        length = (pairs.base if self.edited == "base" else pairs.source).length
        if len(pairs.base.sequences) > 1:  # of encoder-decoders whole copies are run
            return [length] * len(self.cells)
        return [length - min(row) for row in self._columns(pairs, self.edited)]

    def parts(self, pairs: Pairs, tokens: int, cells: int) -> Iterator[Swaps]:
        """Yield these swaps in parts.

        Args:
            pairs: the prompts.
            tokens: of a part, at most, as `tokens` counts them.
            cells: of a part, at most.
        """
        begin = size = 0
        for number, tail in enumerate(self._tails(pairs)):
            if number > begin and (size + tail > tokens or number - begin == cells):
                yield self._part(begin, number)
                begin, size = number, 0
            size += tail
        yield self._part(begin, len(self.cells)) if begin else self

    def _part(self, begin: int, end: int) -> Swaps:
        name = f"{self.name} [{begin}:{end}]"
        return replace(self, name=name, cells=self.cells[begin:end])


@final
class Distance(Intervention):
    """Look at the norm of what a swap changes, place by place; write nothing."""

    writes: ClassVar[bool] = False

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `(batch, units, 1)`: the norm of source minus base in the chosen coordinates."""
        change = self.given(base, source).double() - base.double()
        return self.restricted(change, subspaces).norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Asked:
    """Which cells a sweep is to have.

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
    directions: Sequence[Direction]

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
            Site(name, 0 if _in_block(name) else None)

    def swaps(self, model: nn.Module, pairs: Pairs) -> list[Swaps]:
        """Return all swaps of the sweep, those of a direction, component and layer together.

        Raises:
            SiteError: the model has no such component, it has no heads or no known width, or it is not known in which
                of two sequences its positions count.
            PositionError: there is no such layer or head.
        """
        found = []
        for site in self._sites(model, pairs):
            cells, width = tuple(self._cells(model, site, pairs)), self._width(model, site)
            for direction in dict.fromkeys(self.directions):
                found.append(Swaps(f"{direction} {site}", direction, site, cells, width, self.together))
        return sorted(found, key=lambda one: list(self.directions).index(one.direction))

    def _sites(self, model: nn.Module, pairs: Pairs) -> list[Site]:
        """Return the sites, by component and layer; of `"all"` layers those that have the component."""
        names = list(dict.fromkeys(self.components))
        counts = [_layers(model, name) for name in names if _in_block(name)]
        deep = f"{type(model).__name__} has {max(counts, default=0)} layers"
        chosen = indices(self.layers, max(counts), "layer", deep) if counts else []
        sites = []
        for name in names:
            here = [Site(name, layer) for layer in chosen] if _in_block(name) else [Site(name)]
            if self.layers == "all" and _in_block(name):
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

    def _cells(self, model: nn.Module, site: Site, pairs: Pairs) -> Iterator[Cell]:
        heads: Sequence[int | None] = [None] if self.heads is None else self._heads(model, site)
        width = self._width(model, site)
        blocks: Sequence[int | None] = [None]
        if width is not None and self.neurons is not None:
            blocks = range(-(-width // self.neurons))
        for pair, places in enumerate(pairs.places(site)):
            groups = [places] if self.together and places else [(place,) for place in places]
            yield from (Cell(pair, group, head, block) for head in heads for block in blocks for group in groups)

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

    def interventions(self, swaps: Sequence[Swaps]) -> Mapping[str, Intervention]:
        """Return the interventions that the runs of the swaps name."""
        found: dict[str, Intervention] = {}
        for width in dict.fromkeys(one.width for one in swaps):
            options: dict[str, Any] = {}
            if width is not None and self.neurons is not None:
                options["subspace_partition"] = [
                    range(low, min(low + self.neurons, width)) for low in range(0, width, self.neurons)
                ]
            suffix = "" if width is None else f" {width}"
            found |= {f"distance{suffix}": Distance(**options), f"swap{suffix}": VanillaIntervention(**options)}
        return found


def _in_block(name: str) -> bool:
    """Whether a component has a layer number; neither paths nor the ends of a model do."""
    last = name.rpartition(".")[2]
    return last in COMPONENT_NAMES and COMPONENTS[last if last in COMPONENTS else last[len(HEAD_PREFIX) :]].in_block


def _layers(model: nn.Module, name: str) -> int:
    """Return how many layers there are where a component is."""
    found, site = resolve(model), Site(name, 0)
    if site.stack not in found.stacks:
        found.slot(site)  # which says why
    return len(found.stacks[site.stack])
