"""Which edges are kept, by their scores: the strongest, those beyond a threshold, greedily from the logits down."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from ..circuit_graph import CircuitGraph
from .circuit import connected


def strongest(scores: Tensor) -> list[int]:
    """Return numbers of scores, the largest first; of equal ones the first.

    Args:
        scores: `(edges,)` what each is worth.

    >>> strongest(torch.tensor([1.0, 3.0, 1.0, 2.0]))
    [1, 3, 0, 2]
    """
    order: list[int] = scores.argsort(descending=True, stable=True).tolist()
    return order


def greedy(graph: CircuitGraph, scores: Tensor) -> list[int]:
    """Return the numbers of edges in the order in which they are taken from the logits down.

    The largest of the edges into the logits is taken, then the largest of these and of the edges into what its sender
    is made of, and so on: as in the reference code of Hanna et al. 2024, arXiv:2403.17806.

    Args:
        graph: of the model.
        scores: `(edges,)` what each is worth.
    """
    numbers = [node.name for node in graph.senders]
    into: dict[str, list[int]] = {}
    senders: list[int] = []
    first = 0
    for receiver, visible in zip(graph.receivers, graph.visible, strict=True):
        for owner in receiver.owner:
            into.setdefault(owner, []).extend(range(first, first + len(visible)))
        senders += visible
        first += len(visible)
    open_: list[tuple[float, int]] = []
    worth, met, order = scores.tolist(), set(into["logits"]), []
    for edge in into["logits"]:
        heapq.heappush(open_, (-worth[edge], edge))
    while open_:
        _, edge = heapq.heappop(open_)
        order.append(edge)
        for further in into.get(numbers[senders[edge]], ()):
            if further not in met:
                met.add(further)
                heapq.heappush(open_, (-worth[further], further))
    return order


def shortest(graph: CircuitGraph, order: Sequence[int], count: int) -> tuple[Tensor, int]:
    """Return the connected part of as few of the first edges as can be, so that it has so many edges.

    One edge more may connect many: of a real model the strongest edges often reach the embeddings all at once. Then the
    weakest of the connected ones go again, one by one, each with the weaker ones that hang on it, as long as enough are
    left; one on which a stronger one hangs stays.

    Args:
        graph: of the model.
        order: numbers of edges, the best first.
        count: how many there are to be.

    Returns:
        `(edges,)` booleans: `count` of them, more where the weakest cannot go by itself, fewer if the model has no
        more; and how many of the first edges were looked at.
    """
    low, high = 0, len(order)
    while low < high:  # more edges never connect less
        middle = (low + high) // 2
        if int(connected(graph, _first(graph, order[:middle])).sum()) >= count:
            high = middle
        else:
            low = middle + 1
    found = connected(graph, _first(graph, order[:low]))
    rank = {edge: place for place, edge in enumerate(order[:low])}
    for edge in reversed(order[:low]):
        if not found[edge]:
            continue
        less = found.clone()
        less[edge] = False
        less = connected(graph, less)
        with_it = (found & ~less).nonzero()[:, 0].tolist()
        if min(rank[one] for one in with_it) < rank[edge]:
            continue  # a stronger one hangs on it
        if int(less.sum()) < count:
            break
        found = less
    return found, low


def _first(graph: CircuitGraph, numbers: Sequence[int]) -> Tensor:
    kept = torch.zeros(len(graph), dtype=torch.bool)
    kept[list(numbers)] = True
    return kept


def beyond(graph: CircuitGraph, scores: Tensor, threshold: float) -> tuple[Tensor, int]:
    """Return the connected part of the edges whose scores are no smaller than a threshold, and how many these are.

    Args:
        graph: of the model.
        scores: `(edges,)` what each is worth.
        threshold: the smallest that is kept.
    """
    kept = scores >= threshold
    return connected(graph, kept), int(kept.sum())
