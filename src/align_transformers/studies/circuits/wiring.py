"""Where the nodes of a model's graph read the residual stream and where they write into it, as sites and matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor, nn

from ..._errors import SpecError
from ...models import Slot, evaluating, find_slot, resolve, uncompiled
from ...models.component_map import Block
from ...models.dummy import dummy_inputs
from ...models.shown import shares_of
from ...models.trace import watch
from ...sites import Site
from .._experts import ExpertCalls, expert_modules
from .._module_kinds import is_plain, kind_of, matrix_of, same_numbers
from .._norms import NormParts
from .._readers import READS, part_of
from .._taped import record
from ..circuit_graph import CircuitGraph, GraphNode
from ..graph import parts_of, reads_at

_ONE = "heads=False tells the attention of a block as one node"


def linear_of(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Return matrix `(outputs, inputs)` and bias `(outputs,)` of a linear layer; `None` where it is none."""
    matrix = matrix_of(module)
    if matrix is None:
        return None
    with torch.no_grad():
        bias: Tensor = module.forward(matrix.new_zeros(1, 1, matrix.shape[1]))[0, 0]
    return matrix, bias if bool(bias.any()) else None


@dataclass(frozen=True, eq=False)
class Port:
    """A vector that one receiver has to itself.

    Args:
        site: where it is; `None`: it goes to an expert or to the router.
        columns: of its tensor; `None`: all.
        rows: `(width, d)` what makes it of what the part reads, and what is added; `None`: the part reads it itself.
        bias: `(width,)`, or `None`.
    """

    site: Site | None
    columns: slice | Tensor | None = None
    rows: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of a block.

    Args:
        layer: of the block.
        count: how many there are; their nodes come first, then that of what is shared, if there is such.
        module: that holds them.
        router: that chooses some; its node is the last receiver.
        entry: where the module around them reads.
        scale: what they give is multiplied with it on its way to the stream.
    """

    layer: int
    count: int
    module: nn.Module
    router: nn.Module
    entry: Site
    scale: float


@dataclass(frozen=True, eq=False)
class StreamReader:
    """Where one part of a block reads the stream.

    Args:
        layer: `None` for the end.
        receivers: their numbers, one after the other.
        stream: where it is as they read it; `slot` the same in the model.
        norm: what is made of it there; `None`: nothing.
        ports: of each receiver.
        experts: what of them are experts.
    """

    layer: int | None
    receivers: range
    stream: Site
    slot: Slot
    norm: nn.Module | None
    ports: tuple[Port, ...]
    experts: Experts | None = None

    def normed(self, stream: Tensor) -> Tensor:
        """Return what becomes of the stream, past all hooks."""
        made: Tensor = stream if self.norm is None else self.norm.forward(stream)
        return made


@dataclass(frozen=True, eq=False)
class StreamWriter:
    """Where one part of a block writes into the stream.

    Args:
        senders: their numbers, one after the other.
        added: where what they add in all is.
        z: of heads, what the output projection reads.
        given: of heads behind a norm, what goes into it.
        norm: that one.
        weight: of heads `(heads, head_dim, d)`, with what it is multiplied with.
        experts: what of them are experts.
    """

    senders: range
    added: Site
    z: Site | None = None
    given: Site | None = None
    norm: NormParts | None = None
    weight: Tensor | None = None
    experts: Experts | None = None


@dataclass(frozen=True, eq=False)
class Wiring:
    """The nodes of a graph in a model.

    Args:
        readings: in the order in which they read.
        writings: in the order in which they write.
        valid: `(receivers, senders)` which edges there are.
    """

    readings: tuple[StreamReader, ...]
    writings: tuple[StreamWriter, ...]
    valid: Tensor

    @cached_property
    def sited(self) -> Tensor:
        """Of each receiver whether what it reads is at a site, `(receivers,)`; of experts and routers it is not."""
        return torch.tensor([port.site is not None for one in self.readings for port in one.ports])


def wire(model: nn.Module, graph: CircuitGraph) -> Wiring:
    """Find the nodes of a graph in its model.

    Args:
        model: the user's; it is run once on a dummy input.
        graph: of it.

    Raises:
        SpecError: a part of a block reads the stream in a way that cannot be repeated for another one.
    """
    valid = torch.zeros(len(graph.receivers), len(graph.senders), dtype=torch.bool)
    for row, numbers in zip(valid, graph.visible, strict=True):
        row[list(numbers)] = True
    blocks = resolve(model).stacks[""]
    seen = _Seen(model, graph, blocks)
    return Wiring(tuple(_readings(model, graph, blocks, seen)), tuple(_writings(model, graph, seen)), valid)


def _groups(nodes: Sequence[GraphNode]) -> Iterator[tuple[int | None, str, range]]:
    """Yield layer, part and numbers of nodes that stand side by side in the same part of a block."""
    start = 0
    for (layer, part), some in groupby(nodes, key=lambda node: (node.layer, "" if node.layer is None else _kind(node))):
        count = len(list(some))
        yield layer, part, range(start, start + count)
        start += count


def _kind(node: GraphNode) -> str:
    return "block" if node.kind == "block" else part_of(node)


# --- who writes where -------------------------------------------------------------------------------------------------


def _writings(model: nn.Module, graph: CircuitGraph, seen: _Seen) -> Iterator[StreamWriter]:
    for layer, part, numbers in _groups(graph.senders):
        if layer is None:
            yield StreamWriter(numbers, Site("block_input", 0))
        elif part == "block":
            yield StreamWriter(numbers, Site("block_output", layer))
        else:
            added = Site(part.replace("_output", "_contribution"), layer)
            node = graph.senders[numbers[0]]
            experts = seen.experts(layer) if node.kind == "expert" else None
            plain = StreamWriter(numbers, added, experts=experts)
            yield _heads(model, layer, numbers, added) if node.kind == "head" else plain


def _heads(model: nn.Module, layer: int, numbers: range, added: Site) -> StreamWriter:
    z = Site("attention_value_output", layer)
    slot, share = find_slot(model, z), resolve(model).find(Site("head_contribution", layer))
    if slot.side != "input" or slot.heads is None:
        raise SpecError(f"what the heads at {slot} add is not known: they are not what a projection reads")
    given = None if share is not None else Site("attention_output", layer)
    behind = find_slot(model, added)
    probe = next(model.parameters()).new_zeros(behind.width or 0)
    if given is not None and kind_of(behind.module, probe) != "norm":
        name = type(behind.module).__name__
        raise SpecError(f"what each head of layer {layer} adds is not known: {name} is behind their sum")
    linear = linear_of(slot.module)
    scale = 1.0 if share is None else share[0].scale
    if linear is None:
        size = slot.heads.shape[1]
        alone = torch.eye(slot.heads.numel()).to(next(slot.module.parameters()))
        made = shares_of(slot, alone).unflatten(-1, (len(slot.heads), -1)).unflatten(0, (-1, size))
        weight = torch.stack([made[head, :, head] for head in range(len(slot.heads))])
    else:
        weight = linear[0][:, slot.heads.to(linear[0].device)].permute(1, 2, 0)  # (heads, head_dim, d)
    norm = None if given is None else NormParts(behind.module, torch.ones_like(probe).cumsum(-1)[None])
    return StreamWriter(numbers, added, z, given, norm, weight * scale if scale != 1.0 else weight)


# --- who reads where --------------------------------------------------------------------------------------------------


def _readings(model: nn.Module, graph: CircuitGraph, blocks: Sequence[Block], seen: _Seen) -> Iterator[StreamReader]:
    for layer, part, numbers in _groups(graph.receivers):
        nodes = [graph.receivers[number] for number in numbers]
        if layer is None:
            end = Site("block_output", len(blocks) - 1)
            yield StreamReader(None, numbers, end, find_slot(model, end), None, (Port(end),))
        elif part == "block":
            start = Site("block_input", layer)
            yield StreamReader(layer, numbers, start, find_slot(model, start), None, (Port(start),))
        else:
            entry = Site(reads_at(blocks[layer], part), layer)
            letters = [node.name.partition("<")[2][:1] for node in nodes]
            if nodes[0].kind == "expert":
                read_at = seen.norm(layer, part, entry)
                ports = tuple(Port(entry if node.name.endswith(".shared") else None) for node in nodes)
                yield StreamReader(layer, numbers, *read_at, ports, seen.experts(layer))
                continue
            if not letters[0]:
                read_at = seen.norm(layer, part, entry)
                yield StreamReader(layer, numbers, *read_at, (Port(entry),))
                continue
            known: dict[nn.Module, tuple[Tensor, Tensor | None] | None] = {}
            ports = tuple(_port(model, node, letter, known) for node, letter in zip(nodes, letters, strict=True))
            read_at = seen.attention(layer, part)
            yield StreamReader(layer, numbers, *read_at, ports)


def _port(
    model: nn.Module, node: GraphNode, letter: str, known: dict[nn.Module, tuple[Tensor, Tensor | None] | None]
) -> Port:
    """Return the query, the key or the value of a head, or of all.

    Args:
        model: the user's.
        node: the receiver.
        letter: q, k or v.
        known: what was found of projections.
    """
    site = Site(READS[letter], node.layer)
    slot = find_slot(model, site)
    if len(node.owner) == 1 and slot.grouping and letter in "kv":
        raise SpecError("exact circuits have one key and value a kv head: graph(model) without per_query_head=True")
    if slot.module not in known:
        known[slot.module] = linear_of(slot.module)
    linear = known[slot.module]
    if slot.side != "output" or linear is None or slot.heads is None:
        raise SpecError(
            f"{site} is not what one linear layer makes, so that {node.name} cannot read a stream of its own; {_ONE}"
        )
    own = slot.heads.flatten() if node.number is None else slot.heads[node.number]
    first, last = int(own[0]), int(own[-1])
    straight = last - first + 1 == len(own) and bool((own.diff() == 1).all())
    columns: slice | Tensor = slice(first, last + 1) if straight else own.to(linear[0].device)
    bias = None if linear[1] is None else linear[1][columns]
    return Port(site, columns, linear[0][columns], bias)


class _Seen:
    """What is read in one pass of a dummy input, so that norms are found by what they read and give.

    Args:
        model: the user's.
        graph: of it.
        blocks: of the model.
    """

    def __init__(self, model: nn.Module, graph: CircuitGraph, blocks: Sequence[Block]) -> None:
        self._model, self._graph, self._blocks = uncompiled(model), graph, blocks
        told_apart = any(node.kind == "expert" for node in graph.senders)
        self._calls = ExpertCalls(expert_modules(blocks if told_apart else ()))
        self._experts: dict[int, Experts] = {}
        sites: dict[Site, None] = {}
        for layer, part, numbers in _groups(graph.receivers):
            if layer is None or part == "block":
                continue
            contributions = [one.replace("_output", "_contribution") for one in parts_of(blocks[layer])]
            names = ["block_input", reads_at(blocks[layer], part), *contributions]
            sites |= dict.fromkeys(Site(name, layer) for name in names)
            if any(graph.receivers[number].name[-3:-1] in ("<q", "<k", "<v") for number in numbers):
                sites |= dict.fromkeys(self._projected(layer))
        inputs = dict(next(dummy_inputs(self._model)))
        with evaluating(model):
            self._tape = record(self._model, inputs, list(sites), graph=told_apart, within=self._calls.watched)
            calls = watch(self._model, inputs).calls
        self._plain = [call for call in calls if is_plain(call.module)]

    def _projected(self, layer: int) -> list[Site]:
        """Return where the projections of a layer read."""
        slots = (find_slot(self._model, Site(name, layer)) for name in READS.values())
        return list(dict.fromkeys(Site(f"{slot.path}.input") for slot in slots))

    def attention(self, layer: int, part: str) -> tuple[Site, Slot, nn.Module | None]:
        """Return where queries, keys and values read the stream, as `norm` does.

        Raises:
            SpecError: they do not read the same.
        """
        first, *others = self._projected(layer)
        for other in others:
            if not _same(self._tape.values[other], self._tape.values[first]):
                raise SpecError(
                    f"{other} is not {first}: what of them reads the residual stream cannot be told; {_ONE}"
                )
        return self.norm(layer, part, first)

    def experts(self, layer: int) -> Experts:
        """Return the experts of a block.

        Raises:
            SpecError: it is not known what each of them adds.
        """
        if layer not in self._experts:
            entry, added = Site(reads_at(self._blocks[layer], "mlp_output"), layer), Site("mlp_contribution", layer)
            scale = self._calls.scale(layer, self._tape.nodes[entry], self._tape.nodes[added])
            if scale is None:
                raise SpecError(f"what each expert of layer {layer} adds is not known: graph(model, experts=False)")
            slots = self._blocks[layer].slots
            router, experts = slots["router_output"], slots["expert_activation"]
            self._experts[layer] = Experts(layer, int(router.width or 0), experts.module, router.module, entry, scale)
        return self._experts[layer]

    def norm(self, layer: int, part: str, entry: Site) -> tuple[Site, Slot, nn.Module | None]:
        """Return where a part of a block reads the stream, and the norm between that and its entry, if there is one.

        Raises:
            SpecError: neither the stream nor a norm of it is read.
        """
        node = next(n for n, one in enumerate(self._graph.receivers) if one.layer == layer and part_of(one) == part)
        before = {
            part_of(self._graph.senders[n]) for n in self._graph.visible[node] if self._graph.senders[n].layer == layer
        }
        stream = self._tape.values[Site("block_input", layer)]
        for one in before:
            stream = stream + self._tape.values[Site(one.replace("_output", "_contribution"), layer)]
        read, there = self._tape.values[entry], find_slot(self._model, entry)
        if _same(read, stream):
            return entry, there, None
        for call in self._plain:
            given, made = call.input, call.output
            if given is not None and made is not None and _same(given, stream) and _same(made, read):
                site = Site(f"{call.path}.input")
                slot = find_slot(self._model, site)
                return site, replace(slot, around=there.around) if given.ndim < 3 else slot, call.module
        raise SpecError(
            f"{entry} is neither the residual stream nor what one norm makes of it, so that what reads there cannot be "
            f"given another stream; {_ONE}"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and same_numbers(one.detach().reshape(other.shape), other)
