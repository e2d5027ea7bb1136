"""A pass of which the blocks below the first edit are left out, and which copies join where their first edit is.

The copies of several runs are rows of one tensor. Blocks below the first copy's start only hand on a placeholder. When
the pass comes to where a run's first edit is, the rows of its copies are put below those that are there already, in the
state that the unedited run of the input had there. So the last blocks work on all copies at once, and no block works on
a copy that it cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import find_leaf, replace_leaf
from ..models.detours import forwards
from ..models.inside_attention import around_attention
from ..models.scope import after_call, before_call
from .depth import BlockCall, Blocks
from .last_block import LastBlock
from .states import Cursor, States, by_batch
from .tails import Layout


@dataclass(frozen=True, eq=False)
class Join:
    """Where the copies of one run join a pass.

    Args:
        number: of the block.
        output: they join after it rather than before it.
        rows: their rows in the pass.
        edit: what is done to their state at that very place.
    """

    number: int
    output: bool
    rows: range
    edit: Callable[[Tensor], Tensor]


class PartialPass:
    """The hooks and stand-ins of one pass that starts from known states.

    Args:
        blocks: the model's.
        states: of the input, from the pass that it starts from.
        layout: where each copy lies.
        joins: in the order of their rows, which is that of their depths.
        last_block: the last block, where only a part of it is needed.

    Attributes:
        first: number of the first block that is run.
    """

    def __init__(
        self,
        blocks: Blocks,
        states: States,
        layout: Layout,
        joins: Sequence[Join],
        last_block: LastBlock | None = None,
    ) -> None:
        self._last_block = last_block
        self._blocks, self._states, self._layout = blocks, states, layout
        self._joins: dict[tuple[int, bool], list[Join]] = {}
        for join in joins:
            self._joins.setdefault((join.number, join.output), []).append(join)
        self.first = min(join.number + join.output for join in joins)
        self._rows = int(layout.example.shape[0])
        here = torch.arange(states.batch)
        self._is_the_input = not layout.packed and torch.equal(layout.example[:, 0], here)
        self._cursor = Cursor(blocks)
        self._active = 0
        self._prefix = int(layout.begins.max()) if layout.packed else 0
        self._masks: dict[int, Tensor] = {}
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """Hold what has to stand before the hooks of the edits."""
        skipped = {call.module for call in self._blocks.calls[: self.first]}
        with ExitStack() as stack:
            stack.enter_context(forwards(dict.fromkeys(skipped, self._stand_in)))
            if self._last_block is not None and self._last_block.call.module not in skipped:
                stack.enter_context(forwards({self._last_block.call.module: self._last_block.forward}))
            for call in self._blocks.calls:
                stack.enter_context(before_call(call.module, self._before))
            if self._layout.packed:
                stack.enter_context(around_attention(self._attend))
            yield

    @contextmanager
    def within(self) -> Iterator[None]:
        """Hold what has to stand after them."""
        with ExitStack() as stack:
            for call in self._blocks.calls:
                stack.enter_context(after_call(call.module, self._after, first=True))
            yield

    # --- the blocks that are left out ---------------------------------------------------------------------------

    def _stand_in(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            call = self._cursor.call
            if call is None:
                return forward(*args, **kwargs)
            for name, entries in self._states.sides.get(call.number, {}).items():
                kwargs[name].update({key: self._rowed(value) for key, value in entries.items()})
            leaf, shell = self._states.shells.get(call.number, ((), None))
            return replace_leaf(self._rowed(shell), leaf, self._handed_on(call))

        return stand_in

    def _rowed(self, value: Any) -> Any:
        """Return what a block gave for the input as it would give it for the rows of this pass."""
        if self._is_the_input:
            return value
        return by_batch(value, self._states.batch, lambda t: self._layout.lay(t, range(self._rows)))

    def _handed_on(self, call: BlockCall) -> Tensor:
        """Return what a block that is left out returns: an encoder's last its output, any other what nobody may read.

        That is not a number: whoever reads it after all does not go unnoticed.
        """
        if self._blocks.closes(call):
            return self._layout.lay(self._states.at(call.number, True), range(self._rows))
        sample = self._states.samples[call.rank]
        length = self._layout.example.shape[1] if self._layout.packed else sample.shape[1]
        return sample.new_full((), float("nan")).expand(self._rows, length, sample.shape[-1])

    # --- the blocks that run --------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, arguments: Any) -> Any:
        call = self._cursor.enter(module)
        if call.number < self.first:
            return None
        joins = self._joins.get((call.number, False))
        if joins:
            leaf, hidden = find_leaf(arguments, call.input.leaf, call.input.path)
            arguments = self._with(arguments, (leaf, *call.input.also), self._joined(hidden, joins, call))
        if self._active < self._rows:
            fixed = self._states.fixed.get(call.number, ())
            arguments = by_batch(arguments, self._rows, self._narrowed, fixed)
        return arguments

    def _narrowed(self, tensor: Tensor) -> Tensor:
        """Return the rows of the copies that are there already."""
        part = tensor[: self._active]
        self._whole[id(part)] = part, tensor
        return part

    def _widened(self, tensor: Tensor) -> Tensor:
        """Return all rows of what a block only hands on."""
        return self._whole.get(id(tensor), (tensor, tensor))[1]

    def _after(self, module: nn.Module, _arguments: Any, output: Any) -> Any:
        call = self._cursor.call
        if call is None or call.module is not module:
            return None
        joins = self._joins.get((call.number, True))
        if self._whole:
            output = by_batch(output, self._active, self._widened)
            self._whole.clear()
        if not joins:
            return output
        leaf, hidden = find_leaf(output, call.output.leaf, call.output.path)
        return self._with(output, (leaf,), self._joined(hidden, joins, call))

    @staticmethod
    def _with(container: Any, leaves: Sequence[Any], tensor: Tensor) -> Any:
        for leaf in leaves:
            container = replace_leaf(container, leaf, tensor)
        return container

    def _joined(self, hidden: Tensor, joins: Sequence[Join], call: BlockCall) -> Tensor:
        parts = [hidden] if self._active else []
        for join in joins:
            parts.append(join.edit(self._layout.lay(self._states.at(call.number, join.output), join.rows)))
            self._active = join.rows.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # --- attention of tails ---------------------------------------------------------------------------------------

    def _attend(
        self, function: Any, _default: Any, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        call = self._cursor.call
        if call is None:
            return function(module, *inputs, **options)
        names = ("query", "key", "value", "attention_mask")
        given = dict(zip(names, inputs, strict=False)) | {n: options.pop(n) for n in names if n in options}
        last = self._last_block
        last = last if last is not None and last.call is call and last.cuts else None
        if last is not None and last.asked:
            return function(module, given["query"], *last.answer(), *inputs[4:], **options)
        seen = self._states.attended[call.number, self._cursor.attentions]
        self._cursor.attentions += 1
        rows = self._layout.example[: self._active, 0]
        key, value = (self._behind(known, given[n], rows) for n, known in (("key", seen.key), ("value", seen.value)))
        if id(seen.allowed) not in self._masks:
            self._masks[id(seen.allowed)] = self._layout.mask(seen.allowed, self._prefix)
        mask = self._masks[id(seen.allowed)][: self._active]
        if last is not None:
            last.ask(key, value, mask)
        return function(module, given["query"], key, value, mask, *inputs[4:], **options)

    def _behind(self, known: Tensor, own: Tensor, rows: Tensor) -> Tensor:
        """Return the keys or values of the known prefix with a row's own behind them."""
        prefix = known[:, :, : self._prefix]
        prefix = prefix.expand(len(rows), -1, -1, -1) if known.shape[0] == 1 else prefix[rows.to(known.device)]
        return torch.cat([prefix, own], dim=2)
