"""Models of transformers from a configuration or a folder: never another than the one named."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BlipConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
)

from align_transformers import ModelNotFoundError, SpecError, zoo

SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
CONFIGS = {
    "gpt2": lambda: GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11),
    "gpt2_lm": lambda: GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11),
    "llama": lambda: LlamaConfig(**SMALL, vocab_size=11),
    "smollm2": lambda: LlamaConfig(**SMALL, vocab_size=11),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=8, num_layers=1, num_heads=2, attention_types=[[["global"], 1]], vocab_size=11
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL, vocab_size=11),
    "blip": lambda: BlipConfig(text_config={**SMALL, "vocab_size": 11}, vision_config={**SMALL, "image_size": 16}),
    "blip_itm": lambda: BlipConfig(text_config={**SMALL, "vocab_size": 11}, vision_config={**SMALL, "image_size": 16}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_from_a_configuration(kind):
    config, tokenizer, model = getattr(zoo, f"create_{kind}")(config=CONFIGS[kind]())
    assert isinstance(model, PreTrainedModel)
    assert (model.training, tokenizer, config) == (False, None, model.config)
    if not kind.startswith("blip"):
        assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 11)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_name_is_never_replaced(kind, tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        getattr(zoo, f"create_{kind}")(tmp_path / "none")


@pytest.mark.parametrize("kind", ["gpt_neo", "gpt_neox", "blip", "blip_itm"])
def test_without_a_hub_it_says_what_can_be_had(kind):
    with pytest.raises(ModelNotFoundError, match=rf"create_{kind}\(config=\.\.\.\)"):
        getattr(zoo, f"create_{kind}")()


def test_a_configuration_of_another_kind():
    with pytest.raises(SpecError, match="create_gpt_neo takes a GPTNeoConfig; found GPT2Config"):
        zoo.create_gpt_neo(config=CONFIGS["gpt2"]())
    with pytest.raises(SpecError, match="a name or a configuration, not both"):
        zoo.create_gpt2("gpt2", config=CONFIGS["gpt2"]())
