"""What can be known of a model's input before it runs: how many examples, how long, where the real tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from .._errors import PlanError
from ..plan import Logits, Run
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


def own_caches(inputs: Inputs) -> Inputs:
    """Return an input with copies of the caches that were handed in: each pass writes into its own."""
    if isinstance(inputs, Tensor) or all(inputs.get(name) is None for name in CACHES):
        return inputs
    return {name: deepcopy(value) if name in CACHES else value for name, value in inputs.items()}


def count(run: Run, inputs: Mapping[str, Inputs]) -> int:
    """Return how many examples a run works on."""
    return batch_size(inputs[run.input]) if run.examples is None else len(run.examples)


class Spans:
    """Where the real tokens of the inputs are, looked up once for each input.

    Args:
        inputs: by name.
    """

    def __init__(self, inputs: Mapping[str, Inputs]) -> None:
        self.inputs = inputs
        self._known: dict[tuple[str, str], list[Span] | None] = {}

    def of(self, run: Run, stack: str) -> list[Span] | None:
        """Return the spans of a run's examples; `None` if not known."""
        key = run.input, stack
        if key not in self._known:
            self._known[key] = real_spans(self.inputs[run.input], stack)
        spans = self._known[key]
        return spans if spans is None or run.examples is None else [spans[example] for example in run.examples]


def logits_stack(inputs: Inputs) -> str:
    """Return the stack whose sequence the logits of an input are of, as `token_axis` takes it."""
    return "decoder" if not isinstance(inputs, Tensor) and "decoder_input_ids" in inputs else ""


def read_columns(name: str, inputs: Inputs, logits: Logits) -> Int64[Tensor, " batch"] | None:
    """Return the column at which the logits of every example are read; `None` if that is not known.

    Args:
        name: of the input.
        inputs: the model's.
        logits: says where; without a word about this input it is the last real token of every example.

    >>> ids = torch.zeros(2, 3, dtype=torch.long)
    >>> read_columns("x", {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0]] * 2)}, Logits())
    tensor([1, 1])
    """
    said = dict(logits.at).get(name)
    if said is not None:
        return torch.tensor(said)
    spans = real_spans(inputs, logits_stack(inputs))
    return None if spans is None else torch.tensor([end - 1 for _, end in spans])
