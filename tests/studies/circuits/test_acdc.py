"""ACDC in few passes against the plain one: each tried by itself, all in turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.helpers import tokens
from tests.studies.circuits.test_circuit import small
from tests.studies.circuits.test_selecting import two_mlps
from tests.truth.compiled import load, texts
from torch import Tensor

from align_transformers import Metric, circuit, graph, kl_to_clean
from align_transformers.studies._pairs import pair_up
from align_transformers.studies.circuits.acdc import Trying, acdc, order_of
from align_transformers.studies.circuits.circuit_runner import Answered, CircuitRunner


class Told:
    """Distances by a formula, `(circuits, 1)`; counts what is asked."""

    def __init__(self, count: int, distance: Callable[[Tensor], Tensor], width: int = 16) -> None:
        self.count, self.width, self.distance, self.asked = count, width, distance, []

    def measure(self, kept: Tensor) -> Tensor:
        self.asked.append(len(kept))
        return self.distance(kept.double())[:, None]


def one_by_one(measure: Callable[[Tensor], Tensor], count: int, order: list[int], threshold: float) -> Tensor:
    """ACDC as it is written: an edge is left out for good if that costs less than the threshold."""
    kept, now = torch.ones(count, dtype=torch.bool), 0.0
    for edge in order:
        tried = kept.clone()
        tried[edge] = False
        then = measure(tried[None]).mean().item()
        if then - now < threshold:
            kept, now = tried, then
    return kept


def tangled(seed: int, count: int) -> Callable[[Tensor], Tensor]:
    """A distance in which edges stand in for others: sums, products and maxima of what is missing."""
    draws = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=draws, dtype=torch.float64) ** 4
    partner = torch.randperm(count, generator=draws)

    def distance(kept: Tensor) -> Tensor:
        gone = 1 - kept
        return gone @ weights + (gone * gone[:, partner]).sum(1) * 0.3 - 0.2 * (gone[:, 0] * gone[:, -1])

    return distance


@pytest.mark.parametrize("width", [1, 2, 5, 64])
def test_it_is_the_result_of_one_after_the_other(width):
    for seed in range(20):
        runner = Told(40, tangled(seed, 40), width)
        order = order_of("random", 40, seed)
        found = acdc(runner, order, 0.25, Trying(torch.ones(40, dtype=torch.bool)))
        assert torch.equal(found.kept, one_by_one(Told(40, runner.distance).measure, 40, order, 0.25))
        assert found.passes == len(runner.asked)
        assert max(runner.asked) <= max(1, width)
        assert found.distance == pytest.approx(runner.distance(found.kept[None].double()).item())


def test_passes_are_few_where_few_edges_stay():
    weights = torch.zeros(200, dtype=torch.float64)
    weights[::40] = 1.0  # five that matter
    runner = Told(200, lambda kept: (1 - kept) @ weights, 64)
    found = acdc(runner, order_of("backward", 200, 0), 0.5, Trying(torch.ones(200, dtype=torch.bool)))
    assert found.kept.nonzero()[:, 0].tolist() == [0, 40, 80, 120, 160]
    assert found.passes <= 5 + 20


def test_of_two_that_stand_in_for_each_other_the_one_that_is_tried_last_stays():
    both = Told(2, lambda kept: (1 - kept).prod(1))
    stays = [
        acdc(both, order_of(order, 2, 0), 0.5, Trying(torch.ones(2, dtype=torch.bool))).kept.tolist()
        for order in ("backward", "forward")
    ]
    assert stays == [[True, False], [False, True]]


def test_edges_into_what_nobody_reads_go_without_a_pass():
    """Of two MLPs only the second and the straight way matter: input -> m1 -> logits, input -> logits."""

    def distance(kept: Tensor) -> Tensor:
        return (1 - kept[:, 3]) + (1 - kept[:, 1] * kept[:, 5])

    plain, told = Told(6, distance, 1), Told(6, distance, 1)
    order = order_of("backward", 6, 0)
    found = acdc(told, order, 0.5, Trying(torch.ones(6, dtype=torch.bool)), graph=two_mlps())
    assert torch.equal(found.kept, one_by_one(plain.measure, 6, order, 0.5))
    assert found.kept.nonzero()[:, 0].tolist() == [1, 3, 5]
    assert len(plain.asked) == 6
    assert len(told.asked) == 5


def test_in_a_model_the_result_is_that_of_one_after_the_other():
    model, ids = small(), [tokens(3, 5, seed) for seed in (1, 2)]
    made = graph(model, experts=False)
    pairs = pair_up(*ids, None, model, None, None, None, None)
    runner = CircuitRunner(model, made, pairs, Answered([kl_to_clean()] * 3))
    start = Trying(torch.ones(len(made), dtype=torch.bool))
    order = order_of("backward", len(made), 0)
    found = acdc(runner, order, 0.2, start, graph=made)
    plain = one_by_one(runner.measure, len(made), order, 0.2)
    assert torch.equal(found.kept, plain)
    assert 3 < int(plain.sum()) < len(made) / 2
    assert found.passes < len(made) / 2


def test_the_edges_of_a_compiled_program_are_found():
    here = load("sort")
    pairs = ({"input_ids": here.tokens(list(texts("sort", 16, seed)))} for seed in (1, 2))
    changed = Metric("change", lambda logits, clean: (logits - clean).abs().amax(-1), compares=True)
    found = circuit(here.model, *pairs, metric=changed, method="acdc", threshold=0.01, orders=("backward",))
    assert set(found.edges()) == here.program.edges
