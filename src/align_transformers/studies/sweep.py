"""Carrying out a sweep: one plan, or a few where its values would not fit into memory or have to be stored between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._errors import SiteError
from ..engine import Outcome, bind
from ..interventions import Intervention
from ..models import find_slot
from ..plan import Logits, Plan, Run
from ..planners import execute
from ..sites import Site
from .cells import Swaps
from .pair import Pairs

_TAIL = 4096  # tokens of a run: the engine puts whole runs into passes, so that they bound these
_STORED = 16384  # tokens between two parts of a store: what is lost at most
_CLEAN = 32  # a part of a store has that many times the tokens of the clean runs, which each part runs again
_BYTES = 2**29  # of values that wait in a plan: what was read of the clean runs, and logits
_VOCABULARY = 2**17  # where the model does not tell


@dataclass(frozen=True, eq=False)
class Task:
    """What all parts of a sweep have in common.

    Args:
        model: the user's.
        pairs: the prompts.
        tokens: ids of the tokens whose logits are wanted; `None` for the whole vocabulary.
        at: by input the column of every prompt where logits are read; inputs not named at the last real token.
        interventions: that the swaps name.
    """

    model: nn.Module
    pairs: Pairs
    tokens: tuple[int, ...] | None
    at: Mapping[str, tuple[int, ...]]
    interventions: Mapping[str, Intervention]


@dataclass(frozen=True, eq=False)
class Swapped:
    """What came of swaps.

    Args:
        swaps: what was done.
        logits: of each cell.
        changes: of each cell the norm of the change.
        fired: how often their edit fired.
    """

    swaps: Swaps
    logits: Float[Tensor, "cells tokens"]
    changes: Sequence[float]
    fired: int


@dataclass(frozen=True, eq=False)
class Part:
    """What came of one plan.

    Args:
        clean: by input the logits of the unedited run, `(pairs, tokens)`.
        swapped: the swaps, in order.
        passes: how many forward passes of each kind were run, as the ledger names them.
    """

    clean: Mapping[str, Tensor]
    swapped: Sequence[Swapped]
    passes: Mapping[str, int]


def carry_out(task: Task, swaps: Sequence[Swaps], ready: Callable[[int], None] | None = None) -> Part:
    """Run both sides' prompts once, and the swaps, as one plan.

    Args:
        task: what the swaps are of.
        swaps: each a run.
        ready: called after every pass with the number of cells that it made.
    """
    runs = (Run("base", "base"), Run("source", "source"), *(one.run(task.pairs) for one in swaps))
    plan = Plan(runs, tuple(run.name for run in runs), Logits(task.tokens, tuple(task.at.items())))
    inputs = {"base": task.pairs.base.inputs, "source": task.pairs.source.inputs}
    cells = {one.name: len(one.cells) for one in swaps}

    def tell(outputs: Mapping[str, Any]) -> None:
        made = sum(cells.get(name, 0) for name in outputs)
        if made and ready is not None:
            ready(made)

    outcome = execute(bind(task.model, plan, inputs, task.interventions), ready=tell)
    fired = {effect.name: effect.fired for effect in outcome.effects}
    logits = {name: output.float() for name, output in outcome.outputs.items()}
    clean = {name: logits[name] for name in ("base", "source")}
    swapped = [Swapped(one, logits[one.name], _changes(outcome, one), fired[f"swap {one.name}"]) for one in swaps]
    return Part(clean, swapped, Counter(passed.way for passed in outcome.passes))


def _changes(outcome: Outcome, swaps: Swaps) -> list[float]:
    seen = outcome.collected[f"distance {swaps.name}"]
    squares = sum(
        (value.squeeze(-1).square() * real.to(value.device)).flatten(1).sum(-1)
        for value, real in zip(seen.values, seen.real, strict=True)
    )
    return torch.as_tensor(squares).sqrt().tolist()


def parts_of(task: Task, swaps: Sequence[Swaps], *, stored: bool) -> Iterator[list[Swaps]]:
    """Yield the swaps in lists, each to be carried out as one plan: as few as memory allows.

    Every plan runs the clean prompts again, so between two parts of a store there is much more to do than that.

    Args:
        task: what the swaps are of.
        swaps: all.
        stored: what is done is to be stored now and then.
    """
    sides = (task.pairs.base, task.pairs.source)
    tokens = max(_STORED, _CLEAN * sum(side.length * len(side) for side in sides)) if stored else None
    logits = 4 * (vocabulary(task.model) or _VOCABULARY if task.tokens is None else len(task.tokens))
    group: list[Swaps] = []
    held = run = 0
    for one in swaps:
        each = logits + _value_bytes(task.model, one)
        for part in one.parts(task.pairs, _TAIL, max(1, _BYTES // each)):
            bytes_, columns = each * len(part.cells), part.tokens(task.pairs)
            if group and (held + bytes_ > _BYTES or (tokens is not None and run + columns > tokens)):
                yield group
                group, held, run = [], 0, 0
            group.append(part)
            held, run = held + bytes_, run + columns
    yield group


def _value_bytes(model: nn.Module, swaps: Swaps) -> int:
    """Return how much is read for one cell, about."""
    slot = find_slot(model, swaps.site)
    width = slot.width or 4096
    if swaps.cells[0].head is not None and slot.heads is not None:
        width = slot.heads.shape[1]
    return 4 * width * max(len(cell.places) for cell in swaps.cells)


def vocabulary(model: nn.Module) -> int | None:
    """Return how many tokens a model has logits for; `None` where it does not tell."""
    try:
        return find_slot(model, Site("logits")).width
    except SiteError:
        return None
