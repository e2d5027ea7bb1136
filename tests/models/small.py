"""Tiny random models of many kinds, each with all sizes different. Nothing here uses the library."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import transformers as t
from torch import Tensor, nn

VOCAB, HIDDEN, HEADS, KV, HEAD_DIM, NEURONS, LAYERS = 64, 32, 4, 2, 6, 40, 2
"""`head_dim` is not hidden / heads wherever a model leaves the choice."""
COMMON = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **COMMON, "hidden_size": HIDDEN, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD_DIM, "max_position_embeddings": 64,
}  # fmt: skip
PLAIN = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "num_key_value_heads")}
LATENT = {
    **PLAIN, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
    "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
T5 = {**COMMON, "d_model": HIDDEN, "d_kv": HEAD_DIM, "d_ff": NEURONS, "num_layers": LAYERS, "num_heads": HEADS,
      "decoder_start_token_id": 0}  # fmt: skip

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**COMMON, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**LLAMA)),
    "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**PLAIN, use_parallel_residual=True)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(**COMMON, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(**COMMON, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                       multi_query=True, new_decoder_architecture=False, parallel_attn=True)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**PLAIN, num_key_value_heads=KV)),
    "bigcode": lambda: t.GPTBigCodeForCausalLM(
        t.GPTBigCodeConfig(**COMMON, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, multi_query=True)),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
    "bert": lambda: t.BertModel(t.BertConfig(**PLAIN)),
    "albert": lambda: t.AlbertModel(t.AlbertConfig(**{**PLAIN, "num_hidden_layers": 3}, embedding_size=16)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)),
    "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(**COMMON, hidden_size=HIDDEN, num_hidden_layers=LAYERS)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**LLAMA)),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**PLAIN, num_key_value_heads=KV, residual_multiplier=0.5)),
    "deepseek2": lambda: t.DeepseekV2ForCausalLM(t.DeepseekV2Config(**LATENT)),
    "deepseek3": lambda: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**LATENT)),
    "qwen3next": lambda: t.Qwen3NextForCausalLM(
        t.Qwen3NextConfig(**LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
                          shared_expert_intermediate_size=12, linear_num_key_heads=2, linear_num_value_heads=4,
                          linear_key_head_dim=8, linear_value_head_dim=8,
                          layer_types=["linear_attention", "full_attention"])),
    "vit": lambda: t.ViTModel(
        t.ViTConfig(**{k: v for k, v in PLAIN.items() if k not in COMMON and k != "max_position_embeddings"},
                    image_size=16, patch_size=4)),
}  # fmt: skip


def new(name: str, seed: int = 0) -> Any:
    """Return a fresh random model in eval mode, its weights large enough that nothing hides."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = MAKERS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@cache
def shared(name: str) -> Any:
    """Return a model that all tests share: leave it as it is."""
    return new(name)


class HandAttention(nn.Module):
    """Causal attention by hand: `kind` is plain, shared (keys are values), mixed (talking heads) or tiled (GQA)."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        width = HEADS * HEAD_DIM
        self.kind = kind
        few = width // 2 if kind == "tiled" else width
        self.ask, self.look, self.give = (nn.Linear(HIDDEN, size) for size in (width, few, few))
        self.talk = nn.Parameter(torch.randn(HEADS, HEADS))
        self.merge = nn.Linear(width, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)

        keys = split(self.look(x))
        values = keys if self.kind == "shared" else split(self.give(x))
        if self.kind == "tiled":  # neighbours do not share, as they do elsewhere
            keys, values = keys.repeat(1, 2, 1, 1), values.repeat(1, 2, 1, 1)
        z = F.scaled_dot_product_attention(split(self.ask(x)), keys, values, is_causal=True)
        if self.kind == "mixed":
            z = torch.einsum("bhld,hg->bgld", z, self.talk)
        return self.merge(z.transpose(1, 2).flatten(2))


class HandMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(HIDDEN, NEURONS), nn.Linear(NEURONS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.fall(F.gelu(self.rise(x)))


class HandBlock(nn.Module):
    """A pre-norm block with any number of attentions and MLPs; those of a kind read the same."""

    def __init__(self, kind: str, attentions: int, mlps: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.mixes = nn.ModuleList(HandAttention(kind) for _ in range(attentions))
        self.thinks = nn.ModuleList(HandMLP() for _ in range(mlps))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        x = x + sum(mix(normed) for mix in self.mixes)
        normed = self.second(x)
        return x + sum(think(normed) for think in self.thinks)


class HandModel(nn.Module):
    """A transformer that no library knows. With `chain=False` its blocks stand in no container."""

    def __init__(self, kind: str = "plain", attentions: int = 1, mlps: int = 1, chain: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, HIDDEN)
        blocks = [HandBlock(kind, attentions, mlps) for _ in range(LAYERS)]
        self.floors = nn.ModuleList(blocks if chain else [])
        if not chain:
            self.ground, self.top = blocks
        self.last, self.say = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        for floor in self.floors or (self.ground, self.top):
            x = floor(x)
        return self.say(self.last(x))
