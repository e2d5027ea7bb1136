"""The ends: the embedding before each stack of blocks, the norm after it, and the logits of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from .findings import Findings, same_values
from .slot import Slot
from .stacks import Stack
from .trace import ModuleCall, Trace

Ends = tuple[dict[str, Slot], dict[str, str]]
"""The slots of the ends, and why those that are missing are; those of a named stack have its name in front."""


def find_ends(model: nn.Module, trace: Trace, stacks: Mapping[str, Stack]) -> Ends:
    """Return the ends of each stack, and the logits, which belong to no stack.

    Args:
        model: the model that was traced.
        trace: the forward pass.
        stacks: the stacks by name; the only or the main one is named `""`.
    """
    slots: dict[str, Slot] = {}
    missing: dict[str, str] = {}
    for name, stack in stacks.items():
        found = Findings(trace, stack.calls[0], 0, 0)
        _find_embedding(found, stack)
        _find_norm(found, stack)
        slots.update({end_name(end, name): slot for end, slot in found.slots.items()})
        missing.update({end_name(end, name): reason for end, reason in found.missing.items()})
    whole = Findings(trace, next(iter(stacks.values())).calls[0], 0, 0)
    named = _ask(model, "get_output_embeddings")
    call = None if named is None else next((c for c in trace.calls if _is(c.module, named)), None)
    if call is None:
        whole.refuse(["logits"], "the model does not say which module that is, or did not call it")
    else:
        whole.note("logits", call, "output", "the model names it")
    return slots | whole.slots, missing | whole.missing


def end_name(end: str, stack: str) -> str:
    """Return the name of a stack's end.

    >>> end_name("embedding_output", "encoder"), end_name("embedding_output", "")
    ('encoder.embedding_output', 'embedding_output')
    """
    return f"{stack}.{end}" if stack else end


def _find_embedding(found: Findings, stack: Stack) -> None:
    """Note the embedding that the innermost part around the stack names, of those that ran in it before the blocks."""
    first = stack.calls[0]
    for part in _around(first):
        named = _ask(part.module, "get_input_embeddings")
        ran = [c for c in found.trace.calls if c.inside(part) and c.end < first.start]
        calls = [] if named is None else [c for c in ran if _is(c.module, named)]
        if calls and isinstance(calls[0].module, nn.modules.conv._ConvNd):
            reason = f"{calls[0].path} is a convolution: its last axis is not its channels"
            found.refuse(["embedding_output"], reason)
            return
        if calls:
            found.note("embedding_output", calls[0], "output", "the model names it")
            return
    found.refuse(["embedding_output"], "the model does not say which module that is, or did not call it")


def _around(call: ModuleCall) -> Iterator[ModuleCall]:
    """Yield the calls that a call happened in, innermost first."""
    while call.parent is not None:
        call = call.parent
        yield call


def _find_norm(found: Findings, stack: Stack) -> None:
    last = stack.calls[-1]
    after = [call for call in found.trace.calls if call.start > last.end and same_values(call.input, last.output)]
    norm = next((call for call in after if _is_norm(call)), None)
    if norm is None:
        found.refuse(["final_norm_output"], "no norm reads the last block's output")
    else:
        found.note("final_norm_output", norm, "output", "the norm that reads the last block's output")


def _ask(model: nn.Module, method: str) -> nn.Module | None:
    """Return what a model of transformers says of itself; `None` where it says nothing."""
    asked = getattr(model, method, None)
    try:
        said = asked() if callable(asked) else None
    except (NotImplementedError, AttributeError):
        return None
    return said if isinstance(said, nn.Module) else None


def _is(module: nn.Module, asked: nn.Module) -> bool:
    """Whether a module is the one asked for, or one of its kind that shares its weight."""
    weight = getattr(module, "weight", None)
    return module is asked or (type(module) is type(asked) and weight is not None and weight is asked.weight)


def _is_norm(call: ModuleCall) -> bool:
    """Whether a call keeps the shape and has no weights but vectors of the last axis's size."""
    if call.input is None or call.output is None or call.input.shape != call.output.shape:
        return False
    weights = list(call.module.parameters())
    return bool(weights) and all(p.ndim == 1 and p.shape[0] == call.input.shape[-1] for p in weights)
