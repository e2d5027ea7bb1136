"""The query and key fix of AtP* (Kramar et al. 2024, arXiv:2403.00745): through the softmax exactly, then by gradient.

A softmax that is saturated has no gradient, whatever a query or a key does to it. So the patterns under another query
or another key are worked out anew, one at a time, without a pass; what comes of a pattern is estimated by its gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .._errors import PositionError, SpecError
from ..models import Slot, find_slot
from ..sites import Site
from ._cells import Selection
from ._taped import Tape
from ._units import Units

_QUERIES, _KEYS = ("query_output", "query_rotary"), ("key_output", "key_rotary")
_NEEDED = ("query_rotary", "key_rotary", "attention_score", "attention_pattern")
_MASKED = -1e14
"""Scores below are those of masked keys."""


class AttentionFix:
    """What swaps of queries or keys in one block make of the patterns.

    Args:
        site: of the swap.
        slot: where that is.
        into: the run that is edited.
        out_of: the run that is read.
        gradients: at the sites of `sites_of`, of the former.
    """

    def __init__(self, site: Site, slot: Slot, into: Tape, out_of: Tape, gradients: Mapping[Site, Tensor]) -> None:
        self._site = site
        names = [_beside(site, name) for name in _NEEDED]
        queries, keys, scores, pattern = (into.values[name] for name in names)
        slots = [find_slot(into.model, name) for name in names]
        self._counts = len(slots[0].heads), len(slots[1].heads)  # type: ignore[arg-type]
        self._query, self._key = (self._by_head(t, n) for t, n in zip((queries, keys), self._counts, strict=True))
        self._other = self._by_head(out_of.values[names[self._of_key]], self._counts[self._of_key])
        shape = (self._counts[0], -1)
        self._scores, self._pattern = scores.unflatten(-1, shape).double(), pattern.unflatten(-1, shape).double()
        self._gradient = gradients[names[3]].unflatten(-1, shape).double()
        given = getattr(slots[3].module, "scaling", None)
        self._scale = float(given) if given is not None else self._query.shape[-1] ** -0.5
        self._check_scale()

    @staticmethod
    def is_about(site: Site) -> bool:
        """Whether what stands at a site goes through a softmax first."""
        return site.name in (*_QUERIES, *_KEYS)

    @classmethod
    def sites_of(cls, sites: list[Site]) -> list[Site]:
        """Return the sites that have to be recorded for swaps at some sites."""
        about = [site for site in sites if cls.is_about(site)]
        return list(dict.fromkeys(_beside(site, name) for site in about for name in _NEEDED))

    def shares(self, units: Units, aligned: bool, asked: Selection) -> Tensor:
        """Return what each unit's swap makes of the metric, `(units, heads)`; one column where all heads are swapped.

        Args:
            units: tokens.
            aligned: they have equal numbers in both prompts.
            asked: which cells.

        Raises:
            SpecError: parts of heads are swapped.
            PositionError: a token has another number in the prompt that is read, and so another rotation.
        """
        if asked.neurons is not None:
            raise SpecError(f"method='atp*' works out patterns of whole heads at {self._site}; neurons={asked.neurons}")
        if not aligned and str(self._site.name).endswith("_output"):
            raise PositionError(
                f"method='atp*' at {self._site} takes the rotated vector of the other prompt, so tokens of a pair have "
                "equal numbers there: use prompts of equal length, or components=['query_rotary', 'key_rotary']"
            )
        pairs, columns, others = units.tensors()
        made = self._keys(pairs, columns, others) if self._of_key else self._queries(pairs, columns, others)
        return made if units.heads else made.sum(-1, keepdim=True)

    @property
    def _of_key(self) -> bool:
        return self._site.name in _KEYS

    def _queries(self, pairs: Tensor, columns: Tensor, others: Tensor) -> Tensor:
        """Return `(units, heads)` for other queries."""
        moved = self._other[pairs, others] - self._query[pairs, columns]
        keys = self._spread(self._key)[pairs]  # (units, keys, heads, size)
        scores = self._scores[pairs, columns] + self._scale * torch.einsum("uhd,ukhd->uhk", moved, keys)
        change = scores.softmax(-1) - self._pattern[pairs, columns]
        return (change * self._gradient[pairs, columns]).sum(-1)

    def _keys(self, pairs: Tensor, columns: Tensor, others: Tensor) -> Tensor:
        """Return `(units, kv heads)` for other keys: of every query, the softmax with one entry replaced."""
        moved = self._other[pairs, others] - self._key[pairs, columns]
        shift = self._scale * torch.einsum("uhd,uqhd->uqh", self._spread(moved), self._query[pairs])
        logs = self._scores.log_softmax(-1)[pairs]
        column = columns[:, None, None, None].expand(*logs.shape[:-1], 1)
        own = logs.gather(-1, column)[..., 0]
        before, after = own.exp(), (own + shift).exp()
        whole = 1 - before + after
        mean = (self._pattern * self._gradient).sum(-1)[pairs]
        there = self._gradient[pairs].gather(-1, column)[..., 0]
        made = ((1 / whole - 1) * mean + (after - before) / whole * there).sum(1)
        return made.unflatten(-1, (self._counts[1], -1)).sum(-1)

    def _spread(self, shared: Tensor) -> Tensor:
        """Repeat kv heads for the heads that share them."""
        return shared.repeat_interleave(self._counts[0] // self._counts[1], dim=-2)

    def _by_head(self, flat: Tensor, heads: int) -> Tensor:
        return flat.unflatten(-1, (heads, -1)).double()

    def _check_scale(self) -> None:
        """Refuse scores that are not products of queries and keys, times a number, plus what knows neither."""
        product = self._scale * torch.einsum("bqhd,bkhd->bqhk", self._query, self._spread(self._key))
        rest = (self._scores - product).masked_fill(self._scores < _MASKED, 0)
        rows = (rest.amax((0, 2)) - rest.amin((0, 2))).abs() if rest.shape[0] > 1 else rest.abs()
        if bool((self._scores.softmax(-1) - self._pattern).abs().max() > 1e-3) or not bool(rows.isfinite().all()):
            raise SpecError(f"the patterns behind {self._site} are not the softmax of the scores: use method='atp'")


def _beside(site: Site, name: str) -> Site:
    return replace(site, component=f"{site.stack}.{name}" if site.stack else name)
