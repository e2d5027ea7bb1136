"""`Circuit`: which edges lead from the embeddings to the logits, against a search by hand, and files."""

from __future__ import annotations

import json
from typing import Any

import networkx
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.studies.test_path_patching import model_of

from align_transformers import Circuit, CircuitGraph, SpecError, UnknownNameError, graph

FAMILIES = ("gpt2", "llama", "neox", "mixtral")


def graph_of(family: str, known: dict[str, CircuitGraph] = {}) -> CircuitGraph:  # noqa: B006  # made once each
    if family not in known:
        known[family] = graph(model_of(family))
    return known[family]


def on_a_path(made: CircuitGraph, kept: torch.Tensor) -> list[bool]:
    """Return which kept edges are on a path from `input` to `logits`: by reachability in a graph of networkx."""
    edges = [edge for edge, here in zip(made.edges(), kept.tolist(), strict=True) if here]
    whole = networkx.DiGraph(edges)
    whole.add_nodes_from(["input", "logits"])
    whole.add_edges_from((r.name, owner) for r in made.receivers for owner in r.owner if owner != r.name)
    behind = networkx.descendants(whole, "input") | {"input"}
    before = networkx.ancestors(whole, "logits") | {"logits"}
    return [
        here and sender in behind and receiver in before
        for (sender, receiver), here in zip(made.edges(), kept.tolist(), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.02, 0.05, 0.1, 0.3]))
def test_connected_is_what_lies_on_a_path(family, seed, share):
    made = graph_of(family)
    kept = torch.rand(len(made), generator=torch.Generator().manual_seed(seed)) < share
    assert Circuit(made, kept).connected().kept.tolist() == on_a_path(made, kept)


def test_of_names_edges_and_nodes():
    made = graph_of("llama")
    edges = [("input", "a0.h0<k>"), ("a0.h1", "a2.h3<q>"), ("a2.h3", "logits")]
    small = Circuit.of(made, edges)
    assert (len(small), len(small.without()), set(small.edges())) == (3, len(made) - 3, set(edges))
    assert small.nodes == ["input", "a0.h0", "a0.h1", "a2.h3", "logits"]  # a kv head makes what two heads read


def test_refused():
    made = graph_of("llama")
    with pytest.raises(UnknownNameError, match=r"the graph has no edge \('a0.h0', 'a0.h1<q>'\)"):
        Circuit.of(made, [("a0.h0", "a0.h1<q>")])
    with pytest.raises(SpecError, match="kept has shape"):
        Circuit(made, torch.ones(3, dtype=torch.bool))
    with pytest.raises(SpecError, match="kept is booleans"):
        Circuit(made, torch.ones(len(made)))
    with pytest.raises(SpecError, match="scores has shape"):
        Circuit(made, torch.ones(len(made), dtype=torch.bool), torch.ones(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_brings_it_back(family, tmp_path):
    made, generator = graph_of(family), torch.Generator().manual_seed(0)
    kept = torch.rand(len(made), generator=generator) < 0.2
    one = Circuit(made, kept, torch.randn(len(made), generator=generator), {"method": "eap", "seed": 3})
    one.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json", made)
    assert torch.equal(again.kept, one.kept)
    torch.testing.assert_close(again.scores, one.scores)
    assert dict(again.facts) == {"method": "eap", "seed": 3}
    listed: Any = json.loads((tmp_path / "circuit.json").read_text(encoding="utf-8"))
    assert set(listed) >= {"cfg", "nodes", "edges"}  # the benchmark's names


def test_files_that_are_none_or_of_others(tmp_path):
    made = graph_of("llama")
    Circuit(made, torch.ones(len(made), dtype=torch.bool)).save(tmp_path / "circuit.json")
    with pytest.raises(SpecError, match="is about another graph"):
        Circuit.load(tmp_path / "circuit.json", graph_of("gpt2"))
    for text in ("", "[1]", '{"edges": {"a->b": 3}}', '{"edges": {"a->b": {"in_graph": true}}}'):
        (tmp_path / "other.json").write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match="is no list of edges"):
            Circuit.load(tmp_path / "other.json", made)


def test_drawn_by_networkx():
    made = graph_of("llama")
    scores = torch.arange(len(made), dtype=torch.float32)
    edges = [("input", "a0.h1<q>"), ("a0.h1", "logits")]
    drawn = Circuit(made, Circuit.of(made, edges).kept, scores).to_networkx()
    assert set(drawn) == {"input", "a0.h1<q>", "a0.h1", "logits"}
    assert set(drawn.edges) == {*edges, ("a0.h1<q>", "a0.h1")}
    known = list(made.edges())
    assert drawn.edges["a0.h1", "logits"]["score"] == known.index(("a0.h1", "logits"))


def test_a_model_with_one_norm_over_all_queries():
    """Of a coarser receiver all heads are made, so that one edge keeps them all alive."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.Olmo2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0)
    made = graph(transformers.AutoModelForCausalLM.from_config(config).eval())
    edges = [("input", "a0<q>"), ("a0.h0", "logits"), ("a0.h1", "logits"), ("m0", "logits")]
    assert set(Circuit.of(made, edges).connected().edges()) == set(edges[:3])
