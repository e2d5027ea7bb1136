"""One buffer of differences that all receivers of a pass read, also in its backward pass.

Plain autograd would keep a copy of the buffer for every receiver. Here nobody keeps one: what is written is never
written again, so forward and backward pass read the same memory, and gradients are gathered in a second one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SharedBuffer:
    """Rows that are written once and read many times.

    Args:
        rows: `(copies, senders, examples, tokens, width)`; a reader's weights are `(copies, readers, senders)`.
        graph: gradients are going to be asked for.
    """

    def __init__(self, rows: Tensor, *, graph: bool) -> None:
        self.rows, self.graph = rows, graph
        self.gradients = torch.zeros_like(rows) if graph else None
        self._token = torch.zeros((), dtype=rows.dtype, device=rows.device, requires_grad=graph)

    def put(self, start: int, values: Tensor) -> None:
        """Write rows.

        Args:
            start: the first.
            values: `(copies, rows, examples, tokens, width)`.
        """
        if self.graph:
            self._token = _Put.apply(self._token, values, self, start)
        else:
            self.rows[:, start : start + values.shape[1]] = values

    def mix(self, weights: Tensor, start: int, stop: int, before: Tensor | None = None) -> Tensor:
        """Return weighted sums of rows, `(copies, readers, examples, tokens, width)`.

        Args:
            weights: `(copies, readers, stop - start)`.
            start: the first row.
            stop: the one behind the last.
            before: what they are added to; it may be written into.
        """
        if start == stop and before is not None:
            return before
        if self.graph:
            made: Tensor = _Mix.apply(self._token, weights, self, start, stop)
            return made if before is None else before + made
        used = (weights != 0).flatten(0, 1).any(0).nonzero()[:, 0]
        rows = self.rows[:, start:stop]
        if 2 * len(used) <= stop - start:
            rows, weights = rows[:, used], weights[..., used]
        return _weighted(weights, rows) if before is None else _added(before, weights, rows)


def _weighted(weights: Tensor, rows: Tensor) -> Tensor:
    if len(rows) == 1:
        return (weights[0] @ rows[0].flatten(1)).unflatten(1, rows.shape[2:])[None]
    return torch.bmm(weights, rows.flatten(2)).unflatten(2, rows.shape[2:])


def _added(before: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    for copy, mine in enumerate(before):
        mine.flatten(1).addmm_(weights[copy], rows[copy].flatten(1))
    return before


class _Put(torch.autograd.Function):
    """Writes; the token that it hands on puts later readers behind it, so that their gradients come before its own."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, values: Tensor, buffer: SharedBuffer, start: int) -> Tensor:
        ctx.buffer, ctx.rows = buffer, slice(start, start + values.shape[1])
        buffer.rows[:, ctx.rows] = values
        return token.clone()

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        return given[0], ctx.buffer.gradients[:, ctx.rows].clone(), None, None


class _Mix(torch.autograd.Function):
    """Reads."""

    @staticmethod
    def forward(ctx: Any, _token: Tensor, weights: Tensor, buffer: SharedBuffer, start: int, stop: int) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.buffer, ctx.rows = buffer, slice(start, stop)
        return _weighted(weights, buffer.rows[:, start:stop])

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        (weights,), buffer, gradient = ctx.saved_tensors, ctx.buffer, given[0].flatten(2)
        own = buffer.gradients[:, ctx.rows].flatten(2)  # a view: copies are the only axis in front of the rows
        for copy in range(len(weights)):
            own[copy].addmm_(weights[copy].T, gradient[copy])
        of_weights = torch.bmm(gradient, buffer.rows[:, ctx.rows].flatten(2).transpose(1, 2))
        return torch.zeros((), dtype=gradient.dtype, device=gradient.device), of_weights, None, None, None
