"""What reads the residual stream, part by part, and the gradient at what each receiver reads of it.

Most parts read the stream through a norm and a matrix: their gradients are had by a product and in closed form, for all
heads of a layer at once. What is otherwise goes through autograd, receiver by receiver. Which of both it is is found by
what modules do to the first example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..models import find_slot, resolve, uncompiled
from ..models.component_map import Block
from ..sites import Site
from ._experts import ExpertCalls
from ._module_kinds import is_norm, matrix_of, same_numbers
from ._norms import FrozenNorm, NormParts
from ._taped import Tape
from ._units import wide
from .circuit_graph import CircuitGraph, GraphNode
from .graph import MIXERS, reads_at

READS = {"q": "query_output", "k": "key_output", "v": "value_output"}
"""What of heads reads the stream."""
_PARTS = {"a": "attention_output", "m": "mlp_output", **{letter: part for part, letter in MIXERS.items()}}
Gradients = Mapping[Any, Tensor]
"""By site; of experts by layer and choice."""


@dataclass(eq=False)
class PartReader:
    """The receivers of one part of a block: they read the same stream at the same place.

    Args:
        model: the user's.
        block: that they are in; `None` for the logits.
        norms: in that block.
        receivers: of the graph, all of one part.
        visible: the numbers of the senders that they see.
        stream: where the summands of what they read are told; the last one's gradient is that of the sum.
        frozen: the scales of norms are constant.
    """

    model: nn.Module
    block: Block | None
    norms: Sequence[nn.Module]
    receivers: tuple[GraphNode, ...]
    visible: tuple[int, ...]
    stream: tuple[Site, ...]
    frozen: bool
    _known: bool = False
    _norm: NormParts | Literal["none", "unknown"] = "unknown"
    _matrices: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        """The block."""
        return self.receivers[0].layer

    @property
    def whole(self) -> bool:
        """Whether the stream itself is what is read: by a block that is one node, and in front of the logits."""
        return self.receivers[0].kind in ("block", "logits")

    @property
    def into(self) -> Site:
        """Where the part reads."""
        assert self.block is not None
        return Site(reads_at(self.block, part_of(self.receivers[0])), self.layer)

    @property
    def letters(self) -> list[str]:
        """Which vectors of heads read: nothing where attention is one node."""
        return list(dict.fromkeys(_letter(node) for node in self.receivers if _letter(node)))

    @property
    def routed(self) -> bool:
        """Whether the receivers are experts and their router."""
        return self.receivers[-1].kind == "router"

    def sites(self) -> list[Site]:
        """Return what has to be recorded."""
        if self.whole:
            return list(self.stream)
        more = [Site(READS[letter], self.layer) for letter in self.letters]
        return [*self.stream, self.into, *more, *([Site("router_output", self.layer)] if self.routed else [])]

    def asked(self) -> list[Site]:
        """Return where gradients are needed."""
        if self.whole:
            return [self.stream[-1]]
        return [Site(READS[letter], self.layer) for letter in self.letters] or self.sites()[len(self.stream) :]

    def needs_graph(self, tape: Tape) -> bool:
        """Whether gradients are to be had from the graph of the pass again; finds out how the part reads."""
        if not self._known and not self.whole:
            self._known = True
            stream, read = self._read(tape, slice(1))
            self._norm = _norm_between(self.norms, stream, read)
            if self._norm != "unknown":
                self._matrices = self._found(tape, read)
        plain = self._norm != "unknown" and (not self.letters or bool(self._matrices))
        return not self.whole and (self.routed or not plain)

    def gradient(self, tape: Tape, gradients: Gradients, calls: ExpertCalls) -> Tensor:
        """Return the gradient at what each receiver reads of the stream, `(receivers, tokens, width)`.

        Args:
            tape: of the pass.
            gradients: at `asked`.
            calls: of the experts.
        """
        if self.whole:
            return wide(gradients[self.stream[-1]]).flatten(0, 1)[None]
        if self.letters and not self._matrices:
            return torch.stack([self._pulled(tape, site, part) for site, part in self._own(gradients)])
        if self.letters:
            read = torch.cat([self._projected(gradients, letter) for letter in self.letters])
        elif self.routed:
            read = self._of_experts(tape, gradients, calls)
        else:
            read = wide(gradients[self.into]).flatten(0, 1)[None]
        if self._norm == "unknown":
            node = tape.nodes[self.into]
            return torch.stack([self._pulled(tape, self.into, one.view(node.shape).to(node)) for one in read])
        if self._norm == "none":
            return read
        norm = FrozenNorm(self._norm, *(wide(one).flatten(0, 1) for one in self._read(tape, slice(None))))
        return norm.back(read) if self.frozen else norm.gradient(read)

    @torch.no_grad()
    def _found(self, tape: Tape, read: Tensor) -> dict[str, Tensor]:
        """Return the matrices of queries, keys and values; none where one of them is not had so."""
        matrices = {}
        for letter in self.letters:
            slot = find_slot(self.model, self._site(letter))
            matrix = matrix_of(slot.module) if slot.side == "output" and slot.via == "module" else None
            if matrix is None or not same_numbers(slot.module.forward(read), tape.values[self._site(letter)][:1]):
                return {}
            matrices[letter] = matrix
        return matrices

    def _site(self, letter: str) -> Site:
        return Site(READS[letter], self.layer)

    def _read(self, tape: Tape, examples: slice) -> tuple[Tensor, Tensor]:
        """Return the stream and what the part reads of it."""
        each = [tape.values[site][examples] for site in self.stream]
        return torch.stack(each).sum(0) if len(each) > 1 else each[0], tape.values[self.into][examples]

    def _own(self, gradients: Gradients) -> Iterator[tuple[Site, Tensor]]:
        """Yield for each receiver the gradient at its vector, 0 at those of others."""
        for node in self.receivers:
            site = self._site(_letter(node))
            slot, given = find_slot(self.model, site), gradients[site]
            assert slot.heads is not None
            own = slot.heads.flatten() if node.number is None else slot.heads[node.number]
            mask = torch.zeros(given.shape[-1], dtype=torch.bool, device=given.device)
            mask[own.to(given.device)] = True
            yield site, given * mask

    def _pulled(self, tape: Tape, site: Site, given: Tensor) -> Tensor:
        """Return the gradient at the stream of one at a site, by autograd."""
        (found,) = torch.autograd.grad(tape.nodes[site], [tape.nodes[self.stream[-1]]], given, retain_graph=True)
        return wide(found).flatten(0, 1)

    def _projected(self, gradients: Gradients, letter: str) -> Tensor:
        """Return the gradient at what a projection reads, for each receiver's vector of its output."""
        slot = find_slot(self.model, self._site(letter))
        assert slot.heads is not None
        heads = slot.heads.to(self._matrices[letter].device)
        mine = [node.number for node in self.receivers if _letter(node) == letter]
        rows = heads.flatten()[None] if mine == [None] else heads
        given = wide(gradients[self._site(letter)]).flatten(0, 1)
        return torch.bmm(given[:, rows].movedim(1, 0), wide(self._matrices[letter][rows]))

    def _of_experts(self, tape: Tape, gradients: Gradients, calls: ExpertCalls) -> Tensor:
        """Return the gradient at what each expert reads, the shared one and the router."""
        layer = self.layer or 0
        router = Site("router_output", layer)
        count = sum(node.number is not None for node in self.receivers)
        choices = range(len(calls.read[layer]))
        each = list(calls.by_expert(layer, [gradients.get((layer, n)) for n in choices], count))
        (routed,) = torch.autograd.grad(
            tape.nodes[router], [tape.nodes[self.into]], gradients[router], retain_graph=True
        )
        last = wide(routed).flatten(0, 1)
        if len(self.receivers) > count + 1:
            each.append(wide(gradients[self.into]).flatten(0, 1) - torch.stack(each).sum(0) - last)
        return torch.stack([*each, last])


