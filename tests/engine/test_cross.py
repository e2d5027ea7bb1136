"""Encoder-decoders: names with a stack in front, and attention to the other sequence, against plain hooks."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from tests.helpers import Locus, grab, hooked, writer
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from align_transformers import (
    AdditionIntervention,
    CollectIntervention,
    IntervenableModel,
    SiteError,
    VanillaIntervention,
    ZeroIntervention,
)

LAYER, WIDTH, HEADS, READS, WRITES = 1, 32, 4, 7, 5
"""READS tokens go into the encoder, WRITES into the decoder."""


@lru_cache(maxsize=2)
def model_of(name: str) -> Any:
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 61, "d_model": WIDTH, "pad_token_id": 0, "decoder_start_token_id": 0}
    common |= {"eos_token_id": None, "bos_token_id": None}
    if name == "t5":
        config = T5Config(d_ff=40, d_kv=8, num_layers=3, num_decoder_layers=3, num_heads=HEADS, **common)
        model: nn.Module = T5ForConditionalGeneration(config)
    else:
        more = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
        config = BartConfig(max_position_embeddings=64, init_std=0.3, forced_eos_token_id=None, **more, **common)
        model = BartForConditionalGeneration(config)
    for parameter in model.parameters():
        if name == "t5" and parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    return model.eval()


_BART = {"layers": 3, "attention_heads": HEADS, "ffn_dim": 40}


def inputs_of(seed: int) -> dict[str, Tensor]:
    """Return two pairs of sequences; the second one's encoder input is padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 61, (2, READS), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 5:] = mask[1, 5:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(1, 61, (2, WRITES), generator=generator),
    }


