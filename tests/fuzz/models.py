"""Twelve tiny models, and which sites each of them has."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from tests.fast.families import LAYERS, build
from tests.helpers import HIDDEN, VOCAB

from align_transformers import Positions, Site
from align_transformers.models import find_slot, resolve
from align_transformers.planners import capture

FROM_FAMILIES = ("gpt2", "llama", "neox", "gemma2", "gemma3", "t5", "bert")
ARCHITECTURES = (*FROM_FAMILIES, "mixtral", "mamba", "opt", "qwen3", "bloom")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_COMPONENTS = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_activation",
    "mlp_output",
    "attention_input",
    "attention_output",
    "attention_value_output",
    "query_output",
    "key_output",
    "value_output",
    "mixer_output",
)
_ENDS = ("embedding_output", "final_norm_output", "logits")
_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Place:
    """A site that a model has.

    Args:
        site: where.
        width: of its vectors.
        heads: how many it has; 0 where it has none.
        sequence: whether its activation has positions.
    """

    site: Site
    width: int
    heads: int
    sequence: bool


def _build(architecture: str, dtype: torch.dtype) -> Any:
    if architecture in FROM_FAMILIES:
        return build(architecture)
    torch.manual_seed(0)
    if architecture == "mixtral":
        # In half precision rounding alone chooses other experts, which is no small difference: there all are chosen.
        chosen = 2 if dtype == torch.float32 else 4
        experts = {"num_local_experts": 4, "num_experts_per_tok": chosen}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_DECODER, **experts))
    if architecture == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_DECODER, head_dim=6))
    if architecture == "mamba":
        sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 4}
        more = {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, **more))
    if architecture == "bloom":
        sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4}
        return transformers.BloomForCausalLM(
            transformers.BloomConfig(**sizes, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        )
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": 40}
    more = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 64, "init_std": 0.3}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, **more, pad_token_id=0))


@lru_cache(maxsize=32)
def model_of(architecture: str, dtype: str) -> Any:
    """Return a model that all plans share: leave it as it is."""
    state = torch.get_rng_state()
    model = _build(architecture, DTYPES[dtype]).to(DTYPES[dtype]).eval()
    torch.set_rng_state(state)
    resolve(model)
    return model


@lru_cache(maxsize=16)
def exact(architecture: str, dtype: str) -> Any:
    """Return a model with the same weights in double precision."""
    model = copy.deepcopy(model_of(architecture, dtype)).double()
    resolve(model)
    return model


@lru_cache(maxsize=16)
def places(architecture: str) -> tuple[Place, ...]:
    """Return the sites of a model, as far as they are looked for here."""
    model = model_of(architecture, "float32")
    names = [Site(name, layer) for name in _COMPONENTS for layer in range(LAYERS)] + [Site(name) for name in _ENDS]
    if architecture == "t5":
        stacked = [Site(f"{stack}.{site.component}", site.layer) for stack in ("encoder", "decoder") for site in names]
        names = [*stacked, Site("logits")]
    names += [Site(path) for path in _paths(model)]
    found = [_place(model, site, architecture) for site in names]
    return tuple(place for place in found if place is not None)


def _paths(model: Any) -> list[str]:
    """Return dotted paths in the second block, and of what lies outside the blocks."""
    names = [name for name, module in model.named_modules() if not isinstance(module, torch.nn.ModuleList)]
    inside = [name for name in names if ".1" in name and ".0." not in name and ".2." not in name]
    outside = [name for name in names if not any(part.isdigit() for part in name.split("."))]
    paths = [f"{name}.{'input' if number % 3 == 0 else 'output'}" for number, name in enumerate(inside)]
    return paths + [f"{name}.output" if name else "output" for name in outside]


def _place(model: Any, site: Site, architecture: str) -> Place | None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[7, 8, 9, 10], [1, 2, 3, 4]])
    try:
        slot = find_slot(model, site)
        value = capture(model, inputs, site, Positions())
    except Exception:  # a site that this model lacks, or a module that gets or gives no activations
        return None
    sequence = value.ndim == 3 and value.shape[0] == 2 and value.shape[1] in (3, 4)
    heads = 0 if slot.heads is None else len(slot.heads)
    return Place(site, int(value.shape[-1]), heads, sequence)
