"""Blocks with more than one MLP, or whose attention is several calls: which is which, and what an edit does there."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
import transformers as t
from tests.models.small import HIDDEN, LLAMA, PLAIN
from torch import Tensor, nn

from align_transformers import IntervenableModel, SiteError, VanillaIntervention, describe
from align_transformers.models import resolve

WIDE = {**LLAMA, "hidden_size_per_layer_input": HIDDEN + 8, "vocab_size_per_layer_input": 64}
"""Embeddings of each layer's own that are wider than the residual stream."""
MAKERS: dict[str, Any] = {
    "granitemoehybrid": lambda: t.GraniteMoeHybridForCausalLM(
        t.GraniteMoeHybridConfig(
            **{**PLAIN, "num_key_value_heads": 2}, layer_types=["full_attention"] * 2, num_local_experts=4,
            num_experts_per_tok=2, shared_intermediate_size=24, residual_multiplier=0.3,
            mamba_n_heads=8, mamba_d_head=8,
        )
    ),
    "gemma4": lambda: t.Gemma4ForCausalLM(
        t.Gemma4TextConfig(**WIDE, layer_types=["full_attention"] * 2, num_kv_shared_layers=0, global_head_dim=6)
    ),
    "gemma3n": lambda: t.Gemma3nForCausalLM(
        t.Gemma3nTextConfig(
            **WIDE, layer_types=["full_attention"] * 2, num_kv_shared_layers=0, laurel_rank=HIDDEN + 4,
            activation_sparsity_pattern=[0.0, 0.0],
        )
    ),
    "diffllama": lambda: t.DiffLlamaForCausalLM(t.DiffLlamaConfig(**PLAIN, num_key_value_heads=2)),
}  # fmt: skip
PLACES: dict[str, dict[str, str]] = {
    "granitemoehybrid": {
        "mlp_input": "shared_mlp.input",
        "mlp_output": "shared_mlp.output",
        "moe_input": "block_sparse_moe.input",
        "moe_output": "block_sparse_moe.output",
    },
    "gemma4": {
        "mlp_output": "mlp.output",
        "per_layer_mlp_input": "per_layer_input_gate.input",
        "per_layer_mlp_activation": "per_layer_projection.input",
        "per_layer_mlp_output": "per_layer_projection.output",
    },
    "gemma3n": {"mlp_output": "mlp.output", "per_layer_mlp_output": "per_layer_projection.output"},
    "diffllama": {
        "attention_input": "self_attn.input",
        "query_output": "self_attn.q_proj.output",
        "key_output": "self_attn.k_proj.output",
        "value_output": "self_attn.v_proj.output",
        "attention_value_output": "self_attn.o_proj.input",
        "attention_output": "self_attn.o_proj.output",
    },
}


@cache
def model_of(name: str) -> Any:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = MAKERS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ids(seed: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("name", PLACES)
def test_which_is_which(name: str) -> None:
    block = resolve(model_of(name)).stacks[""][1]
    found = {component: block.slots.get(component) for component in PLACES[name]}
    places = {component: str(slot).removeprefix(f"{block.path}.") for component, slot in found.items()}
    assert places == PLACES[name]


@pytest.mark.parametrize(
    ("name", "component", "path"),
    [
        ("granitemoehybrid", "moe_output", "block_sparse_moe"),
        ("granitemoehybrid", "mlp_output", "shared_mlp"),
        ("gemma4", "per_layer_mlp_output", "per_layer_projection"),
        ("gemma4", "per_layer_mlp_contribution", "post_per_layer_input_norm"),
        ("diffllama", "attention_output", "self_attn.o_proj"),
    ],
)
def test_a_swap_is_the_swap_of_the_modules_output(name: str, component: str, path: str) -> None:
    model = model_of(name)
    module: nn.Module = resolve(model).stacks[""][1].slots["block_output"].module.get_submodule(path)
    seen: list[Tensor] = []

    def swap(_module: Any, _args: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        new = tensor.view(2, 6, -1).clone()
        if len(seen) == 2:
            new[:, 3] = seen[1].view(2, 6, -1)[:, 3]
            new = new.view(tensor.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new
        seen.append(tensor)
        return None

    with module.register_forward_hook(swap), torch.no_grad():
        model(**ids(1)), model(**ids(2))
        expected = model(**ids(1)).logits
    site = {"layer": 1, "component": component, "intervention_type": VanillaIntervention}
    _, given = IntervenableModel(site, model=model)(ids(1), ids(2), {"sources->base": 3})
    torch.testing.assert_close(given.logits, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(given.logits, model(**ids(1)).logits)


def test_all_branches_are_in_the_sum() -> None:
    block = resolve(model_of("granitemoehybrid")).stacks[""][1]
    assert {name: slot.scale for name, slot in block.slots.items() if name.endswith("_contribution")} == {
        "attention_contribution": 0.3, "head_contribution": 0.3, "mlp_contribution": 0.3, "moe_contribution": 0.3,
    }  # fmt: skip
    said = str(describe(model_of("granitemoehybrid")))
    assert "block_output = block_input + attention_contribution + mlp_contribution + moe_contribution" in said


def test_the_values_of_two_calls_are_all_heads_of_the_projection() -> None:
    slots = resolve(model_of("diffllama")).stacks[""][0].slots
    assert [len(slots[f"{role}_output"].heads) for role in ("query", "key", "value")] == [4, 2, 2]
    assert torch.equal(slots["value_output"].heads, torch.arange(16).view(2, 8))
    assert slots["attention_value_output"].heads is None  # a norm of two heads together stands before it


def test_heads_of_two_calls_together_are_refused() -> None:
    site = {"layer": 0, "component": "head_output", "intervention_type": VanillaIntervention}
    with pytest.raises(SiteError, match="2 attention calls make one attention here"):
        IntervenableModel(site, model=model_of("diffllama"))(ids(1), ids(2), {"sources->base": 3})


class Late(nn.Module):
    """A convolution over the last two positions."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(HIDDEN, HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(nn.functional.pad(x.transpose(1, 2), (1, 0))).transpose(1, 2)


def test_convolutions_behind_attention_and_mlp_are_no_mixers() -> None:
    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.self_attn, self.mlp = block.self_attn, block.mlp
            self.norms = nn.ModuleList([block.input_layernorm, block.post_attention_layernorm])
            self.late = nn.ModuleList([Late(), Late()])

        def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
            x = hidden_states
            x = x + self.late[0](self.self_attn(self.norms[0](x), **options)[0])
            return x + self.late[1](self.mlp(self.norms[1](x)))

    model: Any = t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)).eval()
    for n in range(2):
        model.model.layers[n] = Block(model.model.layers[n])
    block = resolve(model).stacks[""][1]
    assert block.slots["attention_output"].path == "model.layers.1.self_attn.o_proj"
    assert block.slots["mlp_output"].path == "model.layers.1.mlp"
    assert block.flags["mixer"] == "softmax"
    assert "model.layers.1.late.0, model.layers.1.late.1 work on what other parts give" in block.missing["mixer_output"]
