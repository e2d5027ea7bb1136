"""`Places`: the index tensors with which one edit or read gathers from an activation and scatters into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .._errors import PositionError, SiteError
from ..models import Slot
from ..plan import Examples
from ..positions import Positions, Rows


@dataclass(frozen=True, eq=False)
class Places:
    """Where in an activation `(batch, sequence, channels)` an edit or a read works.

    Args:
        rows: `(batch, 1)` the example that each line looks at; `None`: the one of the same number.
        index: `(batch, units)` positions, padded with 0; `None` for the whole sequence.
        real: `(batch, units)` False at the padding of `index`; `None` where there is none.
        channels: `(width,)` or, for heads that differ between the examples, `(batch, width)` padded with head 0;
            `None` for all channels.
        real_channels: `(batch, width)` False at the padding of `channels`; `None` where there is none.
        batch: examples that the activation must have; 0 where nothing was named for single examples.
        reach: one past the largest position named.
        unsized: number of heads where their size is only known from the activation (attention patterns): `channels`
            are head numbers then, until `fitted` makes channels of them.
        column: the position, where it is one and the same for all examples of the activation.
    """

    rows: Int64[Tensor, "batch 1"] | None = None
    index: Int64[Tensor, "batch units"] | None = None
    real: Bool[Tensor, "batch units"] | None = None
    channels: Int64[Tensor, " width"] | Int64[Tensor, "batch width"] | None = None
    real_channels: Bool[Tensor, "batch width"] | None = None
    batch: int = 0
    reach: int = 0
    unsized: int = 0
    column: int | None = None
    _moved: dict[torch.device, Places] = field(default_factory=dict, init=False, repr=False)

    def to(self, device: torch.device) -> Places:
        """Return the same places with their tensors on `device`, where they go once."""
        if device.type == "cpu":
            return self
        if device not in self._moved:
            moved = {name: value.to(device) for name, value in self._tensors().items()}
            self._moved[device] = replace(self, **moved)
        return self._moved[device]

    def fitted(self, activation: Tensor) -> Places:
        """Return the same places on the activation's device, with channels for heads whose size only it tells."""
        places = self if activation.is_cpu else self.to(activation.device)
        if not places.unsized or places.channels is None:
            return places
        size = activation.shape[-1] // places.unsized
        within = torch.arange(size, device=activation.device)
        channels = (places.channels.unsqueeze(-1) * size + within).flatten(-2)
        real = None if places.real_channels is None else places.real_channels.repeat_interleave(size, -1)
        return replace(places, channels=channels, real_channels=real, unsized=0)

    def repeated(self, times: int) -> Places:
        """Return the places of a batch in which every example stands `times` times in a row (beams, samples)."""
        if times == 1:
            return self
        wide = {name: value.repeat_interleave(times, 0) for name, value in self._tensors().items() if value.ndim == 2}
        if self.rows is not None:
            wide["rows"] = torch.arange(len(self.rows) * times).unsqueeze(1)
        return replace(self, batch=self.batch * times, **wide)

    def of(self, lines: range) -> Places:
        """Return the places of some lines of the batch, as a batch of their own."""
        part = slice(lines.start, lines.stop)
        wide = {name: value[part] for name, value in self._tensors().items() if value.ndim == 2 and len(value) > 1}
        if self.rows is not None and self.batch:
            wide["rows"] = torch.arange(len(lines)).unsqueeze(1)
        return replace(self, batch=len(lines) if self.batch else 0, column=None, **wide)

    def shifted(self, start: int, length: int) -> Places | None:
        """Return these places as seen by a pass over `length` columns from `start`; `None` if none lies there."""
        if self.index is None or (start == 0 and self.reach <= length):
            return self
        local = self.index - start
        inside = (local >= 0) & (local < length)
        real = inside if self.real is None else inside & self.real
        if not bool(real.any()):
            return None
        return replace(self, index=local.clamp(0, length - 1), real=real, reach=length, column=None)

    def moved(self, columns: int) -> Places:
        """Return these places, so many columns further on."""
        if not columns or self.index is None:
            return self
        column = None if self.column is None else self.column + columns
        return replace(self, index=self.index + columns, reach=self.reach + columns, column=column)

    def at_columns(self, columns: Sequence[int], batch: int) -> Places:
        """Return the same channels at the same positions for every example."""
        index = torch.tensor([list(columns)] * batch, dtype=torch.long).view(batch, len(columns))
        rows, reach = torch.arange(batch).unsqueeze(1), max(columns, default=-1) + 1
        return replace(self, rows=rows, index=index, real=None, batch=batch, reach=reach, column=None)

    def gather(self, activation: Tensor) -> Tensor:
        """Return the values at these places, `(batch, units, width)`; zeros at padding. Never a view."""
        at = self._at_positions(activation)
        if self.channels is None:
            if self.column is not None:
                return at.clone()
            picked = at.clone() if self.index is None else at
        elif self.channels.ndim == 1:
            picked = at[..., self.channels]
        else:
            if at.shape[0] == 1:  # one example, read for many with heads of their own
                at = at.expand(self.channels.shape[0], *at.shape[1:])
            picked = at.gather(-1, self._wide_channels(at, self.channels))
        mask = self.real_values(picked)
        # Filled, not multiplied by 0: what stands at padding may be infinite.
        return picked if mask is None else picked.masked_fill(~mask, 0)

    def scatter(self, activation: Tensor, values: Tensor, *, owned: bool = False) -> Tensor:
        """Return an activation with `values` at these places; what is not named keeps its value bit for bit.

        Args:
            activation: `(batch, sequence, channels)`.
            values: as `gather` returns them.
            owned: the activation is a new one that nobody else has, and may be written into.
        """
        if self.index is None and self.channels is None:
            # A copy: `values` may be the source itself, and the model may go on to write into its activations.
            return values.clone(memory_format=torch.contiguous_format)
        new = values if self.channels is None else self._with_channels(self._at_positions(activation), values)
        if self.index is None or self.rows is None:
            return new
        if self.column is not None:
            if not owned:
                return activation.slice_scatter(new, 1, self.column, self.column + 1)
            activation.narrow(1, self.column, 1).copy_(new)
            return activation
        rows, index = self.rows.expand_as(self.index), self.index
        if self.real is not None:
            rows, index, new = rows[self.real], index[self.real], new[self.real]
        return (activation.index_put_ if owned else activation.index_put)((rows, index), new)

    def real_values(self, values: Tensor) -> Tensor | None:
        """Return a mask broadcastable to gathered values, False at padding; `None` where all are real."""
        mask = None if self.real is None else self.real.unsqueeze(-1)
        if self.real_channels is not None:
            shape = (self.real_channels.shape[0], *([1] * (values.ndim - 2)), self.real_channels.shape[1])
            by_channel = self.real_channels.view(shape)
            mask = by_channel if mask is None else mask & by_channel
        return mask

    def check(self, activation: Tensor, where: object) -> None:
        """Refuse an activation that lacks these places; `where` is its name, for the message.

        Raises:
            PositionError: it has no sequence axis, is too short, or its first axis is not the batch.
        """
        shape = activation.shape
        if self.index is not None and activation.ndim < 3:
            raise PositionError(
                f"{where} has shape {tuple(shape)}: no sequence axis, so positions cannot be named there"
            )
        if self.batch and shape[0] != self.batch:
            raise PositionError(f"{where} has shape {tuple(shape)}: its first axis is not the batch of {self.batch}")
        if self.index is not None and self.reach > shape[1]:
            raise PositionError(f"position {self.reach - 1} is outside {where}, which has {shape[1]} positions")

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _at_positions(self, activation: Tensor) -> Tensor:
        if self.column is not None:
            return activation.narrow(1, self.column, 1)
        if self.index is None:
            return activation if self.rows is None else activation[self.rows[:, 0]]
        return activation[self.rows, self.index]

    @staticmethod
    def _wide_channels(at: Tensor, channels: Tensor) -> Tensor:
        batch, width = channels.shape
        return channels.view(batch, *([1] * (at.ndim - 2)), width).expand(*at.shape[:-1], width)

    def _with_channels(self, at: Tensor, values: Tensor) -> Tensor:
        assert self.channels is not None
        if self.channels.ndim == 1:
            return at.index_copy(-1, self.channels, values)
        if self.real_channels is None:
            return at.scatter(-1, self._wide_channels(at, self.channels), values)
        with_bin = torch.cat([at, at[..., :1]], -1)  # padding is written one past the end, and dropped
        channels = torch.where(self.real_channels, self.channels, at.shape[-1])
        return with_bin.scatter(-1, self._wide_channels(at, channels), values)[..., :-1]


