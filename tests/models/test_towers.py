"""Stacks besides the main one: BLIP's picture encoder and question encoder, and the tower of a text-first model."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from align_transformers import IntervenableModel, SiteError, ZeroIntervention, resolve

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "projection_dim": 16,
    "encoder_hidden_size": 32,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "sep_token_id": 3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}


def blip(kind):
    torch.manual_seed(0)
    config = BlipConfig(text_config=TEXT, vision_config=VISION, projection_dim=16, image_text_hidden_size=16)
    model = kind(config).eval()
    with torch.no_grad():
        for weights in (p for p in model.parameters() if p.ndim > 1):
            weights.normal_(0, 0.3)  # as they are made, one patch hardly matters
    return model


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (
            BlipForQuestionAnswering,
            {
                "": "text_decoder.bert.encoder.layer.0",
                "vision": "vision_model.encoder.layers.0",
                "encoder": "text_encoder.encoder.layer.0",
            },
        ),
        (
            BlipForImageTextRetrieval,
            {"": "text_encoder.encoder.layer.0", "vision": "vision_model.encoder.layers.0"},
        ),
    ],
)
def test_the_stacks_of_blip(kind, paths):
    assert {name: blocks[0].path for name, blocks in resolve(blip(kind)).stacks.items()} == paths


def test_a_patch_of_blip_is_edited_as_by_a_plain_hook():
    model = blip(BlipForImageTextRetrieval)
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 2]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    face = IntervenableModel(
        {"layer": 0, "component": "vision.block_output", "intervention_type": ZeroIntervention}, model
    )
    _, edited = face(inputs, None, {"base": 3})

    def zero(_module, _args, output):
        new = output.clone()
        new[:, 3] = 0
        return new

    with model.vision_model.encoder.layers[0].register_forward_hook(zero):
        wanted = model(**inputs)
    assert torch.equal(edited.itm_score, wanted.itm_score)
    assert not torch.equal(edited.itm_score, model(**inputs).itm_score)


def test_the_tower_of_a_model_that_reads_text_first():
    torch.manual_seed(0)
    text = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=59)
    ).eval()
    found = resolve(model)
    assert [len(found.stacks[name]) for name in ("", "vision")] == [2, 3]
    block = found.stacks["vision"][1]
    assert model.get_submodule(block.path) is block.slots["block_output"].module
    assert model.get_submodule(block.slots["mlp_activation"].path) is block.slots["mlp_activation"].module
    with pytest.raises(SiteError, match="several stacks"):
        IntervenableModel({"layer": 0, "component": "audio.block_output"}, model)
