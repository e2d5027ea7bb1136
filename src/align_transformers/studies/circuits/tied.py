"""Circuits of whole nodes: all edges of a sender are there, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .circuit_runner import CircuitRunner


@dataclass(eq=False)
class NodeRunner:
    """Runs circuits of nodes: what is absent is absent for everything that reads it.

    The embeddings are always there: without them nothing of the prompt is in the circuit.

    Args:
        edges: runs circuits of edges.
    """

    edges: CircuitRunner

    def __post_init__(self) -> None:
        nodes = [number for number, node in enumerate(self.edges.graph.senders) if node.kind != "input"]
        self.names = [self.edges.graph.senders[number].name for number in nodes]
        places = {number: place for place, number in enumerate(nodes)}
        senders = [sender for visible in self.edges.graph.visible for sender in visible]
        self.owner = torch.tensor([places.get(sender, len(nodes)) for sender in senders])
        """Of each edge the number of the node that it leaves; of those that leave the embeddings, one more."""

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return len(self.names)

    @property
    def passes(self) -> Counter[str]:
        """How many passes were made, by kind."""
        return self.edges.passes

    @property
    def width(self) -> int:
        """How many circuits are copies of one pass."""
        return self.edges.width

    @property
    def chunks(self) -> int:
        """How many parts the pairs are run in."""
        return self.edges.chunks

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The metric of each pair with all nodes and with none; the embeddings are the base's in both."""
        return self.edges.ends[0], self.measure(torch.zeros(1, self.count, dtype=torch.bool))[0]

    def spread(self, kept: Tensor) -> Tensor:
        """Return `(..., edges)` of `(..., nodes)`: each edge is as its sender is."""
        return torch.cat([kept, torch.ones_like(kept[..., :1])], -1)[..., self.owner]

    def gathered(self, edges: Tensor) -> Tensor:
        """Return `(nodes,)` sums of `(edges,)` over those that leave a node."""
        total = edges.new_zeros(self.count + 1)
        return total.index_add_(0, self.owner, edges)[:-1]

    def between(self, kept: Tensor) -> Tensor:
        """Return `(edges,)` booleans: those between kept nodes. The others are read by nothing that is kept."""
        graph, there = self.edges.graph, {"logits"}
        there |= {name for name, here in zip(self.names, kept.tolist(), strict=True) if here}
        read = [there.intersection(receiver.owner) != set() for receiver in graph.receivers]
        sizes = torch.tensor([len(visible) for visible in graph.visible])
        return self.spread(kept) & torch.tensor(read).repeat_interleave(sizes)

    def measure(self, kept: Tensor) -> Tensor:
        """Return what circuits are worth on each pair, `(circuits, pairs)`.

        Args:
            kept: `(circuits, nodes)` booleans.
        """
        return self.edges.measure(self.spread(kept))

    def gradient(self, kept: Tensor, which: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the metric of each pair and the gradient of its sum by how much of each node there is.

        Args:
            kept: `(nodes,)` from 0 to 1.
            which: numbers of chunks; default: all.
        """
        values, gradient = self.edges.gradient(self.spread(kept), which)
        return values, self.gathered(gradient)
