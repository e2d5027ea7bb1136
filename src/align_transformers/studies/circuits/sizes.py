"""Circuits of the sizes of the MIB benchmark, what areas under their faithfulness are, and how large circuits are.

Mueller et al. 2025, arXiv:2504.13151.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import SiteError
from ...models import find_slot, resolve
from ...sites import Site
from .._readers import part_of
from ..circuit_graph import CircuitGraph, GraphNode
from ..graph import reads_at
from .circuit import connected
from .wiring import Wiring

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges."""


def nested(graph: CircuitGraph, ranking: Tensor, sizes: Sequence[float]) -> Tensor:
    """Return circuits of so many of the highest edges, `(sizes, edges)`, without those that lie on no path.

    Args:
        graph: of the model.
        ranking: `(edges,)`; of equal edges the first comes first.
        sizes: shares of all edges; a part of an edge is none.
    """
    order = ranking.argsort(descending=True, stable=True)
    kept = torch.zeros(len(sizes), len(graph), dtype=torch.bool)
    for row, size in zip(kept, sizes, strict=True):
        row[order[: int(size * len(graph))]] = True
        row[:] = connected(graph, row)
    return kept


def at_random(graph: CircuitGraph, count: int, generator: torch.Generator) -> Tensor:
    """Return a random circuit, `(edges,)`: edges in a random order, as many as leave so many on some path.

    Random edges by themselves lie on hardly any path, so that they would be no circuit to compare with.

    Args:
        graph: of the model.
        count: how many edges lie on a path, if there can be just so many; else the next number above it.
        generator: of the order.
    """
    order = torch.randperm(len(graph), generator=generator)
    low, high = count, len(graph)
    while low < high:  # the longer the start of the order, the more edges lie on a path
        middle = (low + high) // 2
        if int(_start(graph, order, middle).sum()) < count:
            low = middle + 1
        else:
            high = middle
    return _start(graph, order, low)


def _start(graph: CircuitGraph, order: Tensor, count: int) -> Tensor:
    kept = torch.zeros(len(graph), dtype=torch.bool)
    kept[order[:count]] = True
    return connected(graph, kept)


def areas(sizes: Sequence[float], faithfulness: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integral of f over sizes, and that of |1 - f|, by the trapezoid rule: what CPR and CMD are made of.

    Args:
        sizes: ascending.
        faithfulness: `(sizes, ...)`.

    >>> areas([0.0, 0.5, 1.0], torch.tensor([0.0, 2.0, 1.0]))
    (tensor(1.2500), tensor(0.7500))
    """
    places = torch.tensor(sizes, dtype=faithfulness.dtype)
    return torch.trapezoid(faithfulness, places, dim=0), torch.trapezoid((1 - faithfulness).abs(), places, dim=0)


def auroc(scores: Tensor, truth: Tensor) -> float | None:
    """Return the chance that a true edge has a higher score than another one; equal scores count half.

    Args:
        scores: `(edges,)`.
        truth: `(edges,)` booleans.

    Returns:
        From 0 to 1; `None` where all edges are true, or none.

    >>> auroc(torch.tensor([3.0, 2.0, 1.0, 1.0]), torch.tensor([True, False, True, False]))
    0.625
    """
    good, bad = scores[truth].double(), scores[~truth].double().sort().values
    if not len(good) or not len(bad):
        return None
    below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean() / 2 / len(bad))


class ParameterShare:
    """Tells which share of a model's parameters the nodes of circuits have.

    Of a head these are its rows of the projections to queries, keys and values and its columns of the output
    projection, of other nodes all of their module. Embeddings, norms and the unembedding count nowhere.

    Args:
        model: the user's.
        graph: of it.
        wiring: of the graph.
    """

    def __init__(self, model: nn.Module, graph: CircuitGraph, wiring: Wiring) -> None:
        numbers = {node.name: n for n, node in enumerate(graph.senders)}
        self._receivers = [[numbers[name] for name in node.owner if name in numbers] for node in graph.receivers]
        lengths = torch.tensor([len(seen) for seen in graph.visible])
        self._ends = torch.arange(len(lengths)).repeat_interleave(lengths)
        self._starts = torch.tensor([number for seen in graph.visible for number in seen])
        self._units = list(_units(model, graph, wiring, self._receivers))
        self.known = all(not math.isnan(size) for size, _ in self._units)
        """Whether the parameters of all nodes are known."""

    def __call__(self, kept: Tensor) -> float | None:
        """Return the share, from 0 to 1; `None` where it is not known.

        Args:
            kept: `(edges,)` booleans.
        """
        if not self.known or not self._units:
            return None
        nodes = set(self._starts[kept].unique().tolist())
        for receiver in self._ends[kept].unique().tolist():
            nodes.update(self._receivers[receiver])
        here = torch.tensor([bool(nodes.intersection(owners)) for _, owners in self._units])
        sizes = torch.tensor([size for size, _ in self._units], dtype=torch.double)
        return float(sizes[here].sum() / sizes.sum())


def _units(
    model: nn.Module, graph: CircuitGraph, wiring: Wiring, owners: Sequence[Sequence[int]]
) -> Iterator[tuple[float, Sequence[int]]]:
    """Yield parameters that are counted at once: how many, and by number the senders that have them; NaN: unknown."""
    for reading in wiring.readings:
        for number, port in zip(reading.receivers, reading.ports, strict=True):
            if port.rows is not None:
                yield port.rows.numel() + (0 if port.bias is None else port.bias.numel()), owners[number]
    for writing in wiring.writings:
        node = graph.senders[writing.senders[0]]
        if writing.weight is not None:
            yield from ((one.numel(), (n,)) for n, one in zip(writing.senders, writing.weight, strict=True))
        elif node.layer is not None:
            yield _inside(model, node), tuple(writing.senders)


def _inside(model: nn.Module, node: GraphNode) -> float:
    """Return how many parameters the module of a node has that is no head; NaN where it is no module of its own.

    Experts are rows of shared tensors, so that is not known of them.
    """
    if node.kind == "expert":
        return math.nan
    block: Any = resolve(model).stacks[""][int(node.layer or 0)]
    if node.kind == "block":
        path = block.path
    else:
        part = part_of(node)
        try:
            sites = [Site(name, node.layer) for name in (reads_at(block, part), part)]
            first, second = (find_slot(model, site).path.split(".") for site in sites)
        except SiteError:
            return math.nan
        path = ".".join(a for a, _ in takewhile(lambda two: two[0] == two[1], zip(first, second, strict=False)))
        if path == block.path or not path.startswith(block.path):
            return math.nan
    return float(sum(one.numel() for one in model.get_submodule(path).parameters()))
