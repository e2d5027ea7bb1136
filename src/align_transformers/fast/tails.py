"""How the copies of a merged pass lie in its tensors: one a row in full, or only their tails, several in a row.

With causal attention an edit at position p leaves all earlier positions as they are. So of a copy only the columns from
its first edited position on need be computed: its tail. Tails are laid side by side into rows, under a mask that shows
each tail the known prefix of its example and itself. Attention grows with the square of a row, so rows are hardly
longer than the longest tail: by as much as leaves the least room empty.

What is not a number spreads within a row: a mask adds -inf to a score, and NaN + -inf and 0 * inf are NaN. So where one
copy holds NaN or infinity, others of the same example in the same run come out as NaN that are numbers when run alone;
never as another number. A pass that gives NaN is therefore not counted: its copies are run again, each in a row of its
own. (The copy itself may differ, too: of a query that is NaN, attention under a mask makes NaN, where the fused causal
kernel of a full pass may make 0, as PyTorch's on the CPU does.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from ..engine.places import Places


@dataclass(frozen=True, eq=False)
class Copies:
    """The copies of one run: lines of a batch, each edited in its own places.

    Args:
        examples: which example of the input each copy is.
        starts: for each copy the first position that is edited; what lies before is known.
    """

    examples: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each token of a merged pass is.

    Args:
        example: which example of the input each place of the pass is of.
        position: which column of it.
        copy: which copy it belongs to, counted through all runs; -1 where a row has room left.
        row: for each copy its row.
        offset: for each copy the column of the row at which position 0 of it would lie.
        rows: for each run its rows.
        copies: for each run its copies.
        length: columns of the input.
        packed: False if every copy is a row of its own, with all its columns.
    """

    example: Int64[Tensor, "rows columns"]
    position: Int64[Tensor, "rows columns"]
    copy: Int64[Tensor, "rows columns"]
    row: Int64[Tensor, " copies"]
    offset: Int64[Tensor, " copies"]
    rows: tuple[range, ...]
    copies: tuple[range, ...]
    length: int
    packed: bool

    def lay(self, states: Tensor, rows: range) -> Tensor:
        """Return the states of some rows, `(rows, columns, ...)`, from those of the input, `(batch, length, ...)`."""
        part = slice(rows.start, rows.stop)
        if not self.packed:
            return states[self.example[part, 0].to(states.device)]
        return states[self.example[part].to(states.device), self.position[part].to(states.device)]

    def places(self, places: Places, run: int, first_row: int = 0) -> Places:
        """Return the places of one run's copies in this layout.

        Args:
            places: those in a batch of the run's copies by themselves.
            run: number of the run.
            first_row: the row of the pass that the tensor begins with.
        """
        copies = slice(self.copies[run].start, self.copies[run].stop)
        rows = self.row[copies].unsqueeze(1) - first_row
        index = places.index
        if index is None:
            index = torch.arange(self.length).expand(len(rows), self.length)
        index = (index + self.offset[copies].unsqueeze(1)).clamp(min=0)
        return replace(places, rows=rows, index=index, batch=0, reach=0, column=None)

    def ends(self, columns: Int64[Tensor, " copies"]) -> tuple[Int64[Tensor, " copies"], Int64[Tensor, " copies"]]:
        """Return for each copy the row and the column of a position that is given for each."""
        return self.row, columns + self.offset

    def mask(self, allowed: Tensor, prefix: int) -> Tensor:
        """Return who may see whom, `(rows, 1 or heads, columns, prefix + columns)`.

        Args:
            allowed: the input's own mask, `(1 or batch, 1 or heads, length, length)`: booleans, or numbers to add.
            prefix: how many positions of the known prefix stand in front of the row's own keys.
        """
        device = allowed.device
        example, position, copy = (lines.to(device) for lines in (self.example, self.position, self.copy))
        own = allowed[example[:, 0] if allowed.shape[0] > 1 else torch.zeros_like(example[:, 0])]
        queries = position[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[-1])
        by_query = own.gather(2, queries)  # (rows, heads, columns, length)
        keys = position[:, None, None, :].expand(-1, own.shape[1], position.shape[1], -1)
        same = (copy[:, :, None] == copy[:, None, :]).unsqueeze(1)
        begins = self.begins.to(device).unsqueeze(-1)  # (rows, columns, 1)
        known = (torch.arange(prefix, device=device) < begins).unsqueeze(1)
        # Lower than what the mask has for padding: where a token sees nothing, it sees all of its own example alike.
        lowest = False if own.dtype == torch.bool else -torch.inf
        left = torch.where(known, by_query[..., :prefix], lowest)
        return torch.cat([left, torch.where(same, by_query.gather(3, keys), lowest)], dim=-1)

    @cached_property
    def begins(self) -> Int64[Tensor, "rows columns"]:
        """Return for every place the first position of its tail; 0 where a row has room left."""
        begin = torch.zeros_like(self.position)
        real = self.copy >= 0
        first = torch.full((len(self.row),), self.length)
        first = first.scatter_reduce(0, self.copy[real], self.position[real], "amin")
        begin[real] = first[self.copy[real]]
        return begin


