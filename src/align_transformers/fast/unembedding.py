"""Only the logits that are read: the unembedding of the last real tokens, and of the tokens asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.hooks import before_call, forwards
from ..models import Slot, find_leaf, replace_leaf


class FewerLogits:
    """Lets a model compute only some logits, one place a copy.

    Args:
        unembedding: the linear layer that gives the logits, from `(rows, columns, width)`.
        row: of each copy.
        column: where each copy is read.
        tokens: ids of the tokens that are read; `None` for all.
        shape: rows and columns of the pass; an input of another form is left alone.
    """

    def __init__(
        self,
        unembedding: nn.Module,
        row: Int64[Tensor, " copies"],
        column: Int64[Tensor, " copies"],
        tokens: tuple[int, ...] | None,
        shape: tuple[int, int],
    ) -> None:
        self._unembedding, self._tokens, self._shape = unembedding, tokens, shape
        self._row, self._column = row, column
        self._given = False

    def were_given(self) -> bool:
        """Whether the model gave these logits and no others."""
        return self._given

    @contextmanager
    def context(self) -> Iterator[None]:
        """Hold what that needs in a pass."""
        with ExitStack() as stack:
            stack.enter_context(before_call(self._unembedding, self._pick))
            if self._tokens is not None:
                stack.enter_context(forwards({self._unembedding: self._narrow}))
            yield

    def _pick(self, _module: nn.Module, arguments: Any) -> Any:
        leaf, hidden = find_leaf(arguments, None, "the unembedding's input")
        self._given = hidden.ndim == 3 and tuple(hidden.shape[:2]) == self._shape
        if not self._given:
            return None
        read = hidden[self._row.to(hidden.device), self._column.to(hidden.device)]
        return replace_leaf(arguments, leaf, read.unsqueeze(1))

    def _narrow(self, _forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden: Tensor) -> Tensor:
            ids = torch.tensor(self._tokens, device=hidden.device)
            weight, bias = self._unembedding.weight, self._unembedding.bias
            return F.linear(hidden, weight[ids], None if bias is None else bias[ids])  # type: ignore[index]

        return forward


def can_narrow(slot: Slot | None) -> bool:
    """Whether the logits come from a plain linear layer, whose output can be had in parts."""
    return slot is not None and slot.via == "module" and slot.side == "output" and type(slot.module) is nn.Linear
