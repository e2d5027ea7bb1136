"""Searches for circuits against hooks by hand: what is scored, what is kept, what is told, what is gone on with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import pytest
import torch
from tests.helpers import VOCAB, tiny, tokens
from tests.studies.test_path_patching import model_of
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import (
    ArtifactError,
    Circuit,
    PositionError,
    SpecError,
    circuit,
    edge_attribution,
    graph,
    kl_to_clean,
    logit_difference,
)  # fmt: skip
from align_transformers.studies._pairs import pair_up
from align_transformers.studies.circuits.circuit_runner import Answered, CircuitRunner

ANSWERS, PAIRS, LENGTH = (4, 9), 3, 4
BASE, SOURCE = (tokens(PAIRS, LENGTH, seed) for seed in (1, 2))
GIVEN = {"base": BASE, "source": SOURCE, "answers": ANSWERS}


def difference(logits: Tensor) -> Tensor:
    return logits[:, -1, ANSWERS[1]] - logits[:, -1, ANSWERS[0]]


@cache
def small() -> GPT2LMHeadModel:
    """A model of 46 edges."""
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.4)).eval()


class Seen:
    """What comes by in a run of GPT-2, by hand."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        model: Any = tiny("gpt2")
        self.z: list[Tensor] = []
        self.act: list[Tensor] = []
        self.mlp: list[Tensor] = []
        hooks = [model.transformer.ln_f.register_forward_pre_hook(lambda _, given: setattr(self, "end", given[0]))]
        for block in model.transformer.h:
            hooks.append(block.attn.c_proj.register_forward_pre_hook(lambda _, given: self.z.append(given[0])))
            hooks.append(block.mlp.c_proj.register_forward_pre_hook(lambda _, given: self.act.append(given[0])))
            hooks.append(block.mlp.register_forward_hook(lambda _, given, made: self.mlp.append(made)))
        with torch.no_grad():
            self.value = difference(model(**inputs).logits)
        for hook in hooks:
            hook.remove()


@cache
def runs() -> tuple[Seen, Seen]:
    return Seen(BASE), Seen(SOURCE)


def replaced(changes: list[tuple[Any, slice | int, Tensor]], inputs: dict[str, Tensor] = BASE) -> Tensor:
    """The metric of each pair where columns of modules' inputs are those of another run."""
    hooks = []
    for module, columns, other in changes:

        def put(_: Any, given: Any, columns: Any = columns, other: Tensor = other) -> Any:
            new = given[0].clone()
            new[..., columns] = other[..., columns]
            return (new,)

        hooks.append(module.register_forward_pre_hook(put))
    with torch.no_grad():
        found = difference(tiny("gpt2")(**inputs).logits)
    for hook in hooks:
        hook.remove()
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2"])
def test_the_gradient_at_the_full_graph_is_eap(family):
    model = model_of(family)
    made, metric = graph(model, experts=False), logit_difference(ANSWERS[1], ANSWERS[0])
    pairs = pair_up(BASE, SOURCE, None, model, None, None, None, None)
    runner = CircuitRunner(model, made, pairs, Answered([metric] * PAIRS), at_once=2)
    values, gradient = runner.gradient(torch.ones(len(made)))
    eap = torch.tensor(edge_attribution(model, BASE, SOURCE, metric=metric).columns["score"])
    assert torch.allclose(-gradient / PAIRS, eap, rtol=1e-4, atol=1e-4 * eap.abs().max().item())
    with torch.no_grad():
        assert torch.allclose(values, difference(model(**BASE).logits), atol=1e-4)


def test_of_an_edge_into_the_logits_the_exact_score_is_what_its_difference_does_there():
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, method="exact", threshold=1e-9)
    here, other = runs()
    with torch.no_grad():
        stream = here.end + other.mlp[1] - here.mlp[1]
        then = difference(model.lm_head(model.transformer.ln_f(stream)))
    number = list(found.graph.edges()).index(("m1", "logits"))
    assert found.scores is not None
    assert found.scores[number].item() == pytest.approx((then - here.value).mean().item(), abs=1e-5)
    assert found.facts["passes"]["circuit"] == -(-len(found.graph) // 64)


def test_of_a_node_the_exact_score_is_what_its_other_value_does_everywhere():
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, method="exact", level="nodes", nodes=3)
    here, other = runs()
    scores = found.facts["node_scores"]
    size = model.config.n_embd // model.config.n_head
    for name, module, columns, value in [
        ("a0.h1", model.transformer.h[0].attn.c_proj, slice(size, 2 * size), other.z[0]),
        ("a2.h3", model.transformer.h[2].attn.c_proj, slice(3 * size, 4 * size), other.z[2]),
        ("m1", model.transformer.h[1].mlp.c_proj, slice(None), other.act[1]),
    ]:
        meant = (replaced([(module, columns, value)]) - here.value).mean().item()
        assert scores[name] == pytest.approx(meant, abs=1e-5), name
    assert "input" not in scores
    strongest = sorted(scores, key=lambda name: -abs(scores[name]))[:3]
    assert set(found.facts["nodes"]) == set(strongest) == set(found.nodes) - {"input", "logits"}