def part_of(node: GraphNode) -> str:
    """Return which part of its block a node is of; nothing for a block that is one node, and for the ends."""
    return "" if node.layer is None else _PARTS.get(node.name[0], "")


def readers_of(model: nn.Module, made: CircuitGraph, frozen: bool) -> list[PartReader]:
    """Return the readers of a graph, in the order of its receivers.

    Args:
        model: the user's.
        made: of it.
        frozen: the scales of norms are constant.
    """
    lines, blocks = zip(made.receivers, made.visible, strict=True), resolve(model).stacks[""]
    width, inner = find_slot(model, Site("block_input", 0)).width or 0, uncompiled(model)
    norms = [[one for one in inner.get_submodule(block.path).modules() if is_norm(one, width)] for block in blocks]
    found = []
    for (layer, _), group in groupby(lines, key=lambda line: (line[0].layer, part_of(line[0]))):
        nodes, visible = zip(*group, strict=True)
        if layer is None:
            stream = [Site("block_output", len(blocks) - 1)]
        else:
            parts = dict.fromkeys(part_of(made.senders[n]) for n in visible[0] if made.senders[n].layer == layer)
            adds = [Site(part.replace("_output", "_contribution"), layer) for part in parts]
            stream = [Site("block_input", layer), *adds]
        block, own = (None, []) if layer is None else (blocks[layer], norms[layer])
        found.append(PartReader(model, block, own, nodes, visible[0], tuple(stream), frozen))
    return found


def _letter(node: GraphNode) -> str:
    letter = node.name.partition("<")[2][:-1]
    return letter if letter in READS else ""


def _norm_between(norms: Sequence[nn.Module], stream: Tensor, read: Tensor) -> NormParts | Literal["none", "unknown"]:
    """Return which norm makes of the stream what a part of a block reads."""
    if same_numbers(read, stream):
        return "none"
    with torch.no_grad():
        made = [(module, module.forward(stream)) for module in norms]
        near = min(made, key=lambda one: float((one[1] - read).abs().max()), default=None)
        if near is None or not same_numbers(near[1], read):
            return "unknown"
        return NormParts(near[0], wide(stream).flatten(0, 1))
