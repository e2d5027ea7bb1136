"""Which edges are kept: worked out by hand on a graph of two MLPs."""

from __future__ import annotations

import torch

from align_transformers.studies.circuit_graph import CircuitGraph, GraphNode
from align_transformers.studies.circuits.selecting import beyond, greedy, shortest, strongest


def two_mlps() -> CircuitGraph:
    """Edges: 0 input -> m0; 1 input -> m1; 2 m0 -> m1; 3 input -> logits; 4 m0 -> logits; 5 m1 -> logits."""
    names = ("m0", "m1")
    senders = (GraphNode("input", "input"), *(GraphNode(name, "mlp", n) for n, name in enumerate(names)))
    receivers = tuple(GraphNode(name, "mlp", n, owner=(name,)) for n, name in enumerate(names))
    end = GraphNode("logits", "logits", owner=("logits",))
    return CircuitGraph(senders, (*receivers, end), ((0,), (0, 1), (0, 1, 2)))


SCORES = torch.tensor([1.0, 9.0, 2.0, 3.0, 5.0, 4.0])


def numbers(kept: torch.Tensor) -> list[int]:
    return kept.nonzero()[:, 0].tolist()


def test_the_strongest_come_first_and_of_equal_ones_the_first():
    assert strongest(SCORES) == [1, 4, 5, 3, 2, 0]
    assert strongest(torch.tensor([2.0, 2.0, 3.0, 2.0])) == [2, 0, 1, 3]


def test_greedily_an_edge_is_open_once_what_it_leads_to_is_kept():
    # m0 -> logits (5) opens input -> m0 (1); m1 -> logits (4) opens input -> m1 (9), which is the strongest of all
    assert greedy(two_mlps(), SCORES) == [4, 5, 1, 3, 2, 0]


def test_a_key_of_two_heads_is_open_once():
    heads = tuple(GraphNode(f"a0.h{n}", "head", 0, n) for n in range(2))
    key = GraphNode("a0.h0<k>", "head", 0, 0, ("a0.h0", "a0.h1"))
    end = GraphNode("logits", "logits", owner=("logits",))
    made = CircuitGraph((GraphNode("input", "input"), *heads), (key, end), ((0,), (0, 1, 2)))
    assert greedy(made, torch.tensor([4.0, 1.0, 3.0, 2.0])) == [2, 0, 3, 1]


def test_so_many_edges_are_kept_once_what_leads_nowhere_is_gone():
    order = strongest(SCORES)
    found = [(numbers(kept), ranked) for kept, ranked in (shortest(two_mlps(), order, n) for n in range(7))]
    # input -> m1, m0 -> logits: no path. With m1 -> logits there is one, and neither of its edges can go by itself.
    # The last edge, input -> m0, connects m0 -> m1 and m0 -> logits, too: it goes by itself for no number, as these
    # would go with it; the next weakest, m0 -> m1, goes for 5, and input -> logits for 4
    assert found == [
        ([], 0), ([1, 5], 3), ([1, 5], 3), ([1, 3, 5], 4), ([0, 1, 4, 5], 6), ([0, 1, 3, 4, 5], 6),
        ([0, 1, 2, 3, 4, 5], 6),
    ]  # fmt: skip
    assert shortest(two_mlps(), order, 99)[1] == 6


def test_no_strong_edge_goes_so_that_the_number_is_met():
    # input -> m0 -> logits came last, together: both go, or none; the strongest, input -> logits, could go by itself
    order = [3, 1, 5, 0, 4, 2]
    assert [numbers(shortest(two_mlps(), order, n)[0]) for n in (3, 4, 5)] == [[1, 3, 5], *[[0, 1, 3, 4, 5]] * 2]


def test_a_threshold_counts_what_reaches_it_and_keeps_what_is_connected():
    kept, ranked = beyond(two_mlps(), SCORES, 4.0)
    assert (numbers(kept), ranked) == ([1, 5], 3)
    assert numbers(beyond(two_mlps(), SCORES, 4.0001)[0]) == []