def lay_out(runs: Sequence[Copies], length: int, *, packed: bool) -> Layout:
    """Return a layout of the copies of some runs, run by run.

    Args:
        runs: the copies of each run.
        length: columns of the input.
        packed: lay tails side by side rather than whole copies below each other.

    >>> layout = lay_out([Copies((0, 0, 0), (1, 2, 3))], 4, packed=True)
    >>> layout.position.tolist(), layout.copy.tolist()
    ([[1, 2, 3], [2, 3, 3]], [[0, 0, 0], [1, 1, 2]])
    """
    width = _width(runs, length) if packed else length
    lines: list[list[int]] = []  # of each row: its copies
    rows, copies = [], []
    examples = [example for run in runs for example in run.examples]
    starts = [start if packed else 0 for run in runs for start in run.starts]
    count = 0
    for run in runs:
        begin = len(lines)
        if packed:
            lines += [[count + n for n in tails] for tails in _tails(run, length, width)]
        else:
            lines += [[count + n] for n in range(len(run.examples))]
        rows.append(range(begin, len(lines)))
        copies.append(range(count, count + len(run.examples)))
        count += len(run.examples)
    example = torch.zeros(len(lines), width, dtype=torch.long)
    position, copy = torch.zeros_like(example), torch.full_like(example, -1)
    row, offset = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    for line, members in enumerate(lines):
        example[line] = examples[members[0]]
        column = 0
        for number in members:
            start = starts[number]
            there = slice(column, column + length - start)
            position[line, there] = torch.arange(start, length)
            copy[line, there] = number
            row[number], offset[number] = line, column - start
            column += length - start
    return Layout(example, position, copy, row, offset, tuple(rows), tuple(copies), length, packed)


def _width(runs: Sequence[Copies], length: int) -> int:
    """Return how long rows are: as the longest tail, or up to a quarter more where that takes fewer places in all."""
    longest = length - min((start for run in runs for start in run.starts), default=0)
    groups = Counter(tuple(run.starts[n] for n in members) for run in runs for members in _by_example(run))

    def places(width: int) -> int:
        return width * sum(count * len(_rows(starts, length, width)) for starts, count in groups.items())

    return min(range(longest, longest + longest // 4 + 1), key=places)


def _tails(run: Copies, length: int, width: int) -> Iterator[list[int]]:
    """Yield for each row the numbers of the copies whose tails are in it."""
    for members in _by_example(run):
        for row in _rows(tuple(run.starts[n] for n in members), length, width):
            yield [members[n] for n in row]


def _by_example(run: Copies) -> list[list[int]]:
    """Return the numbers of a run's copies, those of one example together: they alone may share a row."""
    found: dict[int, list[int]] = {}
    for number, example in enumerate(run.examples):
        found.setdefault(example, []).append(number)
    return list(found.values())


@lru_cache(maxsize=1024)
def _rows(starts: tuple[int, ...], length: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Put tails into rows of `width`: the longest first, each where the least room is left.

    >>> _rows((1, 2, 3), 4, 3)
    ((0,), (1, 2))
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for tail in sorted(range(len(starts)), key=starts.__getitem__):
        need = length - starts[tail]
        fit = [n for n, left in enumerate(room) if left >= need]
        if fit:
            best = min(fit, key=room.__getitem__)
            rows[best].append(tail)
            room[best] -= need
        else:
            rows.append([tail])
            room.append(width - need)
    return tuple(map(tuple, rows))
