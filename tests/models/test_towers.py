"""Stacks besides the main one: BLIP's picture encoder and question encoder, and the tower of a text-first model."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from align_transformers import IntervenableModel, SiteError, SpecError, ZeroIntervention, resolve

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


def clip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, "vocab_size": 60, "max_position_embeddings": 20, "eos_token_id": 2},
            vision_config={**sizes, "image_size": 8, "patch_size": 4},
            projection_dim=8,
        )
    ).eval()
    with torch.no_grad():
        for weights in (p for p in model.parameters() if p.ndim > 1):
            weights.normal_(0, 0.3)
    return model


def pictures(count, seed):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def texts(count, seed=5):
    return torch.randint(3, 60, (count, 6), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("images", "prompts"), [(1, 3), (3, 1), (2, 3), (2, 2)])
def test_a_tower_has_the_examples_that_it_reads(planner, images, prompts):
    model = clip()
    base = {"input_ids": texts(prompts), "pixel_values": pictures(images, 1)}
    source = {"input_ids": texts(prompts, 6), "pixel_values": pictures(images, 2)}
    block, box = model.vision_model.encoder.layers[0], []
    with torch.no_grad(), block.register_forward_hook(lambda _m, _a, output: box.append(output)):
        model(**source)
    columns = list(range(1, images + 1))  # another patch for each picture

    def swap(_module, _args, output):
        new = output.clone()
        for picture, column in enumerate(columns):
            new[picture, column] = box[0][picture, column]
        return new

    with torch.no_grad(), block.register_forward_hook(swap):
        wanted = model(**base).logits_per_image
    face = IntervenableModel({"layer": 0, "component": "vision.block_output"}, model)
    where = [[[column] for column in columns]]
    got = face(base, source, {"sources->base": (where, where)}, return_dict=True)
    assert torch.equal(got.intervened_outputs.logits_per_image, wanted)
    assert len(got.effects[0].changes) == images
    both = IntervenableModel(
        [{"layer": 0, "component": "vision.block_output"}, {"layer": 0, "component": "mlp_output"}], model
    )
    assert both(base, source, {"sources->base": 2})[1].logits_per_image.shape == (images, prompts)
    if images != prompts:
        with pytest.raises(SpecError, match=f"names {prompts} examples, but the batch has {images}"):
            face(base, source, {"sources->base": ([[[1]] * prompts], [[[1]] * prompts])})


def test_subspaces_of_a_tower_go_by_its_examples(planner):
    model, base = clip(), {"input_ids": texts(3), "pixel_values": pictures(2, 1)}
    parts = {"subspace_partition": [[0, 8], [8, 16]], "intervention_type": ZeroIntervention}
    face = IntervenableModel({"layer": 0, "component": "vision.block_output", **parts}, model)

    def zero(_module, _args, output):
        new = output.clone()
        new[0, 1, :8], new[1, 1, 8:] = 0, 0
        return new

    with torch.no_grad(), model.vision_model.encoder.layers[0].register_forward_hook(zero):
        wanted = model(**base).logits_per_image
    assert torch.equal(face(base, None, {"base": 1}, subspaces=[[[0], [1]]])[1].logits_per_image, wanted)


def test_several_pictures_in_one_prompt_are_so_many_examples_of_the_tower(planner):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=8, patch_size=4),
        text_config=LlamaConfig(**sizes, vocab_size=60),
        image_token_index=59,
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, *[59] * 4, 6, *[59] * 4, 7]])  # four patches each
    base = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures(2, 3)}
    block = model.get_submodule(resolve(model).stacks["vision"][0].path)

    def zero(_module, _args, output):
        new = (output[0] if isinstance(output, tuple) else output).clone()
        new[1, 2] = 0
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with torch.no_grad(), block.register_forward_hook(zero):
        wanted = model(**base).logits
    face = IntervenableModel(
        {"layer": 0, "component": "vision.block_output", "intervention_type": ZeroIntervention}, model
    )
    got = face(base, unit_locations={"base": [[[], [2]]]})[1].logits
    assert torch.equal(got, wanted)
    assert not torch.equal(got, model(**base).logits)
