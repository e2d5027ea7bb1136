"""Tiny models of six kinds, where their components are by hand, and a plain-hook interpreter of plans.

Nothing here uses the engine: a plan is read as data, each run is one full forward pass under plain hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

import torch
import transformers
from tests.helpers import HIDDEN, VOCAB, hooked, new_model
from torch import Tensor, nn

from align_transformers import Edit, Logits, Plan, Read, Run

LAYERS, WINDOW = 3, 4
FAMILIES = ("gpt2", "llama", "neox", "gemma2", "gemma3", "t5", "bert")
BEST = dict.fromkeys(("gpt2", "llama", "neox", "gemma2", "gemma3"), "packed") | {"t5": "together", "bert": "together"}

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
_GEMMA = {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": WINDOW, "query_pre_attn_scalar": 6}
_T5 = {"vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def build(family: str) -> Any:
    """Return a fresh tiny model in eval mode."""
    if family in ("gpt2", "llama"):
        return new_model(family)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    if family == "neox":
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_COMMON))
    elif family == "gemma2":
        config = transformers.Gemma2Config(**_COMMON, **_GEMMA, layer_types=_KINDS, attn_implementation="eager")
        model = transformers.Gemma2ForCausalLM(config)
    elif family == "gemma3":
        config = transformers.Gemma3TextConfig(**_COMMON, **_GEMMA, layer_types=_KINDS)
        model = transformers.Gemma3ForCausalLM(config)
    elif family == "t5":
        config = transformers.T5Config(**_T5, decoder_start_token_id=0, initializer_factor=2.0)
        model = transformers.T5ForConditionalGeneration(config)
    else:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**_COMMON))
    torch.set_rng_state(state)
    return model.eval()


@lru_cache(maxsize=8)
def shared(family: str) -> Any:
    """Return a model that all tests share: leave it as it is."""
    return build(family)


def blocks(model: Any) -> Any:
    """Return the blocks of the main stack."""
    if hasattr(model, "transformer"):
        return model.transformer.h
    if hasattr(model, "gpt_neox"):
        return model.gpt_neox.layers
    if hasattr(model, "bert"):
        return model.bert.encoder.layer
    return model.decoder.block if hasattr(model, "decoder") else model.model.layers


_INSIDE: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "gpt2": {"mlp_output": ("mlp", "output"), "attention_value_output": ("attn.c_proj", "input")},
    "llama": {"mlp_output": ("mlp", "output"), "attention_value_output": ("self_attn.o_proj", "input")},
    "neox": {"mlp_output": ("mlp", "output"), "attention_value_output": ("attention.dense", "input")},
    "gemma2": {"mlp_activation": ("mlp.down_proj", "input"), "attention_value_output": ("self_attn.o_proj", "input")},
    "gemma3": {"mlp_activation": ("mlp.down_proj", "input"), "attention_value_output": ("self_attn.o_proj", "input")},
    "t5": {
        "mlp_activation": ("layer.2.DenseReluDense.wo", "input"),
        "attention_value_output": ("layer.0.SelfAttention.o", "input"),
    },
    "bert": {
        "mlp_activation": ("output.dense", "input"),
        "attention_value_output": ("attention.output.dense", "input"),
    },
}
COMPONENTS = {family: ("block_input", "block_output", *table) for family, table in _INSIDE.items()}
HEAD_SIZE = {"gpt2": 8, "llama": 6, "neox": 8, "gemma2": 6, "gemma3": 6, "t5": 8, "bert": 8}


def where(family: str, model: Any, component: str, layer: int) -> tuple[nn.Module, str]:
    """Return the module and the side of a component."""
    block = blocks(model)[layer]
    component = component.removeprefix("decoder.").removeprefix("head_")
    if component.startswith("block_"):
        return block, component.removeprefix("block_")
    path, side = _INSIDE[family][component]
    return block.get_submodule(path), side


def prefix(family: str) -> str:
    """Return what stands in front of the names of the main stack's components."""
    return "decoder." if family == "t5" else ""


def roll(base: Tensor) -> Tensor:
    """Return something else than the base."""
    return base.roll(1, -1) * 1.5 + 0.25


