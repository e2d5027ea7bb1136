"""The tokens that cells are about, and sums of products over them: cell by cell, head by head, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import PositionError
from ..models import Slot
from ..plan import Edit, Read
from ._cell_run import CellRun

_AT_ONCE = 2**24
"""Numbers of a chunk of differences."""


class Picked:
    """Which numbers of a vector are summed up: all of a site, each head's, or those of each block of neurons."""

    def __init__(self, slot: Slot, neurons: int | None) -> None:
        self._slot, self._neurons = slot, neurons

    def sums(self, products: Tensor, heads: bool) -> Tensor:
        """Return `(units, columns)` of products `(units, channels)`: a column a head or a block, or only one."""
        slot = self._slot
        if heads:
            if slot.n_heads:
                return products.unflatten(-1, (slot.n_heads, -1)).sum(-1)
            assert slot.heads is not None
            return products[:, slot.heads.to(products.device)].sum(-1)
        own = products if slot.channels is None else products[:, slot.channels.to(products.device)]
        if self._neurons is None:
            return own.sum(-1, keepdim=True)
        missing = -own.shape[-1] % self._neurons
        return nn.functional.pad(own, (0, missing)).unflatten(-1, (-1, self._neurons)).sum(-1)


@dataclass(frozen=True, eq=False)
class Units:
    """The tokens that a run's cells are about, each once: cells of one place differ in heads or neurons only.

    Args:
        numbers: `(units, 4)` of each unit its pair, its column in the run that is edited, that in the run that is read,
            and the place that it belongs to.
        place_of_cell: of each cell, its place.
        heads: cells are of heads.
    """

    numbers: Tensor
    place_of_cell: list[int]
    heads: bool

    @classmethod
    def of(cls, one: CellRun, edit: Edit, lead: int, lead_other: int) -> Units:
        """Return the units of an edit of a run.

        Args:
            one: the run.
            edit: of it.
            lead: how many columns stand before the tokens of the run that is edited.
            lead_other: likewise of the one that is read.
        """
        read = edit.source
        assert isinstance(read, Read)
        known: dict[Any, int] = {}
        units: list[tuple[int, int, int, int]] = []
        cells = []
        rows, others = edit.positions.rows or (), read.positions.rows or ()
        for pair, row, other in zip(one.run.examples or (), rows, others, strict=True):
            key = pair, row, other
            if key not in known:
                known[key] = len(known)
                units += [(pair, a + lead, b + lead_other, known[key]) for a, b in zip(row, other, strict=True)]
            cells.append(known[key])
        return cls(torch.tensor(units), cells, edit.positions.heads is not None)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return pairs, columns, and columns in the run that is read."""
        return self.numbers[:, 0], self.numbers[:, 1], self.numbers[:, 2]

    def column_of_cell(self, edit: Edit) -> list[int]:
        """Return which column of `contracted` is each cell's: its head, its block, or the only one."""
        if edit.positions.heads is not None:
            return [head for (head,) in edit.positions.heads]
        if edit.subspace is not None:
            return [parts[0] for parts in edit.subspace if parts]
        return [0] * len(self.place_of_cell)

    def contracted(self, into: Tensor, out_of: Tensor, gradient: Tensor, picked: Picked) -> tuple[Tensor, Tensor]:
        """Return difference times gradient, and the difference squared, summed over each place, `(places, columns)`.

        Args:
            into: what stands in the run that is edited.
            out_of: in the one that is read.
            gradient: at the former.
            picked: what is summed up.
        """
        if into.shape[-1] != out_of.shape[-1]:
            raise PositionError(
                f"the vectors there have {into.shape[-1]} coordinates in one prompt and {out_of.shape[-1]} in the "
                "other, one a token: prompts of equal length are needed"
            )
        pairs, columns, others = self.tensors()
        products, squares = [], []
        for part in torch.arange(len(pairs)).split(max(1, _AT_ONCE // into.shape[-1])):
            p, a, b = pairs[part], columns[part], others[part]
            moved = wide(out_of[p, b]).to(into.device) - wide(into[p, a])
            products.append(picked.sums(moved * wide(gradient[p, a]), self.heads))
            squares.append(picked.sums(moved * moved, self.heads))
        return self.summed(torch.cat(products)), self.summed(torch.cat(squares))

    def summed(self, each: Tensor) -> Tensor:
        """Return the sum over the units of each place."""
        places = self.numbers[:, 3].to(each.device)
        return each.new_zeros(int(places.max()) + 1, each.shape[-1]).index_add_(0, places, each)


def wide(tensor: Tensor) -> Tensor:
    """Return numbers in at least float32: small differences are not rounded away."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
