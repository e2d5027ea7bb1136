"""The effect ledger: what every edit did. An edit that never fired is an error, not a silence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
    """

    name: str
    site: str
    fired: int
    rows: int
    positions: int
    change: float


@dataclass(frozen=True)
class Passed:
    """One forward pass that was run.

    Args:
        runs: the runs it carried out.
        way: `full`: from the first block on; `late`: one run from its first edit on; `together`: several runs, each
            from its first edit on; `packed`: likewise, only the positions from the first edit on.
        rows: of the pass.
        columns: of the pass.
        why: why it could not do with less, where it could have started late.
    """

    runs: tuple[str, ...]
    way: str
    rows: int
    columns: int
    why: str = ""


_HELD = 2**16
"""Numbers that an edit may hold until somebody asks for the ledger."""


class Tally:
    """Counts one edit while a pass runs."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.fired = 0
        self.rows = 0
        self.positions = 0
        self._changes: list[Tensor] = []
        self._pending: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def count(self, old: Tensor, new: Tensor | None, real: Tensor | None) -> None:
        """Note one firing.

        Args:
            old: `(batch, units, width)` before; zeros at padding.
            new: the same after; `None` if nothing was written. What it has at padding does not count.
            real: broadcastable to `old`, False at padding; `None` if all are real.
        """
        self.fired += 1
        if real is None:
            self.rows += old.shape[0] if old.numel() else 0
            self.positions += old.shape[:-1].numel()
        else:
            touched = real.expand_as(old).any(-1)
            self.rows += int(touched.flatten(1).any(1).sum())
            self.positions += int(touched.sum())
        if new is not None:
            held = old.detach() if old.requires_grad else old, new.detach() if new.requires_grad else new, real
            self._pending.append(held)
            if len(self._pending) * old.numel() > _HELD:
                self._settle()

    def _settle(self) -> None:
        """Work out the norms of the changes that were only noted so far."""
        for old, new, real in self._pending:
            kind = torch.promote_types(old.dtype, torch.float32)
            change = new.to(kind) - old.to(kind)
            change = change if real is None else change.masked_fill(~real, 0)
            self._changes.append(torch.linalg.vector_norm(change))
        self._pending.clear()

    def effect(self) -> Effect:
        """Return the entry of the ledger."""
        self._settle()
        change = math.hypot(*(float(norm) for norm in self._changes))
        return Effect(self.edit.name, str(self.edit.site), self.fired, self.rows, self.positions, change)


def check_fired(tallies: Iterable[Tally]) -> None:
    """Refuse edits that were never reached.

    Raises:
        NeverFiredError: an edit was not.
    """
    silent = [str(tally.edit.site) for tally in tallies if tally.fired == 0]
    if silent:
        raise NeverFiredError(
            f"never reached in the forward pass: {'; '.join(silent)}. The module was not called (or not that often, "
            "or no generated token came to be processed), so nothing was changed"
        )
