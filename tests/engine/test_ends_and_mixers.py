"""Mixers that are not softmax attention, and the two ends of a model, against plain hooks on modules named here."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import pytest
import torch
from tests.architectures.tiny import tiny_model
from tests.helpers import Locus, grab, hooked, new_model, padded_tokens, tokens, writer
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    Site,
    SiteError,
    SpecError,
    VanillaIntervention,
    ZeroIntervention,
)
from align_transformers.models import resolve

MIXERS = {
    "mamba": ("CAUSAL_LM", 1, "backbone.layers.1.mixer"),
    "rwkv": ("CAUSAL_LM", 1, "rwkv.blocks.1.attention"),
    "jamba": ("CAUSAL_LM", 0, "model.layers.0.mamba"),
    "qwen3_next": ("CAUSAL_LM", 0, "model.layers.0.linear_attn"),
    "fnet": ("MASKED_LM", 1, "fnet.encoder.layer.1.fourier.self"),
}
ENDS = {
    ("gpt2", "embedding_output"): "transformer.wte",
    ("gpt2", "final_norm_output"): "transformer.ln_f",
    ("gpt2", "logits"): "lm_head",
    ("llama", "embedding_output"): "model.embed_tokens",
    ("llama", "final_norm_output"): "model.norm",
    ("llama", "logits"): "lm_head",
    ("mamba", "embedding_output"): "backbone.embeddings",
    ("mamba", "final_norm_output"): "backbone.norm_f",
    ("mamba", "logits"): "lm_head",
}


@lru_cache(maxsize=16)
def model_of(name: str) -> Any:
    if name in ("gpt2", "llama"):
        return new_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny_model(MIXERS[name][0], name).model


def spec(component: str, kind: Any, layer: int | None = None, **more: Any) -> dict[str, Any]:
    return {"layer": layer, "component": component, "intervention_type": kind, "max_number_of_units": 3, **more}


def padded_for(name: str) -> dict[str, Tensor]:
    inputs = padded_tokens((6, 4), "left", 1)
    if name in ("rwkv", "fnet"):  # they take no attention mask
        inputs = tokens(2, 6, 1)
        del inputs["attention_mask"]
    return inputs


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_mixers(name: str, side: str) -> None:
    _, layer, path = MIXERS[name]
    model, base, source = model_of(name), padded_for(name), tokens(2, 6, 2)
    if "attention_mask" not in base:
        del source["attention_mask"]
    width = model.config.hidden_size
    place = Locus(model.get_submodule(path), side, 0, width, width)
    read, write = [[0, 5], [4, 3]], [[5, 3], [2, 4]]
    (value,) = grab(model, source, place)
    component = f"mixer_{side}"
    got = IntervenableModel(spec(component, VanillaIntervention, layer), model)(
        base, source, {"sources->base": ([read], [write])}, return_dict=True
    )
    with hooked(writer(place, write, lambda _old, n: value[n, read[n]])):
        expected = model(**base).logits
    assert torch.equal(got.intervened_outputs.logits, expected)
    assert not torch.allclose(expected, model(**base).logits, atol=1e-4)

    seen = IntervenableModel(spec(component, CollectIntervention, layer), model)(base, None, None, return_dict=True)
    assert torch.equal(seen.collected_activations[0], grab(model, base, place)[0])


def test_attention_of_a_mixers_block_is_refused() -> None:
    with pytest.raises(SiteError, match="no softmax attention"):
        IntervenableModel(spec("attention_output", ZeroIntervention, 1), model_of("mamba"))
    with pytest.raises(SiteError, match="mixes positions"):
        IntervenableModel(spec("mixer_output", ZeroIntervention, 1), model_of("llama"))


@pytest.mark.filterwarnings("ignore:the batch is padded on the left")  # the hooks by hand get the same batch
@pytest.mark.parametrize(("name", "component"), ENDS)
@torch.no_grad()
def test_ends(name: str, component: str) -> None:
    model, base, source = model_of(name), padded_tokens((6, 4), "left", 1), tokens(2, 6, 2)
    module = model.get_submodule(ENDS[name, component])
    width = int(module.weight.shape[0 if component == "logits" else -1])
    place = Locus(module, "output", 0, width, width)
    read, write = [[0], [4]], [[5], [3]]
    (value,) = grab(model, source, place)
    swap = IntervenableModel(spec(component, VanillaIntervention), model)
    got = swap(base, source, {"sources->base": ([read], [write])})[1].logits
    with hooked(writer(place, write, lambda _old, n: value[n, read[n]])):
        expected = model(**base).logits
    assert torch.equal(got, expected)
    assert not torch.allclose(expected, model(**base).logits, atol=1e-4)
    if component == "logits":
        assert torch.equal(got[0, 5], model(**source).logits[0, 0])


def test_the_ends_have_no_heads_and_no_layer() -> None:
    with pytest.raises(SpecError, match="'logits' has no heads"):
        IntervenableModel(spec("logits", ZeroIntervention, unit="h"), model_of("llama"))
    with pytest.raises(SpecError, match="'logits' is an end of the model; found layer=1"):
        IntervenableModel(spec("logits", ZeroIntervention, 1), model_of("llama"))


@pytest.mark.parametrize("component", ["embedding_output", "final_norm_output"])
@torch.no_grad()
def test_ends_in_generation(component: str) -> None:
    """A vector added at each generated token: the same with a cache, without one, and by a plain hook."""
    model, inputs, vector = model_of("llama"), padded_tokens((6, 4), "left", 1), torch.linspace(-3, 3, 32)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    steer = IntervenableModel(spec(component, AdditionIntervention), model)
    module = model.get_submodule(ENDS["llama", component])

    def add(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        new[:, 0 if tensor.shape[1] == 1 else 6 :] += vector
        return new

    with hooked((module, "output", add)):
        expected = model.generate(**inputs, **options)
    for cache in (True, False):
        assert torch.equal(steer.generate(inputs, None, None, vector, use_cache=cache, **options)[1], expected)
    assert not torch.equal(model.generate(**inputs, **options), expected)


@torch.no_grad()
def test_positions_of_a_vision_model_are_patches() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, image_size=12, patch_size=4,
        initializer_range=0.3, num_labels=5,
    )  # fmt: skip
    model: Any = ViTForImageClassification(config).eval()
    base, source = ({"pixel_values": torch.randn(2, 3, 12, 12)} for _ in range(2))
    slot = resolve(model).slot(Site("block_output", 1))
    assert slot.path == "vit.layers.1"
    place = Locus(model.vit.layers[1], "output", 0, 32, 32)
    read, write = [[9], [0]], [[4], [9]]  # 9 patches behind the class token, which is position 0
    (value,) = grab(model, source, place)
    got = IntervenableModel(spec("block_output", VanillaIntervention, 1), model)(
        base, source, {"sources->base": ([read], [write])}
    )[1].logits
    with hooked(writer(place, write, lambda _old, n: value[n, read[n]])):
        expected = model(**base).logits
    assert torch.equal(got, expected)
    assert not torch.allclose(expected, model(**base).logits, atol=1e-4)
    pattern = IntervenableModel(spec("attention_pattern", CollectIntervention, 1), model)(base, return_dict=True)
    rows = pattern.collected_activations[0].view(2, 10, 4, 10)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 10, 4))
    assert rows.triu(1).abs().max() > 0  # a patch sees those behind it
    with torch.no_grad():
        model.set_attn_implementation("eager")
        weights = model(**base, output_attentions=True).attentions[1]
    torch.testing.assert_close(rows.transpose(1, 2), weights, rtol=1e-4, atol=1e-5)
