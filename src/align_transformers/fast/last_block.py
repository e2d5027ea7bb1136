"""The last block of a packed pass: only what is read of it is computed.

Behind the last attention nothing passes from one position to another. So in the last block every place needs its key
and value, but only the places that are read need a query, an output and an MLP. The block is called twice: with all
places, up to where it asks for attention, and then with those that are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import find_leaf, replace_leaf
from .depth import BlockCall
from .states import by_batch


class _Asked(BaseException):
    """Raised where the last block has asked for attention; never seen by a user."""


class LastBlock:
    """The last block, cut down to the places that are read.

    Args:
        call: of the block.
        row: of each copy, the row of the pass that it is in; ascending.
        column: of each copy, the column that is read.

    Attributes:
        cuts: False once the block was given a cache: then it is called once, with all places.
    """

    def __init__(self, call: BlockCall, row: Tensor, column: Tensor) -> None:
        self.call = call
        self._row, self._column = row, column
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.cuts = True

    def forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `forward` that gives zeros at the places that are not read, for the rows that there are."""

        def shortened(*args: Any, **kwargs: Any) -> Any:
            if any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values())):
                self.cuts = False  # a cache would hold the keys of two calls
                return forward(*args, **kwargs)
            hidden = find_leaf((args, kwargs), self.call.input.leaf, self.call.input.path)[1]
            rows, columns = hidden.shape[:2]
            row, column = self._in(rows, hidden.device)

            def cut(tensor: Tensor) -> Tensor:
                return tensor[row, column].unsqueeze(1) if tensor.shape[1] == columns else tensor

            try:
                forward(*args, **kwargs)
            except _Asked:
                args, kwargs = by_batch((args, kwargs), rows, cut)
            output = forward(*args, **kwargs)
            leaf, read = find_leaf(output, self.call.output.leaf, self.call.output.path)
            spread = read.new_zeros(rows, columns, read.shape[-1]).index_put((row, column), read[:, 0])
            return replace_leaf(output, leaf, spread)

        return shortened

    def _in(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return row and column of the copies in the first rows."""
        here = self._row < rows
        return self._row[here].to(device), self._column[here].to(device)

    @property
    def asked(self) -> bool:
        """Whether the block has been called with all places already."""
        return self._seen is not None

    def ask(self, key: Tensor, value: Tensor, mask: Tensor) -> None:
        """Take the keys and values of all places, and end the call.

        Args:
            key: `(rows, heads, keys, size)`, those of the known prefix in front.
            value: likewise.
            mask: `(rows, 1 or heads, columns, keys)`.
        """
        row, column = self._in(key.shape[0], key.device)
        self._seen = key[row], value[row], mask[row, :, column].unsqueeze(2)
        raise _Asked

    def answer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys, values and mask for the places that are read."""
        seen, self._seen = self._seen, None
        assert seen is not None
        return seen
