"""`evaluate_circuit`: what it measures against circuits run by hand, and its numbers against closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.studies.circuits.kit import Slow, model_of, pair_of
from tests.studies.test_path_patching import mixtral
from torch import Tensor

from align_transformers import (
    Circuit,
    PositionError,
    SpecError,
    Table,
    UnknownNameError,
    edge_attribution,
    evaluate_circuit,
    graph,
)
from align_transformers.studies._pairs import pair_up
from align_transformers.studies.circuits.faithfulness import Faithfulness
from align_transformers.studies.circuits.hashes import pair_hashes
from align_transformers.studies.circuits.sizes import ParameterShare, areas, at_random, auroc, connected, nested
from align_transformers.studies.circuits.wiring import wire

PAIRS, ANSWERS = 6, (4, 9)
QUICK: dict[str, Any] = {"controls": 0, "minimality": False, "sizes": ()}


def circuit_of(family: str = "llama", count: int = 30, facts: dict[str, Any] | None = None) -> Circuit:
    base, source = pair_of(0, PAIRS)
    model = model_of(family)
    table = edge_attribution(model, {"input_ids": base}, {"input_ids": source}, answers=ANSWERS)
    scores, kept = torch.tensor(table.columns["score"]), torch.zeros(len(table), dtype=torch.bool)
    kept[scores.abs().topk(count).indices] = True
    return Circuit(graph(model, experts=False), kept, scores, facts or {})


def evaluated(circuit: Circuit, family: str = "llama", **options: Any) -> Table:
    base, source = pair_of(0, PAIRS)
    options = {"answers": ANSWERS, **options}
    return evaluate_circuit(model_of(family), circuit, {"input_ids": base}, {"input_ids": source}, **options)


def rows_of(table: Table, name: str) -> list[dict[str, Any]]:
    return [row for row in table.rows() if row["circuit"] == name]


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_faithfulness_and_completeness_are_those_by_hand(ablation):
    circuit = circuit_of()
    table = evaluated(circuit, ablation=ablation, **QUICK)
    (base, source), slow = pair_of(0, PAIRS), Slow("llama")
    other = slow.values(source)
    if ablation == "mean":
        other = {name: value.mean((0, 1), keepdim=True) for name, value in other.items()}
    edges = list(circuit.graph.edges())

    def metric(kept: Tensor) -> Tensor:
        absent = {edge for edge, here in zip(edges, kept.tolist(), strict=True) if not here}
        logits = slow.logits(base, other, absent)[:, -1]
        return logits[:, ANSWERS[1]] - logits[:, ANSWERS[0]]

    masks = {"circuit": circuit.kept, "complement": ~circuit.kept}
    ends = metric(torch.ones_like(circuit.kept)), metric(torch.zeros_like(circuit.kept))
    for name, kept in masks.items():
        [row], values = rows_of(table, name), metric(kept)
        assert row["values"] == pytest.approx(values.tolist(), abs=1e-4)
        assert row["metric"] == pytest.approx(float(values.mean()), abs=1e-4)
        wanted = (values.mean() - ends[1].mean()) / (ends[0].mean() - ends[1].mean())
        assert row["faithfulness"] == pytest.approx(float(wanted), rel=1e-3, abs=1e-3)
        assert row["n"] == PAIRS
        assert row["edges"] == int(kept.sum())
        assert row["share"] == pytest.approx(int(kept.sum()) / len(edges))
        for found, value, full, empty in zip(row["each"], values, *ends, strict=True):
            assert found is None or found == pytest.approx(float((value - empty) / (full - empty)), abs=1e-2)
    for name, value in (("full", 1.0), ("empty", 0.0)):
        [row] = rows_of(table, name)
        assert row["faithfulness"] == value
        assert set(row["each"]) <= {value, None}
    assert table.meta["ablation"] == ablation


def test_each_edge_is_left_out_in_turn():
    circuit = circuit_of(count=12)
    table = evaluated(circuit, **{**QUICK, "minimality": None})
    rows = rows_of(table, "without an edge")
    assert [(row["sender"], row["receiver"]) for row in rows] == list(circuit.edges())
    [whole] = rows_of(table, "circuit")
    for row in rows[::5]:
        less = Circuit.of(circuit.graph, [edge for edge in circuit.edges() if edge != (row["sender"], row["receiver"])])
        [alone] = rows_of(evaluated(less, **QUICK), "circuit")
        assert row["faithfulness"] == pytest.approx(alone["faithfulness"], abs=1e-4)
        assert row["effect"] == pytest.approx(alone["faithfulness"] - whole["faithfulness"], abs=1e-4)
    skipped = evaluated(circuit_of(count=100), **{**QUICK, "minimality": None})
    assert not rows_of(skipped, "without an edge")
    assert "100 more circuits" in skipped.meta["minimality"]


def test_nested_circuits_and_their_areas():
    circuit, sizes = circuit_of(), (0.05, 0.2, 0.5, 1.0)
    table = evaluated(circuit, **{**QUICK, "sizes": sizes})
    scores, count = circuit.scores, len(circuit.graph)
    full, empty = (rows_of(table, name)[0]["metric"] for name in ("full", "empty"))
    good = scores * (-1 if full > empty else 1)  # scores say what the source's value does
    for name, ranking in (("top by score", good), ("top by |score|", scores.abs())):
        rows = rows_of(table, name)
        assert [row["size"] for row in rows] == list(sizes)
        for row, size in zip(rows, sizes, strict=True):
            kept = torch.zeros(count, dtype=torch.bool)
            kept[ranking.topk(int(size * count)).indices] = True
            kept = connected(circuit.graph, kept)
            assert row["edges"] == int(kept.sum())
            [alone] = rows_of(evaluated(Circuit(circuit.graph, kept), **QUICK), "circuit")
            assert row["metric"] == pytest.approx(alone["metric"], abs=1e-4)
    f, g = ([row["faithfulness"] for row in rows_of(table, f"top by {name}")] for name in ("score", "|score|"))
    meta = table.meta
    assert meta["cpr"]["value"] == pytest.approx(np.trapezoid(f, sizes))
    assert meta["cmd"]["value"] == pytest.approx(np.trapezoid(np.abs(1 - np.array(g)), sizes))
    assert meta["f"] == pytest.approx([min(f + g), max(f + g)])
    assert meta["cpr"]["full"] == pytest.approx(0.95)
    assert meta["cmd"]["full"] == 0
    assert isinstance(meta["cmd"]["random"], float)
    assert rows_of(table, "random of a size")[-1]["faithfulness"] == 1.0
    assert meta["passes"]["full"] == 2  # base and source once, for all circuits


def test_the_sign_of_the_metric_changes_nothing():
    circuit = circuit_of()
    turned = Circuit(circuit.graph, circuit.kept, -circuit.scores)
    one = evaluated(circuit, controls=1, minimality=False)
    other = evaluated(turned, answers=ANSWERS[::-1], controls=1, minimality=False)
    for row, same in zip(one.rows(), other.rows(), strict=True):
        assert row["faithfulness"] == pytest.approx(same["faithfulness"], abs=1e-4)
        assert row["edges"] == same["edges"]
    assert one.meta["cpr"]["value"] == pytest.approx(other.meta["cpr"]["value"], abs=1e-4)


def test_scores_of_masks_are_not_turned_nor_is_their_size_a_strength():
    """The larger, the more is an edge wanted, whatever the metric does; far below 0 it is not wanted at all."""
    circuit = circuit_of()
    values = torch.where(circuit.kept, 1.0, -5.0)
    wanted = Circuit(circuit.graph, circuit.kept, values, {"method": "masks"})
    count = int(circuit.kept.sum()) / len(circuit.graph) + 1e-9
    for answers in (ANSWERS, ANSWERS[::-1]):
        table = evaluated(wanted, answers=answers, truth=circuit, **{**QUICK, "sizes": (count,)})
        for name in ("top by score", "top by |score|"):
            assert rows_of(table, name)[0]["edges"] == len(circuit.connected())
        assert table.meta["truth"]["auroc"] == table.meta["truth"]["auroc_of_size"] == 1.0


def test_without_scores_there_is_no_curve_and_equal_circuits_run_once():
    circuit = circuit_of()
    bare = evaluated(Circuit(circuit.graph, circuit.kept), controls=0, minimality=False)
    assert bare.meta["cpr"] is None
    assert bare.meta["cmd"] is None
    assert "no scores" in bare.meta["curve"]
    assert [row["circuit"] for row in bare.rows()] == ["full", "empty", "circuit", "complement"]
    whole = Circuit(circuit.graph, torch.ones_like(circuit.kept))
    told: list[tuple[int, int]] = []
    table = evaluated(whole, progress=lambda *numbers: told.append(numbers), **QUICK)
    assert told == []  # the whole model and nothing: known from the two runs
    assert "circuit" not in table.meta["passes"]
    [row] = rows_of(table, "complement")
    assert row["faithfulness"] == 0.0


# --- statistics -------------------------------------------------------------------------------------------------------


def test_intervals_are_of_ratios_of_paired_draws():
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(40, generator=generator).double() + 3
    empty = torch.randn(40, generator=generator).double()
    found = Faithfulness(full, empty)
    half = empty + 0.5 * (full - empty)
    assert found.bounds(found.ratios(half[None])[0]) == pytest.approx((0.5, 0.5))
    values = half + torch.randn(40, generator=generator).double()
    low, high = found.bounds(found.ratios(values[None])[0])
    drawn = np.random.default_rng(0).integers(40, size=(20000, 40))
    m, f, e = (one.numpy()[drawn].mean(1) for one in (values, full, empty))
    assert (low, high) == pytest.approx(tuple(np.quantile((m - e) / (f - e), [0.025, 0.975])), abs=0.02)
    assert found.mean(values)[1:] == pytest.approx(tuple(np.quantile(m, [0.025, 0.975])), abs=0.05)


def test_pairs_whose_ends_are_next_to_equal():
    full, empty = torch.tensor([4.0, 4.0, 4.0, 0.001]).double(), torch.zeros(4).double()
    found = Faithfulness(full, empty)
    values = torch.tensor([2.0, 2.0, 2.0, 3.0]).double()  # the last by itself: 3000 times
    each = found.each(values)
    assert each[:3].tolist() == [0.5] * 3
    assert bool(each[3].isnan())
    assert found.median(values)[0] == 0.5
    assert float(found.ratio(values)) == pytest.approx(9 / 12.001)
    unsure = Faithfulness(torch.tensor([1.0, -0.9, 1.0, -0.9]).double(), torch.zeros(4).double())
    assert not unsure.sure
    assert unsure.bounds(unsure.ratios(values[None])[0]) == (None, None)
    with pytest.raises(SpecError, match="same mean"):
        Faithfulness(empty, empty)
    alone = Faithfulness(full[:1], empty[:1])
    assert alone.mean(full[:1]) == (4.0, None, None)


def test_a_gap_that_may_be_nothing_is_said():
    table = evaluated(circuit_of(), **QUICK)
    low, high = table.meta["gap"]["low"], table.meta["gap"]["high"]
    assert (low * high < 0) == ("warning" in table.meta)
    [row] = rows_of(table, "circuit")
    assert (row["low"] is None) == ("warning" in table.meta)


# --- which circuits ---------------------------------------------------------------------------------------------------


def test_random_circuits_are_connected_and_as_large():
    made = graph(model_of("llama"), experts=False)
    for count in (5, 40, 120):
        drawn = [at_random(made, count, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        for kept in drawn:
            assert torch.equal(connected(made, kept), kept)
            assert count <= int(kept.sum()) <= count + 20
    table = evaluated(circuit_of(), controls=3, minimality=False, sizes=(), seed=1)
    assert [row["draw"] for row in rows_of(table, "random")] == [0, 1, 2]


def test_nested_circuits_hold_each_other():
    made = graph(model_of("llama"), experts=False)
    ranking = torch.randn(len(made), generator=torch.Generator().manual_seed(0))
    kept = nested(made, ranking, (0.0, 0.1, 0.5, 1.0))
    assert not kept[0].any()
    assert kept[3].all()
    for small, large in itertools.pairwise(kept):
        assert bool((large | ~small).all())
    f, g = areas((0.0, 1.0), torch.tensor([[0.0, 3.0], [1.0, 3.0]]))
    assert f.tolist() == [0.5, 3.0]
    assert g.tolist() == [0.5, 2.0]


def test_what_is_known_to_be_right():
    circuit = circuit_of(count=20)
    right = [*list(circuit.edges())[:15], ("m2", "logits"), ("input", "a0.h0<q>"), ("a2.h0", "logits")]
    truth = Circuit.of(circuit.graph, right)
    said = evaluated(circuit, truth=right, **QUICK).meta["truth"]
    both = int((truth.kept & circuit.kept).sum())
    assert said["precision"] == both / 20
    assert said["recall"] == both / len(truth)
    assert said["auroc_of_size"] == pytest.approx(roc_auc_score(truth.kept.numpy(), circuit.scores.abs().numpy()))
    assert said == evaluated(circuit, truth=truth, **QUICK).meta["truth"]
    ties, labels = torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0]), torch.tensor([True, False, False, True, False])
    assert auroc(ties, labels) == pytest.approx(roc_auc_score(labels.numpy(), ties.numpy()))
    assert auroc(ties, torch.ones(5, dtype=torch.bool)) is None
    with pytest.raises(UnknownNameError, match="no edge"):
        evaluated(circuit, truth=[("logits", "input")], **QUICK)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parameters_of_nodes_by_hand(family):
    model = model_of(family)
    made = graph(model, experts=False)
    share = ParameterShare(model, made, wire(model, made))
    block = model.transformer.h[0] if family == "gpt2" else model.model.layers[0]
    mlp = sum(one.numel() for one in block.mlp.parameters())
    width, size = 32, 8 if family == "gpt2" else 6
    bias = size if family == "gpt2" else 0
    query = key = value = width * size + bias
    head = query + width * size
    whole = 3 * (4 * head + (4 if family == "gpt2" else 2) * (key + value) + mlp)
    circuit = Circuit.of(made, [("input", "a1.h0<v>"), ("a1.h0", "m2"), ("m2", "logits")])
    heads = 1 if family == "gpt2" else 2  # of grouped heads both read the value
    wanted = heads * head + key + value + mlp
    assert share(circuit.kept) == pytest.approx(wanted / whole)
    assert share(torch.ones_like(circuit.kept)) == 1.0
    assert share(torch.zeros_like(circuit.kept)) == 0.0


def test_experts_are_edges_of_their_own_or_one_node():
    model, (base, source) = mixtral(), pair_of(0, 2)
    for split in (False, True):
        made = graph(model, experts=split)
        circuit = Circuit.of(made, [("input", "m0.e1" if split else "m0"), ("input", "logits")])
        table = evaluate_circuit(model, circuit, {"input_ids": base}, {"input_ids": source}, answers=ANSWERS, **QUICK)
        [row] = rows_of(table, "circuit")
        assert row["edges"] == 2
        assert (row["parameters"] is None) == split


# --- held-out pairs ---------------------------------------------------------------------------------------------------


def test_pairs_on_which_it_was_found_are_left_out_or_marked():
    model, (base, source) = model_of("llama"), pair_of(0, PAIRS)
    hashes = pair_hashes(pair_up({"input_ids": base}, {"input_ids": source}, None, model, None, None, None, None))
    assert len(set(hashes)) == PAIRS
    padded = {
        "input_ids": torch.cat([torch.zeros(PAIRS, 2, dtype=torch.long), base], 1),
        "attention_mask": torch.cat([torch.zeros(PAIRS, 2, dtype=torch.long), torch.ones_like(base)], 1),
    }
    other = {**padded, "input_ids": torch.cat([torch.zeros(PAIRS, 2, dtype=torch.long), source], 1)}
    assert pair_hashes(pair_up(padded, other, None, model, None, None, None, None)) == hashes
    none = evaluated(circuit_of(), **QUICK).meta["held_out"]
    assert none["held_out"] is None
    assert "not known" in none["note"]
    every = evaluated(circuit_of(facts={"pair_hashes": hashes}), **QUICK)
    assert every.meta["held_out"]["held_out"] is False
    assert every.meta["held_out"]["note"].startswith("not held out: the circuit was found on 6 of the 6 pairs")
    some = circuit_of(facts={"pair_hashes": hashes[:4]})
    table = evaluated(some, **QUICK)
    assert table.meta["pairs"] == 2
    assert table.meta["held_out"]["held_out"] is True
    assert "4 of 6 pairs" in table.meta["held_out"]["note"]
    wanted = [row["values"][4:] for row in every.rows()]
    for row, values in zip(table.rows(), wanted, strict=True):
        assert row["values"] == pytest.approx(values, abs=1e-4)
    answers = [ANSWERS] * 4 + [(5, 6), (7, 8)]
    each = evaluated(some, answers=answers, at=[-1, -1, -1, -1, 3, 2], **QUICK)
    alone = evaluate_circuit(
        model, circuit_of(), {"input_ids": base[4:]}, {"input_ids": source[4:]}, answers=answers[4:], at=[3, 2], **QUICK
    )
    assert each.columns["metric"] == pytest.approx(alone.columns["metric"], abs=1e-4)
    kept = evaluated(some, held_out=False, **QUICK)
    assert kept.meta["pairs"] == 6
    assert "4 of the 6 pairs" in kept.meta["held_out"]["note"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused():
    circuit, (base, source) = circuit_of(), pair_of(0, PAIRS)
    with pytest.raises(SpecError, match="ascending"):
        evaluated(circuit, sizes=(0.5, 0.1))
    with pytest.raises(SpecError, match="shares from 0 to 1"):
        evaluated(circuit, sizes=(0.5, 2.0))
    with pytest.raises(SpecError, match="another graph"):
        evaluated(circuit, family="gpt2")
    with pytest.raises(PositionError, match="equal length"):
        evaluate_circuit(model_of("llama"), circuit, {"input_ids": base}, {"input_ids": source[:, 1:]}, answers=ANSWERS)
    with pytest.raises(SpecError, match="same mean"):
        evaluate_circuit(model_of("llama"), circuit, {"input_ids": base}, {"input_ids": base}, answers=ANSWERS)
