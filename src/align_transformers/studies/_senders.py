"""What writes into the residual stream: what each sender adds in the source's run minus what it adds in the base's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._errors import SpecError
from ..models import find_slot, resolve
from ..models.component_map import ComponentMap
from ..models.shown import shares_of
from ..models.slot import Slot
from ..sites import Site
from ._experts import ExpertCalls
from ._module_kinds import kind_of, matrix_of
from ._norms import FrozenNorm
from ._readers import part_of
from ._taped import Tape
from ._units import wide
from .circuit_graph import GraphNode


@dataclass(frozen=True)
class Ran:
    """A pass with its experts' calls."""

    tape: Tape
    calls: ExpertCalls


@dataclass(eq=False)
class Senders:
    """The senders of a graph.

    Args:
        model: the user's.
        nodes: of the graph.
    """

    model: nn.Module
    nodes: Sequence[GraphNode]
    _found: ComponentMap = field(init=False)
    _matrices: dict[int, Tensor | None] = field(default_factory=dict)
    _scales: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._found = resolve(self.model)

    def parts(self) -> list[tuple[list[Site], list[int]]]:
        """Return where each part of a block has its value, with the numbers of its senders."""
        found: dict[Site, list[int]] = {}
        for number, node in enumerate(self.nodes):
            site = Site("block_input", 0) if node.layer is None else self._site(node)
            site = Site("attention_value_output", node.layer) if node.kind == "head" else site
            found.setdefault(site, []).append(number)
        return [([site], numbers) for site, numbers in found.items()]

    def sites(self) -> list[Site]:
        """Return what has to be recorded."""
        found = [Site("block_input", 0)]
        for node in self.nodes:
            if node.layer is not None:
                found.append(self._site(node))
                if node.kind == "head":
                    found += [Site("attention_value_output", node.layer), Site("attention_output", node.layer)]
        return list(dict.fromkeys(found))

    def look(self, base: Ran) -> None:
        """Find out, while there is a graph, how what experts give gets into the stream."""
        for layer in base.calls.given:
            nodes = (base.tape.nodes[Site(f"mlp_{what}", layer)] for what in ("input", "contribution"))
            scale = base.calls.scale(layer, *nodes)
            if scale is None:
                raise SpecError(f"what each expert of layer {layer} adds is not known: ask with experts=False")
            self._scales[layer] = scale

    @torch.no_grad()
    def moved(self, base: Ran, other: Ran) -> Tensor:
        """Return `(senders, pairs, tokens, width)` of what each sender adds in the source's run minus the base's."""
        first = wide(base.tape.values[Site("block_input", 0)])
        found = first.new_empty(len(self.nodes), *first.shape)
        for number, node in enumerate(self.nodes):
            if node.kind == "head":
                if node.number == 0:
                    self._heads(base.tape, other.tape, node, found[number:])
            elif node.kind == "expert":
                if node.number == 0:
                    self._experts(base, other, node.layer or 0, found[number:])
            else:
                found[number] = self._difference(base.tape, other.tape, self._site(node))
        return found

    def _site(self, node: GraphNode) -> Site:
        if node.layer is None:
            return Site("block_input", 0)
        part = part_of(node)
        return Site(part.replace("_output", "_contribution") if part else "block_output", node.layer)

    def _difference(self, base: Tape, other: Tape, site: Site) -> Tensor:
        return wide(other.values[site]) - wide(base.values[site])

    def _heads(self, base: Tape, other: Tape, node: GraphNode, into: Tensor) -> None:
        """Write what the heads of a layer add: their shares of the projection, behind a norm if there is one."""
        layer = int(node.layer or 0)
        z, added, given = (Site(f"attention_{name}", layer) for name in ("value_output", "contribution", "output"))
        slot, share = find_slot(self.model, z), self._found.find(Site("head_contribution", layer))
        assert slot.heads is not None
        into = into[: len(slot.heads)].flatten(1, 2)
        if share is not None:  # linear in z
            torch.mul(self._shares(slot, layer, self._difference(base, other, z)), share[0].scale, out=into)
            return
        norm, runs = find_slot(self.model, added).module, []
        for tape in (base, other):
            before, after = (wide(tape.values[site]).flatten(0, 1) for site in (given, added))
            if kind_of(norm, tape.values[given].flatten(0, 1)) != "norm":
                raise SpecError(f"what each head of layer {layer} adds is not known: {node.note}")
            runs.append(FrozenNorm(norm, before, after)(self._shares(slot, layer, wide(tape.values[z]))))
        torch.sub(runs[1], runs[0], out=into)

    def _shares(self, slot: Slot, layer: int, z: Tensor) -> Tensor:
        """Return what the output projection makes of each head's part of some values, `(heads, tokens, width)`."""
        assert slot.heads is not None
        if layer not in self._matrices:
            alone = slot.side == "input" and slot.via == "module" and slot.channels is None
            self._matrices[layer] = matrix_of(slot.module) if alone else None
        matrix, flat = self._matrices[layer], z.flatten(0, 1)
        if matrix is not None:
            heads = slot.heads.to(matrix.device)
            return torch.bmm(flat[:, heads].movedim(1, 0), wide(matrix.T[heads])) * slot.scale
        if slot.side != "input":
            raise SpecError(f"what the heads at {slot} add is not known: they are not what a projection reads")
        weight = next(iter(slot.module.parameters()), flat)
        return wide(shares_of(slot, flat.to(weight.dtype))).unflatten(-1, (len(slot.heads), -1)).movedim(1, 0)

    def _experts(self, base: Ran, other: Ran, layer: int, into: Tensor) -> None:
        """Write what each expert adds, and the shared one: what is left of the sum."""
        nodes = [node for node in self.nodes if node.kind == "expert" and node.layer == layer]
        count, scale = sum(node.number is not None for node in nodes), self._scales[layer]
        each = into[: len(nodes)].flatten(1, 2)
        first, second = (
            ran.calls.by_expert(layer, [one.detach() for one in ran.calls.given[layer]], count) for ran in (base, other)
        )
        torch.mul(second - first, scale, out=each[:count])
        if len(nodes) > count:
            whole = self._difference(base.tape, other.tape, Site("mlp_contribution", layer)).flatten(0, 1)
            torch.sub(whole, each[:count].sum(0), out=each[count])
