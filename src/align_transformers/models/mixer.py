"""Token mixers that are not softmax attention (state spaces, linear attention, convolutions): found by what they do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .findings import Findings, same_values
from .probing import call_again, call_differentiably, passes_around
from .trace import ModuleCall

NAMES = ("mixer_input", "mixer_output")
_FELT = 1e-5
"""Smaller effects, relative to that at the first position itself, are rounding: experts sum in another order."""
_DENSE = 0.5
"""A mixer carries most channels of a position to others; the largest entry of all, which sets a scale, is one."""


def find_mixer(found: Findings, linears: Sequence[ModuleCall]) -> None:
    """Note the block's part that carries information from the first position to the last without softmax attention.

    Args:
        found: the block; linear layers of its attention are taken already.
        linears: the linear layers called in it.
    """
    parts = [c for c in found.trace.calls if c.parent is found.block and _keeps_rows(found, c)]
    children = [call for call in parts if found.free(call) and next(call.module.parameters(), None) is not None]
    reach = {call: reaches_to(call) for call in children}
    mixers = [call for call, distance in reach.items() if distance > 0]
    far = [call for call in mixers if reach[call] == found.length - 1]
    if len(mixers) > 1 and len(far) == 1:  # a shift by one position is no rival of what carries all the way
        mixers = far
    behind = [call for call in mixers if any(_follows(call, part) for part in parts)]
    for call in behind:
        found.take(call, linears)
    mixers = [call for call in mixers if call not in behind]
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
        found.refuse(NAMES, "no part of the block mixes positions other than its attention" + _said(behind))
    for mixer in mixers:
        found.take(mixer, linears)


def _keeps_rows(found: Findings, call: ModuleCall) -> bool:
    """Whether a call maps a vector a position to one of the same width: the block's, or that of one of its streams."""
    given, made = call.input, call.output
    if found.keeps_rows(call) or given is None or made is None or given.shape != made.shape:
        return found.keeps_rows(call)
    width = made.shape[-1]
    return found.width % width == 0 and made.numel() == found.batch * found.length * width


def _follows(call: ModuleCall, part: ModuleCall) -> bool:
    """Whether a call works on what another part of the block gives, as it is; norms are none."""
    matrices = any(parameter.ndim > 1 for parameter in part.module.parameters())
    return matrices and -1 < part.end < call.start and same_values(call.input, part.output)


def _said(behind: Sequence[ModuleCall]) -> str:
    paths = ", ".join(call.path for call in behind)
    return f" ({paths} work on what other parts give)" if behind else ""


def _without_residual(found: Findings, mixer: ModuleCall) -> ModuleCall:
    """Return the part inside a mixer that does its work, where the mixer also hands its input past it."""
    parts = [call for call in found.trace.calls if call.parent is mixer and found.keeps_rows(call)]
    far = reaches_to(mixer)
    working = [part for part in parts if reaches_to(part) == far]
    if len(working) == 1 and passes_around(mixer, [working[0].module]):
        return _without_residual(found, working[0])
    return mixer


def reaches_to(call: ModuleCall) -> int:
    """Return the last position of a module's output that follows from the first position of its input.

    The module is called again on its own, with the arguments that it had. Its gradient tells: what only rounds, or
    chooses, by other rows (int8 with a scale for all of them, experts that are full) has none, or of one entry.
    """
    if call.input is None or call.output is None or call.input.ndim != 3 or call.output.ndim != 3:
        return 0
    again = call_differentiably(call)
    if again is None or again[0].shape[:2] != again[1].shape[:2]:
        return _moves_to(call)
    try:
        felt = [_pull(*again, position) for position in range(again[1].shape[1])]
    except RuntimeError:  # a kernel without a derivative
        return _moves_to(call)
    least = _FELT * felt[0].amax()
    reached = [n for n, pull in enumerate(felt) if pull.amax() > least and (pull > 0).float().mean() > _DENSE]
    return max(reached, default=0)


def _pull(leaf: Tensor, output: Tensor, position: int) -> Tensor:
    """Return how strongly each channel of the first position of the input acts on a position of the output."""
    weights = torch.randn(output[:, 0].shape, generator=torch.Generator().manual_seed(0)).to(output)
    total = (output[:, position] * weights).sum()
    (gradient,) = torch.autograd.grad(total, [leaf], retain_graph=True, allow_unused=True)
    return torch.zeros(1) if gradient is None else gradient[:, 0].abs().amax(0).float().cpu()


def _moves_to(call: ModuleCall) -> int:
    """Return the last position of a module's output that changes when the first position of its input does."""

    def nudge(tensor: Tensor) -> Tensor:
        tensor[:, 0] += 1.0
        return tensor

    before, after = call_again(call, lambda tensor: tensor), call_again(call, nudge)
    if before is None or after is None or before[0].shape != after[0].shape:
        return 0
    moved = (before[0] - after[0]).abs().flatten(2).amax((0, 2))
    changed = (moved > _FELT * moved[0]).nonzero()
    return int(changed.max()) if len(changed) else 0