def interpret(family: str, model: Any, plan: Plan, inputs: Mapping[str, Any], parts: Any = None) -> dict[str, Tensor]:
    """Return the logits of every run of a plan at all positions, `(copies, length, vocab)`, by plain hooks.

    Args:
        family: of the model.
        model: any of these.
        plan: whose runs stand after those that they read.
        inputs: by name.
        parts: for an intervention's name the function of `(base, source)`, where it is not one of those below.
    """
    rules: dict[str, Callable[[Tensor, Tensor | None], Any]] = {
        "swap": lambda old, source: source,
        "add": lambda old, source: old + source,
        "zero": lambda old, source: torch.zeros_like(old),
        "function": lambda old, source: roll(old),
        **(parts or {}),
    }
    logits: dict[str, Tensor] = {}
    seen: dict[tuple[str, str, int | None], Tensor] = {}
    for run in plan.runs:
        with ExitStack() as stack:
            for edit in run.edits:
                stack.enter_context(hooked(_edit(family, model, edit, rules, seen)))
            for read in (read for read in plan.reads() if read.run == run.name):
                stack.enter_context(hooked(_keep(family, model, read, seen)))
            logits[run.name] = model(**rows_of(inputs[run.input], run)).logits
    return logits


def rows_of(inputs: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return the rows of an input that a run works on."""
    if run.examples is None:
        return dict(inputs)
    return {n: v[list(run.examples)] if isinstance(v, Tensor) else v for n, v in inputs.items()}


def _edit(family: str, model: Any, edit: Edit, rules: Any, seen: Any) -> Any:
    module, side = where(family, model, edit.site.component, edit.site.layer or 0)

    def touch(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        for copy in range(len(tensor)):
            columns = range(tensor.shape[1]) if edit.positions.rows is None else edit.positions.rows[copy]
            channels = _channels(family, edit.positions.heads, copy, tensor.shape[-1])
            for unit, column in enumerate(columns):
                source = None
                if isinstance(edit.source, Read):
                    read = edit.source
                    values = seen[read.run, read.site.component, read.site.layer]
                    example = copy if read.examples is None else read.examples[copy]
                    source = values[example, read.positions.rows[copy][unit]]
                    source = source[_channels(family, read.positions.heads, copy, tensor.shape[-1])]
                at = torch.full_like(channels, copy), torch.full_like(channels, column), channels
                value = rules[edit.intervention](tensor[copy, column][channels], source)
                new = new.index_put(at, value)
        return new

    return module, side, touch


def _channels(family: str, heads: Any, copy: int, width: int) -> Tensor:
    if heads is None:
        return torch.arange(width)
    size = HEAD_SIZE[family]
    return torch.tensor([head * size + n for head in heads[copy] for n in range(size)])


def _keep(family: str, model: Any, read: Read, seen: Any) -> Any:
    module, side = where(family, model, read.site.component, read.site.layer or 0)

    def touch(tensor: Tensor) -> None:
        seen[read.run, read.site.component, read.site.layer] = tensor

    return module, side, touch


def prompts(family: str, lengths: tuple[int, ...], side: str, seed: int, columns: int | None = None) -> dict[str, Any]:
    """Return prompts of these lengths; of a T5 the decoder's have all columns and the encoder's are padded."""
    generator = torch.Generator().manual_seed(500 + seed)
    size = max(lengths) if columns is None else columns
    ids = torch.randint(1, VOCAB, (len(lengths), size), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        gone = slice(0, size - length) if side == "left" else slice(length, None)
        ids[row, gone] = 0
        mask[row, gone] = 0
    if family != "t5":
        return {"input_ids": ids, "attention_mask": mask}
    decoder = torch.randint(1, VOCAB, (len(lengths), size), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}


def real_columns(inputs: Mapping[str, Any], example: int) -> list[int]:
    """Return the columns of the real tokens of the main stack's sequence."""
    if "decoder_input_ids" in inputs:
        return list(range(inputs["decoder_input_ids"].shape[1]))
    return inputs["attention_mask"][example].nonzero().flatten().tolist()


def read_logits(logits: Tensor, inputs: Mapping[str, Any], run: Run, wanted: Logits | None = None) -> Tensor:
    """Return of all logits those that are wanted of each copy."""
    wanted = wanted or Logits()
    examples = range(len(logits)) if run.examples is None else run.examples
    named = dict(wanted.at).get(run.input)
    ends = torch.tensor([real_columns(inputs, e)[-1] if named is None else named[e] for e in examples])
    picked = logits[torch.arange(len(logits)), ends]
    return picked if wanted.tokens is None else picked[:, list(wanted.tokens)]
