"""The effect ledger: what every edit did. An edit that never fired is an error, not a silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._errors import NeverFiredError
from ..plan import Edit


@dataclass(frozen=True)
class Effect:
    """What one edit did in one call.

    Args:
        name: the edit's name.
        site: where it worked, in words.
        fired: how often the site was reached.
        rows: examples touched, summed over the firings.
        positions: places touched, `(example, position)` pairs, summed over the firings.
        change: Euclidean norm of new minus old, over everything touched; 0 for edits that only look.
        changes: likewise for each example of the run, in its order; empty where the activation's first axis is not that
            of the examples.
    """

    name: str
    site: str
    fired: int
    rows: int
    positions: int
    change: float
    changes: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Passed:
    """One forward pass that was run.

    Args:
        runs: the runs it carried out.
        way: `full`: from the first block on; `partial`: one run from its first edit on; `together`: several runs, each
            from its first edit on; `packed`: likewise, only the positions from the first edit on.
        rows: of the pass.
        columns: of the pass.
        refused: better ways, and why they were not taken.
    """

    runs: tuple[str, ...]
    way: str
    rows: int
    columns: int
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def why(self) -> str:
        """Why the next better way was not taken; empty if there is none."""
        return list(self.refused.values())[-1] if self.refused else ""


@dataclass(frozen=True, eq=False)
class Counts:
    """What an edit did to each row of an activation, summed over its firings.

    Args:
        fired: how often it fired.
        touched: `(rows,)` in how many firings the row was touched.
        places: `(rows,)` how many places of it were.
        squares: `(rows,)` float64, the squared norm of its change.
    """

    fired: int
    touched: Tensor
    places: Tensor
    squares: Tensor

    def of(self, rows: Sequence[int]) -> Counts:
        """Return the counts of some rows, in that order; one may be named twice."""
        picked = list(rows)
        return Counts(self.fired, self.touched[picked], self.places[picked], self.squares[picked])

    @classmethod
    def of_parts(cls, parts: Sequence[Counts]) -> Counts:
        """Return the counts of an edit whose rows were divided among several passes."""
        if len(parts) == 1:
            return parts[0]
        columns = (torch.cat([getattr(one, name) for one in parts]) for name in ("touched", "places", "squares"))
        return cls(max(one.fired for one in parts), *columns)

    def effect(self, edit: Edit, examples: int) -> Effect:
        """Return the entry of the ledger.

        Args:
            edit: what was asked.
            examples: how many its run has.
        """
        changes = tuple(self.squares.sqrt().tolist()) if len(self.squares) == examples else ()
        change = float(self.squares.sum().sqrt())
        rows, positions = int(self.touched.sum()), int(self.places.sum())
        return Effect(edit.name, str(edit.site), self.fired, rows, positions, change, changes)


_HELD = 2**16
"""Numbers that an edit may hold until somebody asks for the ledger."""


class Tally:
    """Counts one edit while a pass runs."""

    def __init__(self) -> None:
        self.fired = 0
        self.touched = False
        self._held = 0
        self._pending: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._settled: list[Counts] = []

    def count(self, old: Tensor, new: Tensor | None, real: Tensor | None) -> None:
        """Note one firing.

        Args:
            old: `(batch, units, width)` before; zeros at padding.
            new: the same after; `None` if nothing was written. What it has at padding does not count.
            real: broadcastable to `old`, False at padding; `None` if all are real.
        """
        size = old.numel()
        self.fired += 1
        self.touched = self.touched or size > 0 or bool(old.shape[1:].numel())
        if new is None:
            self._settled.append(_counted(old, new, real))
            return
        before, after = old.detach() if old.requires_grad else old, new.detach() if new.requires_grad else new
        self._pending.append((before, after, real))
        self._held += size
        if self._held > _HELD:
            self._settle()

    def counts(self) -> Counts:
        """Return what was counted, row by row; as one row where not every firing had the same number of rows."""
        self._settle()
        fired = self._settled
        if len({len(one.places) for one in fired}) > 1:
            fired = [
                Counts(one.fired, one.touched.sum()[None], one.places.sum()[None], one.squares.sum()[None])
                for one in fired
            ]
        if not fired:
            empty = torch.zeros(0, dtype=torch.long)
            return Counts(0, empty, empty, empty.double())
        columns = (torch.stack([getattr(one, name) for one in fired]) for name in ("touched", "places", "squares"))
        return Counts(self.fired, *(column.sum(0) for column in columns))

    def _settle(self) -> None:
        """Work out what was only noted so far."""
        self._settled += [_counted(*firing) for firing in self._pending]
        self._pending.clear()
        self._held = 0


class PickedTally:
    """What an equal edit of another run counted, for an edit that therefore need not be made.

    Args:
        tally: of the other edit.
        rows: for each example of this one, which of the other's it is.
    """

    def __init__(self, tally: Tally | PickedTally, rows: Sequence[int]) -> None:
        self._tally, self._rows = tally, rows

    @property
    def fired(self) -> int:
        """How often the edit fired."""
        return self._tally.fired

    @property
    def touched(self) -> bool:
        """Whether it ever had a place there."""
        return self._tally.touched

    def counts(self) -> Counts:
        """Return what was counted, row by row."""
        return self._tally.counts().of(self._rows)


def _counted(old: Tensor, new: Tensor | None, real: Tensor | None) -> Counts:
    rows = old.shape[0] if old.ndim > 1 else 1
    if real is None:
        places = torch.full((rows,), old.shape[1:-1].numel() if old.numel() else 0)
    else:
        places = real.expand_as(old).any(-1).flatten(1).sum(1).cpu()
    squares = torch.zeros(rows, dtype=torch.float64)
    if new is not None:
        kind = torch.promote_types(old.dtype, torch.float32)
        change = new.to(kind) - old.to(kind)
        change = change if real is None else change.masked_fill(~real, 0)
        squares = torch.linalg.vector_norm(change.reshape(rows, -1), dim=1).double().square().cpu()
    return Counts(1, (places > 0).long(), places, squares)


def check_fired(effects: Iterable[tuple[Edit, bool]]) -> None:
    """Refuse edits that were never reached, or never had a place where they were.

    Args:
        effects: each edit, and whether it fired at a place.

    Raises:
        NeverFiredError: an edit was not.
    """
    silent = [str(edit.site) for edit, fired in effects if not fired]
    if silent:
        raise NeverFiredError(
            f"never reached in the forward pass: {'; '.join(silent)}. The module was not called (or not that often, "
            "or no generated token came to be processed), so nothing was changed"
        )
