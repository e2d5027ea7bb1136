"""`CircuitGraph`: what writes into a model's residual stream, what reads it, and who reads whom.

Elhage et al. 2021, "A mathematical framework for transformer circuits"; Mueller et al. 2025, arXiv:2504.13151 (MIB).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .._errors import UnknownNameError, near_misses
from .._optional import optional

if TYPE_CHECKING:
    import networkx

GraphNodeKind = Literal["input", "head", "attention", "mlp", "expert", "router", "mixer", "block", "logits"]


@dataclass(frozen=True)
class GraphNode:
    """What writes into the residual stream, or what reads it.

    Args:
        name: as the literature writes it: `a9.h6`, `m9`, `input`, `logits`; of what reads `a9.h6<q>`.
        kind: what it is.
        layer: its block; `None` for the ends.
        number: of the head, the kv head or the expert.
        owner: of what reads, the names of the senders that it makes: a key of grouped heads makes several.
        note: what is to be known: why it is no finer, or what ties it to others.
    """

    name: str
    kind: GraphNodeKind
    layer: int | None = None
    number: int | None = None
    owner: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class CircuitGraph:
    """Senders and receivers of a model.

    Args:
        senders: in the order in which they write.
        receivers: in the order in which they read.
        visible: of each receiver the numbers of the senders whose values it reads, ascending.
        facts: JSON-able: the model, and how many layers and heads it has.
    """

    senders: tuple[GraphNode, ...]
    receivers: tuple[GraphNode, ...]
    visible: tuple[tuple[int, ...], ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of edges."""
        return sum(map(len, self.visible))

    def edges(self) -> Iterator[tuple[str, str]]:
        """Yield sender and receiver of each edge, receivers in their order."""
        for receiver, numbers in zip(self.receivers, self.visible, strict=True):
            yield from ((self.senders[number].name, receiver.name) for number in numbers)

    @property
    def notes(self) -> dict[str, str]:
        """What is to be known of nodes, by name."""
        return {node.name: node.note for node in (*self.senders, *self.receivers) if node.note}

    def to_networkx(self) -> networkx.DiGraph:
        """Return a graph of networkx: edges from senders to receivers, and from receivers to the senders they make.

        Raises:
            MissingExtraError: networkx is not installed.
        """
        made = optional("networkx", extra="report").DiGraph()
        for node in (*self.senders, *self.receivers):
            made.add_node(node.name, kind=node.kind, layer=node.layer, number=node.number, note=node.note)
        for receiver in self.receivers:
            made.add_edges_from((receiver.name, owner) for owner in receiver.owner if owner != receiver.name)
        made.add_edges_from((sender, f"{receiver}") for sender, receiver in self.edges())
        return made

    def to_dict(
        self,
        scores: Mapping[tuple[str, str], float] | None = None,
        kept: Collection[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Return the graph as the MIB benchmark's edge lists have it, as JSON-able data.

        There every head has keys and values of its own: an edge into those of a kv head is one for each of its heads.

        Args:
            scores: of edges, sender and receiver; others have 0.
            kept: the edges that are in the circuit; default: all.

        Raises:
            UnknownNameError: there is no such edge.
        """
        known = set(self.edges())
        for edge in (*(scores or {}), *(kept or ())):
            if edge not in known:
                names = [f"{a}->{b}" for a, b in known]
                raise UnknownNameError(f"the graph has no edge {edge!r}; {near_misses('->'.join(edge), names)}")
        inside = known if kept is None else set(kept)
        owners = {receiver.name: receiver.owner for receiver in self.receivers}
        edges: dict[str, Any] = {}
        nodes = {node.name: False for node in self.senders} | {"logits": False}
        for edge, names in zip(self.edges(), self.unshared(), strict=True):
            here, score = edge in inside, float((scores or {}).get(edge, 0.0))
            edges |= {name: {"score": score, "in_graph": here} for name in names}
            for node in (edge[0], *owners[edge[1]]) if here else ():
                nodes[node] = True
        return {
            "cfg": dict(self.facts),
            "nodes": {name: {"in_graph": here} for name, here in nodes.items()},
            "edges": edges,
        }

    def unshared(self) -> Iterator[list[str]]:
        """Yield of each edge the names that it has in such lists, where no keys and values are shared."""
        owners = {receiver.name: receiver.owner for receiver in self.receivers}
        for sender, receiver in self.edges():
            yield [f"{sender}->{name}" for name in _unshared(receiver, owners[receiver])]

    def to_json(
        self,
        scores: Mapping[tuple[str, str], float] | None = None,
        kept: Collection[tuple[str, str]] | None = None,
    ) -> str:
        """Return `to_dict` as text.

        Args:
            scores: likewise.
            kept: likewise.
        """
        return json.dumps(self.to_dict(scores, kept))


def _unshared(receiver: str, owners: Sequence[str]) -> Sequence[str]:
    """Return what a receiver is called where each head has keys and values of its own."""
    letter = receiver.partition("<")[2]
    return [f"{owner}<{letter}" for owner in owners] if letter in ("k>", "v>") else [receiver]
