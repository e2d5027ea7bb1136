"""Tiny models and hand-written hooks: the oracles of the engine's tests. Nothing here uses the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

LAYERS, HIDDEN, HEADS, VOCAB = 3, 32, 4, 61
KV_HEADS, HEAD_DIM = 2, 6  # of the Llama: 4 query heads share 2, and head_dim is not 32 / 4
FAMILIES = ("gpt2", "llama")
COMPONENTS = (
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
    "head_attention_value_output",
    "head_query_output",
    "head_key_output",
    "head_value_output",
)


def new_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a fresh random model in eval mode; change it as you like."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB, n_positions=64, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, bos_token_id=0,
                eos_token_id=None, pad_token_id=0, initializer_range=0.3,
            )
        )  # fmt: skip
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=40, num_hidden_layers=LAYERS,
                num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=None, pad_token_id=0, initializer_range=0.3,
            )
        )  # fmt: skip
    torch.set_rng_state(state)
    return model.to(dtype).eval()


@lru_cache(maxsize=8)
def tiny(family: str) -> PreTrainedModel:
    """Return a random model that all tests share: leave it as it is."""
    return new_model(family)


def tokens(batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random token ids without the pad token, nothing padded."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(1, VOCAB, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded_tokens(lengths: Sequence[int], side: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random prompts of these lengths, padded with token 0 on the left or the right."""
    inputs = tokens(len(lengths), max(lengths), seed)
    for row, length in enumerate(lengths):
        gone = slice(0, max(lengths) - length) if side == "left" else slice(length, None)
        inputs["input_ids"][row, gone] = 0
        inputs["attention_mask"][row, gone] = 0
    return inputs


def placed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a padded batch with the positions that its examples have alone."""
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


@dataclass(frozen=True)
class Locus:
    """Where a component is, by hand: a module, its side, and the slice of the last axis."""

    module: nn.Module
    side: str
    low: int
    high: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.high - self.low

    @property
    def heads(self) -> int:
        return self.width // self.head_dim


def locus(model: Any, component: str, layer: int) -> Locus:
    """Return where a component is in a tiny GPT-2 or Llama."""
    name = component.removeprefix("head_")
    if isinstance(model, GPT2LMHeadModel):
        block, hidden, heads = model.transformer.h[layer], model.config.n_embd, model.config.n_head
        size = hidden // heads
        table = {
            "block_input": (block, "input", 0, hidden),
            "block_output": (block, "output", 0, hidden),
            "mlp_input": (block.mlp, "input", 0, hidden),
            "mlp_activation": (block.mlp.c_proj, "input", 0, 4 * hidden),
            "mlp_output": (block.mlp, "output", 0, hidden),
            "attention_input": (block.attn, "input", 0, hidden),
            "attention_output": (block.attn.c_proj, "output", 0, hidden),
            "attention_value_output": (block.attn.c_proj, "input", 0, hidden),
            "query_output": (block.attn.c_attn, "output", 0, hidden),
            "key_output": (block.attn.c_attn, "output", hidden, 2 * hidden),
            "value_output": (block.attn.c_attn, "output", 2 * hidden, 3 * hidden),
        }
    else:
        block, config = model.model.layers[layer], model.config
        hidden, size = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        table = {
            "block_input": (block, "input", 0, hidden),
            "block_output": (block, "output", 0, hidden),
            "mlp_input": (block.mlp, "input", 0, hidden),
            "mlp_activation": (block.mlp.down_proj, "input", 0, config.intermediate_size),
            "mlp_output": (block.mlp, "output", 0, hidden),
            "attention_input": (block.self_attn, "input", 0, hidden),
            "attention_output": (block.self_attn.o_proj, "output", 0, hidden),
            "attention_value_output": (block.self_attn.o_proj, "input", 0, queries),
            "query_output": (block.self_attn.q_proj, "output", 0, queries),
            "key_output": (block.self_attn.k_proj, "output", 0, keys),
            "value_output": (block.self_attn.v_proj, "output", 0, keys),
        }
    return Locus(*table[name], head_dim=size)


Touch = Callable[[Tensor], "Tensor | None"]
"""Gets the tensor at a module's side; returns the new one, or `None` to leave it."""


@contextmanager
def hooked(*touches: tuple[nn.Module, str, Touch]) -> Iterator[None]:
    """Hold one plain hook for each `(module, side, touch)`, in order."""
    with ExitStack() as stack:
        for module, side, touch in touches:
            if side == "output":
                stack.enter_context(module.register_forward_hook(_output_hook(touch)))
            else:
                stack.enter_context(module.register_forward_pre_hook(_input_hook(touch), with_kwargs=True))
        yield


def _output_hook(touch: Touch) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            new = touch(output[0])
            return None if new is None else (new, *output[1:])
        return touch(output)

    return hook


def _input_hook(touch: Touch) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = touch(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = touch(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    return hook


def writer(place: Locus, columns: Sequence[Sequence[int]] | None, new: Callable[[Tensor, int], Tensor]) -> Any:
    """Return a touch that writes `new(old, example)` at the columns of each example, in a copy.

    `old` is `(columns, width)`: one example's values at its columns, in their order; `None`: all columns.
    """

    def touch(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for example in range(tensor.shape[0]):
            at = list(range(tensor.shape[1])) if columns is None else list(columns[example])
            if at:
                old = tensor[example, at, place.low : place.high].clone()
                tensor[example, at, place.low : place.high] = new(old, example)
        return tensor

    return (place.module, place.side, touch)


def grab(model: nn.Module, inputs: dict[str, Any], *places: Locus) -> list[Tensor]:
    """Return the values at each place in a plain forward pass, `(batch, sequence, width)`."""
    seen: dict[int, Tensor] = {}

    def keep(number: int, place: Locus) -> Any:
        def touch(tensor: Tensor) -> None:
            seen[number] = tensor[..., place.low : place.high].clone()

        return (place.module, place.side, touch)

    with hooked(*(keep(number, place) for number, place in enumerate(places))):
        model(**inputs)
    return [seen[number] for number in range(len(places))]


def logits_with(model: nn.Module, inputs: dict[str, Any], *touches: tuple[nn.Module, str, Touch]) -> Tensor:
    """Return the logits of a forward pass under plain hooks."""
    with hooked(*touches):
        return model(**inputs).logits


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Count the forward passes of a model: the list grows by one (the batch size) at each."""
    calls: list[int] = []

    def hook(_module: nn.Module, _args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        calls.append(0 if ids is None else len(ids))

    with model.register_forward_pre_hook(hook, with_kwargs=True):
        yield calls


def hook_counts(model: nn.Module) -> dict[str, int]:
    """Return how many hooks, of any kind, stand on each module."""
    return {
        name: sum(len(value) for key, value in vars(module).items() if "hooks" in key and hasattr(value, "__len__"))
        for name, module in model.named_modules()
    }