def test_edges_between_kept_nodes_are_the_model_whose_other_nodes_are_those_of_the_source():
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, level="nodes", nodes=8)
    _, other = runs()
    size, changes = model.config.n_embd // model.config.n_head, []
    for layer, block in enumerate(model.transformer.h):
        gone = [head for head in range(4) if f"a{layer}.h{head}" not in found.facts["nodes"]]
        changes += [(block.attn.c_proj, slice(h * size, (h + 1) * size), other.z[layer]) for h in gone]
        if f"m{layer}" not in found.facts["nodes"]:
            changes.append((block.mlp.c_proj, slice(None), other.act[layer]))
    pairs = pair_up(BASE, SOURCE, None, model, None, None, None, None)
    metric = logit_difference(ANSWERS[1], ANSWERS[0])
    measured = CircuitRunner(model, found.graph, pairs, Answered([metric] * PAIRS)).measure(found.kept[None])[0]
    assert len(changes) == 15 - 8
    assert torch.allclose(measured.float(), replaced(changes), atol=1e-4)
    assert len(found.connected()) == len(found)


def test_scores_of_nodes_are_sums_over_the_edges_that_leave_them():
    edges, nodes = (
        circuit(tiny("gpt2"), **GIVEN, level=level, threshold=1e-9, method="eap-ig") for level in ("edges", "nodes")
    )
    assert edges.scores is not None
    sums: dict[str, float] = {}
    for (sender, _), score in zip(edges.graph.edges(), edges.scores.tolist(), strict=True):
        sums[sender] = sums.get(sender, 0.0) + score
    assert nodes.facts["node_scores"] == pytest.approx({name: sums[name] for name in sums if name != "input"})


