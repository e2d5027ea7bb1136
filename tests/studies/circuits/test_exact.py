"""What a circuit is: exact runs against plain hooks and explicit sums, and the identities that follow."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.helpers import hook_counts, new_model, padded_tokens, tokens
from tests.studies.circuits.kit import FAMILIES, SENSITIVE, Slow, model_of, pair_of, runner_of, sensitive
from torch import Tensor

from align_transformers import Metric, PositionError, SpecError, edge_attribution, logit_difference, path_patching
from align_transformers.studies.circuits.exact import CircuitPass, Replacement, record_run, shares_in

ANSWERS = (4, 9)
PATHS = [
    ("input", "a1.h1<v>"), ("a0.h2", "a1.h0<k>"), ("a0.h3", "a2.h1<q>"), ("m0", "m2"), ("a1.h0", "logits"),
    ("m2", "logits"),
]  # fmt: skip


def drawn(count: int, edges: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(count, edges, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_circuit_is_the_model_bit_for_bit(family):
    base, source = pair_of(0, 3)
    runner, model = runner_of(family, base, source), model_of(family)
    full = runner.measure(torch.ones(1, len(runner.graph), dtype=torch.bool))[0]
    with torch.no_grad():
        plain = sensitive(model(input_ids=base).logits)
    assert torch.equal(full, plain.double())
    assert torch.equal(runner.ends[0], full)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_empty_circuit_is_the_other_run(family):
    base, source = pair_of(0, 3)
    runner = runner_of(family, base, source)
    empty = runner.measure(torch.zeros(1, len(runner.graph), dtype=torch.bool))[0]
    with torch.no_grad():
        there = sensitive(model_of(family)(input_ids=source).logits).double()
    assert torch.allclose(empty, there, atol=1e-5, rtol=1e-5)
    assert torch.equal(runner.ends[1], there)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_circuits_are_those_by_hand(family):
    base, source = pair_of(1, 2)
    runner, slow = runner_of(family, base, source), Slow(family)
    kept = torch.cat(
        [drawn(3, len(runner.graph)), drawn(1, len(runner.graph), 0.05), drawn(1, len(runner.graph), 0.95)]
    )
    edges, other = list(runner.graph.edges()), slow.values(source)
    found = runner.measure(kept)
    for row, values in zip(kept, found, strict=True):
        absent = {edge for edge, here in zip(edges, row.tolist(), strict=True) if not here}
        wanted = sensitive(slow.logits(base, other, absent)).double()
        assert torch.allclose(values, wanted, atol=2e-4, rtol=1e-4), (values - wanted).abs().max()
    assert found.std(0).min() > 0.1  # they are told apart


@pytest.mark.parametrize("ablation", ["mean", "mean by position", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_means_and_zero_stand_for_absent_edges(family, ablation):
    base, source = pair_of(2, 3)
    runner, slow = runner_of(family, base, source, ablation=ablation, at_once=2), Slow(family)
    kept, edges = drawn(2, len(runner.graph), 0.7), list(runner.graph.edges())
    axes = (0,) if ablation == "mean by position" else (0, 1)
    other = {name: value.mean(axes, keepdim=True) * (ablation != "zero") for name, value in slow.values(source).items()}
    for row, values in zip(kept, runner.measure(kept), strict=True):
        absent = {edge for edge, here in zip(edges, row.tolist(), strict=True) if not here}
        wanted = sensitive(slow.logits(base, other, absent)).double()
        assert torch.allclose(values, wanted, atol=2e-4, rtol=1e-4)
    empty = sensitive(slow.logits(base, other, set(edges))).double()
    assert torch.allclose(runner.ends[1], empty, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_absent_edge_is_a_path_with_all_else_frozen(family):
    base, source = pair_of(3)
    model = model_of(family)
    runner, slow = runner_of(family, base, source, metric=logit_difference(*reversed(ANSWERS))), Slow(family)
    edges, other = list(runner.graph.edges()), slow.values(source)
    for sender, receiver in PATHS:
        kept = torch.ones(1, len(edges), dtype=torch.bool)
        kept[0, edges.index((sender, receiver))] = False
        found = float(runner.measure(kept))
        logits = slow.logits(base, other, {(sender, receiver)})[0, -1]
        assert found == pytest.approx(float(logits[ANSWERS[1]] - logits[ANSWERS[0]]), abs=1e-4)
        if family == "gemma2" and sender[0] == "a":
            continue  # the norm behind the heads: path patching scales a head among the base's, a circuit as it was
        sides = {"base": {"input_ids": base}, "source": {"input_ids": source}}
        table = path_patching(model, **sides, receivers=receiver, senders=[sender], freeze="all", answers=ANSWERS)
        assert found == pytest.approx(table.columns["metric"][0], abs=1e-4)


def test_pairs_chunks_and_padding_change_nothing():
    lengths = (5, 3, 4)
    base, source = padded_tokens(lengths, "left", 1), padded_tokens(lengths, "left", 2)
    together = runner_of("llama", base, source)
    kept = drawn(2, len(together.graph))
    values = together.measure(kept)
    assert torch.allclose(runner_of("llama", base, source, at_once=2).measure(kept), values, atol=1e-4)
    forgetful = runner_of("llama", base, source, at_once=2, memory=0)
    assert torch.allclose(forgetful.measure(kept), values, atol=1e-4)
    assert forgetful.passes["full"] > 0
    for number, length in enumerate(lengths):
        one, other = (of["input_ids"][number : number + 1, -length:] for of in (base, source))
        alone = runner_of("llama", one, other).measure(kept)
        assert torch.allclose(alone[:, 0], values[:, number], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_one_pass_are_circuits_by_themselves(family):
    base, source = pair_of(4, 2)
    runner = runner_of(family, base, source)
    kept = torch.cat([drawn(4, len(runner.graph)), drawn(2, len(runner.graph), 0.02), drawn(1, len(runner.graph), 1.1)])
    together = runner.measure(kept)
    assert runner.passes["circuit"] == 1
    alone = torch.cat([runner.measure(row[None]) for row in kept])
    assert runner.passes["circuit"] == 8
    assert torch.allclose(together, alone, atol=2e-4, rtol=1e-5)


# --- gradients --------------------------------------------------------------------------------------------------------


def test_gradients_of_masks_are_finite_differences():
    model = new_model("gpt2", dtype=torch.float64)
    base, source = pair_of(5, 2)
    runner = runner_of("gpt2", base, source, model)
    wiring, columns = runner.wiring, [base.shape[1] - 1] * len(base)
    tape = Replacement(record_run(model, wiring, {"input_ids": source}))
    generator = torch.Generator().manual_seed(0)
    absent = torch.rand(1, *wiring.valid.shape, generator=generator, dtype=torch.float64) * wiring.valid

    def value(masks: Tensor, graph: bool) -> Tensor:
        run = CircuitPass(model, wiring, tape, masks, graph=graph)
        return run.run({"input_ids": base}, columns)[:, 7].sum()

    masks = absent.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(masks, True), [masks])
    places = wiring.valid.nonzero().tolist()
    for row, column in places[:: len(places) // 24]:
        step = torch.zeros_like(absent)
        step[0, row, column] = 1e-5
        with torch.no_grad():
            change = float(value(absent + step, False) - value(absent - step, False)) / 2e-5
        assert float(found[0, row, column]) == pytest.approx(change, abs=1e-7, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_at_the_full_graph_is_edge_attribution_with_the_other_sign(family):
    base, source = pair_of(6, 3)
    metric = logit_difference(*reversed(ANSWERS))
    runner = runner_of(family, base, source, metric=metric, at_once=2)
    values, gradient = runner.gradient(torch.ones(len(runner.graph)))
    assert torch.allclose(values.double(), runner.ends[0], atol=1e-5)
    table = edge_attribution(model_of(family), {"input_ids": base}, {"input_ids": source}, answers=ANSWERS)
    scores = torch.tensor(table.columns["score"])
    assert torch.allclose(-gradient / 3, scores, atol=1e-4 * float(scores.abs().max()))
    first, part = runner.gradient(torch.ones(len(runner.graph)), which=[1])
    assert torch.allclose(first, values[2:])
    assert not torch.allclose(part, gradient)


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_the_model_is_as_before():
    model = new_model("llama").train(False)
    model.model.layers[1].train()
    model.model.layers[0].mlp.gate_proj.weight.requires_grad_(False)
    seen: list[Any] = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    wants, counts = [one.requires_grad for one in model.parameters()], hook_counts(model)
    runner = runner_of("llama", *pair_of(7, 2), model)
    runner.measure(drawn(3, len(runner.graph)))
    runner.gradient(torch.full((len(runner.graph),), 0.5))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [one.requires_grad for one in model.parameters()] == wants
    assert all(one.grad is None for one in model.parameters())
    assert hook_counts(model) == counts
    assert seen
    handle.remove()


def test_hooks_are_gone_after_an_exception():
    model = new_model("gpt2")
    runner = runner_of("gpt2", *pair_of(8, 2), model)
    kept = drawn(2, len(runner.graph))
    before, values = hook_counts(model), runner.measure(kept)
    with torch.no_grad():
        plain = model(input_ids=tokens(1, 4)["input_ids"]).logits

    def fails(*_: Any) -> None:
        raise RuntimeError("in the middle")

    handle = model.transformer.h[1].mlp.register_forward_hook(fails)
    for act in (runner.measure, lambda one: runner.gradient(one[0].float())):
        with pytest.raises(RuntimeError, match="in the middle"):
            act(kept)
    handle.remove()
    assert hook_counts(model) == before
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens(1, 4)["input_ids"]).logits, plain)
    assert torch.equal(runner.measure(kept), values)


def test_other_threads_see_nothing_of_it():
    model = new_model("gpt2")
    ids = tokens(2, 4, 3)["input_ids"]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    inside, done, found = threading.Event(), threading.Event(), []

    def elsewhere() -> None:
        assert inside.wait(30)
        with torch.no_grad():
            found.append(model(input_ids=ids).logits)
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()

    def waits(logits: Tensor) -> Tensor:
        return SENSITIVE.function(logits)

    runner = runner_of("gpt2", *pair_of(9, 2), model, metric=Metric("waits", waits))
    runner.ends  # noqa: B018  (recorded before the other thread comes in)
    main = threading.current_thread()

    def halfway(*_: Any) -> None:
        if threading.current_thread() is main and not inside.is_set():
            inside.set()
            assert done.wait(30)

    handle = model.transformer.h[1].register_forward_hook(halfway)
    runner.measure(drawn(1, len(runner.graph)))
    handle.remove()
    thread.join(30)
    assert torch.equal(found[0], plain)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_refused():
    base, source = pair_of(0)
    with pytest.raises(PositionError, match="equal length"):
        runner_of("gpt2", base, source[:, 1:])
    runner = runner_of("gpt2", base, source)
    with pytest.raises(SpecError, match="edges"):
        runner.measure(torch.ones(1, 3, dtype=torch.bool))
    uneven = padded_tokens((5, 3), "left", 1)
    with pytest.raises(PositionError, match="mean by position"):
        runner_of("llama", uneven, uneven, ablation="mean by position").ends  # noqa: B018


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_add_up_to_the_stream(family):
    """What the senders add is the last stream, but for biases of output projections, which are nobody's."""
    base, source = pair_of(0, 2)
    runner, model = runner_of(family, base, source), model_of(family)
    tapes = [record_run(model, runner.wiring, {"input_ids": ids}) for ids in (base, source)]
    totals = [torch.cat(list(shares_in(runner.wiring, tape).values())).sum(0) for tape in tapes]
    ends = [tape.values[runner.wiring.readings[-1].stream] for tape in tapes]
    assert torch.allclose(totals[0] - totals[1], ends[0] - ends[1], atol=1e-4)
