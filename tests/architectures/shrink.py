"""Any transformers configuration, made tiny: by the names of its attributes, with no code for any architecture.

Sizes differ from each other on purpose (hidden 64, all heads 96, feed-forward 112), so that a resolver which matches
tensors by shape alone is caught. The names that are sizes in their own right are in `hints.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How tiny. `kv` is the number of key/value heads where a model may share them; `None`: as many as query heads."""

    hidden: int = 64
    heads: int = 4
    kv: int | None = 2
    head_dim: int = 24
    inner: int = 112
    layers: int = 4
    vocab: int = 199
    experts: int = 6
    chosen: int = 2


SMALL_HEADS = Sizes(head_dim=16)
"""Heads of hidden / heads channels, for models which insist on it."""

_ROLES = {
    "hidden": r"hidden_size|d_model|n_embd|dim|embed_dim|word_embed_proj_dim|embedding_size|emb_dim|embedding_dim|"
    r"attention_hidden_size|backbone_hidden_size|lru_width|hidden_dim|model_dim|(input|output)_embedding_size|"
    r"(decoder|encoder)_hidden_size|(decoder|encoder)_embed_dim|out_hidden_size|mm_hidden_size|"
    r"cross_attention_hidden_size|dim_model|d_embed|projection_dim|text_hidden_size|"
    r"vision_output_dim|pooler_output_size|vision_output_size|output_dim|text_d_model|shared_embedding_size|hidden_size_global|"
    r"moe_hidden_size|adapter_in_dim|adapter_out_dim|adapter_input_size|cross_hidden_size|"
    r"projector_hidden_size|vision_hidden_size|audio_hidden_size",
    "kv": r"num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|.*_num_key_value_heads|.*_key_value_heads",
    "heads": r"num_attention_heads|n_head|n_heads|num_heads|attention_heads|.*_attention_heads|lightning_nh|"
    r"linear_num_heads|kda_num_heads|num_query_groups",
    "layers": r"num_hidden_layers|n_layers?|num_layers|num_blocks?|depth|(en|de)coder_layers|num_layers_per_stack|"
    r"num_(en|de)coder_layers|.*_num_hidden_layers|.*_num_layers",
    "inner": r".*intermediate_size|.*ffn_dim|n_inner|d_inner|.*ffn_hidden_size|dff|dim_ff|d_ff|feed_forward_size|"
    r"intermediate_size_mlp|expert_hidden_size|mlp_dim|swiglu_hidden|expert_dim",
    "experts": r"num_experts|n_routed_experts|num_local_experts|moe_num_experts|encoder_sparse_num_experts|"
    r"zero_expert_num|num_routed_experts",
    "chosen": r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_selected_experts|moe_top_k|ffn_top_k|"
    r"experts_top_k",
}
_PATTERNS = {role: re.compile(f"({pattern})$") for role, pattern in _ROLES.items()}
_TOKEN = re.compile(r".*token_(id|index)$")
_FREE_WHEN_UNSET = ("kv", "chosen")  # `None` means "derive it": from a size that is itself made tiny, so say it


@cache
def hints() -> Fields:
    """Return the data file: sizes by exact name, and the few facts that single models need."""
    return json.loads(Path(__file__).with_name("hints.json").read_text())


def role_of(name: str) -> str | None:
    """Return what an attribute of a configuration measures; `None` when its name does not tell."""
    return next((role for role, pattern in _PATTERNS.items() if pattern.match(name)), None)


def shrink(config: Any, sizes: Sizes) -> Fields:
    """Return the fields that, given to the configuration's class, build it tiny."""
    fields = config.to_dict()
    latent = bool(fields.get("qk_rope_head_dim"))
    if latent:  # multi-head latent attention: a key head for every query head
        sizes = replace(sizes, kv=None)
    depth = max((v for k, v in fields.items() if role_of(k) == "layers" and _is_count(v)), default=0)
    depth = depth or len(fields.get("layers_block_type") or ())
    tiny: Fields = {}
    for name, value in fields.items():
        if name == "per_layer_config":
            continue
        part = getattr(config, name, None) if isinstance(value, dict) else None
        if hasattr(part, "to_dict"):
            own = {k: v for k, v in part.to_diff_dict().items() if not isinstance(v, dict) and k != "head_dim"}
            tiny[name] = {**own, **shrink(part, sizes), "model_type": getattr(part, "model_type", "")}
            continue
        if name == "head_dim" and latent:
            continue
        new = _tiny_value(name, value, sizes, depth)
        if new is not _KEEP:
            tiny[name] = new
    if fields.get("per_layer_config"):
        tiny["per_layer_config"] = _odd_layers(fields["per_layer_config"], tiny, sizes)
    if isinstance(tiny.get("embed_dim"), int) and isinstance(fields.get("num_heads"), list):  # widths double by stage
        tiny["num_heads"] = [2 << stage for stage in range(len(fields["num_heads"]))]
    return _spread_tokens(tiny)


