"""Finding the stacks of blocks: containers whose members pass one tensor on from each to the next."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from .trace import ModuleCall, Trace, is_linear

_HANDED_ON = 0.3
"""Some models add something between a few of their blocks; where hardly any hands on its output, they are no chain."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A chain of blocks.

    Args:
        path: dotted path of the container.
        calls: the calls of its blocks in order; a block that is called twice stands there twice.
        parameters: how many parameters the container holds.
        attends: whether attention is computed in it.
    """

    path: str
    calls: tuple[ModuleCall, ...]
    parameters: int
    attends: bool


def find_stacks(model: nn.Module, trace: Trace) -> list[Stack]:
    """Return the chains of blocks, outermost only, those with few parameters left out.

    Args:
        model: the model that was traced.
        trace: one forward pass.
    """
    by_path: dict[str, list[ModuleCall]] = {}
    for call in trace.calls:
        by_path.setdefault(call.path, []).append(call)
    found: list[Stack] = []
    for path, container in model.named_modules():
        if isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            members = [f"{path}.{name}" if path else name for name in container._modules]
            calls = sorted((call for member in members for call in by_path.get(member, [])), key=lambda c: c.start)
            calls = [call for call in calls if _keeps_shape(call)]
            inner = any(path.startswith(stack.path + ".") for stack in found)
            if not inner and _chains(calls):
                size = sum(p.numel() for p in container.parameters())
                attends = any(trace.attentions_during(call) for call in calls)
                found.append(Stack(path, tuple(calls), size, attends))
    largest = max((stack.parameters for stack in found), default=0)
    return [stack for stack in found if stack.parameters > 0.03 * largest]


def _keeps_shape(call: ModuleCall) -> bool:
    same = call.input is not None and call.output is not None and call.input.shape == call.output.shape
    return same and call.input.ndim >= 2 and call.end > 0  # type: ignore[union-attr]


def _chains(calls: list[ModuleCall]) -> bool:
    """Whether these calls are blocks: composite modules, one after the other, each given what the last one returned."""
    if len(calls) < 2 or any(next(call.module.children(), None) is None for call in calls):
        return False
    if any(is_linear(call) for call in calls):
        return False
    pairs = list(itertools.pairwise(calls))
    if any(before.end > after.start for before, after in pairs):
        return False
    return sum(hands_on(before, after) for before, after in pairs) >= _HANDED_ON * len(pairs)


def hands_on(before: ModuleCall, after: ModuleCall) -> bool:
    """Whether a block is given exactly what the block before it returned."""
    left, right = before.output, after.input
    return left is not None and right is not None and left.shape == right.shape and torch.equal(left, right)
