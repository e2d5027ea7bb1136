"""What a sublayer adds to the residual stream, after norms and multipliers: read, and edited."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
import transformers as t
from tests.models.small import HIDDEN, LLAMA, PLAIN, T5
from torch import Tensor, nn

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    SiteError,
    VanillaIntervention,
    describe,
)
from align_transformers.models import resolve

SHARED = {**PLAIN, "num_key_value_heads": 2}
MAKERS: dict[str, Any] = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_embd=HIDDEN, n_layer=2, n_head=4)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LLAMA)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**LLAMA)),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SHARED)),
    "glm4": lambda: t.Glm4ForCausalLM(t.Glm4Config(**LLAMA)),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**SHARED, residual_multiplier=0.22)),
    "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**PLAIN, use_parallel_residual=True)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=64, hidden_size=HIDDEN, n_layer=2, n_head=4)),
    "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=64, hidden_size=HIDDEN, num_hidden_layers=2)),
}
SCALE = {"granite": 0.22}
ADDED: dict[str, dict[str, str]] = {
    "gpt2": {"attention": "attn.resid_dropout", "mlp": "mlp.dropout"},
    "gemma2": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "gemma3": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "olmo2": {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "glm4": {"attention": "post_self_attn_layernorm", "mlp": "post_mlp_layernorm"},
    "granite": {"attention": "self_attn", "mlp": "mlp"},
    "neox": {"attention": "attention", "mlp": "mlp"},
    "bloom": {"attention": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "mamba": {"mixer": "mixer"},
}
"""The modules, from the block on, whose outputs are added (times `SCALE`)."""


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


def block_of(model: nn.Module, layer: int) -> nn.Module:
    stack = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    return stack[layer]


def ids(seed: int, batch: int = 2, length: int = 6) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(seed))}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def with_output(module: nn.Module, change: Any, model: nn.Module, inputs: Any) -> Tensor:
    """Return the logits of a pass in which a module's output is another."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        new = change(first(output).clone())
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with module.register_forward_hook(hook), torch.no_grad():
        return model(**inputs).logits


def seen_of(module: nn.Module, model: nn.Module, inputs: Any) -> Tensor:
    seen: list[Tensor] = []
    with_output(module, lambda tensor: (seen.append(tensor.clone()), tensor)[1], model, inputs)
    return seen[0]


def collect(model: nn.Module, names: list[str], inputs: Any, layer: int = 1) -> dict[str, Tensor]:
    sites = [{"layer": layer, "component": name, "intervention_type": CollectIntervention} for name in names]
    return dict(
        zip(names, IntervenableModel(sites, model=model)(inputs, return_dict=True).collected_activations, strict=True)
    )


@pytest.mark.parametrize("name", MAKERS)
def test_input_plus_contributions_is_output(name: str) -> None:
    model, parts = model_of(name), ADDED[name]
    names = [f"{part}_contribution" for part in parts]
    got = collect(model, ["block_input", *names, "block_output"], ids(1))
    total = got["block_input"] + sum(got[name] for name in names)
    torch.testing.assert_close(total, got["block_output"], rtol=1e-4, atol=1e-4)
    for part, path in parts.items():
        expected = seen_of(block_of(model, 1).get_submodule(path), model, ids(1)) * SCALE.get(name, 1.0)
        torch.testing.assert_close(got[f"{part}_contribution"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "bloom"])
def test_a_swapped_contribution_is_what_is_added(name: str) -> None:
    model, base, source = model_of(name), ids(1), ids(2)
    for part, path in ADDED[name].items():
        module = block_of(model, 1).get_submodule(path)
        new = seen_of(module, model, source)

        def swap(tensor: Tensor, new: Tensor = new) -> Tensor:
            tensor[:, 3] = new[:, 3]
            return tensor

        expected = with_output(module, swap, model, base)
        site = {"layer": 1, "component": f"{part}_contribution", "intervention_type": VanillaIntervention}
        _, given = IntervenableModel(site, model=model)(base, source, {"sources->base": 3})
        torch.testing.assert_close(given.logits, expected, rtol=1e-5, atol=1e-5)


