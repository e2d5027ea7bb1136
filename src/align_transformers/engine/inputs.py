"""The inputs of a plan's runs: their real tokens, and where their logits are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from ..models.sequence import Inputs, batch_size, logits_stack, real_spans
from ..plan import Logits, Run
from ..positions import Span


def count(run: Run, inputs: Mapping[str, Inputs], stack: str = "") -> int:
    """Return how many examples a run works on, or a stack in it: a tower may have others than the texts."""
    given = inputs[run.input]
    own = batch_size(given, stack)
    return own if run.examples is None or own != batch_size(given) else len(run.examples)


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
