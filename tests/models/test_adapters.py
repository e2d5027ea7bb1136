"""Adapters of PEFT and linear layers that PyTorch quantises: the same map, and the same edits as by plain hooks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models.small import HEAD_DIM, HEADS, KV, new, shared
from torch import Tensor, nn

from align_transformers import IntervenableModel, Site, VanillaIntervention
from align_transformers.models import find_slot, resolve

# PEFT asks transformers for something under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LAYER = 1


def with_lora(merged: bool) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8, init_lora_weights=False)
    model = get_peft_model(new("llama"), config).eval()
    if merged:
        model.merge_adapter()
    return model


def quantised() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that torchao will take this over
        return torch.ao.quantization.quantize_dynamic(new("llama"), {nn.Linear}, dtype=torch.qint8)


def the_map(model: nn.Module, prefix: str = "") -> Any:
    """Return paths, sides, widths and channels of all components."""

    def plain(slot: Any) -> Any:
        heads = None if slot.heads is None else slot.heads.tolist()
        return slot.path.removeprefix(prefix), slot.side, slot.width, heads, slot.via, slot.n_heads

    found = resolve(model)
    blocks = [{name: plain(slot) for name, slot in block.slots.items()} for block in found.stacks[""]]
    return blocks, {name: plain(slot) for name, slot in found.ends.items()}


def check_swap(model: nn.Module, component: str, module: nn.Module, side: str, heads: int, head: int) -> None:
    """Compare a swap of one head (of everything, if there are no heads) through the face with plain hooks."""
    base, source = torch.arange(3, 10)[None], torch.arange(20, 27)[None]
    kept: list[Tensor] = []

    def channels(tensor: Tensor) -> slice:
        size = tensor.shape[-1] // max(heads, 1)
        return slice(head * size, (head + 1) * size)

    def put(tensor: Tensor) -> Tensor:
        new_value = tensor.clone()
        new_value[:, 5, channels(tensor)] = kept[0][:, 2, channels(tensor)]
        return new_value

    def register(act: Any) -> Any:
        if side == "output":
            return module.register_forward_hook(lambda _m, _a, output: act(output))
        return module.register_forward_pre_hook(lambda _m, args: act(args[0]))

    with torch.no_grad():
        with register(lambda tensor: kept.append(tensor.clone())):
            model(input_ids=source)
        with register(put):
            expected = model(input_ids=base).logits
        unit = "h.pos" if heads else "pos"
        spec = {"layer": LAYER, "component": component, "unit": unit, "intervention_type": VanillaIntervention}
        where: Any = ([[[[head]], [[2]]]], [[[[head]], [[5]]]]) if heads else ([[[2]]], [[[5]]])
        face = IntervenableModel(spec, model)
        got = face({"input_ids": base}, {"input_ids": source}, {"sources->base": where})[1].logits
        assert torch.equal(got, expected)
        assert not torch.allclose(expected, model(input_ids=base).logits, atol=1e-4)


@pytest.mark.parametrize("merged", [False, True])
def test_the_map_with_lora_is_the_map_without(merged: bool) -> None:
    assert the_map(with_lora(merged), "base_model.model.") == the_map(shared("llama"))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("component", "heads"), [("query_output", HEADS), ("value_output", KV), ("mlp_output", 0)])
def test_a_swap_with_lora(component: str, heads: int, merged: bool) -> None:
    model = with_lora(merged)
    block = model.get_submodule(f"base_model.model.model.layers.{LAYER}")
    places = {"query_output": "self_attn.q_proj", "value_output": "self_attn.v_proj", "mlp_output": "mlp"}
    check_swap(model, component, block.get_submodule(places[component]), "output", heads, 1 if heads else 0)


def test_an_adapter_that_is_put_in_and_taken_out_again_is_noticed() -> None:
    model = new("llama")
    site = Site("query_output", LAYER)
    linear = find_slot(model, site).module
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False))
    adapter = find_slot(model, site).module
    assert adapter is model.model.layers[LAYER].self_attn.q_proj is not linear
    assert adapter.base_layer is linear
    plain = wrapped.unload()
    assert find_slot(plain, site).module is linear


def test_the_map_of_a_quantised_model_is_the_map_of_the_model() -> None:
    model = quantised()
    assert "quantized" in type(model.model.layers[0].mlp.down_proj).__module__
    assert the_map(model) == the_map(shared("llama"))
    assert the_map(model)[0][0]["query_output"][2] == HEADS * HEAD_DIM


@pytest.mark.parametrize(
    ("component", "path", "side", "heads"),
    [
        ("block_output", "", "output", 0),
        ("mlp_output", "mlp", "output", 0),
        ("mlp_activation", "mlp.down_proj", "input", 0),
        ("attention_value_output", "self_attn.o_proj", "input", HEADS),
        ("key_output", "self_attn.k_proj", "output", KV),
    ],
)
def test_a_swap_in_a_quantised_model(component: str, path: str, side: str, heads: int) -> None:
    model = quantised()
    block = model.get_submodule(f"model.layers.{LAYER}")
    check_swap(model, component, block.get_submodule(path), side, heads, 1 if heads else 0)
