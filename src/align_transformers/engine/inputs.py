"""What can be known of a model's input before it runs: how many examples, how long, where the real tokens are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from .._errors import PlanError
from ..positions import Span as Span  # bind asks for it here

Inputs = Mapping[str, Any] | Tensor
"""The keyword arguments of the model, or one tensor for its only argument."""

CACHES = ("past_key_values", "cache_params")
"""What a model may be handed that it has made of earlier tokens, and writes into."""

_RECORDS = ("output_hidden_states", "output_attentions", "output_router_logits", "labels")


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples: the first axis of the tokens, or of the first tensor where there are none.

    Raises:
        PlanError: there is no tensor.

    >>> import torch
    >>> batch_size({"position_ids": torch.arange(3)[None], "input_ids": torch.zeros(2, 3, dtype=torch.long)})
    2
    """
    tokens = token_axis(inputs)
    if tokens is not None:
        return int(tokens.shape[0])
    tensors = [inputs] if isinstance(inputs, Tensor) else [value for value in inputs.values() if _is_batched(value)]
    if not tensors:
        raise PlanError(f"an input needs at least one tensor with a batch axis; found {inputs!r}")
    return int(tensors[0].shape[0])


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def token_axis(inputs: Inputs, stack: str = "") -> Tensor | None:
    """Return the tensor whose second axis is the sequence: token ids or embeddings; `None` if that is not certain.

    Args:
        inputs: the model's.
        stack: the stack of blocks in question. An encoder-decoder's input has two sequences, so neither is certain
            unless `encoder` or `decoder` is said.
    """
    prefix = "decoder_" if stack == "decoder" else ""
    if isinstance(inputs, Tensor):
        tokens: Any = inputs
    elif stack not in ("", "encoder", "decoder") or (not stack and "decoder_input_ids" in inputs):
        return None
    else:
        tokens = inputs.get(f"{prefix}input_ids")
        tokens = inputs.get(f"{prefix}inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, Tensor):
        return None
    return tokens if tokens.ndim == (3 if tokens.is_floating_point() else 2) else None


def real_spans(inputs: Inputs, stack: str = "") -> list[Span] | None:
    """Return for each example the first column of a real token and one past the last; `None` if not known.

    Args:
        inputs: the model's.
        stack: the stack of blocks in question, as for `token_axis`.

    >>> import torch
    >>> ids = torch.zeros(2, 3, dtype=torch.long)
    >>> real_spans({"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])})
    [(1, 3), (0, 3)]
    """
    tokens = token_axis(inputs, stack)
    if tokens is None:
        return None
    batch, length = int(tokens.shape[0]), int(tokens.shape[1])
    name = "decoder_attention_mask" if stack == "decoder" else "attention_mask"
    mask = None if isinstance(inputs, Tensor) else inputs.get(name)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (batch, length):
        return [(0, length)] * batch
    spans = []
    for row in mask.tolist():
        real = [column for column, kept in enumerate(row) if kept]
        spans.append((real[0], real[-1] + 1) if real else (0, 0))
    return spans


def examples_of(inputs: Inputs, examples: Sequence[int] | None) -> Inputs:
    """Return an input whose batch is made of some of the examples, as often and in the order that is said.

    Args:
        inputs: the model's.
        examples: numbers from 0; `None` for the input as it is.
    """
    if examples is None:
        return inputs
    batch, picked = batch_size(inputs), list(examples)
    if isinstance(inputs, Tensor):
        return inputs[picked]
    return {
        name: value[picked] if _is_batched(value) and value.shape[0] == batch else value
        for name, value in inputs.items()
    }


def logits_stack(inputs: Inputs) -> str:
    """Return the stack whose sequence the logits of an input are of, as `token_axis` takes it."""
    return "decoder" if not isinstance(inputs, Tensor) and "decoder_input_ids" in inputs else ""


def last_columns(inputs: Inputs) -> Int64[Tensor, " batch"] | None:
    """Return the column of the last real token of every example; `None` if that is not known.

    >>> ids = torch.zeros(2, 3, dtype=torch.long)
    >>> last_columns({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0]] * 2)})
    tensor([1, 1])
    """
    spans = real_spans(inputs, logits_stack(inputs))
    return None if spans is None else torch.tensor([end - 1 for _, end in spans])


def whole_run_only(inputs: Inputs, config: Any, whole_output: bool) -> str:
    """Return why a pass over an input has to run from the first block on; empty if it has not.

    Args:
        inputs: the model's.
        config: the model's, or `None`.
        whole_output: all that the model returns is wanted, with a cache if it makes one.
    """
    if isinstance(inputs, Tensor):
        return ""
    for name in CACHES:
        if inputs.get(name) is not None:
            return f"{name} is handed in"
    for name in _RECORDS:
        value = inputs.get(name, getattr(config, name, False))
        if value is not None and value is not False:
            return f"{name} is asked for"
    if whole_output and inputs.get("use_cache", getattr(config, "use_cache", False)):
        return "its output holds a cache of all blocks (use_cache=False would do without)"
    return ""


def without_cache(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return an input with which a model makes no cache, where it can be told so and the input says nothing of it.

    Args:
        model: told by an argument of its own, or by one that it hands on to the model inside it.
        inputs: its input.
    """
    if isinstance(inputs, Tensor) or "use_cache" in inputs:
        return inputs
    named, open_ended = _arguments(type(model).forward)
    told = "use_cache" in named or (open_ended and hasattr(getattr(model, "config", None), "use_cache"))
    return {**inputs, "use_cache": False} if told else inputs


@lru_cache(maxsize=32)
def _arguments(forward: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Return the names of the arguments of a forward pass, and whether it takes any others."""
    parameters = signature(forward).parameters
    return frozenset(parameters), any(p.kind is p.VAR_KEYWORD for p in parameters.values())
