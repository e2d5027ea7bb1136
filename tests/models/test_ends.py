"""The ends of each stack, named by hand, and edited as by plain hooks."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as t
from tests.models.small import shared
from torch import Tensor

from align_transformers import IntervenableModel, Site, SiteError, VanillaIntervention, ZeroIntervention, describe
from align_transformers.models import find_slot, resolve

TWO = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40, "pad_token_id": 0, "decoder_start_token_id": 1,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NORM, WORDS = "final_norm_output", "embedding_output"
PLACES: dict[str, dict[str, str]] = {
    "t5": {
        f"encoder.{WORDS}": "encoder.embed_tokens", f"encoder.{NORM}": "encoder.final_layer_norm",
        f"decoder.{WORDS}": "decoder.embed_tokens", f"decoder.{NORM}": "decoder.final_layer_norm", "logits": "lm_head",
    },
    "bart": {  # post-norm: the last norm is in the block
        f"encoder.{WORDS}": "model.encoder.embed_tokens", f"decoder.{WORDS}": "model.decoder.embed_tokens",
        "logits": "lm_head",
    },
    "whisper": {  # the encoder's input is no words
        f"encoder.{NORM}": "model.encoder.layer_norm",
        f"decoder.{WORDS}": "model.decoder.embed_tokens", f"decoder.{NORM}": "model.decoder.layer_norm",
        "logits": "proj_out",
    },
}  # fmt: skip


@cache
def model_of(name: str) -> Any:
    if name == "t5":
        return shared("t5")
    torch.manual_seed(0)
    if name == "bart":
        model: Any = t.BartForConditionalGeneration(t.BartConfig(**TWO, max_position_embeddings=32))
    else:
        config = t.WhisperConfig(
            **TWO, num_mel_bins=8, max_source_positions=16, max_target_positions=32, suppress_tokens=None,
            begin_suppress_tokens=None,
        )  # fmt: skip
        model = t.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def inputs_of(name: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> Tensor:
        return torch.randint(3, 40, (2, length), generator=generator)

    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 32, generator=generator), "decoder_input_ids": ids(5)}
    return {"input_ids": ids(7), "decoder_input_ids": ids(5)}


@pytest.mark.parametrize("name", PLACES)
def test_each_stack_has_its_own_ends(name: str) -> None:
    model = model_of(name)
    found = resolve(model)
    assert {end: slot.path for end, slot in found.ends.items()} == PLACES[name]
    assert all(slot.module is model.get_submodule(slot.path) for slot in found.ends.values())
    for stack in ("encoder", "decoder"):
        for end in (NORM, WORDS):
            said = found.why(end, stack=stack)
            whole = f"{stack}.{end}"
            assert said == (f"{PLACES[name][whole]}.output" if whole in PLACES[name] else found.missing[whole])
            assert f"{whole}" in str(describe(model))


@pytest.mark.parametrize(("name", "end"), [(name, end) for name, places in PLACES.items() for end in places])
@torch.no_grad()
def test_an_end_is_swapped_as_by_a_plain_hook(name: str, end: str) -> None:
    model, base, source = model_of(name), inputs_of(name, 1), inputs_of(name, 2)
    kept: list[Tensor] = []
    module = model.get_submodule(PLACES[name][end])

    def swap(_module: Any, _args: Any, output: Tensor) -> Tensor:
        new = output.clone()
        new[0, 3], new[1, 2] = kept[0][0, 1], kept[0][1, 4]
        return new

    with module.register_forward_hook(lambda _m, _a, output: kept.append(output.clone())):
        model(**source)
    with module.register_forward_hook(swap):
        expected = model(**base).logits
    face = IntervenableModel({"component": end, "intervention_type": VanillaIntervention}, model)
    got = face(base, source, {"sources->base": ([[[1], [4]]], [[[3], [2]]])})[1].logits
    assert torch.equal(got, expected)
    assert not torch.allclose(expected, model(**base).logits, atol=1e-4)


def test_what_is_ambiguous_or_not_there_is_refused() -> None:
    model = model_of("t5")
    for end in (WORDS, NORM):
        with pytest.raises(SiteError, match=r"several stacks"):
            find_slot(model, Site(end))
    with pytest.raises(SiteError, match="the logits belong to the whole model"):
        find_slot(model, Site("decoder.logits"))
    with pytest.raises(SiteError, match=r"several stacks.*encoder"):
        find_slot(model, Site(f"encodr.{NORM}"))
    with pytest.raises(SiteError, match="no norm reads the last block's output"):
        find_slot(model_of("bart"), Site(f"encoder.{NORM}"))
    with pytest.raises(SiteError, match="is a convolution: its last axis is not its channels"):
        find_slot(model_of("whisper"), Site(f"encoder.{WORDS}"))
    with pytest.raises(SiteError, match=r"several stacks"):
        find_slot(shared("llama"), Site(f"encoder.{NORM}"))


@torch.no_grad()
def test_the_norm_after_a_picture_encoder_that_a_text_does_not_reach() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = t.LlavaConfig(
        vision_config=t.SiglipVisionConfig(**sizes, image_size=8, patch_size=4, vision_use_head=False),
        text_config=t.LlamaConfig(**sizes, vocab_size=40), image_token_index=39, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    found = resolve(model)
    assert found.ends[NORM].module is model.model.language_model.norm
    assert found.ends[f"vision.{NORM}"].module is tower.get_submodule(
        found.ends[f"vision.{NORM}"].path.removeprefix("model.vision_tower.")
    )
    assert found.ends[f"vision.{NORM}"].path.endswith("post_layernorm")
    ids = torch.tensor([[1, 39, 39, 39, 39, 5]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8)}
    face = IntervenableModel({"component": f"vision.{NORM}", "intervention_type": ZeroIntervention}, model)
    got = face(inputs, None, {"base": 2}, return_dict=True)
    assert got.effects[0].positions == 1
