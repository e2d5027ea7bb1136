"""Token mixers that are not softmax attention (state spaces, linear attention, convolutions): found by what they do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .findings import Findings
from .slot import find_leaf, replace_leaf
from .trace import Call

NAMES = ("mixer_input", "mixer_output")
_FELT = 1e-5
"""Smaller changes, relative to that at the changed position, are rounding: experts sum in another order."""


def find_mixer(found: Findings, linears: Sequence[Call]) -> None:
    """Note the block's part that carries information from the first position to the last without softmax attention.

    Args:
        found: the block; linear layers of its attention are taken already.
        linears: the linear layers called in it.
    """
    children = [call for call in found.trace.calls if call.parent is found.block and found.keeps_rows(call)]
    children = [call for call in children if found.free(call) and next(call.module.parameters(), None) is not None]
    reach = {call: reaches_to(call) for call in children}
    mixers = [call for call, distance in reach.items() if distance > 0]
    far = [call for call in mixers if reach[call] == found.length - 1]
    if len(mixers) > 1 and len(far) == 1:  # a shift by one position is no rival of what carries all the way
        mixers = far
    how = "what it does: a change of the first position reaches others through it"
    if len(mixers) == 1:
        found.found("mixer_input", mixers[0], "input", how)
        found.found("mixer_output", mixers[0], "output", how)
        found.flags["mixer"] = "other" if found.flags["mixer"] == "none" else "softmax+other"
    elif mixers:
        found.refuse(NAMES, f"several parts mix positions: {', '.join(call.path for call in mixers)}")
        found.flags["mixer"] = "unsure"
    else:
        found.refuse(NAMES, "no part of the block mixes positions other than its attention")
    for mixer in mixers:
        found.take(mixer, linears)


def reaches_to(call: Call) -> int:
    """Return the last position of a module's output that changes when the first position of its input does.

    The module is called again on its own, with the arguments that it had.
    """
    if call.input is None or call.output is None or call.input.ndim != 3 or call.output.ndim != 3:
        return 0
    with torch.no_grad():
        before, after = (_again(call, amount) for amount in (0.0, 1.0))
    if before is None or after is None or before.shape != after.shape:
        return 0
    moved = (before - after).abs().flatten(2).amax((0, 2))
    changed = (moved > _FELT * moved[0]).nonzero()
    return int(changed.max()) if len(changed) else 0


def _again(call: Call, amount: float) -> Tensor | None:
    assert call.input is not None
    changed = call.input.detach().clone()
    changed[:, 0] += amount
    args, kwargs = replace_leaf(call.arguments, call.input_leaf, changed)
    try:
        return find_leaf(call.module(*args, **kwargs), call.output_leaf, call.path)[1]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return None  # a module that cannot be called on its own is not taken for a mixer