def test_neurons_are_scored_by_what_their_other_value_does():
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, method="exact", level="neurons", neurons=5)
    here, other = runs()
    rows = list(found.rows())
    width = model.config.n_embd
    assert len(rows) == model.config.n_layer * (width + 4 * width)
    for row in [rows[3], rows[width + 7], rows[-1], rows[2 * 5 * width + 9]]:
        block = model.transformer.h[row["layer"]]
        head = row["component"] == "attention_value_output"
        column = row["neuron"] + (row["head"] * (width // 4) if head else 0)
        module, values = (block.attn.c_proj, other.z) if head else (block.mlp.c_proj, other.act)
        meant = (replaced([(module, column, values[row["layer"]])]) - here.value).mean().item()
        assert row["score"] == pytest.approx(meant, abs=1e-5)
    kept = sorted((abs(row["score"]) for row in rows), reverse=True)[:5]
    assert sorted((abs(row["score"]) for row in rows if row["kept"]), reverse=True) == kept


@pytest.mark.parametrize(("method", "points"), [("eap", [0.0]), ("eap-ig", [0.0, 0.5, 1.0])])
def test_gradients_of_neurons_are_those_of_autograd(method, points):
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, method=method, points=3, level="neurons", neurons=1)
    here, other = runs()
    embedded = [model.transformer.wte(inputs["input_ids"]).detach() for inputs in (BASE, SOURCE)]
    weights = {1: [1.0], 3: [0.25, 0.5, 0.25]}[len(points)]
    total = torch.zeros(4 * model.config.n_embd)
    for point, weight in zip(points, weights, strict=True):
        held: list[Tensor] = []
        hook = model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(
            lambda _, given, held=held: held.append(given[0])
        )
        logits = model(inputs_embeds=torch.lerp(*embedded, point).requires_grad_()).logits
        hook.remove()
        (gradient,) = torch.autograd.grad(difference(logits).sum(), held)
        total += weight * ((other.act[1] - here.act[1]) * gradient).sum((0, 1)) / PAIRS
    rows = [row for row in found.rows() if row["layer"] == 1 and row["component"] == "mlp_activation"]
    assert torch.allclose(torch.tensor([row["score"] for row in rows]).float(), total, atol=1e-4)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations_are_those_of_neurons_by_hand(ablation):
    model: Any = tiny("gpt2")
    found = circuit(model, **GIVEN, method="exact", level="neurons", neurons=5, ablation=ablation)
    here, other = runs()
    value = other.act[2].mean((0, 1)).expand_as(other.act[2]) if ablation == "mean" else torch.zeros_like(here.act[2])
    rows = [row for row in found.rows() if row["layer"] == 2 and row["component"] == "mlp_activation"]
    meant = (replaced([(model.transformer.h[2].mlp.c_proj, 11, value)]) - here.value).mean().item()
    assert rows[11]["score"] == pytest.approx(meant, abs=1e-5)


def test_only_edges_that_help_count_where_the_sign_does():
    found = circuit(tiny("gpt2"), **GIVEN, method="eap", edges=10, signed=True)
    here, other = runs()
    direction = 1 if other.value.mean() >= here.value.mean() else -1
    assert found.facts["selection"]["direction"] == direction
    assert found.scores is not None
    assert float((found.scores[found.kept] * direction).min()) > 0


# --- ACDC and masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["edges", "nodes", "neurons"])
def test_distances_are_divergences_from_the_whole_model(level):
    model = small()
    pairs = {"base": tokens(2, 3, 1), "source": tokens(2, 3, 2)}
    if level == "neurons":
        found = circuit(model, **pairs, method="masks", level=level, neurons=30, steps=3)
        assert sum(found.columns["kept"]) == 30
        assert found.meta["distance"] > 0
        return
    found = circuit(model, **pairs, method="acdc", level=level, threshold=0.05)
    made = pair_up(*pairs.values(), None, model, None, None, None, None)
    runner = CircuitRunner(model, found.graph, made, Answered([kl_to_clean()] * 2))
    assert runner.measure(found.kept[None]).mean().item() == pytest.approx(found.facts["distance"], abs=1e-5)
    first, second = found.facts["orders"]
    assert (first["order"], second["order"]) == ("backward", "random")
    assert first["overlap"] == 1.0
    assert 0 <= second["overlap"] <= 1
    assert first["kept"] == (len(found) if level == "edges" else len(found.facts["nodes"]))
    assert "KL" in found.facts["metric"]


def test_a_metric_of_ones_own_is_watched_by_its_change():
    model, metric = tiny("gpt2"), logit_difference(ANSWERS[1], ANSWERS[0])
    found = circuit(model, BASE, SOURCE, metric=metric, method="masks", edges=15, steps=4)
    pairs = pair_up(BASE, SOURCE, None, model, None, None, None, None)
    runner = CircuitRunner(model, found.graph, pairs, Answered([metric] * PAIRS))
    meant = (runner.measure(found.kept[None])[0] - runner.ends[0]).abs().mean().item()
    assert found.facts["distance"] == pytest.approx(meant, abs=1e-5)
    assert found.facts["target"] == 15
    assert 15 <= len(found) < 20


def test_of_nested_circuits_the_one_that_costs_least_is_taken():
    model, metric = small(), logit_difference(ANSWERS[1], ANSWERS[0])
    price = 0.02
    found = circuit(model, BASE, SOURCE, metric=metric, method="masks", threshold=price, steps=25)
    pairs = pair_up(BASE, SOURCE, None, model, None, None, None, None)
    runner = CircuitRunner(model, found.graph, pairs, Answered([metric] * PAIRS))
    assert found.scores is not None
    order, costs = found.scores.argsort(descending=True, stable=True), []
    for size in range(len(found.graph) + 1):
        kept = torch.zeros(len(found.graph), dtype=torch.bool)
        kept[order[:size]] = True
        own = (runner.measure(kept[None])[0] - runner.ends[0]).abs().mean().item()
        costs.append(own + price * len(Circuit(found.graph, kept).connected()))
    assert found.facts["distance"] + price * len(found) == pytest.approx(min(costs), abs=1e-5)
    assert 0 < costs.index(min(costs)) < len(costs) - 1


# --- what is told, and going on ---------------------------------------------------------------------------------------


def test_facts_tell_the_pairs():
    found = circuit(tiny("gpt2"), **GIVEN, edges=5)
    sides = zip(BASE["input_ids"].tolist(), SOURCE["input_ids"].tolist(), strict=True)
    hashes = [hashlib.sha256(json.dumps(list(two)).encode()).hexdigest() for two in sides]
    assert found.facts["pair_hashes"] == hashes
    assert found.facts["data"] == hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
    told = {name: found.facts[name] for name in ("study", "method", "level", "ablation", "pairs", "seed")}
    assert told == {
        "study": "circuit", "method": "eap", "level": "edges", "ablation": "resample", "pairs": PAIRS, "seed": 0
    }  # fmt: skip
    json.dumps(dict(found.facts))


class Killed(Exception):
    pass


HOW = {
    "exact": {"edges": 12, "at_once": 2},
    "acdc": {"threshold": 0.05},
    "masks": {"edges": 12, "steps": 8, "at_once": 2},
}


@pytest.mark.parametrize("method", HOW)
def test_a_killed_search_goes_on_to_the_same_bits(method, tmp_path, monkeypatch):
    monkeypatch.setattr("align_transformers.studies.circuits.circuit_runner._ROWS", 7 * 12 * 16 * 8)  # few copies
    given, model = {**GIVEN, "method": method, **HOW[method]}, small()
    whole = circuit(model, **given)
    calls: list[int] = []

    def killing(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 4:
            raise Killed

    with pytest.raises(Killed):
        circuit(model, **given, store=tmp_path, progress=killing)
    later: list[int] = []
    again = circuit(model, **given, store=tmp_path, progress=lambda done, total: later.append(done))
    assert torch.equal(again.kept, whole.kept)
    assert later[0] >= calls[-1] > 0
    if whole.scores is not None:
        assert again.scores is not None
        slack = 1e-6 if method == "exact" else 0.0  # once in some twenty runs these differed; masks and ACDC never
        assert (again.scores - whole.scores).abs().max() <= slack
    assert again.facts.get("orders") == whole.facts.get("orders")
    with pytest.raises(SpecError, match="belongs to another search, with another asked"):
        circuit(model, **given, seed=5, store=tmp_path)
    with pytest.raises(SpecError, match="belongs to another search, with another data"):
        circuit(model, **{**given, "source": tokens(PAIRS, LENGTH, 3)}, store=tmp_path)
    (part, *_) = sorted(tmp_path.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(ArtifactError, match="is damaged"):
        circuit(model, **given, store=tmp_path)


def test_a_seed_gives_the_same_masks_and_the_model_is_as_it_was():
    model = tiny("gpt2")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    first, again, other = (circuit(model, **GIVEN, method="masks", edges=9, steps=5, seed=s) for s in (1, 1, 2))
    assert first.scores is not None
    assert again.scores is not None
    assert other.scores is not None
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "needs either edges= or threshold="),
    ({"edges": 3, "threshold": 0.1}, "needs either edges= or threshold="),
    ({"nodes": 3}, "nodes= is for level='nodes'"),
    ({"edges": -1}, "from 0; found -1"),
    ({"edges": 3, "method": "acdc"}, "keeps what is worth threshold="),
    ({"method": "acdc"}, "needs threshold="),
    ({"threshold": 0.0, "method": "acdc"}, "a number above 0"),
    ({"threshold": float("nan")}, "a number above 0"),
    ({"threshold": 0.1, "method": "acdc", "orders": ()}, "at least one order"),
    ({"threshold": 0.1, "select": "greedy"}, "select='greedy'"),
    ({"level": "nodes", "nodes": 2, "select": "greedy"}, "select='greedy'"),
    ({"edges": 3, "method": "masks", "signed": True}, "signed=True"),
    ({"edges": 3, "method": "masks", "rate": 0.0}, "rate is above 0"),
    ({"edges": 3, "method": "masks", "steps": 0}, "steps is from 1"),
    ({"edges": 3, "method": "eap-ig", "ablation": "zero"}, "ablation='resample'"),
    ({"edges": 3, "reference": BASE}, "reference= are prompts whose mean"),
]


@pytest.mark.parametrize(("asked", "why"), WRONG)
def test_what_does_not_fit_is_refused(asked, why):
    with pytest.raises(SpecError, match=why):
        circuit(tiny("gpt2"), BASE, SOURCE, **asked)


def test_prompts_of_other_lengths_are_refused():
    with pytest.raises(PositionError, match="pair 0: the base has 4 tokens"):
        circuit(tiny("gpt2"), BASE, tokens(PAIRS, 5, 2), method="acdc", threshold=0.1)
