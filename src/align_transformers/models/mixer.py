"""Token mixers that are not softmax attention (state spaces, linear attention, convolutions): found by what they do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .findings import Findings
from .probing import call_again, passes_around
from .trace import ModuleCall

NAMES = ("mixer_input", "mixer_output")
_FELT = 1e-5
"""Smaller changes, relative to that at the changed position, are rounding: experts sum in another order."""


def find_mixer(found: Findings, linears: Sequence[ModuleCall]) -> None:
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
    mixers = [_without_residual(found, mixer) for mixer in mixers] if len(mixers) == 1 else mixers
    if len(mixers) == 1:
        found.note("mixer_input", mixers[0], "input", how)
        found.note("mixer_output", mixers[0], "output", how)
        found.flags["mixer"] = "other" if found.flags["mixer"] == "none" else "softmax+other"
    elif mixers:
        found.refuse(NAMES, f"several parts mix positions: {', '.join(call.path for call in mixers)}")
        found.flags["mixer"] = "unsure"
    else:
        found.refuse(NAMES, "no part of the block mixes positions other than its attention")
    for mixer in mixers:
        found.take(mixer, linears)


def _without_residual(found: Findings, mixer: ModuleCall) -> ModuleCall:
    """Return the part inside a mixer that does its work, where the mixer also hands its input past it."""
    parts = [call for call in found.trace.calls if call.parent is mixer and found.keeps_rows(call)]
    far = reaches_to(mixer)
    working = [part for part in parts if reaches_to(part) == far]
    if len(working) == 1 and passes_around(mixer, [working[0].module]):
        return _without_residual(found, working[0])
    return mixer


def reaches_to(call: ModuleCall) -> int:
    """Return the last position of a module's output that changes when the first position of its input does.

    The module is called again on its own, with the arguments that it had.
    """
    if call.input is None or call.output is None or call.input.ndim != 3 or call.output.ndim != 3:
        return 0

    def nudge(tensor: Tensor) -> Tensor:
        tensor[:, 0] += 1.0
        return tensor

    before, after = call_again(call, lambda tensor: tensor), call_again(call, nudge)
    if before is None or after is None or before[0].shape != after[0].shape:
        return 0
    moved = (before[0] - after[0]).abs().flatten(2).amax((0, 2))
    changed = (moved > _FELT * moved[0]).nonzero()
    return int(changed.max()) if len(changed) else 0