def test_a_vector_added_to_a_contribution_is_added_to_the_stream() -> None:
    model, vector = model_of("granite"), torch.linspace(-1, 1, HIDDEN)
    site = {
        "layer": 0,
        "component": "mlp_contribution",
        "intervention_type": AdditionIntervention,
        "source_representation": vector,
    }
    _, given = IntervenableModel(site, model=model)(ids(1), None, {"base": 2})

    def add(tensor: Tensor) -> Tensor:
        tensor[:, 2] += vector
        return tensor

    expected = with_output(block_of(model, 0), add, model, ids(1))
    torch.testing.assert_close(given.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("component", ["mlp_contribution", "head_contribution"])
def test_swapping_with_itself_changes_no_bit(component: str) -> None:
    model = model_of("granite")
    with torch.no_grad():
        plain = model(**ids(1)).logits
    site = {"layer": 1, "component": component, "intervention_type": VanillaIntervention}
    _, given = IntervenableModel(site, model=model)(ids(1), ids(1), {"sources->base": 3})
    assert torch.equal(given.logits, plain)


@pytest.mark.parametrize(
    ("name", "path", "scale"), [("gpt2", "attn.c_proj", 1.0), ("granite", "self_attn.o_proj", 0.22)]
)
def test_what_a_head_adds(name: str, path: str, scale: float) -> None:
    model, base, source = model_of(name), ids(1), ids(2)
    module: Any = block_of(model, 1).get_submodule(path)
    weight = module.weight if name == "gpt2" else module.weight.T  # (in, out)
    shares = {}
    for key, inputs in (("base", base), ("source", source)):
        seen: list[Tensor] = []
        with (
            module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].clone())),
            torch.no_grad(),
        ):
            model(**inputs)
        z = seen[0].unflatten(-1, (4, -1))
        shares[key] = torch.einsum("blhd,hdw->blhw", z, weight.detach().unflatten(0, (4, -1))) * scale
    got = collect(model, ["head_contribution"], base)["head_contribution"]
    torch.testing.assert_close(got.unflatten(-1, (4, -1)), shares["base"], rtol=1e-4, atol=1e-5)

    def swap(tensor: Tensor) -> Tensor:
        tensor[:, 3] += (shares["source"] - shares["base"])[:, 3, 2] / scale
        return tensor

    expected = with_output(module, swap, model, base)
    site = {"layer": 1, "component": "head_contribution", "unit": "h.pos", "intervention_type": VanillaIntervention}
    _, given = IntervenableModel(site, model=model)(base, source, {"sources->base": ([[[[2]] * 2, [[3]] * 2]],) * 2})
    torch.testing.assert_close(given.logits, expected, rtol=1e-5, atol=1e-5)


def test_two_edits_of_a_scaled_place_and_of_the_place_itself() -> None:
    model = model_of("granite")
    module = block_of(model, 1).get_submodule("mlp")
    one = torch.ones(HIDDEN)
    add = {"layer": 1, "intervention_type": AdditionIntervention, "source_representation": one}
    both = [add | {"component": "mlp_output"}, add | {"component": "mlp_contribution"}]
    _, given = IntervenableModel(both, model=model)(ids(1), None, {"base": 2})

    def change(tensor: Tensor) -> Tensor:
        tensor[:, 2] += one + one / 0.22
        return tensor

    torch.testing.assert_close(given.logits, with_output(module, change, model, ids(1)), rtol=1e-5, atol=1e-5)


def test_a_gradient_goes_through_a_scaled_place() -> None:
    model = model_of("granite")
    vector = torch.zeros(HIDDEN, requires_grad=True)
    handle = block_of(model, 1).register_forward_hook(lambda _m, _a, out: first(out) + vector)
    try:
        (expected,) = torch.autograd.grad(model(**ids(1)).logits[:, -1].sum(), [vector])
    finally:
        handle.remove()
    site = {"layer": 1, "component": "mlp_contribution", "intervention": lambda base, _: base + vector}
    _, given = IntervenableModel(site, model=model)(ids(1), None, {"base": None})
    (found,) = torch.autograd.grad(given.logits[:, -1].sum(), [vector])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_number_for_each_block() -> None:
    model = t.GraniteForCausalLM(t.GraniteConfig(**SHARED, residual_multiplier=0.22)).eval()
    model.model.layers[1].residual_multiplier = 0.5
    scales = [block.slots["mlp_contribution"].scale for block in resolve(model).stacks[""]]
    assert scales == [0.22, 0.5]


def test_what_is_no_sum_is_refused_with_the_reason() -> None:
    bert = t.BertModel(t.BertConfig(**PLAIN)).eval()
    with pytest.raises(SiteError, match="block_output is not block_input plus what the parts that are known give"):
        IntervenableModel({"layer": 0, "component": "mlp_contribution"}, model=bert)(
            ids(1), ids(2), {"sources->base": 1}
        )
    with pytest.raises(SiteError, match=r"post_attention_layernorm works on the heads' sum"):
        collect(model_of("gemma2"), ["head_contribution"], ids(1))


def test_a_weight_on_the_way_is_no_number() -> None:
    class Gated(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block, self.gate = block, nn.Parameter(torch.tensor(0.5))

        def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
            return hidden_states + self.gate * (self.block(hidden_states, **options) - hidden_states)

    model = t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)).eval()
    for n in range(2):
        model.model.layers[n] = Gated(model.model.layers[n])
    block = resolve(model).stacks[""][0]
    assert "mlp_contribution" not in block.slots
    assert "times any number" in block.missing["mlp_contribution"]


def test_both_stacks_of_an_encoder_decoder() -> None:
    found = resolve(t.T5ForConditionalGeneration(t.T5Config(**T5)).eval()).stacks
    added = {name: slot.path for name, slot in found["decoder"][0].slots.items() if name.endswith("contribution")}
    assert added == {
        "attention_contribution": "decoder.block.0.layer.0.dropout",
        "head_contribution": "decoder.block.0.layer.0.SelfAttention.o",
        "cross_attention_contribution": "decoder.block.0.layer.1.dropout",
        "cross_head_contribution": "decoder.block.0.layer.1.EncDecAttention.o",
        "mlp_contribution": "decoder.block.0.layer.2.dropout",
    }


def test_describe_says_which_is_which() -> None:
    text = str(describe(model_of("granite")))
    assert "block_output = block_input + attention_contribution + mlp_contribution" in text
    assert "attention_output, times 0.22" in text
    assert "what post_attention_layernorm makes of attention_output" in str(describe(model_of("gemma2")))
