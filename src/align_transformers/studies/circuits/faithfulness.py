"""Faithfulness of circuits from what they are worth on each pair, with intervals over the pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..._errors import SpecError

NEAR = 0.1
"""A pair has no faithfulness of its own where full and empty circuit are nearer than this share of their median gap."""


@dataclass(eq=False)
class Faithfulness:
    """What circuits make of the way from the empty circuit to the full one, over pairs.

    All intervals are of the same draws of pairs, so they are of paired differences.

    Args:
        full: `(pairs,)` the metric with all edges.
        empty: `(pairs,)` that with none.
        draws: of the bootstrap.
        seed: of its draws.

    Raises:
        SpecError: the means of both are the same.
    """

    full: Tensor
    empty: Tensor
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self.gaps = self.full - self.empty
        if not float(self.gaps.mean()):
            raise SpecError("the metric has the same mean for the whole model and for the empty circuit")
        count = len(self.gaps)
        drawn = torch.randint(count, (self.draws, count), generator=torch.Generator().manual_seed(self.seed))
        self._weights = torch.zeros(self.draws, count).scatter_add_(1, drawn, torch.ones(self.draws, count)).double()
        self._weights /= count
        self._drawn = drawn
        low, high = self.interval(self._weights @ self.gaps)
        self.sure = count > 1 and low * high > 0
        """Whether the interval of the gap leaves 0 out: otherwise a share of the gap has no finite interval."""

    def mean(self, values: Tensor) -> tuple[float, float | None, float | None]:
        """Return the mean of the values of pairs with its interval."""
        if len(values) < 2:
            return float(values.mean()), None, None
        return (float(values.mean()), *self.interval(self._weights @ values))

    def ratio(self, values: Tensor) -> Tensor:
        """Return the ratio of means f = mean(m - empty) / mean(full - empty), `(circuits,)`.

        Args:
            values: `(circuits, pairs)`.
        """
        return (values - self.empty).mean(-1) / self.gaps.mean() + 0.0  # no -0

    def ratios(self, values: Tensor) -> Tensor:
        """Return the same of each draw of pairs, `(circuits, draws)`."""
        return (values - self.empty) @ self._weights.T / (self._weights @ self.gaps)

    def bounds(self, drawn: Tensor) -> tuple[float | None, float | None]:
        """Return the interval of what was made of `ratios`, `(draws,)`; `None` where there is none."""
        return self.interval(drawn) if self.sure else (None, None)

    def each(self, values: Tensor) -> Tensor:
        """Return the faithfulness of each pair by itself, `(pairs,)`; NaN where its gap is next to nothing."""
        near = self.gaps.abs() < NEAR * self.gaps.abs().median()
        return torch.where(near, torch.nan, (values - self.empty) / self.gaps)

    def median(self, values: Tensor) -> tuple[float | None, float | None, float | None]:
        """Return the median of `each` with its interval."""
        each = self.each(values)
        if bool(each.isnan().all()):
            return None, None, None
        middle = float(each.nanquantile(0.5))
        if len(each) < 2:
            return middle, None, None
        drawn = each[self._drawn].nanquantile(0.5, dim=1)
        return (middle, *self.interval(drawn[~drawn.isnan()]))

    @staticmethod
    def interval(drawn: Tensor) -> tuple[float, float]:
        """Return the ends of the middle 95 % of some numbers."""
        low, high = torch.quantile(drawn.double(), torch.tensor([0.025, 0.975]).double()).tolist()
        return low + 0.0, high + 0.0  # no -0
