"""Only the logits that are read: the unembedding of the last real tokens, and of the tokens asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import SiteError
from ..engine import Bound, token_axis
from ..engine.step import Pass
from ..models import Slot, find_leaf, find_slot, replace_leaf
from ..models.detours import forwards, is_detoured
from ..models.resolve import known_map
from ..models.scope import before_call
from ..models.sequence import logits_stack
from ..sites import Site
from .depth import Blocks
from .reasons import has_hooks
from .schedule import Stage


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


def narrowed(made: Pass, unembedding: nn.Module | None, tokens: tuple[int, ...] | None) -> Pass:
    """Return a pass of which the model computes only the logits that are read.

    Args:
        made: the pass.
        unembedding: the layer that gives them; `None`: it is left alone.
        tokens: ids of the tokens whose logits are computed; `None` for all.
    """
    sequence = token_axis(made.inputs, logits_stack(made.inputs))
    if unembedding is None or made.at is None or sequence is None:
        return made
    fewer = FewerLogits(unembedding, *made.at, tokens, (int(sequence.shape[0]), int(sequence.shape[1])))
    return replace(made, within=[*made.within, fewer.context()], narrowed=fewer.were_given)


def unembedding_of(bound: Bound, stage: Stage, blocks: Blocks | None) -> nn.Module | None:
    """Return the layer that gives a stage's logits, where it can give some without the others and nobody notices."""
    unknown = known_map(bound.model) is None  # to find out would take a pass
    applied = is_detoured(bound.model, "forward")
    if not stage.wanted or bound.plan.logits is None or bound.generates or unknown or applied:
        return None
    try:
        slot = find_slot(bound.model, Site("logits"))
    except SiteError:
        return None
    if not can_narrow(slot) or has_hooks(slot.module) or has_hooks(bound.model, outputs=True):
        return None
    used = [(edit.site, bound.edits[edit.name].slot) for run in stage.runs for edit in run.edits]
    used += [(read.site, bound.reads[read].slot) for read in stage.reads]
    return None if any(_sees_logits(one, site, slot.module, blocks) for site, one in used) else slot.module


def _sees_logits(slot: Slot, site: Site, unembedding: nn.Module, blocks: Blocks | None) -> bool:
    """Whether a place may be at the unembedding or behind it, so that it would miss logits that are not computed."""
    if slot.module is unembedding:
        return True
    return site.path is not None and (blocks is None or blocks.depth_of(slot.path) is None)