def padded(rows: Rows, fill: int) -> tuple[Int64[Tensor, "batch units"], Bool[Tensor, "batch units"] | None]:
    """Return ragged rows as one tensor, and which of its entries are real (`None` if all are).

    >>> padded(((1, 2), (3,)), fill=0)[0].tolist()
    [[1, 2], [3, 0]]
    """
    widest = max((len(row) for row in rows), default=0)
    index = torch.tensor([[*row, *([fill] * (widest - len(row)))] for row in rows], dtype=torch.long)
    index = index.view(len(rows), widest)
    if all(len(row) == widest for row in rows):
        return index, None
    return index, torch.arange(widest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)


def place(positions: Positions, slot: Slot, batch: int, examples: Examples | None = None) -> Places:
    """Return the index tensors for positions at a slot.

    Args:
        positions: integers for every example.
        slot: where the tensor is, and which of its channels are meant.
        batch: examples in the run; a run of one example may be read for many.
        examples: which example each line of positions looks at; default: that of the same number.

    Raises:
        SiteError: heads are named where there are none, or one that does not exist.
        PositionError: positions are named for another number of examples.
    """
    named = positions.batch
    if named is not None and named != batch and batch != 1 and examples is None:
        raise PositionError(f"locations name {named} examples, but the batch has {batch}")
    index, real = (None, None) if positions.rows is None else padded(positions.rows, fill=0)
    rows = _lines(index, batch, examples)
    channels, real_channels = _channels(positions.heads, slot)
    reach = max((max(row) + 1 for row in positions.rows or () if row), default=0)
    unsized = 0 if positions.heads is None else slot.n_heads
    named_batch = batch if named is not None or examples is not None else 0
    column = _column(positions.rows, batch) if examples is None else None
    return Places(rows, index, real, channels, real_channels, named_batch, reach, unsized, column)


