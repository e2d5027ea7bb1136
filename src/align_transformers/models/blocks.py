"""The blocks of a stack, examined: one of each kind, the others by likeness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .attention import block_axes, find_attention
from .component_map import Block
from .contributions import find_contributions
from .findings import Findings
from .mixer import find_mixer
from .mlp import find_mlp
from .stacks import Stack
from .trace import ModuleCall, Trace


def examine_stack(stack: Stack, trace: Trace, batch: int) -> list[Findings]:
    """Return what is found out about each block: one of each kind is examined; blocks that ran alike are alike.

    Args:
        stack: the blocks.
        trace: the forward pass that was watched.
        batch: examples in its input.
    """
    signatures = [_signature(call, trace) for call in stack.calls]
    # The last of a kind: a model that loops may run all but its last round without gradients.
    known = {
        signature: _examine(call, trace, batch)
        for signature, call in dict(zip(signatures, stack.calls, strict=True)).items()
    }
    result = []
    for signature, call in zip(signatures, stack.calls, strict=True):
        found = known[signature]
        result.append(found if found.block is call else _transfer(found, call, trace))
        find_contributions(result[-1])  # a number that multiplies may be each block's own
        result[-1].flags["signature"] = list(known).index(signature)
    return result


def _signature(block: ModuleCall, trace: Trace) -> Any:
    """What a block is and does: its class, the shapes of its weights, the calls in it and the attentions in it.

    The same tensor may stand several times among the arguments of one call, and different ones in the next block's.
    """
    weights = tuple((name, tuple(p.shape)) for name, p in block.module.named_parameters())
    calls = tuple(
        (_relative(call.path, block.path), call.number - block.number, call.input_twins)
        for call in (block, *trace.during(block))
    )
    attentions = tuple((_relative(a.owner.path, block.path), a.source) for a in trace.attentions_during(block))
    return type(block.module).__name__, weights, calls, attentions


def _relative(path: str, root: str) -> str:
    """Return a path from the block on, with a dot in front; a module outside the block keeps its whole path."""
    return path[len(root) :] if path == root or path.startswith(root + ".") else path


def _examine(block: ModuleCall, trace: Trace, batch: int) -> Findings:
    found = Findings(trace, block, *block_axes(block, trace.attentions_during(block), batch))
    how = "the block: a chain of modules, each given what the one before returned"
    found.note("block_input", block, "input", how)
    found.note("block_output", block, "output", how)
    linears = [call for call in trace.during(block) if call.cut is not None]
    find_attention(found, linears)
    find_mixer(found, linears)
    find_mlp(found, linears)
    return found


def _transfer(known: Findings, block: ModuleCall, trace: Trace) -> Findings:
    """Return what is known of a block for another one that ran alike."""
    by_path = {(_relative(call.path, block.path), call.number - block.number): call for call in trace.during(block)}
    by_path["", 0] = block
    how, missing, flags = (_renamed(said, known.block, block) for said in (known.how, known.missing, known.flags))
    found = Findings(trace, block, known.batch, known.length, {}, how, missing, flags)
    for name, slot in known.slots.items():
        number = 0 if slot.call is None else slot.call - known.block.number
        call = by_path[_relative(slot.path, known.block.path), number]
        found.slots[name] = replace(
            slot,
            module=call.module,
            path=call.path,
            call=None if slot.call is None else call.number,
            around=None if slot.around is None else block.module,
        )
    return found


def _renamed(said: Mapping[str, Any], known: ModuleCall, block: ModuleCall) -> dict[str, Any]:
    """Return what was said of one block with the paths of another in it."""
    old, new = f"{known.path}.", f"{block.path}."
    return {key: value.replace(old, new) if isinstance(value, str) else value for key, value in said.items()}


def block_of(found: Findings) -> Block:
    """Return what was found out about a block without the trace that it was found in."""
    return Block(found.block.path, found.block.number, found.slots, found.how, found.missing, found.flags)
