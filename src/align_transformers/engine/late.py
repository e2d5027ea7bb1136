"""Passes that start late: whether a pass may, and what it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models.modules import every_module
from ..plan import Run
from .apply import Work, apply_edits, edit_tap
from .bind import Bound, BoundEdit
from .budget import room
from .ending import Ending
from .hooks import Tap
from .inputs import CACHES, Inputs, batch_size, examples_of, token_axis
from .kept import Kept, is_causal
from .layout import Copies, Layout, lay_out
from .replay import Join, Replay
from .schedule import END, INSIDE, Depth

_TEXTS = tuple(
    f"{stack}{name}"
    for stack in ("", "encoder_", "decoder_")
    for name in ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "token_type_ids")
)
_SETTINGS = ("use_cache", "return_dict")
_PACKED_INPUTS = {"input_ids", "attention_mask", "position_ids", *_SETTINGS}
_NOT_BY_TOKEN = {"attention_score", "attention_pattern"}
_RECORDER = "transformers.utils.output_capturing"


@dataclass(frozen=True, eq=False)
class Late:
    """A late pass that is ready to run.

    Args:
        replay: the blocks that are left out, and where copies join.
        taps: the edits behind the joins.
        inputs: what the model is called with.
        layout: where the copies lie.
        at: for each copy the row and column at which it is read; `None` where whole outputs are wanted.
    """

    replay: Replay
    taps: list[Tap]
    inputs: Inputs
    layout: Layout
    at: tuple[Tensor, Tensor] | None


WAYS = ("late", "together", "packed", "ended")
"""The ways of a pass that does not start at the first block: one run, several, the tails of several, and these with a
last block for what is read only."""


class Abilities(ABC):
    """What late passes of a model can do."""

    @abstractmethod
    def why_not(self, way: str) -> str:
        """Return why passes cannot be run in one of `WAYS`; empty if they can."""

    @abstractmethod
    def tokens(self) -> bool:
        """Whether the logits of some tokens can be had without the others."""


def why_not_late(bound: Bound) -> str:
    """Return why no pass of a model may start late now; empty if one may."""
    if bound.chain is None:
        return "the chain of its blocks is not known"
    for module in every_module(bound.model):
        if module.training:
            return "it is in training mode: dropout may be on"
        if module is not bound.model and has_hooks(module):
            return "somebody else's hooks stand in it"
    return ""


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of others stand on a module: they may rest on the shapes or the calls of a pass as it was."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != _RECORDER for hook in hooks)


def own_caches(inputs: Inputs) -> Inputs:
    """Return an input with copies of the caches that were handed in: each pass writes into its own."""
    if isinstance(inputs, Tensor) or all(inputs.get(name) is None for name in CACHES):
        return inputs
    return {name: deepcopy(value) if name in CACHES else value for name, value in inputs.items()}


def why_not_together(bound: Bound, runs: Sequence[Run]) -> str:
    """Return why the copies of several runs cannot be rows of one pass; empty if they can."""
    inputs = bound.inputs[runs[0].input]
    for name, value in ({} if isinstance(inputs, Tensor) else inputs).items():
        if name not in _SETTINGS and not _by_example(name, value, batch_size(inputs)):
            return f"its input has {name}, which may not be by example"
    for run in runs:
        for edit in run.edits:
            if edit.site.path is not None and edit.positions.rows is None:
                return f"{edit.site} is edited as a whole, and may not be by example"
            if edit.site.stack == "encoder" or edit.site.sequence != edit.site.stack:
                return f"{edit.site} is not in the main stack's own sequence"
            if bound.edits[edit.name].slot.fused is not None:
                return f"{edit.site} is run step by step"
    return ""


def _by_example(name: str, value: Any, batch: int) -> bool:
    """Whether the first axis of an input is that of the examples, or one for all."""
    if value is None:
        return True
    if name not in _TEXTS or not isinstance(value, Tensor) or (name.endswith("position_ids") and value.ndim != 2):
        return False
    return value.ndim > 1 and value.shape[0] in (1, batch)


def why_not_packed(bound: Bound, runs: Sequence[Run], kept: Kept) -> str:
    """Return why only whole copies can be run, not their tails; empty if tails can."""
    inputs = bound.inputs[runs[0].input]
    if kept.unpackable:
        return kept.unpackable
    if not isinstance(inputs, Mapping) or token_axis(inputs) is None or inputs.keys() - _PACKED_INPUTS:
        return "its input is not a text alone"
    assert bound.chain is not None
    first = min([*kept.inputs, *(link + 1 for link in kept.outputs)], default=0)
    if not {link for link, _ in kept.attended} >= set(range(first, len(bound.chain))):
        return "not every block has an attention of the known kind"
    if getattr(getattr(bound.model, "config", None), "_attn_implementation", None) not in ("sdpa", "eager"):
        return "its attention is neither PyTorch's nor eager"
    if not all(
        is_causal(mask) for mask in {id(seen.allowed): seen.allowed for seen in kept.attended.values()}.values()
    ):
        return "attention looks ahead"
    if any(e.site.name in _NOT_BY_TOKEN for run in runs for e in run.edits):
        return "scores and patterns are edited"
    return ""


def in_chunks(
    bound: Bound, runs: Sequence[tuple[Run, Depth]], kept: Kept, *, packed: bool
) -> Iterator[Sequence[tuple[Run, Depth]]]:
    """Yield runs that go into one pass, in their order, as many as memory allows.

    Args:
        bound: the plan.
        runs: with the depths of their first edits.
        kept: the unedited states of the input.
        packed: only tails are run.
    """
    length, size = kept.state.shape[1], 0
    group: list[tuple[Run, Depth]] = []
    most = room(kept.state.device) / max(kept.bytes, 1.0)
    for run, depth in runs:
        copies = _copies(bound, run, kept.batch, packed)
        need = sum(length - start for start in copies.starts)
        if group and size + need > most:
            yield from _told_apart(group, size, kept.batch * length, packed)
            group, size = [], 0
        group.append((run, depth))
        size += need
    yield from _told_apart(group, size, kept.batch * length, packed)


def _told_apart(
    group: list[tuple[Run, Depth]], size: int, own: int, packed: bool
) -> Iterator[Sequence[tuple[Run, Depth]]]:
    """Yield a group as it is, but as two if it has just as many rows as the input has examples.

    An axis that has this length by chance could not be told from that of the examples.
    """
    if packed or size != own or len(group) < 2:
        yield group
    else:
        yield from (group[:1], group[1:])


def prepare(
    work: Work,
    runs: Sequence[Run],
    depths: Sequence[Depth],
    kept: Kept,
    *,
    packed: bool,
    ended: bool,
) -> Late:
    """Return a late pass over the copies of some runs.

    Args:
        work: the plan that is being carried out.
        runs: of one input, ordered by depth.
        depths: of the first edit of each.
        kept: the unedited states of the input.
        packed: run only the tails of the copies.
        ended: of the last block, run only what is read, if no edit needs more.
    """
    bound = work.bound
    assert bound.chain is not None
    inputs = bound.inputs[runs[0].input]
    length = kept.state.shape[1]
    copies = [_copies(bound, run, kept.batch, packed) for run in runs]
    layout = lay_out(copies, length, packed=packed)
    moved = packed or len(runs) > 1
    joins: list[Join] = []
    taps: list[Tap] = []
    inside: list[BoundEdit] = []
    for number, (run, depth) in enumerate(zip(runs, depths, strict=True)):
        link, output = bound.chain.find(depth)
        edits = [bound.edits[edit.name] for edit in run.edits]
        rows = layout.rows[number]
        here = [
            edit for edit in edits if bound.depths[edit.edit.site] == depth and depth.point != INSIDE and depth < END
        ]
        at_join = [_moved(edit, layout, number, rows.start) if moved else edit for edit in here]
        joins.append(Join(link, output, rows, partial(apply_edits, work, at_join)))
        behind = [edit for edit in edits if edit not in here]
        inside += behind
        taps += [edit_tap(work, _moved(edit, layout, number, 0) if moved else edit) for edit in behind]
    columns = [known for run in runs if (known := bound.columns(run)) is not None]
    at = layout.ends(torch.cat(columns)) if len(columns) == len(runs) else None
    can_end = at is not None and ended and _can_end(bound, inside, kept, layout)
    ending = Ending(bound.chain.links[-1], *at) if at is not None and can_end else None
    replay = Replay(bound.chain, kept, layout, joins, ending)
    return Late(replay, taps, _inputs(inputs, layout), layout, at)


def _can_end(bound: Bound, edits: Sequence[BoundEdit], kept: Kept, layout: Layout) -> bool:
    """Whether the last block can be cut down: it attends once, and nothing is done in it or behind it."""
    assert bound.chain is not None
    last = len(bound.chain) - 1
    depths = [bound.depths[edit.edit.site] for edit in edits]
    early = all(depth is not None and depth < END and bound.chain.find(depth)[0] < last for depth in depths)
    return early and layout.position.shape[1] > 1 and (last, 0) in kept.attended and (last, 1) not in kept.attended


def _copies(bound: Bound, run: Run, batch: int, packed: bool) -> Copies:
    examples = tuple(range(batch)) if run.examples is None else run.examples
    starts = [0] * len(examples)
    if packed:  # a tail begins with the first position that is edited or read
        columns = bound.columns(run)
        firsts: list[list[int]] = [[]] * len(examples) if columns is None else [[c] for c in columns.tolist()]
        for edit in run.edits:
            rows = edit.positions.rows or ((0,),)
            firsts = [[*first, *rows[n if len(rows) > 1 else 0]] for n, first in enumerate(firsts)]
        starts = [min(first, default=0) for first in firsts]
    return Copies(examples, tuple(starts))


def _moved(edit: BoundEdit, layout: Layout, run: int, first_row: int) -> BoundEdit:
    return replace(edit, places=layout.places(edit.places, run, first_row))


def _inputs(inputs: Inputs, layout: Layout) -> Inputs:
    """Return what the model is called with: the input's tokens where the layout has them."""
    if not layout.packed:
        return examples_of(inputs, layout.example[:, 0].tolist())
    assert isinstance(inputs, Mapping)
    ids = inputs["input_ids"]
    positions = inputs.get("position_ids")
    at = layout.example.to(ids.device), layout.position.to(ids.device)
    placed = at[1] if positions is None else positions.expand(batch_size(inputs), -1)[at]
    others = {name: value for name, value in inputs.items() if name in _SETTINGS}
    if "attention_mask" in inputs:  # who sees whom is settled where attention is computed
        others["attention_mask"] = torch.ones_like(layout.position, device=ids.device)
    return {"input_ids": ids[at], "position_ids": placed, **others}
