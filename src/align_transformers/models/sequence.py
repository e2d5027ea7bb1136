"""What can be known of a model's input before it runs: how many examples, how long, where the real tokens are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from .._errors import PlanError, SpecError
from ..positions import Span

Inputs = Annotated[Mapping[str, Any] | Tensor, "Of a text tokenizer(text, return_tensors='pt') makes one"]
"""The keyword arguments of the model, or one tensor for its only argument."""

CACHES = ("past_key_values", "cache_params", "cache")
"""What a model may be handed that it has made of earlier tokens, and writes into."""


_TOWERS: Mapping[str, tuple[str, int]] = {"vision": ("pixel_values", 3), "audio": ("input_features", 2)}
"""By what a tower is called: what it reads, and how many axes of that one of its examples has."""


def batch_size(inputs: Inputs, stack: str = "") -> int:
    """Return the number of examples: the first axis of the tokens, or of the first tensor where there are none.

    A tower may have examples of its own: as many as there are pictures, whatever the number of texts.

    Args:
        inputs: the model's.
        stack: the stack of blocks in question, as for `token_axis`.

    Raises:
        PlanError: there is no tensor.

    >>> import torch
    >>> batch_size({"input_ids": torch.ones(3, 5, dtype=torch.long), "pixel_values": torch.ones(1, 3, 8, 8)}, "vision")
    1
    >>> batch_size({"position_ids": torch.arange(3)[None], "input_ids": torch.zeros(2, 3, dtype=torch.long)})
    2
    """
    name, axes = _TOWERS.get(stack.partition(".")[0], ("", 0))
    own = inputs.get(name) if isinstance(inputs, Mapping) else None
    if isinstance(own, Tensor) and own.ndim > axes:
        return math.prod(own.shape[:-axes])
    tokens = token_axis(inputs)
    if tokens is not None:
        return int(tokens.shape[0])
    tensors = [inputs] if isinstance(inputs, Tensor) else [value for value in inputs.values() if is_batched(value)]
    if not tensors:
        raise PlanError(f"an input needs at least one tensor with a batch axis; found {inputs!r}")
    return int(tensors[0].shape[0])


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
        name: value[picked] if is_batched(value) and value.shape[0] == batch else value
        for name, value in inputs.items()
    }


def check_tokens(model: nn.Module, inputs: Any, who: str) -> None:
    """Refuse token ids that no model of transformers can look up.

    Args:
        model: the user's; others than those of transformers may call anything by these names.
        inputs: of the model; what is no input is looked over.
        who: whose input it is, for the message.

    Raises:
        SpecError: token ids are no tensor, have no axis of examples or none on it, or are not whole numbers.
    """
    if isinstance(inputs, Tensor) and getattr(model, "main_input_name", "") == "input_ids":
        inputs = {"input_ids": inputs}
    if not isinstance(inputs, Mapping) or not hasattr(model, "get_input_embeddings"):
        return
    for name in ("input_ids", "decoder_input_ids"):
        ids = inputs.get(name)
        wanted = f"{name} of {who} is a tensor (batch, tokens) of whole numbers"
        if ids is not None and not isinstance(ids, Tensor):
            raise SpecError(f"{wanted}; found a {type(ids).__name__}: torch.tensor makes one, or return_tensors='pt'")
        if isinstance(ids, Tensor) and ids.ndim < 2:
            raise SpecError(f"{wanted}; found the shape {tuple(ids.shape)}: a single example is {name}[None]")
        if isinstance(ids, Tensor) and not len(ids):
            raise SpecError(f"{wanted}; found the shape {tuple(ids.shape)}: there are no examples")
        if isinstance(ids, Tensor) and ids.dtype not in (torch.int32, torch.int64):
            raise SpecError(f"{wanted}; found {ids.dtype}: {name}.long() makes such ones")


def is_batched(value: Any) -> bool:
    """Whether a value has an axis that may be that of the examples."""
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


def logits_stack(inputs: Inputs) -> str:
    """Return the stack whose sequence the logits of an input are of, as `token_axis` takes it."""
    return "decoder" if not isinstance(inputs, Tensor) and "decoder_input_ids" in inputs else ""
