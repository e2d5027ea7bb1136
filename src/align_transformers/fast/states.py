"""What a pass leaves for others that start from its states: the residual stream, side channels, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..models import find_leaf, replace_leaf
from ..models.inside_attention import around_attention
from ..models.scope import after_call, before_call
from ..models.slot import Leaf
from .budget import measuring
from .depth import BlockCall, Blocks


@dataclass(frozen=True, eq=False)
class Attended:
    """One attention of a pass.

    Args:
        key: `(batch, kv heads, length, size)` after norms and rotary.
        value: likewise.
        allowed: who sees whom, `(1 or batch, 1 or heads, length, length)`: booleans or numbers to add.
    """

    key: Tensor
    value: Tensor
    allowed: Tensor


@dataclass(eq=False)
class States:
    """The states of one input in one pass, as far as they were really computed.

    What a pass that started from other states did not compute is in it only as those others had it.

    Args:
        batch: examples.
        inputs: by number of the block what came into it, `(batch, length, width)`.
        outputs: likewise what came out.
        shells: by number of the block the container in which it returned its output, and where in it.
        sides: by number of the block the dictionaries that blocks hand each other, by keyword.
        fixed: by number of the block where in its arguments tensors are that are not by example.
        attended: by number of the block and of the attention in it.
        samples: by rank of a stack any of its states, for their length, width, dtype and device.
        bytes: what a block's modules return for one token of one example, all together.
        unpackable: why tails cannot be laid side by side; empty if they can.
    """

    batch: int
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    shells: dict[int, tuple[Leaf, Any]] = field(default_factory=dict)
    sides: dict[int, dict[str, dict[Any, Any]]] = field(default_factory=dict)
    fixed: dict[int, frozenset[Leaf]] = field(default_factory=dict)
    attended: dict[tuple[int, int], Attended] = field(default_factory=dict)
    samples: dict[int, Tensor] = field(default_factory=dict)
    bytes: float = 0.0
    unpackable: str = ""

    def at(self, number: int, output: bool) -> Tensor:
        """Return what came into a block or out of it.

        Raises:
            KeyError: that was not kept.
        """
        return (self.outputs if output else self.inputs)[number]

    @property
    def main(self) -> Tensor:
        """A state of the main stack; of the encoder, where the pass came no further."""
        return self.samples[max(self.samples)]

    def below(self, first: int) -> States:
        """Return the beginning of what a pass leaves that starts from these states at a block and runs no other below.

        Args:
            first: number of the first block that the pass runs.
        """
        kept = States(self.batch, samples=dict(self.samples), unpackable=self.unpackable)
        for name in ("outputs", "shells", "sides", "fixed"):
            getattr(kept, name).update({at: value for at, value in getattr(self, name).items() if at < first})
        return kept


class Cursor:
    """At which block a pass is, and how many attentions it has seen there."""

    def __init__(self, blocks: Blocks) -> None:
        self._calls = {call.module: call for call in blocks.calls}
        self.call: BlockCall | None = None
        self.attentions = 0

    def enter(self, module: nn.Module) -> BlockCall:
        """Note that a block is called, and return its call."""
        self.call = self._calls[module]
        self.attentions = 0
        return self.call


class Recorder:
    """Fills `States` in a pass.

    Args:
        states: to be filled.
        blocks: the model's.
        places: number of a block, and whether its output is asked for rather than its input.
        first: number of the first block that the pass runs: below it are stand-ins, of which nothing is taken.
        heads: also keep keys and values.
    """

    def __init__(
        self, states: States, blocks: Blocks, places: Collection[tuple[int, bool]], *, first: int = 0, heads: bool
    ) -> None:
        self.states = states
        self._blocks, self._places, self._first, self._heads = blocks, set(places), first, heads
        self._last = max(number for number, _ in places)
        self._cursor = Cursor(blocks)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Hold what has to stand before the hooks of the edits."""
        with ExitStack() as stack:
            for call in self._blocks.calls:
                stack.enter_context(before_call(call.module, self._before))
            stack.enter_context(measuring(self._blocks.calls[self._last].module, self._measured))
            if self._heads:
                stack.enter_context(around_attention(self._attend))
            yield

    @contextmanager
    def within(self) -> Iterator[None]:
        """Hold what has to stand after them."""
        with ExitStack() as stack:
            for call in self._blocks.calls:
                stack.enter_context(after_call(call.module, self._after, first=True))
            yield

    def _before(self, module: nn.Module, arguments: Any) -> None:
        call, states = self._cursor.enter(module), self.states
        if call.number < self._first:
            return
        states.fixed[call.number] = frozenset(not_by_batch(arguments, states.batch))
        if (call.number, False) in self._places:
            states.inputs[call.number] = find_leaf(arguments, call.input.leaf, call.input.path)[1]
            states.samples[call.rank] = states.inputs[call.number]

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        call, states = self._cursor.call, self.states
        if call is None or call.module is not module or not self._first <= call.number <= self._last:
            return
        leaf, tensor = find_leaf(output, call.output.leaf, call.output.path)
        states.samples[call.rank] = tensor
        if call.number == self._last:
            states.bytes = (states.bytes + tensor.nbytes) / tensor.shape[:2].numel()
        if self._blocks.closes(call) or (call.number, True) in self._places:
            states.outputs[call.number] = tensor
        if leaf:
            states.shells[call.number] = leaf, replace_leaf(output, leaf, tensor.new_empty(0))
        sides = {name: dict(value) for name, value in arguments[1].items() if is_side_channel(value)}
        if sides:
            states.sides[call.number] = sides

    def _attend(
        self, function: Any, default: Any, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        call = self._cursor.call
        if call is not None and call.number >= self._first:
            names = ("query", "key", "value", "attention_mask")
            given = dict(zip(names, inputs, strict=False)) | {n: options[n] for n in names if n in options}
            seen = _seen(given, module, options, function is default)
            if isinstance(seen, str):
                self.states.unpackable = seen
            else:
                self.states.attended[call.number, self._cursor.attentions] = seen
            self._cursor.attentions += 1
        return function(module, *inputs, **options)

    def _measured(self, size: int) -> None:
        self.states.bytes += size


def is_side_channel(value: Any) -> bool:
    """Whether an argument is a dictionary by which blocks hand each other tensors; a cache is none."""
    return isinstance(value, Mapping) and not hasattr(value, "get_seq_length")


def _seen(given: Mapping[str, Any], module: nn.Module, options: Mapping[str, Any], eager: bool) -> Attended | str:
    """Return what an attention saw; or why it does not allow to lay tails side by side."""
    key, query, mask = given["key"], given["query"], given.get("attention_mask")
    name = type(module).__name__
    if key.shape[2] != query.shape[2]:
        return f"{name} has queries and keys of different sequences"
    if mask is None:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if eager or not causal:
            return f"{name} is not causal"
        mask = _triangle(key.shape[2], key.device)
    elif not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[2:] != (key.shape[2],) * 2:
        return f"{name} attends under a mask of another form than (batch, heads, queries, keys)"
    if options.get("position_bias") is not None:
        return f"{name} has a position bias"
    return Attended(key, given["value"], mask)


@lru_cache(maxsize=8)
def _triangle(length: int, device: torch.device) -> Tensor:
    """Return the causal mask, the same object for all layers."""
    with torch.inference_mode(False):
        return torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()


def is_causal(allowed: Tensor) -> bool:
    """Whether a mask lets no position see a later one."""
    seen = allowed if allowed.dtype == torch.bool else allowed > torch.finfo(allowed.dtype).min / 2
    return not bool(seen.triu(1).any())


def by_batch(
    value: Any, batch: int, pick: Callable[[Tensor], Tensor], fixed: Collection[Leaf] = (), at: Leaf = ()
) -> Any:
    """Return a nested container with `pick` applied to every tensor that has a first axis of `batch` examples.

    Args:
        value: tuples, lists, dicts and tensors; anything else is handed on as it is.
        batch: length of the first axis.
        pick: from such a tensor to another.
        fixed: where in the container tensors are whose first axis is that long by chance.
        at: the way to `value`.
    """
    if isinstance(value, Tensor):
        return pick(value) if value.ndim >= 2 and value.shape[0] == batch and at not in fixed else value
    if isinstance(value, tuple | list):
        items = [by_batch(item, batch, pick, fixed, (*at, number)) for number, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {key: by_batch(item, batch, pick, fixed, (*at, key)) for key, item in value.items()}
    return value


def not_by_batch(value: Any, batch: int, at: Leaf = ()) -> Iterator[Leaf]:
    """Yield where in a nested container tensors are whose first axis is neither the examples' nor one for all.

    >>> import torch
    >>> list(not_by_batch((torch.ones(2, 3), {"bias": torch.ones(4, 1, 3)}), 2))
    [(1, 'bias')]
    """
    if isinstance(value, Tensor):
        if value.ndim >= 2 and value.shape[0] not in (1, batch):
            yield at
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from not_by_batch(item, batch, (*at, number))
    elif type(value) is dict:
        for key, item in value.items():
            yield from not_by_batch(item, batch, (*at, key))