def place_of(name: str, component: str) -> Locus:
    """Return where a component is, by hand."""
    model = model_of(name)
    stack, _, what = component.partition(".")
    if name == "t5":
        block = getattr(model, stack).block[LAYER]
        cross = block.layer[1].EncDecAttention if stack == "decoder" else None
        own, mlp = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
        names = ("q", "k", "v", "o")
    else:
        block = getattr(model.model, stack).layers[LAYER]
        cross, own, mlp = getattr(block, "encoder_attn", None), block.self_attn, None
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
    attention = cross if what.startswith("cross_") else own
    query, key, value, out = (getattr(attention, n) for n in names)
    module, side = {
        "block_output": (block, "output"),
        "mlp_output": (mlp or getattr(block, "fc2", None), "output"),
        "attention_output": (out, "output"),
        "attention_value_output": (out, "input"),
        "attention_input": (attention, "input"),
        "query_output": (query, "output"),
        "key_output": (key, "output"),
        "value_output": (value, "output"),
    }[what.removeprefix("cross_")]
    return Locus(module, side, 0, WIDTH, WIDTH // HEADS)


def spec(component: str, kind: Any, unit: str = "pos") -> dict[str, Any]:
    return {"layer": LAYER, "component": component, "intervention_type": kind, "unit": unit, "max_number_of_units": 8}


_OWN = ("block_output", "attention_output", "key_output", "mlp_output")
NAMES = (
    *(f"{stack}.{component}" for stack in ("encoder", "decoder") for component in _OWN),
    *(f"decoder.cross_{c}" for c in ("attention_output", "attention_value_output", "attention_input", "query_output",
                                     "key_output", "value_output")),
)  # fmt: skip


@pytest.mark.parametrize("component", NAMES)
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_swaps(name: str, component: str) -> None:
    model, base, source, place = model_of(name), inputs_of(1), inputs_of(2), place_of(name, component)
    read, write = (
        [[4, 0], [3, 2]],
        [[1, 3], [4, 0]],
    )  # in the stack's own sequence; keys of cross attention: the other's
    (value,) = grab(model, source, place)
    got = IntervenableModel(spec(component, VanillaIntervention), model)(
        base, source, {"sources->base": ([read], [write])}
    )[1].logits
    with hooked(writer(place, write, lambda _old, n: value[n, read[n]])):
        expected = model(**base).logits
    assert torch.equal(got, expected)
    assert not torch.allclose(expected, model(**base).logits, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_one_head_of_cross_attention(name: str) -> None:
    model, base, place = model_of(name), inputs_of(1), place_of(name, "decoder.cross_attention_value_output")
    got = IntervenableModel(spec("decoder.cross_attention_value_output", ZeroIntervention, "h.pos"), model)(
        base, None, {"base": [[[[2], [0]], [[4], [1]]]]}
    )[1].logits

    def zero(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        new[0, 4, 16:24] = 0
        new[1, 1, 0:8] = 0
        return new

    with hooked((place.module, "input", zero)):
        assert torch.equal(got, model(**base).logits)


@pytest.mark.parametrize("way", ["sdpa", "eager"])
@pytest.mark.parametrize("component", ["encoder.attention_pattern", "decoder.attention_pattern",
                                       "decoder.cross_attention_pattern"])  # fmt: skip
@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_patterns_are_those_that_the_model_returns(name: str, component: str, way: str) -> None:
    model, base = model_of(name), inputs_of(1)
    returned = {"e": "encoder_attentions", "decoder.a": "decoder_attentions", "decoder.c": "cross_attentions"}
    key = next(value for start, value in returned.items() if component.startswith(start))
    model.set_attn_implementation("eager")
    expected = model(**base, output_attentions=True)[key][LAYER]
    model.set_attn_implementation(way)
    plain = model(**base).logits
    got = IntervenableModel(spec(component, CollectIntervention), model)(base, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits, plain)
    seen = got.collected_activations[0].view(2, expected.shape[2], HEADS, expected.shape[3]).transpose(1, 2)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    if component != "decoder.attention_pattern":
        assert not seen[1, ..., 5:].any()  # the encoder's padding


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("way", ["sdpa", "eager"])
@torch.no_grad()
def test_knockout_in_cross_attention(name: str, way: str) -> None:
    """The decoder's token 3 no longer sees the encoder's token 2: as if that key were masked for it."""
    model, base = model_of(name), inputs_of(1)
    model.set_attn_implementation(way)
    heads = list(range(HEADS))
    pattern = IntervenableModel(spec("decoder.cross_attention_pattern", CollectIntervention), model)
    before = pattern(base, return_dict=True).collected_activations[0].view(2, WRITES, HEADS, READS)
    vector = torch.zeros(READS).index_fill(0, torch.tensor([2]), -1e9).repeat(HEADS)
    both = IntervenableModel(
        [spec("decoder.cross_attention_score", AdditionIntervention, "h.pos"),
         spec("decoder.cross_attention_pattern", CollectIntervention)],
        model,
    )  # fmt: skip
    where = [[[heads, heads], [[3], [3]]], [list(range(WRITES))] * 2]
    got = both(base, None, {"base": where}, [vector, None], return_dict=True)
    after = got.collected_activations[0].view(2, WRITES, HEADS, READS)
    expected = before.clone()
    expected[:, 3, :, 2] = 0
    expected[:, 3] /= expected[:, 3].sum(-1, keepdim=True)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got.intervened_outputs.logits[:, 3], model(**base).logits[:, 3], atol=1e-4)


@pytest.mark.parametrize("component", ["block_output", "attention_pattern", "cross_attention_output"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_names_without_a_stack_are_refused(name: str, component: str) -> None:
    with pytest.raises(SiteError, match="several stacks: known: decoder, encoder"):
        IntervenableModel(spec(component, ZeroIntervention), model_of(name))


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_cross_attention_in_generation(name: str) -> None:
    model, inputs = model_of(name), {k: v for k, v in inputs_of(1).items() if not k.startswith("decoder")}
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1}
    vector, module = torch.linspace(-4, 4, WIDTH), place_of(name, "decoder.cross_attention_output").module
    steer = IntervenableModel(spec("decoder.cross_attention_output", AdditionIntervention), model)

    def add(tensor: Tensor) -> Tensor:  # the decoder's first column is its prompt: the start token
        new = tensor.clone()
        new[:, 1:] += vector
        return new

    options |= {"output_logits": True, "return_dict_in_generate": True}
    with hooked((module, "output", add)):
        expected = torch.stack(model.generate(**inputs, use_cache=False, **options).logits)
    for cache in (True, False):
        got = torch.stack(steer.generate(inputs, None, None, vector, use_cache=cache, **options)[1].logits)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # a cache sums in another order
    plain = torch.stack(model.generate(**inputs, **options).logits)
    assert not torch.allclose(plain[1:], expected[1:], atol=1e-2)
