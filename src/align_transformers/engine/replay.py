"""A pass that starts late: the blocks below the first edit are left out, and copies join where their first edit is.

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
from .chain import Chain, Link, by_batch, forwards
from .ending import Ending
from .hooks import after_call, before_call
from .interface import around_attention
from .kept import Kept, Steps
from .layout import Layout


@dataclass(frozen=True, eq=False)
class Join:
    """Where the copies of one run join a pass.

    Args:
        link: number of the block.
        output: they join after it rather than before it.
        rows: their rows in the pass.
        edit: what is done to their state at that very place.
    """

    link: int
    output: bool
    rows: range
    edit: Callable[[Tensor], Tensor]


class Replay:
    """One late pass.

    Args:
        chain: the model's blocks.
        kept: the unedited states of the input.
        layout: where each copy lies.
        joins: in the order of their rows, which is that of their depths.
        ending: the last block, where only a part of it is needed.
    """

    def __init__(
        self, chain: Chain, kept: Kept, layout: Layout, joins: Sequence[Join], ending: Ending | None = None
    ) -> None:
        self._ending = ending
        self._chain, self._kept, self._layout = chain, kept, layout
        self._joins: dict[tuple[int, bool], list[Join]] = {}
        for join in joins:
            self._joins.setdefault((join.link, join.output), []).append(join)
        self._first = min(join.link + join.output for join in joins)
        self._rows = len(layout.row) if not layout.packed else layout.example.shape[0]
        self._steps = Steps(chain)
        self._active = 0
        self._prefix = int(layout.begins.max()) if layout.packed else 0
        self._masks: dict[int, Tensor] = {}
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def running(self) -> Iterator[Callable[[ExitStack], None]]:
        """Hold what a late pass needs.

        Yields:
            A function that registers, into a stack, what has to come after the hooks of the edits.
        """
        skipped = {link.module for link in self._chain.links[: self._first]}
        with ExitStack() as stack:
            stack.enter_context(forwards(dict.fromkeys(skipped, self._stand_in)))
            if self._ending is not None and self._ending.link.module not in skipped:
                stack.enter_context(forwards({self._ending.link.module: self._ending.forward}))
            for module in (link.module for link in self._chain.links):
                stack.enter_context(before_call(module, self._before))
            if self._layout.packed:
                stack.enter_context(around_attention(self._attend))

            def finish(later: ExitStack) -> None:
                for module in (link.module for link in self._chain.links):
                    later.enter_context(after_call(module, self._after, first=True))

            yield finish

    # --- the blocks that are left out ---------------------------------------------------------------------------

    def _stand_in(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            link = self._steps.link
            if link is None:
                return forward(*args, **kwargs)
            for name, entries in self._kept.sides.get(link.number, {}).items():
                kwargs[name].update({key: self._rowed(value) for key, value in entries.items()})
            leaf, shell = self._kept.shells.get(link.number, ((), None))
            return replace_leaf(self._rowed(shell), leaf, self._handed_on(link))

        return stand_in

    def _rowed(self, value: Any) -> Any:
        """Return what a block gave for the input as it would give it for the rows of this pass."""
        if self._kept.batch == self._rows and not self._layout.packed:
            return value
        return by_batch(value, self._kept.batch, lambda t: self._layout.lay(t, range(self._rows)))

    def _handed_on(self, link: Link) -> Tensor:
        """Return what a block that is left out returns: nobody reads it, except an encoder's last."""
        closing = self._chain.links[link.number + 1 :][:1]
        if closing and closing[0].rank != link.rank:
            return self._layout.lay(self._kept.outputs[link.number], range(self._rows))
        state = self._kept.state
        return state.new_zeros(()).expand(*self._layout.example.shape, state.shape[-1])

    # --- the blocks that run --------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, arguments: Any) -> Any:
        link = self._steps.enter(module)
        if link.number < self._first:
            return None
        joins = self._joins.get((link.number, False))
        if joins:
            leaf, hidden = find_leaf(arguments, link.input.leaf, link.input.path)
            arguments = self._with(arguments, (leaf, *link.input.also), self._joined(hidden, joins, link))
        if self._active < self._rows:
            fixed = self._kept.fixed.get(link.number, ())
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
        link = self._steps.link
        if link is None or link.module is not module:
            return None
        joins = self._joins.get((link.number, True))
        if self._whole:
            output = by_batch(output, self._active, self._widened)
            self._whole.clear()
        if not joins:
            return output
        leaf, hidden = find_leaf(output, link.output.leaf, link.output.path)
        return self._with(output, (leaf,), self._joined(hidden, joins, link))

    @staticmethod
    def _with(container: Any, leaves: Sequence[Any], tensor: Tensor) -> Any:
        for leaf in leaves:
            container = replace_leaf(container, leaf, tensor)
        return container

    def _joined(self, hidden: Tensor, joins: Sequence[Join], link: Link) -> Tensor:
        parts = [hidden] if self._active else []
        for join in joins:
            states = self._kept.outputs if join.output else self._kept.inputs
            parts.append(join.edit(self._layout.lay(states[link.number], join.rows)))
            self._active = join.rows.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    # --- attention of tails ---------------------------------------------------------------------------------------

    def _attend(
        self, function: Any, _default: Any, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        link = self._steps.link
        if link is None:
            return function(module, *inputs, **options)
        names = ("query", "key", "value", "attention_mask")
        given = dict(zip(names, inputs, strict=False)) | {n: options.pop(n) for n in names if n in options}
        ending = self._ending if self._ending is not None and self._ending.link is link and self._ending.cuts else None
        if ending is not None and ending.asked:
            return function(module, given["query"], *ending.answer(), *inputs[4:], **options)
        seen = self._kept.attended[link.number, self._steps.attentions]
        self._steps.attentions += 1
        rows = self._layout.example[: self._active, 0]
        key, value = (self._behind(known, given[n], rows) for n, known in (("key", seen.key), ("value", seen.value)))
        if id(seen.allowed) not in self._masks:
            self._masks[id(seen.allowed)] = self._layout.mask(seen.allowed, self._prefix)
        mask = self._masks[id(seen.allowed)][: self._active]
        if ending is not None:
            ending.ask(key, value, mask)
        return function(module, given["query"], key, value, mask, *inputs[4:], **options)

    def _behind(self, known: Tensor, own: Tensor, rows: Tensor) -> Tensor:
        """Return the keys or values of the known prefix with a row's own behind them."""
        prefix = known[:, :, : self._prefix]
        prefix = prefix.expand(len(rows), -1, -1, -1) if known.shape[0] == 1 else prefix[rows.to(known.device)]
        return torch.cat([prefix, own], dim=2)
