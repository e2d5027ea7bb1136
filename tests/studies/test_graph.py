"""The graph of a model against counts by hand, on architectures that differ in what they share and in their order."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from tests.fast.families import shared
from tests.helpers import HIDDEN, VOCAB
from tests.studies.test_path_patching import kv_heads, model_of

from align_transformers import CircuitGraph, SpecError, UnknownNameError, graph

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def built(kind: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def edges_by_hand(heads: int, kv: int, mlps: int, routers: int, layers: int, *, parallel: bool) -> int:
    """Count the edges of a model that adds attention, then its MLP (or several experts) in each block."""
    count, before = 0, 1
    for _ in range(layers):
        count += (heads + 2 * kv) * before
        count += (mlps + routers) * (before if parallel else before + heads)
        before += heads + mlps
    return count + before


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2", "mixtral"])
def test_nodes_and_edges_are_those_by_hand(family):
    made = graph(model_of(family))
    experts, kv = 3 if family == "mixtral" else 1, kv_heads(family)
    assert len(made.senders) == 1 + LAYERS * (4 + experts)
    assert len(made) == edges_by_hand(4, kv, experts, int(family == "mixtral"), LAYERS, parallel=family == "neox")
    assert made.facts["parallel_attn_mlp"] == (family == "neox")
    names = {str(node) for node in made.receivers}
    assert {f"a2.h{kv - 1}<k>", "a2.h3<q>", "logits"} <= names
    assert (f"a2.h{kv}<v>" in names) == (kv > 4)
    edges = set(made.edges())
    assert len(edges) == len(made)
    mlp = "m1.e2" if family == "mixtral" else "m1"
    assert ("a0.h3", "a1.h0<q>") in edges
    assert ("a1.h0", "a1.h0<q>") not in edges
    assert (("a1.h0", mlp) in edges) == (family != "neox")
    assert (mlp, "a1.h1<k>") not in edges
    assert {("input", "logits"), (mlp, "logits"), ("input", mlp)} <= edges
    assert bool(made.notes) == (family == "gemma2")


def test_the_number_of_edges_that_was_measured_elsewhere():
    assert edges_by_hand(9, 3, 1, 0, 30, parallel=False) == 70651  # SmolLM2-135M, as its prototype counted


def test_keys_and_values_of_grouped_heads_make_several_heads_or_are_told_for_each():
    made, split = graph(model_of("llama")), graph(model_of("llama"), per_query_head=True)
    owners = {node.name: node.owner for node in made.receivers}
    assert owners["a1.h1<k>"] == ("a1.h2", "a1.h3")
    assert owners["a1.h1<q>"] == ("a1.h1",)
    assert len(split) == edges_by_hand(4, 4, 1, 0, LAYERS, parallel=False)
    assert {node.name: node.owner for node in split.receivers}["a1.h1<k>"] == ("a1.h1",)


def test_a_norm_behind_attention_ties_the_heads_of_a_layer():
    notes = graph(model_of("gemma2")).notes
    assert set(notes) == {f"a{layer}.h{head}" for layer in range(LAYERS) for head in range(4)}
    assert "post_attention_layernorm" in notes["a0.h0"]


def test_a_norm_over_all_heads_makes_one_node_of_queries_and_one_of_keys():
    whole = graph(built("Olmo2", num_key_value_heads=4))
    names = [str(node) for node in whole.receivers if node.layer == 0]
    assert names == ["a0<q>", "a0<k>", "a0.h0<v>", "a0.h1<v>", "a0.h2<v>", "a0.h3<v>", "m0"]
    assert "share one norm" in whole.notes["a0<q>"]
    each = graph(built("Qwen3", head_dim=8))  # norms head by head tie nothing
    assert not each.notes
    assert len(each) == edges_by_hand(4, 2, 1, 0, 2, parallel=False)


def test_what_is_shared_or_multiplied_changes_nothing():
    torch.manual_seed(0)
    gptj = transformers.GPTJConfig(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)
    made = graph(transformers.GPTJForCausalLM(gptj).eval())  # one norm for attention and MLP
    assert made.facts["parallel_attn_mlp"]
    assert len(made) == edges_by_hand(4, 4, 1, 0, 2, parallel=True)
    granite = graph(built("Granite", residual_multiplier=0.3, embedding_multiplier=5.0))
    assert len(granite) == edges_by_hand(4, 2, 1, 0, 2, parallel=False)


def test_the_shared_expert_is_a_node_of_its_own():
    model = built(
        "Qwen2Moe", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, decoder_sparse_step=1,
    )  # fmt: skip
    names = [str(node) for node in graph(model).senders if node.layer == 0]
    assert names == ["a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0.e0", "m0.e1", "m0.e2", "m0.shared"]


def test_blocks_that_do_not_add_are_one_node_with_the_reason():
    made = graph(model_of("normed behind"))
    assert list(made.edges()) == [("input", "b0"), ("b0", "b1"), ("b1", "b2"), ("b2", "logits")]
    assert "block_output is not block_input plus" in made.notes["b1"]


def test_several_stacks_are_refused():
    with pytest.raises(SpecError, match="encoder"):
        graph(shared("t5"))


def test_the_model_is_left_as_it_was():
    model = model_of("llama")
    graph(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_as_a_graph_of_networkx_it_has_no_circle_and_every_sender_reaches_the_logits():
    import networkx

    made = graph(model_of("mixtral"))
    drawn = made.to_networkx()
    assert networkx.is_directed_acyclic_graph(drawn)
    assert all(networkx.has_path(drawn, str(node), "logits") for node in made.senders)
    assert networkx.has_path(drawn, "a0.h1", "a1.h3")
    assert not networkx.has_path(drawn, "a1.h3", "a0.h1")


def test_edge_lists_are_those_of_the_benchmark():
    made: CircuitGraph = graph(model_of("llama"))
    kept = {("input", "a0.h1<k>"), ("a0.h3", "m1"), ("m1", "logits")}
    told = json.loads(made.to_json({("a0.h3", "m1"): -0.5}, kept))
    assert len(told["edges"]) == edges_by_hand(4, 4, 1, 0, LAYERS, parallel=False)  # keys and values for each head
    assert told["edges"]["a0.h3->m1"] == {"score": -0.5, "in_graph": True}
    inside = {name for name, edge in told["edges"].items() if edge["in_graph"]}
    assert inside == {"input->a0.h2<k>", "input->a0.h3<k>", "a0.h3->m1", "m1->logits"}
    on = {name for name, node in told["nodes"].items() if node["in_graph"]}
    assert on == {"input", "a0.h2", "a0.h3", "m1", "logits"}
    assert told["cfg"]["n_layers"] == LAYERS
    with pytest.raises(UnknownNameError, match="no edge"):
        made.to_dict({("a1.h0", "a0.h0<q>"): 1.0})


def test_experts_are_told_apart_only_if_what_each_adds_is_known():
    """A multiplier behind them is; a projection of what they give is not, and makes one node with the reason."""
    sizes: dict[str, Any] = {"num_local_experts": 3, "num_experts_per_tok": 2}
    multiplied = graph(built("GraniteMoe", residual_multiplier=0.3, **sizes))
    assert [str(node) for node in multiplied.senders if node.kind == "expert"][:3] == ["m0.e0", "m0.e1", "m0.e2"]
    model = built("Mixtral", **sizes)

    class Turned(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return self.turn(super().forward(states))

    for layer in model.model.layers:
        layer.mlp.turn = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        layer.mlp.__class__ = Turned
    made = graph(model)
    assert not [node for node in made.senders if node.kind == "expert"]
    assert "between what each of them gives and the stream" in made.notes["m0"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_attention_as_one_node(family):
    made = graph(model_of(family), heads=False)
    names = ["input"] + [f"{part}{layer}" for layer in range(LAYERS) for part in "am"]
    assert [node.name for node in made.senders] == names
    assert [node.name for node in made.receivers] == [*names[1:], "logits"]
    before = [1 + 2 * layer for layer in range(LAYERS)]
    assert len(made) == sum(count + count + (family != "neox") for count in before) + len(names)
    assert "as asked" in made.notes["a0"]