def _column(rows: Rows | None, batch: int) -> int | None:
    """Return the position that every example of a batch names; `None` if there is none."""
    if not rows or len(rows) != batch or len(rows[0]) != 1 or any(row != rows[0] for row in rows):
        return None
    return rows[0][0]


def _lines(index: Tensor | None, batch: int, examples: Examples | None) -> Int64[Tensor, "lines 1"] | None:
    """Return for each line of positions the example that it looks at; `None` where every example is meant."""
    if examples is not None:
        return torch.tensor(examples, dtype=torch.long).unsqueeze(1)
    return None if index is None else torch.arange(len(index)).unsqueeze(1) * (batch > 1)


def _channels(heads: Rows | None, slot: Slot) -> tuple[Tensor | None, Tensor | None]:
    if heads is None:
        return slot.channels, None
    channels = torch.arange(slot.n_heads).unsqueeze(1) if slot.n_heads else slot.heads
    if channels is None:
        raise SiteError(f"{slot.path}.{slot.side} is not a row of heads: unit 'h' cannot be used there")
    count = len(channels)
    for row in heads:
        for head in row:
            if head >= count:
                note = f" ({slot.grouping})" if slot.grouping else ""
                raise PositionError(f"head {head} does not exist: {slot.path}.{slot.side} has {count}, from 0{note}")
    if len(set(heads)) == 1:
        return channels[list(heads[0])].flatten(), None
    index, real = padded(heads, fill=0)
    return channels[index].flatten(1), None if real is None else real.repeat_interleave(channels.shape[1], 1)