_KEEP: Any = object()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tiny_value(name: str, value: Any, sizes: Sizes, depth: int) -> Any:
    if isinstance(value, list | tuple):
        return _tiny_list(name, list(value), sizes, depth)
    fixed, role = hints()["sizes"].get(name), role_of(name)
    if name == "head_dim":
        return sizes.head_dim if value is None or _is_count(value) else _KEEP
    if value is None:
        return _size(role, sizes, 0) if role in _FREE_WHEN_UNSET else (1 if name == "n_group" else _KEEP)
    if not _is_count(value):
        return fixed if isinstance(value, float) and isinstance(fixed, float) else _KEEP
    if name.endswith("token_id") and fixed is None and value < sizes.vocab:
        return _KEEP
    if fixed is not None:
        if value == 0 and not _TOKEN.match(name):  # switched off
            return _KEEP
        return sizes.head_dim if fixed == "head_dim" else sizes.vocab if fixed == "vocab" else fixed
    if _TOKEN.match(name):
        return "token" if value >= sizes.vocab else _KEEP
    if role is None or (value == 0 and role in ("hidden", "inner", "experts", "chosen")):
        return _KEEP
    return _size(role, sizes, value)


def _size(role: str | None, sizes: Sizes, value: int) -> int:
    if role == "kv":
        return 1 if value == 1 else sizes.kv or sizes.heads
    if role == "chosen":
        return 1 if value == 1 else sizes.chosen
    return getattr(sizes, str(role))


def _tiny_list(name: str, values: list[Any], sizes: Sizes, depth: int) -> Any:
    """Return a per-layer list cut to the new depth, with every kind of layer still in it."""
    if role_of(name) == "inner" and values:
        return [sizes.inner] * (sizes.layers if len(values) == depth else len(values))
    if name == "depths":
        return [min(v, 2) for v in values]
    if name in ("image_size", "patch_size") and len(set(values)) == 1:
        return [hints()["sizes"][name]] * len(values)
    if name == "conv_dim":  # of a waveform's feature extractor
        return [32] * len(values)
    if name.endswith("token_id"):
        return 2
    if not depth or len(values) != depth or depth <= sizes.layers:
        return _KEEP
    kept, kinds = values[: sizes.layers], []
    for value in values:
        if value not in kinds:
            kinds.append(value)
    if len(kinds) == len(values):  # numbers of layers
        return kept
    for number, kind in enumerate([kind for kind in kinds if kind not in kept][: sizes.layers - 1]):
        kept[-(number + 1)] = kind
    return kept


def _odd_layers(per_layer: Mapping[Any, Fields], tiny: Fields, sizes: Sizes) -> dict[int, Fields]:
    """Return a heterogeneous model's exceptions: for the last layer and those of its kind, unlike the others."""
    odd: Fields = {}
    for name, value in next(iter(per_layer.values())).items():
        role = role_of(name)
        if name == "head_dim":
            odd[name] = 2 * sizes.head_dim
        elif _is_count(value) and role in ("kv", "heads"):
            odd[name] = 2
        elif _is_count(value) and role == "inner":
            odd[name] = sizes.inner // 2
        elif _is_count(hints()["sizes"].get(name)):
            odd[name] = hints()["sizes"][name]
    kinds = tiny.get("layer_types", range(sizes.layers))
    return {number: odd for number, kind in enumerate(kinds) if kind == kinds[-1]} if odd else {}


def _spread_tokens(fields: Fields) -> Fields:
    """Give the special tokens whose numbers were beyond the new vocabulary numbers of their own, from 170 on."""
    names = sorted(name for name, value in fields.items() if value == "token")
    return {**fields, **{name: 170 + number for number, name in enumerate(names)}}
