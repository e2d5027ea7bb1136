"""Finding the stacks of blocks: containers whose members pass one tensor on from each to the next."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .probing import passes_around
from .trace import Attention, ModuleCall, Trace, is_linear

_HANDED_ON = 0.3
"""Some models add something between a few of their blocks; where hardly any hands on its output, they are no chain."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A chain of blocks, or a single one.

    Args:
        path: dotted path of the container.
        calls: the calls of its blocks in order; a block that is called twice stands there twice.
        parameters: how many parameters the container holds.
        attends: whether attention is computed in it.
        alone: whether the container has one member.
    """

    path: str
    calls: tuple[ModuleCall, ...]
    parameters: int
    attends: bool
    alone: bool = False

    def holds(self, other: Stack) -> bool:
        """Whether another stack lies inside this one."""
        return other.path.startswith(self.path + ".")


def find_stacks(model: nn.Module, trace: Trace) -> list[Stack]:
    """Return the stacks of blocks, outermost only, those with few parameters left out.

    A block that is alone in its container is told by what it does, since there is no chain: see `_single_blocks`.

    Args:
        model: the model that was traced.
        trace: one forward pass.
    """
    candidates = list(_containers(model, trace))
    chains = [stack for stack in candidates if _chains(stack.calls)]
    blocks = [*chains, *_single_blocks(candidates, chains, trace)]
    found: list[Stack] = []
    for stack in candidates:  # containers come before those inside them
        if stack in blocks and not any(outer.holds(stack) for outer in found):
            found.append(stack)
    largest = max((stack.parameters for stack in found), default=0)
    return [stack for stack in found if stack.parameters > 0.03 * largest]


def _containers(model: nn.Module, trace: Trace) -> Iterator[Stack]:
    """Yield every container with the calls of its members that keep the shape of their input, outer ones first."""
    by_path: dict[str, list[ModuleCall]] = {}
    for call in trace.calls:
        by_path.setdefault(call.path, []).append(call)
    for path, container in model.named_modules():
        if isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            members = [f"{path}.{name}" if path else name for name in container._modules]
            calls = sorted((call for member in members for call in by_path.get(member, [])), key=lambda c: c.start)
            kept = tuple(call for call in calls if _keeps_shape(call))
            size = sum(p.numel() for p in container.parameters())
            yield Stack(path, kept, size, any(trace.attentions_during(call) for call in kept), len(members) == 1)


def _single_blocks(candidates: Sequence[Stack], chains: Sequence[Stack], trace: Trace) -> list[Stack]:
    """Return the containers whose only member, called once, is a block.

    It attends, and what it is given reaches what it returns past all its linear layers: the residual stream. In a model
    without chains and without attention, a residual stream is enough; or that there is no other such container.
    """
    alone = [s for s in candidates if s.alone and len(s.calls) == 1 and _composite(s.calls[0])]
    alone = [stack for stack in alone if not any(_is_chain_in(chain, stack, trace) for chain in chains)]
    streams = [stack for stack in alone if passes_around(stack.calls[0], _matrices(stack.calls[0], trace))]
    streams = [stack for stack in streams if not any(_is_wrapped(inner, stack, trace) for inner in streams)]
    if chains:  # an attention that adds its input itself is none
        return [stack for stack in streams if any(a.owner is not stack.calls[0] for a in _attentions(stack, trace))]
    if trace.attentions:
        return [stack for stack in streams if stack.attends]
    return streams or (alone if len(alone) == 1 else [])


def _is_chain_in(chain: Stack, single: Stack, trace: Trace) -> bool:
    """Whether a chain inside the only member of a container is one of blocks, so that the member itself is none.

    A T5 block, too, has its sublayers in a chain; but blocks are of one class, and if any attend, those do.
    """
    kinds = [type(call.module) for call in chain.calls if trace.attentions_during(call) or not single.attends]
    return single.holds(chain) and len(kinds) > len(set(kinds))


def _is_wrapped(inner: Stack, outer: Stack, trace: Trace) -> bool:
    """Whether a block adds no linear layer to those of a block inside it."""
    matrices = [set(_matrices(stack.calls[0], trace)) for stack in (inner, outer)]
    return outer.holds(inner) and matrices[0] == matrices[1]


def _attentions(stack: Stack, trace: Trace) -> list[Attention]:
    return [attention for call in stack.calls for attention in trace.attentions_during(call)]


def _matrices(block: ModuleCall, trace: Trace) -> list[nn.Module]:
    return [call.module for call in trace.during(block) if call.cut is not None]


def _composite(call: ModuleCall) -> bool:
    return next(call.module.children(), None) is not None and not is_linear(call)


def _keeps_shape(call: ModuleCall) -> bool:
    same = call.input is not None and call.output is not None and call.input.shape == call.output.shape
    return same and call.input.ndim >= 2 and call.end > 0  # type: ignore[union-attr]


def _chains(calls: Sequence[ModuleCall]) -> bool:
    """Whether these calls are blocks: composite modules, one after the other, each given what the last one returned."""
    if len(calls) < 2 or not all(_composite(call) for call in calls):
        return False
    pairs = list(itertools.pairwise(calls))
    if any(before.end > after.start for before, after in pairs):
        return False
    return sum(hands_on(before, after) for before, after in pairs) >= _HANDED_ON * len(pairs)


def hands_on(before: ModuleCall, after: ModuleCall) -> bool:
    """Whether a block is given exactly what the block before it returned."""
    left, right = before.output, after.input
    return left is not None and right is not None and left.shape == right.shape and torch.equal(left, right)
