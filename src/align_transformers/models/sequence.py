"""What can be known of a model's input before it runs: how many examples, how long, where the real tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._errors import PlanError
from ..positions import Span

Inputs = Mapping[str, Any] | Tensor
"""The keyword arguments of the model, or one tensor for its only argument."""

CACHES = ("past_key_values", "cache_params")
"""What a model may be handed that it has made of earlier tokens, and writes into."""


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
    tensors = [inputs] if isinstance(inputs, Tensor) else [value for value in inputs.values() if is_batched(value)]
    if not tensors:
        raise PlanError(f"an input needs at least one tensor with a batch axis; found {inputs!r}")
    return int(tensors[0].shape[0])


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
