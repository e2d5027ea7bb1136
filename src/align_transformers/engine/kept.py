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
from ..models.slot import Leaf
from .budget import measuring
from .chain import Chain, Link, not_by_batch
from .hooks import after_call, before_call
from .interface import around_attention


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
class Kept:
    """The unedited states of one input.

    Args:
        batch: examples.
        inputs: by number of the link what came into the block, `(batch, length, width)`.
        outputs: likewise what came out.
        shells: by number of the link the container in which the block returned its output, and where in it.
        sides: by number of the link the dictionaries that blocks hand each other, by keyword.
        fixed: by number of the link where in its arguments tensors are that are not by example.
        attended: by number of the link and of the attention in it.
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
    bytes: float = 0.0
    unpackable: str = ""

    @property
    def state(self) -> Tensor:
        """Any of the states: for their length, width, dtype and device."""
        return next(iter({**self.inputs, **self.outputs}.values()))


class Steps:
    """Which link of the chain a pass is at, and how many attentions it has seen there."""

    def __init__(self, chain: Chain) -> None:
        self._links = {link.module: link for link in chain.links}
        self.link: Link | None = None
        self.attentions = 0

    def enter(self, module: nn.Module) -> Link:
        """Note that a block is called, and return its link."""
        self.link = self._links[module]
        self.attentions = 0
        return self.link


@contextmanager
def keeping(
    kept: Kept, chain: Chain, depths: Collection[tuple[int, bool]], steps: Steps, heads: bool
) -> Iterator[Callable[[ExitStack], None]]:
    """Fill `kept` in the pass that is run while the context is open.

    Args:
        kept: to be filled.
        chain: the model's blocks.
        depths: number of a link, and whether its output is asked for rather than its input.
        steps: where the pass is.
        heads: also keep keys and values.

    Yields:
        A function that registers, into a stack, what has to come after the hooks of the edits.
    """
    last = max(number for number, _ in depths)

    def before(module: nn.Module, arguments: Any) -> None:
        link = steps.enter(module)
        kept.fixed[link.number] = frozenset(not_by_batch(arguments, kept.batch))
        if (link.number, False) in depths:
            kept.inputs[link.number] = find_leaf(arguments, link.input.leaf, link.input.path)[1]

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        link = steps.link
        if link is None or link.module is not module or link.number > last:
            return
        leaf, tensor = find_leaf(output, link.output.leaf, link.output.path)
        if link.number == last:
            kept.bytes /= tensor.shape[:2].numel()
        closing = link.number + 1 < len(chain) and chain.links[link.number + 1].rank != link.rank
        if closing or (link.number, True) in depths:
            kept.outputs[link.number] = tensor
        if leaf:
            kept.shells[link.number] = leaf, replace_leaf(output, leaf, tensor.new_empty(0))
        sides = {name: dict(value) for name, value in arguments[1].items() if is_side_channel(value)}
        if sides:
            kept.sides[link.number] = sides

    def attend(function: Any, default: Any, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if steps.link is not None:
            names = ("query", "key", "value", "attention_mask")
            given = dict(zip(names, inputs, strict=False)) | {n: options[n] for n in names if n in options}
            seen = _seen(given, module, options, function is default)
            if isinstance(seen, str):
                kept.unpackable = seen
            else:
                kept.attended[steps.link.number, steps.attentions] = seen
            steps.attentions += 1
        return function(module, *inputs, **options)

    def measured(size: int) -> None:
        kept.bytes += size

    with ExitStack() as stack:
        for module in (link.module for link in chain.links):
            stack.enter_context(before_call(module, before))
        stack.enter_context(measuring(chain.links[last].module, measured))
        if heads:
            stack.enter_context(around_attention(attend))

        def finish(later: ExitStack) -> None:
            for module in (link.module for link in chain.links):
                later.enter_context(after_call(module, after, first=True))

        yield finish


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
